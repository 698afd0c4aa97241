//! The programs that decide: one object, loaded once, of which each part is pinned by itself and may be missing by itself.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use bulkhead_abi::names;
use bulkhead_ebpf::ENFORCE;
use libbpf_rs::libbpf_sys as sys;

use super::{
    super::{
        BpfError, LoadSpec,
        link::{attach_and_pin, pin_again, replace_and_pin},
        migrate::{copy, take_over_ports},
        pins::{PinNames, host_netns},
    },
    Unfinished,
};

/// The programs of one part, and where each is attached: a `BPF_CGROUP_..` of linux/bpf.h.
type Hooks = [(&'static str, u32)];

const PORT_HOOKS: [(&str, u32); 8] = [
    (names::ENFORCE_PROGRAMS[0], sys::BPF_CGROUP_INET4_BIND),
    (names::ENFORCE_PROGRAMS[1], sys::BPF_CGROUP_INET6_BIND),
    (names::ENFORCE_PROGRAMS[2], sys::BPF_CGROUP_INET4_CONNECT),
    (names::ENFORCE_PROGRAMS[3], sys::BPF_CGROUP_INET6_CONNECT),
    (names::ENFORCE_PROGRAMS[4], sys::BPF_CGROUP_UDP4_SENDMSG),
    (names::ENFORCE_PROGRAMS[5], sys::BPF_CGROUP_UDP6_SENDMSG),
    (names::ENFORCE_PROGRAMS[6], sys::BPF_CGROUP_INET_SOCK_CREATE),
    (names::ENFORCE_PROGRAMS[7], sys::BPF_CGROUP_INET_SOCK_RELEASE),
];
const DEVICE_HOOKS: [(&str, u32); 1] = [(names::DEVICE_PROGRAM, sys::BPF_CGROUP_DEVICE)];
const TALK_HOOKS: [(&str, u32); 4] = [
    (names::TALK_PROGRAMS[0], sys::BPF_CGROUP_INET4_CONNECT),
    (names::TALK_PROGRAMS[1], sys::BPF_CGROUP_INET6_CONNECT),
    (names::TALK_PROGRAMS[2], sys::BPF_CGROUP_UDP4_SENDMSG),
    (names::TALK_PROGRAMS[3], sys::BPF_CGROUP_UDP6_SENDMSG),
];
const NET_HOOKS: [(&str, u32); 2] = [
    (names::NET_PROGRAMS[0], sys::BPF_CGROUP_INET_EGRESS),
    (names::NET_PROGRAMS[1], sys::BPF_CGROUP_INET_INGRESS),
];

/// How a part of another build gives way to this one's.
#[derive(Clone, Copy)]
enum TakeOver {
    /// What is in its maps is copied, and its programs hold until the new ones are attached beside them.
    Copy(fn(&Path, &Path) -> Result<(), BpfError>),
    /// Packets and calls are at no moment without rules, and are not counted twice: the new programs get the maps that are
    /// there, and the place of the older programs in their links.
    InPlace,
}

struct Part<'a> {
    name: &'a str,
    maps: &'static [&'static str],
    hooks: &'static Hooks,
    take_over: TakeOver,
}

impl Part<'_> {
    fn is_needed(&self) -> bool {
        self.hooks == PORT_HOOKS
    }

    /// Those maps of the older build that the new programs are to use. One that it did not have begins empty.
    fn keep_maps(&self, begun: &Unfinished) -> Result<(), BpfError> {
        let Some(from) = self.in_place_of(begun) else { return Ok(()) };
        let there = self.maps.iter().map(|name| (from.join(name), begun.dir.join(name)));
        for (from, to) in there.filter(|(from, _)| from.exists()) {
            pin_again(&from, &to).map_err(BpfError::io("pin again", &from))?;
        }
        Ok(())
    }

    /// The build whose links get new programs.
    fn in_place_of<'b>(&self, begun: &'b Unfinished) -> Option<&'b Path> {
        let TakeOver::InPlace = self.take_over else { return None };
        let is_whole = |from: &&Path| self.hooks.iter().all(|(name, _)| from.join(name).exists());
        begun.older.iter().map(|dir| &**dir).find(is_whole)
    }

    /// Has the programs verified, takes over what an older build left, and attaches: in this order, so that nothing is
    /// changed where a program is refused.
    fn attach(&self, spec: &LoadSpec, enforce: &mut Ebpf, begun: &Unfinished) -> Result<(), BpfError> {
        let cgroup = File::open(&spec.cgroup).map_err(BpfError::io("open", &spec.cgroup))?;
        for &(name, _) in self.hooks {
            let program = enforce.program_mut(name).ok_or(BpfError::NotInObject(name))?;
            verify(program).map_err(|source| BpfError::Program { op: "load", name, source })?;
        }
        if let TakeOver::Copy(copy) = self.take_over {
            begun.older.iter().try_for_each(|from| copy(from, &begun.dir))?;
        }
        let replaced = self.in_place_of(begun);
        for &(name, kind) in self.hooks {
            let program = enforce.program(name).ok_or(BpfError::NotInObject(name))?;
            let program = program.fd().map_err(|source| BpfError::Program { op: "open", name, source })?;
            let path = begun.dir.join(name);
            match replaced {
                Some(from) => replace_and_pin(&from.join(name), program.as_fd(), &path),
                None => attach_and_pin(program.as_fd(), cgroup.as_fd(), kind, &path),
            }
            .map_err(BpfError::io("attach and pin", &path))?;
        }
        Ok(())
    }
}

