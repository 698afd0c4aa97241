//! Plays the load, and tries what is offered meanwhile.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bulkhead_agent::kernel::cgroupfs::Cgroup;
use bulkhead_proto::v1::{PortRange, Protocol, ResourceClass, Resources, TaskReason, TaskState, TaskStatus};
use bulkhead_testkit::{
    Cluster, Framework, Options, Task,
    cluster::{PORTS, Verdict, until},
    framework::is_last,
};
use indicatif::ProgressBar;
use procfs::{Current as _, CurrentSI as _, KernelStats, Meminfo};
use tokio::{
    process::Child,
    time::{sleep, sleep_until, timeout},
};

use super::{
    Books, Offers, Settings,
    honesty::{Shares, Trial},
    role::{COUNTS, Got, READY, Role, UNIT},
    schedule::{Stay, Strangers, came, moments},
};
use crate::{
    plain::{DEFAULT_WEIGHT, Group, Hierarchy},
    work::Work,
};

/// Guaranteed tasks, and what each is granted of the machine.
const STEADY: u64 = 2;
const STEADY_PERCENT: u64 = 20;
const STEADY_MEM_MIB: u64 = 64;
/// Of the probe's memory, what it does not touch: its program, stacks and page tables.
const OWN_BYTES: u64 = 32 << 20;
/// The least that a probe can be made of.
const LEAST: (u64, u64) = (20, OWN_BYTES + (16 << 20));
/// Offers that come later are none of this moment.
const OFFERED_WITHIN: Duration = Duration::from_secs(5);
/// Until the probe has touched all its memory.
const READY_WITHIN: Duration = Duration::from_secs(80);
/// Between two moments, besides the windows: to launch, touch and end.
const AROUND: Duration = Duration::from_secs(15);
/// Schedules do not share their random numbers.
const STRANGERS: u64 = 1;
const MOMENTS: u64 = 2;

/// One agent, from its start to its end.
pub(super) async fn run(settings: &Settings, books: Books, bar: &ProgressBar) -> Result<Offers> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let dir = program.parent().context("this program's directory")?.display().to_string();
    let options = Options {
        agent_args: vec!["--readable-path".to_owned(), dir],
        measure_strangers: books == Books::Measured,
        qos: true,
        ..Options::default()
    };
    let cluster = Cluster::start(options).await?;
    let cpus = u64::try_from(KernelStats::current().context("read /proc/stat")?.cpu_time.len())?;
    let mem_bytes = Meminfo::current().context("read /proc/meminfo")?.mem_total;
    let strangers = Strangers::new(settings.seed + STRANGERS, cpus, mem_bytes, PORTS);
    let window = Duration::from_secs(settings.seconds);
    let steady = cluster.framework("steady").await?;
    let replay = Replay { cluster, program, rounds: Work::new().rounds_in(UNIT), cpus, window, strangers };
    replay.start_steady(&steady, settings.seed).await?;
    let begun = Instant::now();
    let offers = tokio::select! {
        offers = replay.tries(settings, books, &steady, begun, bar) => offers?,
        // Ends only by failing.
        failed = replay.strangers(begun) => failed?,
    };
    steady.teardown().await?;
    replay.cluster.finish().await?;
    Ok(offers)
}

struct Replay {
    cluster: Cluster,
    program: PathBuf,
    /// Of a unit.
    rounds: u64,
    cpus: u64,
    window: Duration,
    strangers: Strangers,
}

impl Replay {
    async fn start_steady(&self, steady: &Framework, seed: u64) -> Result<()> {
        for number in 0..STEADY {
            let granted_milli = self.cpus * 10 * STEADY_PERCENT;
            let role = Role::Steady { granted_milli, rounds: self.rounds, seed: seed ^ (number << 32) };
            let task = self.task(&format!("steady-{number}"), &role);
            steady.start(task.cpu_milli(granted_milli).mem_mib(STEADY_MEM_MIB)).await?;
        }
        Ok(())
    }

    fn task(&self, id: &str, role: &Role) -> Task {
        Task::new(id, [self.program.display().to_string()].into_iter().chain(role.arguments())).grace_ms(1)
    }

    /// Lets strangers come and go, until it is dropped.
    async fn strangers(&self, begun: Instant) -> Result<Offers> {
        // As much weight as the system's services have together.
        let hierarchy = Hierarchy::new("bulkhead-strangers", DEFAULT_WEIGHT)?;
        let group = hierarchy.group("all", DEFAULT_WEIGHT)?;
        let mut present: Vec<(Duration, Child)> = Vec::new();
        for stay in self.strangers.clone() {
            while let Some(first) = (0..present.len()).min_by_key(|at| present[*at].0)
                && present[first].0 <= stay.from
            {
                let (until, mut child) = present.swap_remove(first);
                sleep_until((begun + until).into()).await;
                child.kill().await.context("end a stranger")?;
            }
            sleep_until((begun + stay.from).into()).await;
            present.push((stay.until, self.come(&group, &stay)?));
        }
        std::future::pending().await
    }

