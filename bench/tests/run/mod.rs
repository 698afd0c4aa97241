//! Running a benchmark as its users do.

use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::HANG;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

/// Runs the benchmark to its end; its directory for temporary files must be empty afterwards.
pub(crate) async fn output(arguments: &[&str]) -> Result<Output> {
    let dir = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-bench"));
    command.args(arguments).env("TMPDIR", dir.path());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(HANG, command.output()).await.context("the benchmark does not end")??;
    ensure!(dir.path().read_dir()?.next().is_none(), "files are left");
    Ok(output)
}

/// What it prints with `--json`.
pub(crate) async fn report(arguments: &[&str]) -> Result<Value> {
    let output = output(&[arguments, &["--json"]].concat()).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("its standard output")
}
