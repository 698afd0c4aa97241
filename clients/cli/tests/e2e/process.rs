//! The binary under test, as a child whose streams and end can be awaited.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(120);

/// `bulkhead` under way. Killed when dropped.
pub(crate) struct Bulkhead {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: BufReader<ChildStderr>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as one JSON value a line.
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|l| serde_json::from_str(l).expect(l)).collect()
    }

    /// Standard output as one JSON document.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

/// Starts `bulkhead --master MASTER ARGS`.
pub(crate) fn bulkhead(master: &str, args: &[&str]) -> Bulkhead {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    for name in ["BULKHEAD_MASTER", "RUST_LOG", "NO_COLOR"] {
        command.env_remove(name);
    }
    let mut child = command
        .args(["--master", master])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().map(BufReader::new);
    let stderr = BufReader::new(child.stderr.take().unwrap());
    Bulkhead { child, stdout, stderr }
}

impl Bulkhead {
    /// Reads standard error up to a line that contains `words`; that line.
    pub(crate) async fn until_stderr(&mut self, words: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = timeout(HANG, self.stderr.read_line(&mut line)).await;
            assert!(read.expect(words).unwrap() > 0, "standard error ended without {words:?}");
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The next line of standard output.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().unwrap();
        timeout(HANG, stdout.read_line(&mut line)).await.expect("a line").unwrap();
        line
    }

    /// Goes away as the reader of standard output.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end, reading both streams.
    pub(crate) async fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), String::new());
        let read_out = async {
            if let Some(out) = &mut self.stdout {
                out.read_to_end(&mut stdout).await.unwrap();
            }
        };
        let all =
            async { tokio::join!(read_out, self.stderr.read_to_string(&mut stderr), self.child.wait()) };
        let ((), read, status) = timeout(HANG, all).await.expect("bulkhead ends");
        read.unwrap();
        let code = status.unwrap().code().unwrap_or_else(|| panic!("ended by a signal: {stderr}"));
        Ended { code, stdout, stderr }
    }
}

/// Runs it to its end.
pub(crate) async fn output(master: &str, args: &[&str]) -> Ended {
    bulkhead(master, args).end().await
}