/// Loads what is not there yet. Returns why parts are missing that the others can do without.
///
/// # Errors
/// Whatever kept the port rules from being loaded.
pub(super) fn load(spec: &LoadSpec, names: &PinNames) -> Result<Vec<BpfError>, BpfError> {
    let mut missing = Vec::new();
    let mut begun = Vec::new();
    let parts = parts(names);
    for part in &parts {
        match begin(spec, part) {
            Ok(Some(dir)) => begun.push((part, dir)),
            Ok(None) => {}
            Err(error) if part.is_needed() => return abandon(begun, error),
            Err(error) => missing.push(error),
        }
    }
    if begun.is_empty() {
        return Ok(missing);
    }
    let mut enforce = match open(spec, &parts, &begun) {
        Ok(enforce) => enforce,
        Err(error) => return abandon(begun, error),
    };
    let mut begun = begun.into_iter();
    while let Some((part, dir)) = begun.next() {
        let result = part.attach(spec, &mut enforce, &dir);
        match dir.end(result) {
            Err(error) if part.is_needed() => return abandon(begun, error),
            result => missing.extend(result.err()),
        }
    }
    Ok(missing)
}

/// The port rules come first: without them nothing is loaded.
fn parts(names: &PinNames) -> [Part<'_>; 4] {
    let part = |name, maps, hooks, take_over| Part { name, maps, hooks, take_over };
    [
        part(&names.ports, &names::ENFORCE_MAPS, &PORT_HOOKS, TakeOver::Copy(take_over_ports)),
        part(&names.devices, &names::DEVICE_MAPS, &DEVICE_HOOKS, TakeOver::Copy(take_over_devices)),
        part(&names.talk, &names::TALK_MAPS, &TALK_HOOKS, TakeOver::InPlace),
        part(&names.net, &names::NET_MAPS, &NET_HOOKS, TakeOver::InPlace),
    ]
}

fn begin(spec: &LoadSpec, part: &Part<'_>) -> Result<Option<Unfinished>, BpfError> {
    let Some(begun) = Unfinished::begin(spec, part.name)? else { return Ok(None) };
    match part.keep_maps(&begun) {
        Ok(()) => Ok(Some(begun)),
        Err(error) => begun.end(Err(error)).map(|()| None),
    }
}

fn abandon<'a, T>(
    begun: impl IntoIterator<Item = (&'a Part<'a>, Unfinished)>,
    error: BpfError,
) -> Result<T, BpfError> {
    for (_, dir) in begun {
        dir.remove();
    }
    Err(error)
}

/// Opens the object with each map where its part has it, or will: programs use maps of other parts too.
fn open(spec: &LoadSpec, parts: &[Part<'_>], begun: &[(&Part<'_>, Unfinished)]) -> Result<Ebpf, BpfError> {
    let netns = host_netns();
    let mut loader = EbpfLoader::new();
    loader.override_global(names::TASK_LEVEL, &spec.task_level, true);
    loader.override_global(names::HOST_NETNS, &netns, true);
    for part in parts {
        let unfinished = begun.iter().find(|(of, _)| of.name == part.name);
        let dir = unfinished.map_or_else(|| spec.pin_dir.join(part.name), |(_, begun)| begun.dir.clone());
        // Where a part could not be begun, its maps are nobody else's.
        for name in part.maps.iter().filter(|_| dir.exists()) {
            loader.map_pin_path(name, dir.join(name));
        }
    }
    loader.load(ENFORCE).map_err(BpfError::Object)
}

/// Events are left behind.
fn take_over_devices(from: &Path, to: &Path) -> Result<(), BpfError> {
    let lasting = names::DEVICE_MAPS.into_iter().filter(|name| *name != names::DEVICE_EVENTS);
    lasting.into_iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))
}

fn verify(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(hook) => hook.load(),
        Program::CgroupSock(hook) => hook.load(),
        Program::CgroupSkb(hook) => hook.load(),
        Program::CgroupDevice(hook) => hook.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
