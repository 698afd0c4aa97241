//! Whoever stops the demo finds the machine as it was: no process, cgroup, pin, mount or file is left.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::{HANG, harness, host, trials};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

/// Programs that need no cgroup controllers.
const ONLY: &str = "web,ports,kill";

fn main() -> ExitCode {
    let unfit = match host::cgroup2_mount() {
        _ if !host::is_root() => Some("needs root"),
        Err(_) => Some("needs a cgroup2 mount"),
        Ok(_) => None,
    };
    let tests = trials![ctrl_c_after_any_line_leaves_nothing, other_signals_end_it_too];
    harness::run(unfit, tests, || Ok(()))
}

async fn ctrl_c_after_any_line_leaves_nothing() -> Result<()> {
    let undisturbed = Run::start()?;
    let (lines, status) = undisturbed.interrupt_after(usize::MAX, Signal::SIGINT).await?;
    ensure!(status.success(), "it should end by itself: {status}, after {lines:#?}");
    for count in 0..lines.len() {
        let (_, status) = Run::start()?.interrupt_after(count, Signal::SIGINT).await?;
        // Before its first line it may not have got to handling signals.
        let early = count == 0 && status.signal() == Some(Signal::SIGINT as i32);
        ensure!(early || status.code() == Some(130), "Ctrl-C after {:?}: {status}", lines.get(count));
    }
    Ok(())
}

async fn other_signals_end_it_too() -> Result<()> {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let (_, status) = Run::start()?.interrupt_after(3, signal).await?;
        ensure!(status.code() == Some(code), "{signal}: {status}");
    }
    Ok(())
}

/// A demo with a directory of its own for temporary files.
struct Run {
    dir: tempfile::TempDir,
    demo: Child,
    group: Pid,
    progress: Lines<BufReader<ChildStderr>>,
    bpf_mounts: usize,
}

impl Run {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // Tasks run as another user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let bpf_mounts = bpf_mounts()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-demo"));
        command.args(["--only", ONLY]).env("TMPDIR", dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut demo = command.spawn().context("start the demo")?;
        let group = Pid::from_raw(i32::try_from(demo.id().context("a running demo")?)?);
        let progress = BufReader::new(demo.stderr.take().context("its standard error")?).lines();
        Ok(Self { dir, demo, group, progress, bpf_mounts })
    }

    /// Sends the signal to the whole foreground group, as a terminal does, and checks what is left at the end.
    async fn interrupt_after(mut self, count: usize, signal: Signal) -> Result<(Vec<String>, ExitStatus)> {
        let mut lines = Vec::new();
        let playing = async {
            while lines.len() < count
                && let Some(line) = self.progress.next_line().await?
            {
                lines.push(line);
            }
            if lines.len() == count {
                killpg(self.group, signal).context("signal the demo")?;
            }
            while self.progress.next_line().await?.is_some() {}
            self.demo.wait().await.context("wait for the demo")
        };
        let status = timeout(HANG, playing).await.context("the demo does not end")??;
        let left = self.left()?;
        ensure!(left.is_empty(), "{signal} after {:?} leaves {left:#?}", lines.last());
        Ok((lines, status))
    }

    /// What is there that was not before.
    fn left(&self) -> Result<Vec<String>> {
        let mine = format!("bulkhead-test-{}-", self.group);
        let in_dir = |dir: &Path, prefix: &str| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
                .map(|e| e.path())
                .collect()
        };
        let mut left = in_dir(&host::cgroup2_mount()?, &mine);
        left.extend(in_dir(Path::new("/sys/fs/bpf"), &mine));
        left.extend(in_dir(self.dir.path(), ""));
        let mut left: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
        for process in procfs::process::all_processes()?.flatten() {
            let place = self.dir.path();
            let inside = process.cwd().is_ok_and(|cwd| cwd.starts_with(place));
            let words = process.cmdline().unwrap_or_default();
            if inside || words.iter().any(|word| word.contains(&place.display().to_string())) {
                left.push(format!("process {} {words:?}", process.pid));
            }
        }
        if bpf_mounts()? > self.bpf_mounts {
            left.push("a mounted bpffs".to_owned());
        }
        Ok(left)
    }
}

fn bpf_mounts() -> Result<usize> {
    let mounts = procfs::process::Process::myself()?.mountinfo()?;
    Ok(mounts.into_iter().filter(|m| m.fs_type == "bpf").count())
}
