//! What starting a program costs without Bulkhead: the least that any launch can take.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::latency::Latencies;

/// Starts the program `count` times, one after the other, and adds the time from the start of the burst until
/// each was executed.
pub(crate) fn burst(argv: &[&str], count: usize, latencies: &mut Latencies) -> Result<()> {
    let (program, arguments) = argv.split_first().context("a program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut children = Children(Vec::with_capacity(count));
    let start = Instant::now();
    for _ in 0..count {
        // Returns when exec has succeeded: the standard library uses posix_spawn, which waits for that.
        children.0.push(command.spawn().with_context(|| format!("start {program}"))?);
        latencies.add(start.elapsed());
    }
    Ok(())
}

/// Ended when dropped.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended by itself needs no end.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_is_counted_and_a_missing_program_named() {
        let mut latencies = Latencies::new().unwrap();
        burst(&["/bin/sleep", "600"], 3, &mut latencies).unwrap();
        assert_eq!(latencies.summary().samples, 3);
        let error = burst(&["/no/such/program"], 1, &mut latencies).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