    fn come(&self, group: &Group, stay: &Stay) -> Result<Child> {
        let role = Role::Stranger {
            cpu_milli: stay.cpu_milli,
            rounds: self.rounds,
            mem_bytes: usize::try_from(stay.mem_bytes)?,
            port: self.cluster.port(stay.port),
        };
        group.spawn(&self.program, &role.arguments(), Path::new("/"))
    }

    async fn tries(
        &self,
        settings: &Settings,
        books: Books,
        steady: &Framework,
        begun: Instant,
        bar: &ProgressBar,
    ) -> Result<Offers> {
        let mut offers =
            Offers { books, shares: Shares::default(), nothing_offered: 0, withdrawn: 0, tried: Vec::new() };
        let slot = self.window * 2 + AROUND;
        for at in moments(settings.seed + MOMENTS, settings.trials, slot) {
            sleep_until((begun + at).into()).await;
            match self.attempt(steady, begun).await? {
                Attempt::Tried(trial) => offers.tried.push(trial),
                Attempt::NothingOffered => offers.nothing_offered += 1,
                Attempt::Withdrawn => offers.withdrawn += 1,
            }
            bar.inc(1);
        }
        offers.shares = Shares::of(&offers.tried);
        Ok(offers)
    }

    async fn attempt(&self, steady: &Framework, begun: Instant) -> Result<Attempt> {
        let before = self.steady_counts(steady);
        sleep(self.window).await;
        let start = self.steady_counts(steady);
        let probe = self.cluster.framework("probe").await?;
        let (cpu_milli, mem_bytes) = LEAST;
        let least = Resources { cpu_milli, mem_bytes, ..Resources::default() };
        let offered = timeout(OFFERED_WITHIN, probe.offers_for(ResourceClass::Guaranteed, &least)).await;
        let Ok(offered) = offered else {
            probe.teardown().await?;
            return Ok(Attempt::NothingOffered);
        };
        let (offered, at) = (offered?, begun.elapsed());
        let all = offered.iter().filter_map(|offer| offer.resources.as_ref());
        let all = all.fold(Resources::default(), |sum, more| sum.plus(more));
        let (task, asked) = self.probe(&all)?;
        probe.accept(&offered, [task]).await?;
        let begin = probe.wait_status("probe", |s| s.state() == TaskState::Running || is_last(s)).await?;
        if begin.state() != TaskState::Running {
            probe.teardown().await?;
            return Ok(Attempt::Withdrawn);
        }
        let used = self.watch(&probe).await?;
        let meanwhile = self.steady_counts(steady);
        let until = begun.elapsed();
        probe.kill("probe", 1).await?;
        let end = probe.end_of("probe").await?;
        probe.teardown().await?;
        Ok(Attempt::Tried(Trial {
            at_seconds: tenths(at.as_secs_f64()),
            offered_cpu_milli: all.cpu_milli,
            offered_mem_bytes: all.mem_bytes,
            cpu_got_percent: tenths(used.cpu_milli * 100.0 / number(all.cpu_milli.max(1))),
            mem_got_percent: tenths(number(used.got.touched_bytes as u64) * 100.0 / number(asked.mem_bytes)),
            mem_stalled_percent: tenths(used.mem_stalled_percent),
            out_of_memory: used.ended.as_ref().is_some_and(is_out_of_memory) || is_out_of_memory(&end),
            ports_asked: asked.ports,
            ports_got: used.got.ports,
            steady_before_percent: before.done_percent(&start),
            steady_meanwhile_percent: start.done_percent(&meanwhile),
            stranger_came: came(self.strangers.clone(), at, until),
        }))
    }

    /// A task of all that was offered.
    fn probe(&self, offered: &Resources) -> Result<(Task, Asked)> {
        let ports = tcp_ports(&offered.ports);
        // In whole pieces.
        let mem_bytes = offered.mem_bytes.saturating_sub(OWN_BYTES) >> 22 << 22;
        let asked = Asked { mem_bytes, ports: ports.len() };
        let cpu_milli = offered.cpu_milli;
        let role = Role::Probe { cpu_milli, mem_bytes: usize::try_from(mem_bytes)?, ports };
        let amounts = Resources {
            cpu_milli: offered.cpu_milli,
            mem_bytes: offered.mem_bytes,
            ports: offered.ports.clone(),
            ..Resources::default()
        };
        let task = self.task("probe", &role);
        Ok((task.granted(|grant| grant.resources = Some(amounts)), asked))
    }

