//! What older builds of the programs left in their maps becomes what this one reads.
//!
//! It happens before the new programs are attached, while the older ones still hold the tasks; so a running task's
//! grants are in the new maps when these are asked first.

use std::path::Path;

use bulkhead_abi::{
    PORTS_VERSION, PortWord, SOCKET_WAYS, SocketPort, SocketSet, TaskPorts, names, port_choice, socket_set,
};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::{
    BpfError,
    pins::{PinName, name_of},
    ports::round_of,
};

/// Names of maps that are gone: the words of a task's grant, the words themselves, and who uses them.
const V1_GRANT_INDEX: &str = "GRANT_INDEX";
const V1_GRANTS: &str = "GRANTS";
const V1_PORT_USE: &str = "PORT_USE";
/// Maps whose layout never changed.
const UNCHANGED: [&str; 2] = [names::COUNTERS, names::DENIALS];

/// Fills the port maps in `to` from those in `from`, which this build takes over; events are left behind.
pub(super) fn take_over_ports(from: &Path, to: &Path) -> Result<(), BpfError> {
    let each = |maps: &[&str]| maps.iter().try_for_each(|name| copy(&from.join(name), &to.join(name)));
    each(&UNCHANGED)?;
    let name = name_of(from);
    let version = PinName::parse(&name).map_or(0, |name| name.version);
    if version == PORTS_VERSION {
        copy_sets(&from.join(names::SOCKETS), &to.join(names::SOCKETS))?;
        return each(&[names::TASK_PORTS, names::PORTS]);
    }
    put_into_sets(&from.join(names::SOCKETS), &to.join(names::SOCKETS))?;
    if version == 2 {
        return each(&[names::TASK_PORTS, names::PORTS]);
    }
    convert(&from.join(V1_GRANT_INDEX), &to.join(names::TASK_PORTS), |_, index| Ok(task_of_v1(index)))?;
    let usage = open(&from.join(V1_PORT_USE))?;
    convert(&from.join(V1_GRANTS), &to.join(names::PORTS), |key, granted| {
        let used = lookup(&usage, key, &from.join(V1_PORT_USE))?;
        Ok(word_of_v1(granted, used.as_deref().unwrap_or_default()))
    })
}

/// Copies all entries of one pinned map into another of the same layout.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), BpfError> {
    convert(from, to, |_, value| Ok(value.to_vec()))
}

fn convert(
    from: &Path,
    to: &Path,
    value_of: impl Fn(&[u8], &[u8]) -> Result<Vec<u8>, BpfError>,
) -> Result<(), BpfError> {
    let (old, new) = (open(from)?, open(to)?);
    for key in old.keys() {
        // An entry that went away meanwhile is not missed.
        if let Some(value) = lookup(&old, &key, from)? {
            let value = value_of(&key, &value)?;
            new.update(&key, &value, MapFlags::ANY).map_err(failed("write", to))?;
        }
    }
    Ok(())
}

/// Those with a socket; all others are there as they are.
fn copy_sets(from: &Path, to: &Path) -> Result<(), BpfError> {
    let (old, new) = (open(from)?, open(to)?);
    for index in old.keys() {
        let set = lookup(&old, &index, from)?;
        if let Some(set) = set.filter(|set| set.iter().any(|byte| *byte != 0)) {
            new.update(&index, &set, MapFlags::ANY).map_err(failed("write", to))?;
        }
    }
    Ok(())
}

/// Before version 3 each socket was an entry of its own, by its cookie.
fn put_into_sets(from: &Path, to: &Path) -> Result<(), BpfError> {
    let (old, new) = (open(from)?, open(to)?);
    for cookie in old.keys() {
        let Some(held) = lookup(&old, &cookie, from)? else { continue };
        let index = socket_set(native(&cookie)).to_ne_bytes();
        let Some(mut set) = lookup(&new, &index, to)? else { continue };
        // One more than fits is forgotten, as the programs do.
        if put_into_set(&mut set, &cookie, &held) {
            new.update(&index, &set, MapFlags::ANY).map_err(failed("write", to))?;
        }
    }
    Ok(())
}

