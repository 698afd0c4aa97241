//! What is measured of cgroups on the running kernel, as root.
//!
//! Each test has a cgroup tree of its own, and removes it. Where they cannot run they print `SKIP <test>: <reason>`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests, also outside test functions")]

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_agent::{
    grant::Class,
    kernel::{
        cgroupfs::{Cgroup, cgroup2_mount},
        cpu_clock,
        reread::Room,
    },
    measure::tasks::{TaskSampler, Watched, files::TaskFiles},
};

/// A cgroup that is removed with all below it.
struct Tree(Cgroup);

impl Tree {
    /// `None`, and the reason is printed, where these tests cannot run.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP {test}: needs root");
            return None;
        }
        let mount = match cgroup2_mount() {
            Ok(mount) => Cgroup::at(mount),
            Err(error) => {
                println!("SKIP {test}: {error}");
                return None;
            }
        };
        let root = mount.child(&format!("bulkhead-measure-{}-{test}", std::process::id()));
        let root = Cgroup::create(root.path()).unwrap();
        for controller in ["cpu", "memory", "io"] {
            // Not on every machine: what is not there is not measured.
            let _ = mount.enable(&[controller]).and_then(|()| root.enable(&[controller]));
        }
        Some(Self(root))
    }

    fn task(&self, name: &str) -> (u64, Cgroup) {
        let cgroup = Cgroup::create(self.0.child(name).path()).unwrap();
        (cgroup.id().unwrap(), cgroup)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        while let Err(error) = self.0.remove() {
            // A process that was just killed may be on its way out.
            assert!(self.0.populated().unwrap(), "{error}");
            std::thread::yield_now();
        }
    }
}

/// A process that burns CPU in a cgroup; killed when dropped.
struct Burner(Child);

impl Burner {
    fn start(cgroup: &Cgroup) -> Self {
        let script = "echo 0 > \"$0\"/cgroup.procs; while :; do :; done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(cgroup.path()).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_busy_process_uses_is_seen_until_its_cgroup_is_gone() {
    let Some(tree) = Tree::new("busy") else { return };
    let (watched, cpus) = (Arc::new(Watched::default()), 2);
    let mut sampler = TaskSampler::new(Arc::clone(&watched), cpus);
    for name in ["busy", "idle"] {
        let (id, cgroup) = tree.task(name);
        watched.insert(id, (String::new(), name.to_owned()), Class::Guaranteed, &cgroup).unwrap();
    }
    let burner = Burner::start(&tree.0.child("busy"));
    let used = |sampler: &mut TaskSampler, name: &str| {
        let samples = sampler.sample(Instant::now);
        samples.into_iter().find(|sample| sample.task.1 == name).map(|sample| sample.used)
    };
    while used(&mut sampler, "busy").is_none_or(|used| used.cpu_milli == 0) {
        std::thread::yield_now();
    }
    let idle = used(&mut sampler, "idle").unwrap();
    assert_eq!((idle.cpu_milli, idle.throttled_permille), (0, 0));
    let has = |file| tree.0.child("busy").has(file);
    let busy = used(&mut sampler, "busy").unwrap();
    assert_eq!(busy.mem.is_some(), has("memory.current"));
    assert_eq!(busy.disk.is_some(), has("io.stat"));
    drop(burner);
    let gone = tree.0.child("busy");
    while gone.remove().is_err() {
        std::thread::yield_now();
    }
    assert_eq!(used(&mut sampler, "busy"), None);
    assert!(used(&mut sampler, "idle").is_some(), "the others are measured all the same");
    assert!(watched.latest().iter().any(|(task, ..)| task.1 == "busy"), "what was counted last stays");
}

/// CPU time of one round of something, after one round that is not counted.
fn cost(mut round: impl FnMut()) -> Duration {
    const ROUNDS: u32 = 10;
    round();
    let before = cpu_clock::of_this_thread();
    (0..ROUNDS).for_each(|_| round());
    (cpu_clock::of_this_thread() - before) / ROUNDS
}

/// To see the figures: `cargo test -p bulkhead-agent --test local_measure -- --ignored --nocapture`
#[test]
#[ignore = "records figures and asserts none"]
fn cost_of_reading_a_thousand_cgroups() {
    const TASKS: usize = 1000;
    let Some(tree) = Tree::new("thousand") else { return };
    bulkhead_agent::kernel::limits::raise_open_files().unwrap();
    let tasks: Vec<_> = (0..TASKS).map(|n| tree.task(&n.to_string())).collect();
    let files = fs::read_dir(tasks[0].1.path()).unwrap().flatten().map(|f| f.file_name());
    println!("files of a cgroup: {:?}", files.collect::<Vec<_>>());
    let mut room = Room::default();
    let kept: Vec<_> = tasks.iter().map(|(_, cgroup)| TaskFiles::open(cgroup.path()).unwrap()).collect();
    let each = cost(|| {
        for files in &kept {
            files.read(Instant::now(), &mut room).unwrap();
        }
    });
    println!("files kept open: {each:?}");
    drop(kept);
    let each = cost(|| {
        for (_, cgroup) in &tasks {
            TaskFiles::open(cgroup.path()).unwrap().read(Instant::now(), &mut room).unwrap();
        }
    });
    println!("opened each time: {each:?}");
    let watched = Arc::new(Watched::default());
    for (id, cgroup) in &tasks {
        let name = (String::new(), id.to_string());
        watched.insert(*id, name, Class::Guaranteed, cgroup).unwrap();
    }
    let mut sampler = TaskSampler::new(watched, 2);
    println!("the whole sample: {:?}", cost(|| drop(sampler.sample(Instant::now))));
}