    /// Waits until the probe has what it can get, and then looks for a window at what it uses.
    async fn watch(&self, probe: &Framework) -> Result<Used> {
        let cgroup = Cgroup::at(self.cluster.guaranteed(probe, "probe")?);
        let file = self.cluster.task_dir(probe, "probe").join(READY);
        let started = Instant::now();
        let ended = || probe.statuses("probe").into_iter().map(|seen| seen.status).find(is_last);
        let ready = until("the probe to have its memory", || async {
            match fs::read_to_string(&file) {
                Ok(text) => Ok(Some(text)),
                Err(_) if ended().is_some() || started.elapsed() > READY_WITHIN => Ok(None),
                Err(error) => Err(Verdict::NotYet(error.to_string())),
            }
        });
        let Some(text) = ready.await? else {
            return Ok(Used { ended: ended(), ..Used::default() });
        };
        let got: Got = serde_json::from_str(&text).context("what the probe got")?;
        let (at, cpu) = (Instant::now(), used_usec(&cgroup));
        sleep(self.window).await;
        let usec = |duration: Duration| duration.as_secs_f64() * 1e6;
        let used = number(used_usec(&cgroup).saturating_sub(cpu)) / usec(at.elapsed());
        let stalled = number(stalled_usec(&cgroup)) / usec(started.elapsed());
        Ok(Used { got, cpu_milli: used * 1000.0, mem_stalled_percent: stalled * 100.0, ended: ended() })
    }

    fn steady_counts(&self, steady: &Framework) -> Counts {
        let files =
            (0..STEADY).map(|number| self.cluster.task_dir(steady, &format!("steady-{number}")).join(COUNTS));
        files.map(|file| Counts::read(&file)).fold(Counts::default(), Counts::plus)
    }
}

enum Attempt {
    Tried(Trial),
    NothingOffered,
    Withdrawn,
}

/// What the probe is to get.
struct Asked {
    mem_bytes: u64,
    ports: usize,
}

/// What it got.
struct Used {
    got: Got,
    cpu_milli: f64,
    mem_stalled_percent: f64,
    ended: Option<TaskStatus>,
}

impl Default for Used {
    /// Nothing.
    fn default() -> Self {
        Self {
            got: Got { touched_bytes: 0, ports: 0 },
            cpu_milli: 0.0,
            mem_stalled_percent: 0.0,
            ended: None,
        }
    }
}

/// What the guaranteed tasks did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    done: u64,
    missed: u64,
}

impl Counts {
    /// Nothing of a task that has not begun.
    fn read(file: &Path) -> Self {
        let mut bytes = Vec::new();
        if File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)).is_err() {
            return Self::default();
        }
        let numbers = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        let (mut done, mut missed) = (0, 0);
        for (at, number) in numbers.enumerate() {
            *(if at % 2 == 0 { &mut done } else { &mut missed }) += number;
        }
        Self { done, missed }
    }

    fn plus(self, other: Self) -> Self {
        Self { done: self.done + other.done, missed: self.missed + other.missed }
    }

    /// Of what they wanted to do from here to there.
    fn done_percent(&self, later: &Self) -> f64 {
        let done = later.done.saturating_sub(self.done);
        let all = done + later.missed.saturating_sub(self.missed);
        if all == 0 { 100.0 } else { tenths(number(done) * 100.0 / number(all)) }
    }
}

fn is_out_of_memory(status: &TaskStatus) -> bool {
    matches!(status.reason(), TaskReason::OutOfMemory)
}

fn tcp_ports(ranges: &[PortRange]) -> Vec<u16> {
    let tcp = ranges.iter().filter(|range| range.protocol() != Protocol::Udp);
    tcp.flat_map(|range| range.first..=range.last).filter_map(|port| u16::try_from(port).ok()).collect()
}

fn used_usec(cgroup: &Cgroup) -> u64 {
    cgroup.read_key("cpu.stat", "usage_usec").ok().flatten().unwrap_or(0)
}

/// Time in which some thread of it waited for memory.
fn stalled_usec(cgroup: &Cgroup) -> u64 {
    let text = cgroup.read("memory.pressure").unwrap_or_default();
    let some = text.lines().find(|line| line.starts_with("some "));
    some.and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok()).unwrap_or(0)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guaranteed_tasks_are_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(COUNTS);
        assert_eq!(Counts::read(&file), Counts::default());
        fs::write(&file, [10_u64, 1, 20, 2].map(u64::to_le_bytes).concat()).unwrap();
        let before = Counts::read(&file);
        assert_eq!(before, Counts { done: 30, missed: 3 });
        let later = before.plus(Counts { done: 90, missed: 10 });
        assert!((before.done_percent(&later) - 90.0).abs() < 1e-9);
        assert!((later.done_percent(&before) - 100.0).abs() < 1e-9, "nothing was to be done");
    }

    #[test]
    fn ports_of_udp_alone_cannot_be_listened_on() {
        let range = |first, last, protocol: Protocol| PortRange { first, last, protocol: protocol.into() };
        let ranges =
            [range(1, 2, Protocol::Unspecified), range(5, 5, Protocol::Udp), range(7, 7, Protocol::Tcp)];
        assert_eq!(tcp_ports(&ranges), [1, 2, 7]);
    }
}
