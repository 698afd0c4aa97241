//! A program that was started here: its end can be awaited, and it does not outlive this process.

use std::{
    fs::File,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::sync::watch;

/// A started program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

#[derive(Debug, Default)]
struct Shared {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Starts a program whose output is appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let open = || File::options().append(true).create(true).open(log);
        let output = open().and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = output.with_context(|| format!("open {}", log.display()))?;
        // The kernel sends the signal when the thread ends that started the child: the waiter, which
        // ends before the child only together with this process.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        // The terminal's Ctrl-C is for this process, which then ends the others in order.
        command.process_group(0);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("BULKHEAD_")) {
            command.env_remove(name);
        }
        Self::spawn(command).with_context(|| format!("start {}", program.display()))
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (tell, ended) = watch::channel(None);
        let (started, starting) = std::sync::mpsc::channel();
        let waiter = Arc::clone(&shared);
        thread::spawn(move || match command.spawn() {
            Ok(child) => {
                drop(started.send(Ok(child.id())));
                wait(child, &waiter, &tell);
            }
            Err(error) => drop(started.send(Err(error))),
        });
        let pid = starting.recv().context("the starting thread ended early")??;
        Ok(Self { pid: Pid::from_raw(i32::try_from(pid)?), shared, ended })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.shared.lock()
    }

    /// Sends a signal; nothing where it has ended.
    pub fn signal(&self, signal: Signal) {
        // While the lock is held and there is no status, the process is not reaped: the id is its own.
        let status = self.shared.lock();
        if status.is_none() {
            // A zombie takes a signal, too.
            let _sent = kill(self.pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `within`.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let pid = self.pid;
        let waiting = self.ended.wait_for(Option::is_some);
        let status = tokio::time::timeout(within, waiting)
            .await
            .with_context(|| format!("process {pid} still runs after {within:?}"))?
            .context("nobody waits for the process")?;
        status.context("an end without a status")
    }

    /// Waits for its end, however long that takes.
    pub async fn when_ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let told = ended.wait_for(Option::is_some).await.map(|status| *status);
        match told {
            Ok(Some(status)) => status,
            // Whoever waits for the process tells its end before it goes.
            _ => std::future::pending().await,
        }
    }

    /// As [`Process::ended`], for where nothing can be awaited.
    pub fn ended_blocking(&self, within: Duration) -> Option<ExitStatus> {
        let running = |status: &mut Option<ExitStatus>| status.is_none();
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), within, running);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended_blocking(Duration::from_secs(10));
    }
}

fn wait(mut child: Child, shared: &Shared, tell: &watch::Sender<Option<ExitStatus>>) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    if let Ok(pid) = i32::try_from(child.id()) {
        while waitid(Id::Pid(Pid::from_raw(pid)), flags) == Err(nix::errno::Errno::EINTR) {}
    }
    let mut status = shared.lock();
    // Nobody else waits for this child, so it is there to be reaped.
    let reaped = child.wait().unwrap_or_else(|_: io::Error| ExitStatus::from_raw(0xff00));
    *status = Some(reaped);
    shared.changed.notify_all();
    drop(status);
    tell.send_replace(Some(reaped));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_told_with_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["-c".to_owned(), "echo here; exit 3".to_owned()];
        let log = dir.path().join("log");
        let mut process = Process::start(Path::new("/bin/sh"), &arguments, &log).unwrap();
        assert_eq!(process.ended(crate::HANG).await.unwrap().code(), Some(3));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "here\n");
        process.signal(Signal::SIGKILL);
    }

    #[test]
    fn a_dropped_process_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let process =
            Process::start(Path::new("/bin/sleep"), &["600".into()], &dir.path().join("log")).unwrap();
        let shared = Arc::clone(&process.shared);
        drop(process);
        assert!(shared.lock().is_some());
    }
}
