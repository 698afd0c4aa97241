//! Loading, in a process of its own: everything appears under its final name, or nothing.

mod enforce;

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use bulkhead_abi::{MAX_EXITS, MAX_OOMS, MAX_OWNERS, MAX_TASKS, names};
use bulkhead_ebpf::observe::{
    block_io::BlockIoSkelBuilder, connections::ConnectionsSkelBuilder, exits::ExitsSkelBuilder,
    foreign::ForeignSkelBuilder, listen::ListenSkelBuilder, ooms::OomsSkelBuilder,
    runqueue::RunqueueSkelBuilder,
};
use libbpf_rs::{
    libbpf_sys,
    skel::{OpenSkel as _, SkelBuilder as _},
};

use super::{
    BpfError, LoadSpec,
    link::{attach_and_pin, pin_again, replace_and_pin},
    lsm,
    migrate::copy,
    pins::{
        PinName, PinNames, create_dir, ensure_bpffs, entries, host_netns, name_of, remove_pins, remove_stale,
        unfinished,
    },
};

/// What was loaded besides the port rules, without which loading fails.
#[derive(Debug)]
pub struct LoadReport {
    /// Why devices or traffic are not held, nobody is kept from talking to anybody, or connections, exits, victims of
    /// the out-of-memory killer, time on others' cores, waits for a CPU or requests for disks not recorded.
    /// The subcommand prints it to standard error and succeeds.
    pub missing: Vec<BpfError>,
}

/// Loads what is not there yet, attaches it, pins it, and removes what older agents left.
///
/// To be called in a short-lived process: it needs 20 to 50 MB for a moment.
///
/// # Errors
/// Whatever kept the port rules from being loaded. Nothing is left behind then.
pub fn load_and_pin(spec: &LoadSpec) -> Result<LoadReport, BpfError> {
    ensure_bpffs(&spec.pin_dir)?;
    create_dir(&spec.pin_dir)?;
    let names = PinNames::of(spec)?;
    let deciding = enforce::load(spec, &names)?;
    let observing = [
        complete(spec, &names.listen, load_listen),
        complete(spec, &names.connections, load_connections),
        complete(spec, &names.exits, load_exits),
        complete(spec, &names.ooms, load_ooms),
        complete(spec, &names.foreign, load_foreign),
        complete(spec, &names.runqueue, load_runqueue),
        complete(spec, &names.block_io, load_block_io),
    ];
    remove_stale(spec, &names)?;
    Ok(LoadReport {
        missing: deciding.into_iter().chain(observing.into_iter().filter_map(Result::err)).collect(),
    })
}

/// Has a directory filled and gives it its name.
fn complete(
    spec: &LoadSpec,
    name: &str,
    load: fn(&LoadSpec, &Path, &[PathBuf]) -> Result<(), BpfError>,
) -> Result<(), BpfError> {
    match Unfinished::begin(spec, name)? {
        None => Ok(()),
        Some(begun) => {
            let result = load(spec, &begun.dir, &begun.older);
            begun.end(result)
        }
    }
}

/// A directory that is being filled.
struct Unfinished {
    dir: PathBuf,
    target: PathBuf,
    /// What other builds left, which this one takes over.
    older: Vec<PathBuf>,
}

impl Unfinished {
    /// `None` where it is complete already.
    fn begin(spec: &LoadSpec, name: &str) -> Result<Option<Self>, BpfError> {
        let target = spec.pin_dir.join(name);
        if target.exists() {
            return Ok(None);
        }
        let is_older = |dir: &PathBuf| {
            let dir = name_of(dir);
            PinName::parse(name).zip(PinName::parse(&dir)).is_some_and(|(new, old)| new.takes_over(&old))
        };
        let older = entries(&spec.pin_dir)?.into_iter().filter(is_older).collect();
        let dir = unfinished(spec, name);
        create_dir(&dir)?;
        Ok(Some(Self { dir, target, older }))
    }

    /// Gives it its name if all went well.
    fn end(self, result: Result<(), BpfError>) -> Result<(), BpfError> {
        let Self { dir, target, .. } = self;
        let result =
            result.and_then(|()| fs::rename(&dir, &target).map_err(BpfError::io("complete", &target)));
        if result.is_err() {
            remove_unfinished(&dir);
        }
        // Another loader may have been faster; what it made is as good.
        if target.exists() { Ok(()) } else { result }
    }

    /// Gives up on it.
    fn remove(self) {
        remove_unfinished(&self.dir);
    }
}

fn remove_unfinished(dir: &Path) {
    // What made it fail says more than an error from cleaning up after it.
    let _ = remove_pins(dir);
}

