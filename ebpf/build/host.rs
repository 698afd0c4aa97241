//! What both compilers need: running tools, and telling what is missing.

use std::{ffi::OsStr, path::Path, process::Command};

/// Variables that choose tools. `RUSTC` is set by cargo and changes with the toolchain.
pub(crate) const VARIABLES: [&str; 4] = ["BPF_RUSTC", "BPF_LLC", "BPF_CLANG", "RUSTC"];

/// The standard output of a command that succeeds.
pub(crate) fn stdout(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Runs a command; its standard error is the error.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)))
}

/// A message about something that is not installed.
pub(crate) fn missing(what: &str, packages: &str) -> String {
    format!("{what}. On Debian or Ubuntu: `deploy/setup build`, or `apt install {packages}`")
}

/// Reads a file, with its path in the error.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes a file, with its path in the error.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), String> {
    std::fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

/// Can this program be run at all?
pub(crate) fn runs(program: impl AsRef<OsStr>) -> bool {
    stdout(Command::new(program).arg("--version")).is_some()
}

/// FNV-1a, to tell objects apart; not against anybody who wants them to collide.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
