//! `bulkhead-agent calibrate-disk` on the disk that temporary files are on.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::{
    binaries::Binaries,
    cluster::{Verdict, until},
    harness, trials,
};
use libtest_mimic::Trial;
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_disk_is_measured_and_nothing_is_left,
        what_cannot_be_measured_is_named,
        a_small_disk_is_left_alone,
        an_interruption_leaves_nothing,
    ]
}

fn calibrate(arguments: &[&str]) -> Result<Command> {
    // Shells ignore Ctrl-C for what they start in the background, and that is inherited.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(Binaries::find()?.agent);
    command.arg("calibrate-disk").args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// Skips where the directory is on nothing that can be measured, as in a container.
fn measurable(output: &Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    if ["no block device", "io_uring"].iter().any(|why| said.contains(why)) {
        return harness::skip(said.trim());
    }
    ensure!(output.status.success(), "{said}");
    Ok(())
}

async fn a_disk_is_measured_and_nothing_is_left() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let model = tempfile::NamedTempFile::new()?;
    let arguments = [text(dir.path())?, "--time", "1s", "--json", "--out", text(model.path())?];
    let output = calibrate(&arguments)?.output()?;
    measurable(&output)?;
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains('\u{1b}') && said.contains(text(model.path())?), "{said}");

    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let measured = shown["measured"].as_array().context("what was measured")?;
    assert_eq!(measured.len(), 10, "six alone, and two pairs");
    for one in measured {
        let figure = |name: &str| one[name].as_u64().unwrap_or_default();
        assert!(figure("ops_per_sec") > 0 && figure("p50_usec") > 0, "{one}");
        assert!(
            figure("p50_usec") <= figure("p99_usec") && figure("p99_usec") <= figure("max_usec"),
            "{one}"
        );
        let bytes = one["load"]["bytes"].as_u64().unwrap_or_default();
        assert!(figure("bytes_per_sec").abs_diff(figure("ops_per_sec") * bytes) < bytes, "{one}");
    }
    for kind in ["read_bytes_per_sec", "write_bytes_per_sec", "read_ops_per_sec", "write_ops_per_sec"] {
        assert!(shown["both_at_once"][kind].as_u64() > Some(0), "{shown}");
    }
    let line = shown["io_cost"]["model"].as_str().unwrap_or_default();
    assert!(line.starts_with("ctrl=user model=linear rbps=") && line.contains(" wrandiops="), "{line}");
    let written = fs::read_to_string(model.path())?;
    assert!(written.starts_with('#') && written.contains(line), "{written}");
    Ok(())
}

async fn what_cannot_be_measured_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = text(dir.path())?;
    for (arguments, code, word) in [
        (&["/no/such/directory"][..], 1, "/no/such/directory"),
        (&["/dev/null"], 1, "neither a directory nor a block device"),
        (&["/proc"], 1, "no block device of its own"),
        (&["/etc/passwd"], 1, "neither"),
        (&[], 2, "DEVICE|DIR"),
        (&[dir, "--time", "10ms"], 2, "at least 1s"),
        (&[dir, "--time", "soon"], 2, "20s"),
        (&[dir, "--out", "/no/such/model.toml"], 1, "/no/such"),
    ] {
        let output = calibrate(arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    Ok(())
}

/// A file system in a file; gone when dropped.
struct Loop(tempfile::TempDir);

impl Loop {
    fn mount(image: &Path, mebibytes: u64) -> Result<Self> {
        fs::File::create(image)?.set_len(mebibytes << 20)?;
        let made = Command::new("mkfs.ext4").arg("-q").arg(image).output().context("run mkfs.ext4")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let dir = tempfile::tempdir()?;
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(image).arg(dir.path()).output()?;
        if !mounted.status.success() {
            return harness::skip(&format!(
                "no loop device: {}",
                String::from_utf8_lossy(&mounted.stderr).trim()
            ));
        }
        Ok(Self(dir))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.path().display());
        }
    }
}

async fn a_small_disk_is_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = Loop::mount(&dir.path().join("image"), 64)?;
    let output = calibrate(&[text(disk.0.path())?])?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("bytes free") && said.contains("268435456"), "{said}");
    let left: Vec<_> = fs::read_dir(disk.0.path())?.flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["lost+found"]);
    Ok(())
}

async fn an_interruption_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let dir = tempfile::tempdir()?;
        let mut command = calibrate(&[text(dir.path())?, "--time", "10min"])?;
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let fds = format!("/proc/{}/fd", child.id());
        let inside = fs::canonicalize(dir.path())?;
        let started = until("the scratch file to be open", || async {
            let links = fs::read_dir(&fds).into_iter().flatten().flatten();
            let open = links.filter_map(|e| fs::read_link(e.path()).ok()).any(|to| to.starts_with(&inside));
            let zombie = fs::read_dir(&fds).is_ok_and(|mut fds| fds.next().is_none());
            if open || zombie { Ok(open) } else { Err(Verdict::NotYet("not open".to_owned())) }
        });
        if started.await? {
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        }
        let output = child.wait_with_output()?;
        if output.status.signal() != Some(signal as i32) {
            measurable(&output)?;
        }
        assert_eq!(output.status.signal(), Some(signal as i32));
        assert_eq!(fs::read_dir(dir.path())?.count(), 0, "{signal}");
    }
    Ok(())
}
