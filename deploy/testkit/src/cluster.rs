//! A master and an agent of their own, for as long as a test needs them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_proto::v1::{
    GetInfoRequest, GetInfoResponse, ListAgentsRequest, LogStream, ReadLogRequest, agent_client::AgentClient,
    operator_client::OperatorClient,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

use crate::{Framework, HANG, binaries::Binaries, harness, host, process::Process};

/// Ports that each cluster offers.
pub const PORTS: u16 = 40;
/// Below Linux's ephemeral ports and what agents offer by default.
const FIRST_PORT: u16 = 20_000;
/// Ranges that clusters share out by process id.
const PORT_RANGES: u16 = 250;
/// Loopback, and a port of the kernel's choice.
const ANY_LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long a process has for an orderly end.
const ORDERLY: Duration = Duration::from_secs(20);

/// How a cluster differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further flags of the agent.
    pub agent_args: Vec<String>,
    /// Further flags of the master.
    pub master_args: Vec<String>,
    /// Tasks may run as root.
    pub allow_root_tasks: bool,
    /// Tasks may be trusted, and weaken their fences.
    pub allow_trusted_tasks: bool,
    /// The agent holds back what the rest of the machine is measured to use. Off, offers do not depend on it.
    pub measure_strangers: bool,
    /// The agent holds revocable tasks to less while guaranteed ones wait. Off, nothing but their grants holds them.
    pub qos: bool,
    /// Start the agent without a master; [`Cluster::start_master`] brings it later.
    pub without_master: bool,
    /// Where the master listens; a free port of loopback unless given.
    pub master_listen: Option<SocketAddr>,
    /// Where the agent's API listens; a free port of loopback unless given.
    pub agent_listen: Option<SocketAddr>,
    /// Ports to offer; [`PORTS`] of this cluster's own unless given.
    pub ports: Option<String>,
    /// Where the work directory is made; the system's directory for temporary files unless given.
    pub dir: Option<PathBuf>,
}

/// A running master and agent. Everything of them is gone when it is dropped; [`Cluster::finish`] also checks that.
///
/// Needs a tokio runtime while it is used.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    binaries: Binaries,
    name: String,
    first_port: u16,
    dir: TempDir,
    had_bpffs: bool,
    master_address: SocketAddr,
    master: Option<Process>,
    agent: Option<Process>,
}

impl Cluster {
    /// Starts both and waits until the agent is registered.
    ///
    /// # Errors
    /// When they do not come up; their logs go with the error of the test.
    pub async fn start(options: Options) -> Result<Self> {
        static STARTED: AtomicU16 = AtomicU16::new(0);
        ensure!(host::is_root(), "a cluster needs root: the agent makes cgroups and loads BPF programs");
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("bulkhead-test-").tempdir_in(parent);
        let dir = dir.context("make a directory")?;
        // Tasks run as other users and must reach their sandboxes.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let range = u16::try_from((pid.wrapping_mul(7) + u32::from(number)) % u32::from(PORT_RANGES))?;
        let mut cluster = Self {
            binaries: Binaries::find()?,
            name: format!("bulkhead-test-{pid}-{number}"),
            first_port: FIRST_PORT + range * PORTS,
            dir,
            had_bpffs: host::has_bpffs(),
            master_address: options.master_listen.unwrap_or(ANY_LOOPBACK),
            master: None,
            agent: None,
            options,
        };
        fs::create_dir(cluster.readable_dir()).context("make a directory")?;
        for log in ["master.log", "agent.log"] {
            harness::watch_log(&cluster.dir.path().join(log));
        }
        if cluster.options.without_master {
            cluster.master_address = free_address()?;
            cluster.spawn_agent()?;
        } else {
            cluster.start_master().await?;
            cluster.restart_agent().await?;
        }
        Ok(cluster)
    }

    /// The master's host:port.
    pub fn master_address(&self) -> String {
        self.master_address.to_string()
    }