/// On top of the port rules, whose maps it uses.
fn load_listen(spec: &LoadSpec, dir: &Path, _: &[PathBuf]) -> Result<(), BpfError> {
    lsm::active().map_err(BpfError::NoLsm)?;
    let failed = |op| observing(op, "listen");
    let cgroup = File::open(&spec.cgroup).map_err(BpfError::io("open", &spec.cgroup))?;
    let ports = spec.pin_dir.join(PinNames::of(spec)?.ports);
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = ListenSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
        constants.host_netns = host_netns();
    }
    let maps = &mut open.maps;
    let shared = [
        (names::TASK_PORTS, &mut maps.TASK_PORTS),
        (names::COUNTERS, &mut maps.COUNTERS),
        (names::DENIALS, &mut maps.DENIALS),
        (names::EVENTS, &mut maps.EVENTS),
    ];
    for (name, map) in shared {
        map.reuse_pinned_map(ports.join(name)).map_err(failed("find the maps of"))?;
    }
    let listen = open.load().map_err(failed("load"))?;
    let programs = [&listen.progs.socket_listen, &listen.progs.socket_create];
    for (name, program) in names::LISTEN_PROGRAMS.into_iter().zip(programs) {
        let mut link = program.attach_cgroup(cgroup.as_raw_fd()).map_err(failed("attach"))?;
        link.pin(dir.join(name)).map_err(failed("pin the link of"))?;
    }
    Ok(())
}

/// Another build gets the map that is there and the place of the older program in its link, so that no connection is
/// counted twice, or not at all.
fn load_connections(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    let failed = |op| observing(op, "connections");
    let cgroup = File::open(&spec.cgroup).map_err(BpfError::io("open", &spec.cgroup))?;
    let (map, link) = (dir.join(names::CONNECTIONS), dir.join(names::CONNECTIONS_PROGRAM));
    let is_whole = |from: &&PathBuf| {
        [names::CONNECTIONS, names::CONNECTIONS_PROGRAM].iter().all(|n| from.join(n).exists())
    };
    let older = older.iter().find(is_whole);
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = ConnectionsSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    open.maps.connections.set_max_entries(MAX_TASKS).map_err(failed("size the map of"))?;
    if let Some(from) = older {
        let there = from.join(names::CONNECTIONS);
        open.maps.connections.reuse_pinned_map(&there).map_err(failed("find the map of"))?;
        pin_again(&there, &map).map_err(BpfError::io("pin again", &there))?;
    }
    let mut connections = open.load().map_err(failed("load"))?;
    if older.is_none() {
        connections.maps.connections.pin(&map).map_err(failed("pin the map of"))?;
    }
    let program = connections.progs.count_connections.as_fd();
    match older {
        Some(from) => replace_and_pin(&from.join(names::CONNECTIONS_PROGRAM), program, &link),
        None => attach_and_pin(program, cgroup.as_fd(), libbpf_sys::BPF_CGROUP_SOCK_OPS, &link),
    }
    .map_err(BpfError::io("attach and pin", &link))
}

fn load_exits(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    // The typed tracepoint is cheaper; a kernel that refuses it may still take the plain one.
    let typed = load_exits_with(spec, dir, true);
    if typed.is_err() {
        load_exits_with(spec, dir, false).or(typed)?;
    }
    // The programs of the older build still record; a second look catches what they recorded last.
    for from in older.iter().chain(older) {
        copy(&from.join(names::EXITS), &dir.join(names::EXITS))?;
    }
    Ok(())
}

