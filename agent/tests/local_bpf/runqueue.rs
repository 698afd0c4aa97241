//! How long threads of tasks wait for a CPU, and whom they leave one to.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use bulkhead_abi::LATENCY_BUCKETS;
use bulkhead_agent::kernel::bpf::{
    RunqueueCounters, RunqueueCounts, latency_bound_ns, preempted_by, probe_runqueue,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::fixture::{Node, Task, this_test};

const CGROUP: &str = "BULKHEAD_TEST_RUNQUEUE";
const WORK: &str = "BULKHEAD_TEST_WORK";
const MS_NS: u64 = 1_000_000;

/// A process in a task's cgroup, with the threads that it makes there; killed when dropped.
struct Worker(Child);

impl Worker {
    fn start(task: &Task, work: &str) -> Self {
        let mut command = this_test("runqueue::work");
        command.env(CGROUP, &task.cgroup).env(WORK, work).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Waits for the end of its work.
    fn done(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "other tests run it in a child"]
fn work() {
    let Some(cgroup) = env::var_os(CGROUP) else { return };
    fs::write(Path::new(&cgroup).join("cgroup.procs"), "0").unwrap();
    let work = env::var(WORK).unwrap();
    match *work.split_whitespace().collect::<Vec<_>>() {
        // As many wakeups of a thread that was made in the task.
        ["rounds", rounds] => {
            on_one_cpu();
            wake(rounds.parse().unwrap());
        }
        ["spin"] => {
            on_one_cpu();
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop()
                }
            })
            .join()
            .unwrap();
        }
        _ => panic!("{work}"),
    }
}

