//! A launch that fails, at whichever step, leaves nothing behind: on the running kernel, as root.
//!
//! Where it cannot run it prints `SKIP <test>: <reason>`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests, also outside test functions")]

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_agent::{
    grant::Grant,
    isolate::{IsolateError, Isolator, TaskPlace},
    kernel::{
        cgroupfs::cgroup2_mount,
        pidfd::Exit,
        spawn::{ChildStep, SpawnError},
    },
    launch::{
        LaunchError, Running,
        faults::{Faults, Step},
        lab::Lab,
    },
};
use bulkhead_proto::v1;
use tokio::sync::{Mutex, MutexGuard};

/// Which step fails, and what was seen of the others.
#[derive(Default)]
struct Plot {
    fail_before: Option<Step>,
    fail_child_at: Option<usize>,
    steps: Vec<Step>,
    child_steps: usize,
}

#[derive(Clone, Default)]
struct Saboteur(Arc<std::sync::Mutex<Plot>>);

impl Faults for Saboteur {
    fn before(&self, step: Step) -> Result<(), LaunchError> {
        let mut plot = self.0.lock().unwrap();
        plot.steps.push(step);
        if plot.fail_before == Some(step) {
            Err(LaunchError::Null(io::Error::other("sabotage")))
        } else {
            Ok(())
        }
    }

    fn child(&self, steps: &mut Vec<ChildStep<'_>>) {
        let mut plot = self.0.lock().unwrap();
        plot.child_steps = steps.len();
        if let Some(index) = plot.fail_child_at {
            steps.insert(index, ChildStep::Directory(c"/sabotage".to_owned()));
        }
    }
}

/// What an isolator keeps outside the cgroup: a map entry, a project id.
#[derive(Clone, Default)]
struct Entries(Arc<std::sync::Mutex<BTreeSet<u64>>>);

impl Isolator for Entries {
    fn part(&self) -> &'static str {
        "entries"
    }

    fn features(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare(&self, task: &TaskPlace, _grant: &Grant) -> Result<(), IsolateError> {
        self.0.lock().unwrap().insert(task.id);
        Ok(())
    }

    fn update(&self, _task: &TaskPlace, _before: &Grant, _after: &Grant) -> Result<(), IsolateError> {
        Ok(())
    }

    fn measure(&self, _task: &TaskPlace, _usage: &mut v1::TaskUsage) {}

    fn cleanup(&self, task: &TaskPlace) -> Result<(), IsolateError> {
        self.0.lock().unwrap().remove(&task.id);
        Ok(())
    }
}

/// The tests look at the whole process, so one is at work at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

struct Node {
    _alone: MutexGuard<'static, ()>,
    dir: tempfile::TempDir,
    lab: Lab,
    entries: [Entries; 2],
    saboteur: Saboteur,
}

/// Everything that a launch could leave.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    cgroups: Vec<PathBuf>,
    sandboxes: Vec<PathBuf>,
    mounts: String,
    descriptors: BTreeSet<String>,
    children: String,
    entries: [BTreeSet<u64>; 2],
}