    /// Process id of the agent.
    ///
    /// # Errors
    /// While there is none.
    pub fn agent_pid(&self) -> Result<i32> {
        Ok(self.agent.as_ref().context("the agent is stopped")?.pid())
    }

    /// Process id of the master.
    ///
    /// # Errors
    /// While there is none.
    pub fn master_pid(&self) -> Result<i32> {
        Ok(self.master.as_ref().context("the master is stopped")?.pid())
    }

    /// The agent's work directory.
    pub fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Where tasks may read and execute what a test puts there.
    pub fn readable_dir(&self) -> PathBuf {
        self.dir.path().join("readable")
    }

    /// The agent's cgroup, above all tasks.
    ///
    /// # Errors
    /// Where cgroup v2 is not mounted.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(host::cgroup2_mount()?.join(&self.name))
    }

    /// Where a task starts: its own directory in its sandbox.
    pub fn task_dir(&self, framework: &Framework, task_id: &str) -> PathBuf {
        self.work_dir().join("sandboxes").join(framework.id()).join(task_id).join("work")
    }

    /// The cgroup of a guaranteed task.
    ///
    /// # Errors
    /// Where cgroup v2 is not mounted.
    pub fn guaranteed(&self, framework: &Framework, task_id: &str) -> Result<PathBuf> {
        self.task_cgroup("guaranteed", framework.id(), task_id)
    }

    /// The cgroup of a task.
    ///
    /// # Errors
    /// Where cgroup v2 is not mounted.
    pub fn task_cgroup(&self, class: &str, framework_id: &str, task_id: &str) -> Result<PathBuf> {
        Ok(self.cgroup()?.join(class).join(format!("task@{framework_id}@{task_id}")))
    }

    /// Where BPF programs are pinned.
    pub fn bpf_dir(&self) -> PathBuf {
        Path::new(host::BPFFS).join(&self.name)
    }

    /// The `n`th port that this cluster offers, up to [`PORTS`].
    pub fn port(&self, n: u16) -> u16 {
        self.first_port + n
    }

    /// What the agent wrote so far, over all its runs.
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// What the master wrote so far, over all its runs.
    pub fn master_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("master.log")).unwrap_or_default()
    }

    /// A channel to the master.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn master_channel(&self) -> Result<Channel> {
        connect(&format!("http://{}", self.master_address)).await
    }

    /// The operator's calls.
    ///
    /// # Errors
    /// When the master cannot be reached.
    pub async fn operator(&self) -> Result<OperatorClient<Channel>> {
        Ok(OperatorClient::new(self.master_channel().await?))
    }

    /// The agent's API, through the socket in its work directory.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub async fn agent_api(&self) -> Result<AgentClient<Channel>> {
        let socket = self.work_dir().join("agent.sock");
        Ok(AgentClient::new(connect(&format!("unix://{}", socket.display())).await?))
    }

    /// What the agent says of itself now.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn agent_info(&self) -> Result<GetInfoResponse> {
        Ok(self.agent_api().await?.get_info(GetInfoRequest {}).await?.into_inner())
    }

    /// host:port of the agent's API.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn agent_address(&self) -> Result<String> {
        Ok(self.agent_info().await?.agent.context("an agent")?.api_address)
    }

    /// A framework of this name that wants guaranteed resources.
    ///
    /// # Errors
    /// When the master does not take it.
    pub async fn framework(&self, name: &str) -> Result<Framework> {
        Framework::subscribe(self.master_channel().await?, name).await
    }

    /// Everything that a task has written to one stream, once it has ended.
    ///
    /// # Errors
    /// When the agent does not know the task.
    pub async fn output(&self, framework_id: &str, task_id: &str, stream: LogStream) -> Result<String> {
        self.read_log(framework_id, task_id, stream, None).await
    }

    /// Waits until a task's standard output has these words; all of it up to there.
    ///
    /// # Errors
    /// When the task ends without them.
    pub async fn stdout_until(&self, framework: &Framework, task_id: &str, words: &str) -> Result<String> {
        self.read_log(framework.id(), task_id, LogStream::Stdout, Some(words)).await
    }

    async fn read_log(
        &self,
        framework_id: &str,
        task_id: &str,
        stream: LogStream,
        enough: Option<&str>,
    ) -> Result<String> {
        let request = ReadLogRequest {
            framework_id: framework_id.to_owned(),
            task_id: task_id.to_owned(),
            stream: stream.into(),
            follow: true,
            ..ReadLogRequest::default()
        };
        let mut chunks = self.agent_api().await?.read_log(request).await?.into_inner();
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(chunk) = chunks.message().await? {
                bytes.extend(chunk.data);
                let enough = enough.is_some_and(|words| String::from_utf8_lossy(&bytes).contains(words));
                if enough {
                    break;
                }
            }
            Ok::<_, tonic::Status>(())
        };
        let read = tokio::time::timeout(HANG, reading).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        read.with_context(|| format!("the output of {task_id} does not end; so far: {text:?}"))??;
        if let Some(words) = enough {
            ensure!(text.contains(words), "{task_id} ended without {words:?}; its output: {text:?}");
        }
        Ok(text)
    }

    /// A task's standard output, once it has ended.
    ///
    /// # Errors
    /// As [`Cluster::output`].
    pub async fn stdout(&self, framework: &Framework, task_id: &str) -> Result<String> {
        self.output(framework.id(), task_id, LogStream::Stdout).await
    }

    /// `bulkhead --master ADDRESS` with these arguments; killed when its handle is dropped.
    pub fn cli<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binaries.cli);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("BULKHEAD_")) {
            command.env_remove(name);
        }
        command.arg("--master").arg(self.master_address()).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs the CLI to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn run_cli(&self, arguments: &[&str]) -> Result<CliOutput> {
        let running = self.cli(arguments).output();
        let output = tokio::time::timeout(HANG, running).await;
        let output = output.with_context(|| format!("bulkhead {arguments:?} does not end"))??;
        Ok(CliOutput {
            code: output
                .status
                .code()
                .with_context(|| format!("bulkhead {arguments:?}: {}", output.status))?,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts the master, at the same address as before.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_master(&mut self) -> Result<()> {
        ensure!(self.master.is_none(), "the master is running");
        let file = self.dir.path().join("master.address");
        drop(fs::remove_file(&file));
        let mut arguments = vec!["--listen".to_owned(), self.master_address.to_string()];
        arguments.extend(["--address-file".to_owned(), file.display().to_string()]);
        arguments.extend(self.options.master_args.iter().cloned());
        let log = self.dir.path().join("master.log");
        let process = Process::start(&self.binaries.master, &arguments, &log)?;
        let address = until("the master to listen", || async {
            if let Some(status) = process.status() {
                return Err(Verdict::Never(format!("the master ended: {status}")));
            }
            fs::read_to_string(&file).map_err(|e| Verdict::NotYet(e.to_string()))
        });
        let address = match address.await {
            Ok(address) => address,
            Err(error) => return Err(error.context(self.master_log())),
        };
        self.master_address = address.trim().parse().context("the master's address file")?;
        self.master = Some(process);
        Ok(())
    }

    /// Ends the master by SIGTERM.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_master(&mut self) -> Result<()> {
        end(self.master.take(), Signal::SIGTERM).await
    }

    /// Ends the agent by SIGTERM; its tasks run on.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_agent(&mut self) -> Result<()> {
        end(self.agent.take(), Signal::SIGTERM).await
    }

    /// Ends the agent by SIGKILL, as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_agent_hard(&mut self) -> Result<()> {
        end(self.agent.take(), Signal::SIGKILL).await
    }

    /// Starts the agent, with everything it had before, and waits until it is registered.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.registered().await
    }

    fn spawn_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent is running");
        let log = self.dir.path().join("agent.log");
        self.agent = Some(Process::start(&self.binaries.agent, &self.agent_arguments(), &log)?);
        Ok(())
    }

    /// The agent's whole command line, for a second one, too.
    pub fn agent_arguments(&self) -> Vec<String> {
        let own_ports = || format!("{}-{}", self.first_port, self.first_port + PORTS - 1);
        let mut arguments = self.place_arguments();
        for (flag, value) in [
            ("--master", self.master_address()),
            ("--listen", self.options.agent_listen.unwrap_or(ANY_LOOPBACK).to_string()),
            ("--ports", self.options.ports.clone().unwrap_or_else(own_ports)),
            ("--measure-strangers", self.options.measure_strangers.to_string()),
            ("--qos", self.options.qos.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        if !host::has_controllers() {
            arguments.extend(["--allow-unenforced".to_owned(), "cpu,mem,pids".to_owned()]);
        }
        if self.options.allow_root_tasks {
            arguments.push("--allow-root-tasks".to_owned());
        }
        if self.options.allow_trusted_tasks {
            arguments.push("--allow-trusted-tasks".to_owned());
        }
        arguments.extend(["--readable-path".to_owned(), self.readable_dir().display().to_string()]);
        // The host's interfaces are nothing to tests, but for those that bring one of their own.
        if !self.options.agent_args.iter().any(|argument| argument == "--net-qdisc") {
            arguments.extend(["--net-qdisc", "leave"].map(str::to_owned));
        }
        arguments.extend(self.options.agent_args.iter().cloned());
        arguments
    }

    /// Where this agent has its things.
    fn place_arguments(&self) -> Vec<String> {
        [
            ("--work-dir", self.work_dir().display().to_string()),
            ("--cgroup-root", self.name.clone()),
            ("--bpf-dir", self.bpf_dir().display().to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Runs `bulkhead-agent` with these arguments to its end; for command lines that are refused.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn run_agent(&self, arguments: &[String]) -> Result<CliOutput> {
        let log = tempfile::NamedTempFile::new()?;
        let mut process = Process::start(&self.binaries.agent, arguments, log.path())?;
        let status = process.ended(HANG).await?;
        let code = status.code().with_context(|| format!("bulkhead-agent: {status}"))?;
        Ok(CliOutput { code, stdout: String::new(), stderr: fs::read_to_string(log.path())? })
    }

    /// Waits until this run of the agent has a session with the master.
    ///
    /// # Errors
    /// When it ends, or does not register.
    pub async fn registered(&self) -> Result<()> {
        let process = self.agent.as_ref().context("the agent is stopped")?;
        until("the agent to register", || async {
            if let Some(status) = process.status() {
                return Err(Verdict::Never(format!("the agent ended: {status}")));
            }
            self.in_session().await.map_err(|e| Verdict::NotYet(format!("{e:#}")))
        })
        .await
    }

    /// Both sides must say so: each may still think of a session before a restart.
    async fn in_session(&self) -> Result<()> {
        let info = self.agent_info().await?;
        ensure!(info.connected_to_master, "the agent has no session");
        let agent = info.agent.context("an agent")?;
        let listed = self.operator().await?.list_agents(ListAgentsRequest {}).await?.into_inner().agents;
        let known = listed.iter().find(|a| a.connected && a.agent.as_ref() == Some(&agent));
        known.map(|_| ()).context("the master has no session")
    }

    /// Waits until the master or the agent ends by itself, and says which and how.
    pub async fn ended(&self) -> String {
        let (master, agent) = (self.master.as_ref(), self.agent.as_ref());
        tokio::select! {
            status = end_of(master) => format!("the master ended ({status}): {}", last_line(&self.master_log())),
            status = end_of(agent) => format!("the agent ended ({status}): {}", last_line(&self.agent_log())),
        }
    }

    /// Ends everything, and checks that nothing is left.
    ///
    /// # Errors
    /// Names what is left, or what did not end as it should.
    pub async fn finish(mut self) -> Result<()> {
        if self.agent.is_some() {
            self.stop_agent().await?;
        }
        if self.master.is_some() {
            self.stop_master().await?;
        }
        let cleaned = self.run_agent(&self.cleanup_arguments()).await?;
        ensure!(cleaned.code == 0, "bulkhead-agent cleanup: {}", cleaned.stderr);
        self.assert_clean()
    }

    /// Checks that no cgroup, pin or process of this cluster is left.
    ///
    /// # Errors
    /// Names what is.
    pub fn assert_clean(&self) -> Result<()> {
        ensure!(self.agent.is_none() && self.master.is_none(), "the processes are running");
        let cgroup = self.cgroup()?;
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        let pins = fs::read_dir(self.bpf_dir()).into_iter().flatten().flatten().map(|e| e.path());
        let pins: Vec<_> = pins.collect();
        ensure!(pins.is_empty(), "pins are left: {pins:?}");
        Ok(())
    }

    fn cleanup_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["cleanup".to_owned()];
        arguments.extend(self.place_arguments());
        arguments
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let both = || self.agent.iter().chain(&self.master);
        both().for_each(|process| process.signal(Signal::SIGTERM));
        for process in both() {
            process.ended_blocking(ORDERLY);
        }
        (self.agent, self.master) = (None, None);
        for log in ["master.log", "agent.log"] {
            harness::unwatch_log(&self.dir.path().join(log));
        }
        let log = self.dir.path().join("cleanup.log");
        if let Ok(cleanup) = Process::start(&self.binaries.agent, &self.cleanup_arguments(), &log) {
            cleanup.ended_blocking(ORDERLY);
        }
        // Pins lie in a directory below it, which is gone now.
        drop(fs::remove_dir(self.bpf_dir()));
        if !self.had_bpffs {
            host::unmount_unused_bpffs();
        }
    }
}

/// How a run of a program went.
#[derive(Clone, Debug)]
pub struct CliOutput {
    /// Its exit status.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl CliOutput {
    /// Its standard output as one JSON document.
    ///
    /// # Errors
    /// Where it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }

    /// Its standard output as one JSON document a line.
    ///
    /// # Errors
    /// Where a line is none.
    pub fn json_lines(&self) -> Result<Vec<serde_json::Value>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

async fn end(process: Option<Process>, signal: Signal) -> Result<()> {
    let mut process = process.context("it is stopped already")?;
    process.signal(signal);
    let status = process.ended(HANG).await?;
    ensure!(signal == Signal::SIGKILL || status.success(), "after {signal}: {status}");
    Ok(())
}

fn last_line(log: &str) -> &str {
    log.lines().next_back().unwrap_or_default()
}

/// A process that is not there never ends.
async fn end_of(process: Option<&Process>) -> ExitStatus {
    match process {
        Some(process) => process.when_ended().await,
        None => std::future::pending().await,
    }
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())?.connect_timeout(HANG).tcp_nodelay(true);
    endpoint.connect().await.with_context(|| format!("connect to {address}"))
}

/// An address that nobody listens on now. Somebody may take it before it is used.
fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Why something is not as it should be.
#[derive(Debug)]
pub enum Verdict {
    /// It may still become so.
    NotYet(String),
    /// It will not.
    Never(String),
}

/// Asks again and again, for what nothing announces.
///
/// # Errors
/// The last answer, when there is no good one in time or there will be none.
pub async fn until<T, F: Future<Output = Result<T, Verdict>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let (mut pause, deadline) = (Duration::from_millis(2), tokio::time::Instant::now() + HANG);
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Verdict::Never(why)) => bail!("waiting for {what}: {why}"),
            Err(Verdict::NotYet(why)) if tokio::time::Instant::now() > deadline => {
                bail!("waited {HANG:?} for {what}: {why}")
            }
            Err(Verdict::NotYet(_)) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
