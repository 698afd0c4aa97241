//! Which devices a task may open and make, and what it is told otherwise.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bulkhead_abi::{
    HARMLESS_DEVICES, MAX_DENIED_DEVICES,
    device_access::{MAKE, READ, WRITE},
    device_kind::{BLOCK, CHAR},
};
use bulkhead_agent::kernel::bpf::{self, DenialStream, DeviceId, DeviceKey, DeviceRules};
use nix::{
    errno::Errno,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

use crate::{
    fixture::{Node, Task},
    helper::Helper,
};

/// Of a test, in /dev, since other file systems may be mounted `nodev`.
struct Files(PathBuf);

impl Files {
    fn of(node: &Node) -> Self {
        let dir = Path::new("/dev").join(node.spec.cgroup.file_name().unwrap());
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn make(&self, name: &str, kind: SFlag, major: u64, minor: u64) -> String {
        let path = self.path(name);
        mknod(path.as_str(), kind, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The kernel's log: any kernel has it, and reading it changes nothing.
const LOG: DeviceId = DeviceId { block: false, major: 1, minor: 11 };

struct Setup {
    node: Node,
    files: Files,
    rules: DeviceRules,
    devices: PathBuf,
}

/// `None`, and the reason is printed, where these tests cannot run.
fn set_up(test: &str) -> Option<Setup> {
    let node = Node::new(test)?;
    let devices = match node.load().devices {
        Ok(devices) => devices,
        Err(why) => {
            println!("SKIP {test}: {why}");
            return None;
        }
    };
    let rules = DeviceRules::open(&devices).unwrap();
    Some(Setup { files: Files::of(&node), rules, devices, node })
}

fn open(helper: &mut Helper, how: &str, path: &str) -> Result<(), Errno> {
    told(&helper.ask(&format!("open {how} {path}")))
}

fn make(helper: &mut Helper, kind: &str, (major, minor): (u32, u32), path: &str) -> Result<(), Errno> {
    told(&helper.ask(&format!("mknod {kind} {major} {minor} {path}")))
}

fn told(answer: &str) -> Result<(), Errno> {
    match answer.parse().unwrap() {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

fn granted(rules: &DeviceRules, task: &Task, access: u32) {
    rules.grant(task.id, &BTreeMap::from([(LOG, access)])).unwrap();
}

#[test]
fn only_harmless_devices_are_allowed_without_a_grant() {
    let Some(Setup { node, files, rules, .. }) = set_up("only_harmless_devices_are_allowed_without_a_grant")
    else {
        return;
    };
    let log = files.make("log", SFlag::S_IFCHR, 1, 11);
    let disk = files.make("disk", SFlag::S_IFBLK, 7, 0);
    let (never_granted, granted_none) = (node.task("a"), node.task("b"));
    rules.grant(granted_none.id, &BTreeMap::new()).unwrap();
    for task in [&never_granted, &granted_none] {
        let mut helper = task.helper();
        for device in HARMLESS_DEVICES {
            let path = files.path("harmless");
            assert_eq!(make(&mut helper, "c", device, &path), Ok(()), "{device:?}");
            // There may be no terminal; it is not the rule that refuses.
            assert_ne!(open(&mut helper, "rw", &path), Err(Errno::EPERM), "{device:?}");
            fs::remove_file(path).unwrap();
        }
        for how in ["r", "w", "rw"] {
            assert_eq!(open(&mut helper, how, "/dev/null"), Ok(()));
            assert_eq!(open(&mut helper, how, &log), Err(Errno::EPERM), "{how}");
            assert_eq!(open(&mut helper, how, &disk), Err(Errno::EPERM), "{how}");
        }
        for (kind, device) in
            [("b", (7, 0)), ("b", (1, 3)), ("c", (1, 1)), ("c", (10, 229)), ("c", (255, 4095))]
        {
            assert_eq!(
                make(&mut helper, kind, device, &files.path("made")),
                Err(Errno::EPERM),
                "{kind} {device:?}"
            );
        }
    }
    assert_eq!(rules.total_denied(granted_none.id).unwrap(), 6 + 5);
    let unknown = rules.denials(never_granted.id).unwrap();
    let count: u64 = unknown.iter().map(|(_, denial)| denial.count).sum();
    assert_eq!(count, 6 + 5, "counted even where nothing was ever granted: {unknown:?}");
}

#[test]
fn a_granted_device_can_be_used_as_granted() {
    let Some(Setup { node, files, rules, .. }) = set_up("a_granted_device_can_be_used_as_granted") else {
        return;
    };
    let log = files.make("log", SFlag::S_IFCHR, 1, 11);
    let (task, other) = (node.task("a"), node.task("b"));
    granted(&rules, &task, READ);
    let (mut helper, mut stranger) = (task.helper(), other.helper());
    assert_eq!(open(&mut helper, "r", &log), Ok(()));
    assert_eq!(open(&mut helper, "w", &log), Err(Errno::EPERM));
    assert_eq!(open(&mut helper, "rw", &log), Err(Errno::EPERM));
    assert_eq!(make(&mut helper, "c", (1, 11), &files.path("made")), Err(Errno::EPERM));
    assert_eq!(open(&mut stranger, "r", &log), Err(Errno::EPERM), "granted to another task");
    // In a cgroup of its own making it is still the same task.
    assert_eq!(helper.ask(&format!("enter {}", task.cgroup.join("x").display())), "0");
    assert_eq!(open(&mut helper, "r", &log), Ok(()));
    assert_eq!(open(&mut helper, "w", &log), Err(Errno::EPERM));

    granted(&rules, &task, READ | WRITE | MAKE);
    assert_eq!(open(&mut helper, "rw", &log), Ok(()));
    assert_eq!(make(&mut helper, "c", (1, 11), &files.path("made")), Ok(()));
    assert_eq!(make(&mut helper, "b", (1, 11), &files.path("block")), Err(Errno::EPERM), "another kind");
    rules.grant(task.id, &BTreeMap::new()).unwrap();
    assert_eq!(open(&mut helper, "r", &log), Err(Errno::EPERM), "taken back");
    rules.revoke(task.id).unwrap();
    assert_eq!(rules.total_denied(task.id).unwrap(), 0);
    assert_eq!(rules.denials(task.id).unwrap(), []);
}

#[test]
fn processes_above_the_tasks_use_any_device() {
    let Some(Setup { node, files, .. }) = set_up("processes_above_the_tasks_use_any_device") else { return };
    let log = files.make("log", SFlag::S_IFCHR, 1, 11);
    // Where the agent is: a leaf beside the parents of tasks.
    let leaf = node.spec.cgroup.join("agent");
    fs::create_dir(&leaf).unwrap();
    for cgroup in [&leaf, &node.spec.cgroup] {
        let mut helper = Helper::start(cgroup);
        assert_eq!(open(&mut helper, "r", &log), Ok(()));
        let path = files.path("made");
        assert_eq!(make(&mut helper, "b", (7, 0), &path), Ok(()));
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn refused_devices_are_counted_exactly_and_reported_at_each_doubling() {
    let Some(Setup { node, files, rules, devices }) =
        set_up("refused_devices_are_counted_exactly_and_reported_at_each_doubling")
    else {
        return;
    };
    let disk = files.make("disk", SFlag::S_IFBLK, 7, 0);
    let task = node.task("a");
    rules.grant(task.id, &BTreeMap::new()).unwrap();
    let mut helper = task.helper();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = DenialStream::open_devices(&devices).unwrap();
        assert_eq!(stream.take(), None);
        for _ in 0..20 {
            assert_eq!(open(&mut helper, "rw", &disk), Err(Errno::EPERM));
        }
        let key = DeviceKey { cgroup_id: task.id, kind: BLOCK, major: 7, minor: 0, access: READ | WRITE };
        for count in [1, 2, 4, 8, 16] {
            let event = stream.next().await.unwrap();
            assert_eq!((event.count, event.key), (count, key));
            assert!(event.time_ns > 0 && event.pid > 0, "{event:?}");
        }
        assert_eq!(stream.take(), None);
    });
    // One that tries everything has as many entries as one may have, and one for the rest.
    let many = 2 * u32::try_from(MAX_DENIED_DEVICES).unwrap();
    for minor in 0..many {
        assert_eq!(make(&mut helper, "c", (10, minor), &files.path("made")), Err(Errno::EPERM));
    }
    let denials = rules.denials(task.id).unwrap();
    assert_eq!(denials.len() as u64, MAX_DENIED_DEVICES + 1);
    let (others, told): (Vec<_>, Vec<_>) = denials.iter().partition(|(key, _)| key.kind == 0);
    assert_eq!(others.len(), 1);
    assert!(
        told.iter()
            .all(|(key, _)| key.kind == BLOCK || (key.kind, key.major, key.access) == (CHAR, 10, MAKE))
    );
    let total = 20 + u64::from(many);
    assert_eq!(denials.iter().map(|(_, denial)| denial.count).sum::<u64>(), total);
    assert_eq!(rules.total_denied(task.id).unwrap(), total);
}

#[test]
fn device_rules_outlive_the_agent_and_its_builds() {
    let Some(Setup { node, files, rules, devices }) = set_up("device_rules_outlive_the_agent_and_its_builds")
    else {
        return;
    };
    let log = files.make("log", SFlag::S_IFCHR, 1, 11);
    let task = node.task("a");
    granted(&rules, &task, READ);
    drop(rules);
    let mut helper = task.helper();
    assert_eq!(open(&mut helper, "r", &log), Ok(()));
    assert_eq!(open(&mut helper, "w", &log), Err(Errno::EPERM));
    assert_eq!(node.adopt().unwrap().devices, Ok(devices.clone()));

    // Under the name that another build of the programs would have.
    let name = devices.file_name().unwrap().to_str().unwrap();
    let build = name.split('-').nth(2).unwrap();
    let other = node.spec.pin_dir.join(name.replace(build, "0123456789abcdef"));
    fs::rename(&devices, &other).unwrap();
    assert!(!node.load().fresh, "only the devices are loaded anew");
    assert!(!other.exists());
    let rules = DeviceRules::open(&devices).unwrap();
    assert_eq!(rules.total_denied(task.id).unwrap(), 1);
    assert_eq!(open(&mut helper, "r", &log), Ok(()));
    assert_eq!(open(&mut helper, "w", &log), Err(Errno::EPERM));
    bpf::remove(&node.spec.pin_dir).unwrap();
    assert_eq!(open(&mut helper, "w", &log), Ok(()), "the hook is gone");
}