/// Into the first free place of the bytes of a [`SocketSet`]; false where there is none.
fn put_into_set(set: &mut [u8], cookie: &[u8], held: &[u8]) -> bool {
    const COOKIE: usize = size_of::<u64>();
    const PORT: usize = size_of::<SocketPort>();
    let sizes = [set.len(), cookie.len(), held.len()];
    let Some((cookies, ports)) = set.split_at_mut_checked(SOCKET_WAYS * COOKIE) else { return false };
    let free = cookies.chunks_exact(COOKIE).position(|place| native(place) == 0);
    let Some(way) = free.filter(|_| sizes == [size_of::<SocketSet>(), COOKIE, PORT]) else { return false };
    cookies[way * COOKIE..][..COOKIE].copy_from_slice(cookie);
    ports[way * PORT..][..PORT].copy_from_slice(held);
    true
}

fn open(path: &Path) -> Result<MapHandle, BpfError> {
    MapHandle::from_pinned_path(path).map_err(failed("open", path))
}

fn lookup(map: &MapHandle, key: &[u8], path: &Path) -> Result<Option<Vec<u8>>, BpfError> {
    map.lookup(key, MapFlags::ANY).map_err(failed("read", path))
}

fn failed(op: &str, path: &Path) -> impl FnOnce(libbpf_rs::Error) -> BpfError {
    let op = format!("{op} {}", path.display());
    |source| BpfError::Observe { op, source }
}

/// The index was all there was: the policy is what all tasks had then.
fn task_of_v1(index: &[u8]) -> Vec<u8> {
    let mut task = TaskPorts::EMPTY;
    for (word, bytes) in task.words.as_flattened_mut().iter_mut().zip(index.chunks_exact(8)) {
        *word = native(bytes);
    }
    task.round = round_of(&task.words);
    // In the order of the fields, which have no padding between them.
    let halves = [task.round[0], task.round[1], port_choice::DEFAULT, 0];
    let words = task.words.as_flattened().iter().flat_map(|word| word.to_ne_bytes());
    words.chain(halves.into_iter().flat_map(u32::to_ne_bytes)).collect()
}

/// Users were counted by port after the bits, which are kept; the notes of sockets are copied as they are.
fn word_of_v1(granted: &[u8], usage: &[u8]) -> Vec<u8> {
    let word = PortWord { granted: native(granted), used: native(usage), numbered: 0 };
    [word.granted, word.used, word.numbered].into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// The first eight bytes as the kernel wrote them; 0 where there are fewer.
fn native(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fill_their_set_and_one_more_is_forgotten() {
        let mut set = vec![0; size_of::<SocketSet>()];
        for cookie in 1..=4u64 {
            let held = [cookie.to_ne_bytes(), (cookie + 80).to_ne_bytes()].concat();
            assert!(put_into_set(&mut set, &cookie.to_ne_bytes(), &held));
        }
        assert!(!put_into_set(&mut set, &5u64.to_ne_bytes(), &[7; 16]));
        assert_eq!(
            set.chunks_exact(8).map(native).collect::<Vec<_>>(),
            [1, 2, 3, 4, 1, 81, 2, 82, 3, 83, 4, 84]
        );
        assert!(!put_into_set(&mut vec![0; size_of::<SocketSet>()], &[1; 8], &[7; 15]), "of another layout");
        assert!(!put_into_set(&mut [0; 32], &[1; 8], &[7; 16]));
    }

    #[test]
    fn values_of_the_first_layout_become_those_of_this_one() {
        let mut index = [0u8; 256];
        index[8] = 0b101;
        index[128] = 1;
        let task = task_of_v1(&index);
        assert_eq!(task.len(), size_of::<TaskPorts>());
        assert_eq!(task[..256], index);
        assert_eq!(native(&task[264..]), u64::from(port_choice::DEFAULT));
        let word = word_of_v1(&7u64.to_ne_bytes(), &[5u64.to_ne_bytes(), 1u64.to_ne_bytes()].concat());
        assert_eq!(word.len(), size_of::<PortWord>());
        assert_eq!((native(&word), native(&word[8..]), native(&word[16..])), (7, 5, 0));
        assert_eq!(native(&word_of_v1(&7u64.to_ne_bytes(), &[])[8..]), 0, "nobody used it");
    }
}