/// The same CPU in every process of these tests, so that they are in each other's way.
fn on_one_cpu() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// On one CPU neither side can go on without leaving it to the other.
fn wake(rounds: usize) {
    let ((mut orders, mut order), (mut answers, mut answer)) =
        (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let thread = std::thread::spawn(move || {
        let mut byte = [0];
        while orders.read_exact(&mut byte).is_ok() {
            answer.write_all(&byte).unwrap();
        }
    });
    for _ in 0..rounds {
        order.write_all(b"x").unwrap();
        answers.read_exact(&mut [0]).unwrap();
    }
    drop(order);
    thread.join().unwrap();
}

/// A node that counts, or the reason is printed.
fn node(test: &str) -> Option<(Node, RunqueueCounts)> {
    let node = Node::new(test)?;
    let support = probe_runqueue();
    if !support.available {
        println!("SKIP {test}: {}", support.reason);
        return None;
    }
    let counts = RunqueueCounts::open(&node.load().runqueue.unwrap()).unwrap();
    Some((node, counts))
}

fn counted(counts: &RunqueueCounts, task: &Task) -> RunqueueCounters {
    counts.of(task.id).unwrap().unwrap()
}

fn all(counted: &RunqueueCounters) -> u64 {
    counted.waits.iter().sum::<u64>() + counted.throttled_waits
}

/// Waits that are surely longer than this.
fn longer_than(counted: &RunqueueCounters, ns: u64) -> u64 {
    let is_longer = |bucket: &u32| *bucket > 0 && latency_bound_ns(bucket - 1).is_some_and(|b| b >= ns);
    (0..LATENCY_BUCKETS).filter(is_longer).map(|bucket| counted.waits[bucket as usize]).sum()
}

#[test]
fn each_wakeup_is_one_wait_while_it_is_looked() {
    let Some((node, counts)) = node("each_wakeup_is_one_wait_while_it_is_looked") else { return };
    let (task, other) = (node.task("a"), node.task("b"));
    counts.watch(task.id, false).unwrap();
    counts.watch(other.id, true).unwrap();
    let look = counts.look().unwrap();
    Worker::start(&task, "rounds 500").done();
    drop(look);
    let first = counted(&counts, &task);
    assert!(all(&first) >= 500, "{first:?}");
    assert!(first.wait_ns > 0);
    assert_eq!(all(&counted(&counts, &other)), 0, "nothing ran there");
    // When nobody looks, nothing is counted.
    Worker::start(&task, "rounds 500").done();
    assert_eq!(counted(&counts, &task), first);
    assert_eq!(counts.all().unwrap().len(), 2);
    counts.forget(other.id).unwrap();
    counts.forget(other.id).unwrap();
    assert_eq!(counts.of(other.id).unwrap(), None);
}

#[test]
fn beside_somebody_busy_waits_are_long_and_it_is_known_who_it_was() {
    const TEST: &str = "beside_somebody_busy_waits_are_long_and_it_is_known_who_it_was";
    let Some((node, counts)) = node(TEST) else { return };
    let tasks = ["a", "b", "c"].map(|name| node.task(name));
    for (task, revocable) in tasks.iter().zip([false, true, false]) {
        counts.watch(task.id, revocable).unwrap();
    }
    let _look = counts.look().unwrap();
    let [a, b, c] = &tasks;
    let workers = tasks.each_ref().map(|task| Worker::start(task, "spin"));
    let by = |task: &Task, by: u32| counted(&counts, task).preempted_by[by as usize];
    // All three are on one CPU; each gets its turn.
    while by(a, preempted_by::REVOCABLE) == 0
        || by(a, preempted_by::GUARANTEED) == 0
        || by(b, preempted_by::GUARANTEED) == 0
        || tasks.iter().any(|task| longer_than(&counted(&counts, task), MS_NS) == 0)
    {
        std::thread::yield_now();
    }
    assert_eq!(by(b, preempted_by::REVOCABLE), 0, "there is no other");
    let (before, long) = (all(&counted(&counts, c)), longer_than(&counted(&counts, c), MS_NS));
    while longer_than(&counted(&counts, c), MS_NS) == long {
        std::thread::yield_now();
    }
    assert!(all(&counted(&counts, c)) > before);
    drop(workers);
}

#[test]
fn another_build_goes_on_with_what_is_there() {
    let Some((node, counts)) = node("another_build_goes_on_with_what_is_there") else { return };
    let task = node.task("a");
    counts.watch(task.id, false).unwrap();
    let look = counts.look().unwrap();
    Worker::start(&task, "rounds 100").done();
    drop(look);
    let before = counted(&counts, &task);
    let dir = node.load().runqueue.unwrap();
    let name = dir.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    fs::rename(&dir, &other).unwrap();
    let again = RunqueueCounts::open(&node.load().runqueue.unwrap()).unwrap();
    assert!(!other.exists());
    assert_eq!(counted(&again, &task), before);
    let _look = again.look().unwrap();
    Worker::start(&task, "rounds 100").done();
    assert!(all(&counted(&again, &task)) >= all(&before) + 100);
}

/// Has the task run a fifth of the time; the reason where that cannot be.
fn cap(node: &Node, task: &Task) -> Result<(), String> {
    let root = &node.spec.cgroup;
    let mount = root.parent().unwrap();
    for above in [mount, root, &root.join("guaranteed")] {
        let control = above.join("cgroup.subtree_control");
        fs::write(&control, "+cpu").map_err(|e| format!("{}: {e}", control.display()))?;
    }
    fs::write(task.cgroup.join("cpu.max"), "20000 100000").map_err(|e| format!("cpu.max: {e}"))
}

#[test]
fn a_capped_task_is_not_a_crowded_one() {
    const TEST: &str = "a_capped_task_is_not_a_crowded_one";
    let Some((node, counts)) = node(TEST) else { return };
    let task = node.task("a");
    if let Err(why) = cap(&node, &task) {
        return println!("SKIP {TEST}: {why}");
    }
    counts.watch(task.id, false).unwrap();
    let _look = counts.look().unwrap();
    let _worker = Worker::start(&task, "spin");
    let throttled = || {
        let stat = fs::read_to_string(task.cgroup.join("cpu.stat")).unwrap();
        let times = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        times.unwrap().parse::<u64>().unwrap()
    };
    while throttled() < 10 {
        std::thread::yield_now();
    }
    // Each time it waited 80 ms for its next period. Where the kernel takes it out of the queue meanwhile, it does not
    // wait there; the first time may go unseen.
    let counted = counted(&counts, &task);
    let long = longer_than(&counted, 60 * MS_NS);
    assert!(long < 5, "{counted:?}");
    assert!(counted.throttled_waits > 0 || long == 0, "{counted:?}");
}

/// Runs, and nanoseconds of all of them, of the program that counts; by its name and the most runs.
fn runs() -> (u64, u64) {
    let programs = loaded_programs().flatten().filter(|p| p.name_as_str() == Some("switched"));
    let of = |p: aya::programs::ProgramInfo| (p.run_count(), u64::try_from(p.run_time().as_nanos()).unwrap());
    programs.map(of).max().unwrap_or_default()
}

/// Microseconds an operation of `perf bench sched pipe`, on one CPU and before everybody else.
fn pipe(task: Option<&Task>) -> f64 {
    const ROUNDS: &str = "700000";
    let enter =
        task.map_or(String::new(), |task| format!("echo 0 > {}/cgroup.procs && ", task.cgroup.display()));
    let bench = format!("{enter}chrt -f 50 taskset -c 0 perf bench sched pipe -l {ROUNDS} 2>/dev/null; true");
    let output = Command::new("sh").args(["-c", &bench]).output().unwrap();
    let found = BufReader::new(&output.stdout[..])
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.trim().strip_suffix("usecs/op").map(|number| number.trim().parse().unwrap()));
    found.unwrap()
}

