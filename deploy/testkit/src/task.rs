//! Tasks to launch, from what matters about them.

use std::path::Path;

use bulkhead_proto::{
    resources::PortSet,
    v1::{Confinement, CpuOptions, Grant, NetOptions, PortRange, ResourceClass, Resources, TaskSpec, Volume},
};

/// A task with a small grant unless it says otherwise: 0.4 CPUs and 64 MiB.
#[derive(Clone, Debug)]
pub struct Task(TaskSpec);

impl Task {
    /// This program with these arguments.
    pub fn new<S: Into<String>>(id: &str, argv: impl IntoIterator<Item = S>) -> Self {
        let resources =
            Resources { cpu_milli: 400, mem_bytes: 64 << 20, ports: Vec::new(), ..Resources::default() };
        let grant = Grant {
            resources: Some(resources),
            class: ResourceClass::Guaranteed.into(),
            cpu_burst: false,
            pids_max: 0,
            ..Grant::default()
        };
        Self(TaskSpec {
            task_id: id.to_owned(),
            name: id.to_owned(),
            argv: argv.into_iter().map(Into::into).collect(),
            grant: Some(grant),
            ..TaskSpec::default()
        })
    }

    /// A script for `sh`.
    pub fn shell(id: &str, script: &str) -> Self {
        Self::new(id, ["sh", "-c", script])
    }

    /// A script for `python3`, without its site packages, which take long to find.
    pub fn python(id: &str, script: &str) -> Self {
        Self::new(id, ["python3", "-ISc", script])
    }

    fn grant(&mut self) -> &mut Grant {
        self.0.grant.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut Resources {
        self.grant().resources.get_or_insert_default()
    }

    /// Thousandths of a CPU.
    #[must_use]
    pub fn cpu_milli(mut self, milli: u64) -> Self {
        self.resources().cpu_milli = milli;
        self
    }

    /// Bytes of memory.
    #[must_use]
    pub fn mem_bytes(mut self, bytes: u64) -> Self {
        self.resources().mem_bytes = bytes;
        self
    }

    /// MiB of memory.
    #[must_use]
    pub fn mem_mib(self, mib: u64) -> Self {
        self.mem_bytes(mib << 20)
    }

    /// MiB of disk.
    #[must_use]
    pub fn disk_mib(mut self, mib: u64) -> Self {
        self.resources().disk_bytes = mib << 20;
        self
    }

    /// These ports.
    #[must_use]
    pub fn ports(mut self, ports: &[u16]) -> Self {
        let range = |port: &u16| PortRange {
            first: u32::from(*port),
            last: u32::from(*port),
            ..PortRange::default()
        };
        self.resources().ports = ports.iter().map(range).collect();
        self
    }

    /// These ports, as people write them: `8080/tcp,53/udp,31000-31010`. None where that is no list.
    #[must_use]
    pub fn port_list(mut self, text: &str) -> Self {
        self.resources().ports = text.parse::<PortSet>().unwrap_or_default().to_ranges();
        self
    }

    /// What it may do on the network besides.
    #[must_use]
    pub fn net(mut self, options: NetOptions) -> Self {
        self.grant().net = Some(options);
        self
    }

    /// Out of what was measured to be idle.
    #[must_use]
    pub fn revocable(mut self) -> Self {
        self.grant().class = ResourceClass::Revocable.into();
        self
    }

    /// May use idle CPU beyond its grant.
    #[must_use]
    pub fn cpu_burst(mut self) -> Self {
        self.grant().cpu_burst = true;
        self
    }

    /// How its CPU is held.
    #[must_use]
    pub fn cpu(mut self, set: impl FnOnce(&mut CpuOptions)) -> Self {
        set(self.grant().cpu.get_or_insert_default());
        self
    }

    /// At most this many processes and threads.
    #[must_use]
    pub fn pids_max(mut self, pids: u64) -> Self {
        self.grant().pids_max = pids;
        self
    }

    /// Changes anything else about the grant.
    #[must_use]
    pub fn granted(mut self, change: impl FnOnce(&mut Grant)) -> Self {
        change(self.grant());
        self
    }

    /// Changes anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut TaskSpec)) -> Self {
        change(&mut self.0);
        self
    }

    /// What it takes of an offer.
    pub fn wanted(&self) -> Resources {
        self.0.grant.as_ref().and_then(|g| g.resources.clone()).unwrap_or_default()
    }

    /// A variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Whom to run as.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.0.user);
        self
    }

    /// Between SIGTERM and the end.
    #[must_use]
    pub fn grace_ms(mut self, ms: u64) -> Self {
        self.0.kill_grace_ms = ms;
        self
    }

    /// Changes what stands around it.
    #[must_use]
    pub fn confined(mut self, change: impl FnOnce(&mut Confinement)) -> Self {
        change(self.0.confinement.get_or_insert_default());
        self
    }

    /// A directory of the host at a place of its own.
    #[must_use]
    pub fn volume(mut self, source: &Path, target: &str, read_only: bool) -> Self {
        let source = source.display().to_string();
        self.0.volumes.push(Volume { source, target: target.to_owned(), read_only, ..Volume::default() });
        self
    }

    /// Where it starts.
    #[must_use]
    pub fn working_dir(mut self, dir: &str) -> Self {
        dir.clone_into(&mut self.0.working_dir);
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.task_id
    }

    /// As the protocol has it.
    pub fn spec(&self) -> &TaskSpec {
        &self.0
    }
}

impl From<Task> for TaskSpec {
    fn from(task: Task) -> Self {
        task.0
    }
}
