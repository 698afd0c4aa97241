//! The programs of the demo: each is run as a task and compared with its grant.

mod cpu;
mod forks;
mod kill;
mod memory;
mod ports;
mod web;

use std::pin::Pin;

use anyhow::Result;

use crate::{
    line::Line,
    stage::{Kind, Stage},
};

type Playing<'a> = Pin<Box<dyn Future<Output = Result<Line>> + Send + 'a>>;

/// One program.
pub(crate) struct Act {
    /// For `--only` and JSON.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// What the kernel must be able to enforce.
    pub(crate) needs: Option<Kind>,
    /// Runs it.
    pub(crate) play: for<'a> fn(&'a Stage) -> Playing<'a>,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All of them, in the order of the table.
pub(crate) const ACTS: [&Act; 6] = [&web::ACT, &cpu::ACT, &memory::ACT, &ports::ACT, &forks::ACT, &kill::ACT];

/// `12.3 MiB`.
fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!([0, 64 << 20, 12_900_000].map(mib), ["0.0 MiB", "64.0 MiB", "12.3 MiB"]);
    }
}