/// The same while it is looked for a twentieth of each second, as agents do.
fn pipe_while_looked_at_times(counts: &RunqueueCounts, task: Option<&Task>) -> f64 {
    let looking = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while looking.load(Ordering::Relaxed) {
                let look = counts.look().unwrap();
                std::thread::sleep(Duration::from_millis(50));
                drop(look);
                std::thread::sleep(Duration::from_millis(950));
            }
        });
        let took = pipe(task);
        looking.store(false, Ordering::Relaxed);
        took
    })
}

/// What it costs a load that does nothing but switch, in turn: off, on, and on for a part of the time. Needs `perf`, `chrt`
/// and `taskset`.
#[test]
#[ignore = "records figures and asserts none"]
fn cost_of_looking() {
    const TURNS: usize = 7;
    let Some((node, counts)) = node("cost_of_looking") else { return };
    let task = node.task("a");
    counts.watch(task.id, false).unwrap();
    let median = |mut figures: Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    for (who, task) in [("strangers", None), ("a task", Some(&task))] {
        let (mut off, mut on, mut at_times) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            off.push(pipe(task));
            let look = counts.look().unwrap();
            on.push(pipe(task));
            drop(look);
            at_times.push(pipe_while_looked_at_times(&counts, task));
        }
        let [off, on, at_times] = [off, on, at_times].map(median);
        let more = |with: f64| (with / off - 1.0) * 100.0;
        let (always, part) = (more(on), more(at_times));
        println!(
            "{who}: {off:.3} us off, {on:.3} on ({always:+.1} %), {at_times:.3} at times ({part:+.1} %)"
        );
    }
    let start = Instant::now();
    (0..100).for_each(|_| drop(counts.look().unwrap()));
    println!("to begin and end a look: {:?}", start.elapsed() / 100);
    let (stats, before, look) = (enable_stats(Stats::RunTime).unwrap(), runs(), counts.look().unwrap());
    pipe(Some(&task));
    drop(look);
    let after = runs();
    drop(stats);
    let (count, ns) = (after.0 - before.0, after.1 - before.1);
    println!("the program itself: {count} runs, {} ns each", ns / count.max(1));
    // What one sample reads, and one scrape.
    (1u64 << 40..).take(1000).for_each(|id| counts.watch(id, false).unwrap());
    let start = Instant::now();
    println!("waits of {} tasks read in {:?}", counts.all().unwrap().len(), start.elapsed());
}