impl Node {
    /// `None`, and the reason is printed, where a launch cannot work.
    async fn new(test: &str) -> Option<Self> {
        let alone = ALONE.lock().await;
        let skip = |reason: &str| {
            println!("SKIP {test}: {reason}");
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return skip("needs root");
        }
        if cgroup2_mount().is_err() {
            return skip("needs a cgroup2 mount");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let entries = [Entries::default(), Entries::default()];
        let parts = entries.iter().map(|e| Box::new(e.clone()) as Box<dyn Isolator>).collect();
        let saboteur = Saboteur::default();
        let cgroup = format!("bulkhead-launch-{test}-{}", std::process::id());
        let mut lab = Lab::new(dir.path(), &cgroup, parts, Some(Box::new(saboteur.clone()))).unwrap();
        let volumes = dir.path().join("volumes");
        fs::create_dir(&volumes).unwrap();
        lab.defaults.rules.volume_dirs = vec![volumes];
        Some(Self { _alone: alone, dir, lab, entries, saboteur })
    }

    async fn launch(&self, argv: &[&str]) -> Result<Running, LaunchError> {
        let source = self.dir.path().join("volumes").display().to_string();
        let volume = v1::Volume { source, target: "/tmp/volume".into(), ..v1::Volume::default() };
        let plan = self.lab.plan(argv, |spec| {
            spec.volumes = vec![volume];
            let network_namespace = Some(true);
            spec.confinement = Some(v1::Confinement { network_namespace, ..v1::Confinement::default() });
        });
        Ok(self.lab.launch(plan.unwrap()).await?.0)
    }

    fn plot<T>(&self, change: impl FnOnce(&mut Plot) -> T) -> T {
        change(&mut self.saboteur.0.lock().unwrap())
    }

    fn left(&self) -> Left {
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
            entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        let sandboxes = self.dir.path().join("sandboxes");
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
            let to = fs::read_link(entry.unwrap().path()).ok()?.display().to_string();
            // Of this very look.
            (!to.ends_with("/fd")).then_some(to)
        });
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let children =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
        Left {
            cgroups: names(&self.lab.tree.root.path().join("guaranteed")),
            sandboxes: if sandboxes.exists() { names(&sandboxes) } else { Vec::new() },
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            descriptors: descriptors.collect(),
            children: children.collect(),
            entries: [0, 1].map(|n| self.entries[n].0.lock().unwrap().clone()),
        }
    }

    /// A launch that nobody disturbs, and its orderly end.
    async fn undisturbed(&self) {
        let running = self.launch(&["sh", "-c", "[ $$ = 1 ] && [ -d /tmp/volume ]"]).await.unwrap();
        assert_eq!(running.process.ended().await.unwrap(), Exit::Code(0));
        self.lab.clear(&running).await.unwrap();
        running.sandbox.remove().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failure_at_any_step_leaves_nothing() {
    let Some(node) = Node::new("a_failure_at_any_step_leaves_nothing").await else { return };
    node.undisturbed().await;
    let (steps, child_steps) = node.plot(|plot| (plot.steps.clone(), plot.child_steps));
    let expected =
        [Step::Sandbox, Step::Volume(0), Step::Limit(1), Step::Spawn, Step::Attach(1), Step::Watch];
    assert!(expected.iter().all(|step| steps.contains(step)), "{steps:?}");
    let before = node.left();
    for step in steps {
        node.plot(|plot| plot.fail_before = Some(step));
        let error = node.launch(&["sleep", "600"]).await.unwrap_err();
        assert!(error.explain().contains("sabotage"), "{step:?}: {}", error.explain());
        assert_eq!(node.left(), before, "after a failure at {step:?}");
    }
    node.plot(|plot| plot.fail_before = None);
    // The last is the place just before the program is executed; after the filter of system calls the step is
    // answered like any other.
    assert!(child_steps > 40, "{child_steps}");
    for at in 0..=child_steps {
        node.plot(|plot| plot.fail_child_at = Some(at));
        let error = node.launch(&["sleep", "600"]).await.unwrap_err();
        assert!(
            matches!(&error, LaunchError::Spawn { source: SpawnError::Step { index, step, .. }, .. }
                if *index == at && step == "enter the directory /sabotage"),
            "{at}: {}",
            error.explain()
        );
        assert_eq!(node.left(), before, "after a failure of the child at {at}");
    }
    node.plot(|plot| plot.fail_child_at = None);
    node.undisturbed().await;
    assert_eq!(node.left(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_that_is_not_there_leaves_nothing() {
    let Some(node) = Node::new("a_program_that_is_not_there_leaves_nothing").await else { return };
    node.undisturbed().await;
    let before = node.left();
    let error = node.launch(&["no-such-program"]).await.unwrap_err();
    assert_eq!(error.reason(), v1::TaskReason::CommandNotFound, "{}", error.explain());
    assert_eq!(node.left(), before);
}