fn load_exits_with(spec: &LoadSpec, dir: &Path, typed: bool) -> Result<(), BpfError> {
    let failed = |op| observing(op, "exits");
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = ExitsSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    open.progs.process_exit_btf.set_autoload(typed);
    open.progs.process_exit_raw.set_autoload(!typed);
    open.maps.exits.set_max_entries(MAX_EXITS).map_err(failed("size the map of"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    let mut exits = open.load().map_err(failed("load"))?;
    let program = if typed { &exits.progs.process_exit_btf } else { &exits.progs.process_exit_raw };
    let mut link = program.attach().map_err(failed("attach"))?;
    exits.maps.exits.pin(dir.join(names::EXITS)).map_err(failed("pin the map of"))?;
    link.pin(dir.join(names::EXIT_LINK)).map_err(failed("pin the link of"))
}

/// Not attached: the agent does that while some core has an owner.
fn load_foreign(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    let typed = load_foreign_with(spec, dir, true);
    if typed.is_err() {
        load_foreign_with(spec, dir, false).or(typed)?;
    }
    for from in older {
        copy(&from.join(names::FOREIGN_TIMES), &dir.join(names::FOREIGN_TIMES))?;
    }
    Ok(())
}

fn load_foreign_with(spec: &LoadSpec, dir: &Path, typed: bool) -> Result<(), BpfError> {
    let failed = |op| observing(op, "foreign");
    let cpus = libbpf_rs::num_possible_cpus().map_err(failed("count the CPUs for"))?;
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = ForeignSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    open.progs.sched_switch_btf.set_autoload(typed);
    open.progs.sched_switch_raw.set_autoload(!typed);
    let cpus = u32::try_from(cpus).unwrap_or(MAX_OWNERS);
    open.maps.core_owners.set_max_entries(cpus).map_err(failed("size the maps of"))?;
    open.maps.foreign_times.set_max_entries(MAX_OWNERS).map_err(failed("size the maps of"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    let mut foreign = open.load().map_err(failed("load"))?;
    let program =
        if typed { &mut foreign.progs.sched_switch_btf } else { &mut foreign.progs.sched_switch_raw };
    program.pin(dir.join(names::FOREIGN_PROGRAM)).map_err(failed("pin the program of"))?;
    foreign.maps.core_owners.pin(dir.join(names::CORE_OWNERS)).map_err(failed("pin the maps of"))?;
    foreign.maps.foreign_times.pin(dir.join(names::FOREIGN_TIMES)).map_err(failed("pin the maps of"))
}

fn load_ooms(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    let failed = |op| observing(op, "ooms");
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = OomsSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    open.maps.ooms.set_max_entries(MAX_OOMS).map_err(failed("size the map of"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    let mut ooms = open.load().map_err(failed("load"))?;
    let mut link = ooms.progs.mark_victim.attach().map_err(failed("attach"))?;
    ooms.maps.ooms.pin(dir.join(names::OOMS)).map_err(failed("pin the map of"))?;
    link.pin(dir.join(names::OOM_LINK)).map_err(failed("pin the link of"))?;
    older.iter().try_for_each(|from| copy(&from.join(names::OOMS), &dir.join(names::OOMS)))
}

/// Another build gets the maps that are there. The program that counts is not attached: the agent does that at times.
fn load_runqueue(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    let failed = |op| observing(op, "runqueue");
    let pins = [names::RUNQUEUE, names::THREADS];
    let older = older.iter().find(|from| pins.iter().all(|name| from.join(name).exists()));
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = RunqueueSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    open.maps.runqueue.set_max_entries(MAX_TASKS).map_err(failed("size the map of"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    if let Some(from) = older {
        for (map, name) in [&mut open.maps.runqueue, &mut open.maps.threads].into_iter().zip(pins) {
            map.reuse_pinned_map(from.join(name)).map_err(failed("find the maps of"))?;
            pin_again(&from.join(name), &dir.join(name))
                .map_err(BpfError::io("pin again", from.join(name)))?;
        }
    }
    let mut runqueue = open.load().map_err(failed("load"))?;
    if older.is_none() {
        for (map, name) in [&mut runqueue.maps.runqueue, &mut runqueue.maps.threads].into_iter().zip(pins) {
            map.pin(dir.join(name)).map_err(failed("pin the maps of"))?;
        }
    }
    let counts = dir.join(names::RUNQUEUE_PROGRAM);
    runqueue.progs.switched.pin(counts).map_err(failed("pin the program of"))?;
    let mut link = runqueue.progs.thread_made.attach().map_err(failed("attach"))?;
    link.pin(dir.join(names::THREADS_LINK)).map_err(failed("pin the link of"))
}

/// Another build gets the map that is there. What completes between the two programs is not counted.
fn load_block_io(spec: &LoadSpec, dir: &Path, older: &[PathBuf]) -> Result<(), BpfError> {
    let typed = load_block_io_with(spec, dir, older, true);
    if typed.is_err() { load_block_io_with(spec, dir, older, false).or(typed) } else { Ok(()) }
}

fn load_block_io_with(spec: &LoadSpec, dir: &Path, older: &[PathBuf], typed: bool) -> Result<(), BpfError> {
    let failed = |op| observing(op, "block_io");
    let (map, older) = (dir.join(names::BLOCK_IO), older.iter().find(|d| d.join(names::BLOCK_IO).exists()));
    let mut memory = std::mem::MaybeUninit::uninit();
    let mut open = BlockIoSkelBuilder::default().open(&mut memory).map_err(failed("open"))?;
    open.progs.request_completed_btf.set_autoload(typed);
    open.progs.request_completed_raw.set_autoload(!typed);
    open.maps.block_io.set_max_entries(MAX_TASKS).map_err(failed("size the map of"))?;
    if let Some(constants) = &mut open.maps.rodata_data {
        constants.task_level = i32::try_from(spec.task_level).unwrap_or(i32::MAX);
    }
    if let Some(from) = older {
        let there = from.join(names::BLOCK_IO);
        open.maps.block_io.reuse_pinned_map(&there).map_err(failed("find the map of"))?;
    }
    let mut block_io = open.load().map_err(failed("load"))?;
    if let Some(from) = older {
        pin_again(&from.join(names::BLOCK_IO), &map).map_err(BpfError::io("pin again", &map))?;
        // Not there where an earlier try came this far.
        let _ = fs::remove_file(from.join(names::BLOCK_IO_LINK));
    } else {
        block_io.maps.block_io.pin(&map).map_err(failed("pin the map of"))?;
    }
    let program =
        if typed { &block_io.progs.request_completed_btf } else { &block_io.progs.request_completed_raw };
    let mut link = program.attach().map_err(failed("attach"))?;
    link.pin(dir.join(names::BLOCK_IO_LINK)).map_err(failed("pin the link of"))
}

/// Names the operation and the object of an error of libbpf; for `map_err`.
fn observing(op: &str, object: &str) -> impl FnOnce(libbpf_rs::Error) -> BpfError {
    let op = format!("{op} the BPF object `{object}`");
    |source| BpfError::Observe { op, source }
}
