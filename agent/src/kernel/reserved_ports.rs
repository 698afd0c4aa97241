//! Ports that the kernel does not choose by itself: `net.ipv4.ip_local_reserved_ports`, for TCP and UDP of both families.
//!
//! What agents offer is added to what the operator has there, so that no connection of anybody takes a port that
//! a task was granted. Binding by number is not affected. The list belongs to the network namespace. Agents that share one
//! keep notes beside each other in a directory that, like the list, does not outlast a boot:
//!
//! ```text
//! <dir>/<cookie of the namespace>/added         ports that agents added, and nobody else
//!                                 <agent>.ports what that agent offers
//! ```
//!
//! A port is noted before it is added and forgotten after it was taken away, so whoever is interrupted in between
//! leaves nothing that a later run, or [`give_back`], would not find.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bulkhead_proto::resources::{PortNumbers, PortSet};
use nix::fcntl::{Flock, FlockArg};

use super::{appender::replace_file, netns};

/// The kernel's list.
const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// More than the kernel writes for any list: of every second port, `65535,` is the longest, and of every two in three a
/// range, `65533-65534,`.
const LIST_BYTES: usize = 512 << 10;
/// Where agents keep their notes.
pub const NOTES: &str = "/run/bulkhead/reserved-ports";
const ADDED: &str = "added";
/// Ends the names of notes about what an agent offers.
const OFFERS: &str = ".ports";

/// The list or a note could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}", path.display())]
pub struct ReserveError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Has the kernel choose none of these ports, on behalf of the agent of this name, in place of those that it named before.
///
/// # Errors
/// The list cannot be written, as in many containers, or a note. Calling again goes on where it stopped.
pub fn reserve(notes: &Path, agent: &str, ports: &PortNumbers) -> Result<(), ReserveError> {
    Notes::lock(notes)?.apply(agent, ports)
}

/// Takes away what the agent of this name added, and nobody else offers. Harmless where it added nothing.
///
/// # Errors
/// As [`reserve`].
pub fn give_back(notes: &Path, agent: &str) -> Result<(), ReserveError> {
    if !notes.exists() {
        return Ok(());
    }
    let locked = Notes::lock(notes)?;
    locked.apply(agent, &PortNumbers::default())?;
    // Those that others have something in stay.
    for dir in [&*locked.dir, notes].into_iter().chain(notes.parent()) {
        if fs::remove_dir(dir).is_err() {
            break;
        }
    }
    Ok(())
}

/// Which ports the kernel does not choose by itself: what the operator and agents have on the list.
///
/// # Errors
/// The list cannot be read.
pub fn listed() -> Result<PortNumbers, ReserveError> {
    let path = Path::new(LIST);
    // The kernel answers one call with what fits in, and says that this is all.
    let mut text = vec![0; LIST_BYTES];
    let read = File::open(path).and_then(|mut file| file.read(&mut text));
    text.truncate(read.map_err(failed("read", path))?);
    parse(path, &String::from_utf8_lossy(&text))
}

/// May the list be written here?
///
/// # Errors
/// Why not.
pub fn probe() -> Result<String, String> {
    let open = OpenOptions::new().write(true).open(LIST);
    open.map(|_| LIST.to_owned()).map_err(|e| format!("write {LIST}: {e}"))
}

/// The notes of one network namespace; their directory is locked.
struct Notes {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Notes {
    fn lock(notes: &Path) -> Result<Self, ReserveError> {
        let cookie = netns::cookie().unwrap_or(0);
        let dir = notes.join(cookie.to_string());
        loop {
            fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
            let file = match File::open(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(failed("open", &dir))?,
            };
            let lock = Flock::lock(file, FlockArg::LockExclusive);
            let lock = lock.map_err(|(_, errno)| failed("lock", &dir)(errno.into()))?;
            // Whoever had the lock may have removed the directory.
            let locked = lock.metadata().map_err(failed("look up", &dir))?;
            if fs::metadata(&dir).is_ok_and(|there| there.ino() == locked.ino()) {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    fn apply(&self, agent: &str, wanted: &PortNumbers) -> Result<(), ReserveError> {
        let own = self.dir.join(format!("{agent}{OFFERS}"));
        let added = self.dir.join(ADDED);
        let steps = Steps::make(&listed()?, &read_note(&added)?, &self.others(&own)?, wanted);
        write_note(&added, &steps.noted)?;
        write_note(&own, wanted)?;
        if let Some(list) = &steps.list {
            // The first call replaces the list; what does not fit into a page follows and is added.
            let path = Path::new(LIST);
            let file = OpenOptions::new().write(true).open(path);
            let written = file.and_then(|mut file| file.write_all(format!("{}\n", text(list)).as_bytes()));
            written.map_err(failed("write", path))?;
        }
        write_note(&added, &steps.left)
    }

    /// What the other agents offer.
    fn others(&self, own: &Path) -> Result<PortNumbers, ReserveError> {
        let mut all = PortNumbers::default();
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            if path != own && path.as_os_str().to_string_lossy().ends_with(OFFERS) {
                all = all.union(&read_note(&path)?);
            }
        }
        Ok(all)
    }
}

/// What is written, in this order.
#[derive(Debug, PartialEq, Eq)]
struct Steps {
    /// What agents will have added, with what is about to be taken away.
    noted: PortNumbers,
    /// The list, where it changes.
    list: Option<PortNumbers>,
    /// What agents have added then.
    left: PortNumbers,
}

impl Steps {
    /// Pure. `added` of what is on the `list` came from agents; all of these offer `others` and `wanted`.
    fn make(list: &PortNumbers, added: &PortNumbers, others: &PortNumbers, wanted: &PortNumbers) -> Self {
        let noted = added.union(&wanted.difference(list));
        let over = noted.difference(&others.union(wanted));
        let new = list.union(wanted).difference(&over);
        Self { list: Some(new).filter(|new| new != list), left: noted.difference(&over), noted }
    }
}

/// Nothing where there is no file.
fn read_note(path: &Path) -> Result<PortNumbers, ReserveError> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(PortNumbers::default()),
        text => parse(path, &text.map_err(failed("read", path))?),
    }
}

fn parse(path: &Path, text: &str) -> Result<PortNumbers, ReserveError> {
    let parsed = text.trim().parse::<PortSet>();
    parsed.map(|set| set.numbers()).map_err(|e| failed("understand", path)(io::Error::other(e)))
}

/// Durable before it returns; no file where there is nothing to say.
fn write_note(path: &Path, ports: &PortNumbers) -> Result<(), ReserveError> {
    if read_note(path)? == *ports {
        return Ok(());
    }
    if !ports.is_empty() {
        return replace_file(path, text(ports).as_bytes()).map(drop).map_err(failed("write", path));
    }
    fs::remove_file(path).map_err(failed("remove", path))
}

fn text(ports: &PortNumbers) -> String {
    PortSet::both(ports.clone()).to_string()
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReserveError {
    let path = path.to_owned();
    move |source| ReserveError { op, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A namespace with two agents, in memory.
    #[derive(Default, Clone, Debug)]
    struct Host {
        list: PortNumbers,
        added: PortNumbers,
        offers: [PortNumbers; 2],
    }

    impl Host {
        /// The agent wants this, and is killed after so many of the four writes.
        fn apply(&mut self, agent: usize, wanted: &PortNumbers, writes: usize) {
            let steps = Steps::make(&self.list, &self.added, &self.offers[1 - agent], wanted);
            let new = steps.list.unwrap_or_else(|| self.list.clone());
            if writes > 0 {
                self.added = steps.noted;
            }
            if writes > 1 {
                self.offers[agent] = wanted.clone();
            }
            if writes > 2 {
                self.list = new;
            }
            if writes > 3 {
                self.added = steps.left;
            }
        }
    }

    fn numbers() -> impl Strategy<Value = PortNumbers> {
        prop::collection::vec(1u16..20, 0..8).prop_map(|v| v.into_iter().collect())
    }

    proptest! {
        #[test]
        fn whatever_is_interrupted_the_operators_list_comes_back(
            operators in numbers(),
            moves in prop::collection::vec((0usize..2, numbers(), 0usize..=4), 0..12),
        ) {
            let mut host = Host { list: operators.clone(), ..Host::default() };
            for (agent, wanted, writes) in moves {
                host.apply(agent, &wanted, writes);
                prop_assert_eq!(operators.difference(&host.list), PortNumbers::default());
                if writes == 4 {
                    prop_assert_eq!(wanted.difference(&host.list), PortNumbers::default());
                    let both = host.offers[0].union(&host.offers[1]).union(&operators);
                    prop_assert_eq!(host.list.difference(&both), PortNumbers::default());
                }
            }
            for agent in [0, 1] {
                host.apply(agent, &PortNumbers::default(), 4);
            }
            prop_assert_eq!(&host.list, &operators);
            prop_assert_eq!(&host.added, &PortNumbers::default());
        }
    }

    #[test]
    fn what_both_agents_offer_stays_until_the_second_goes() {
        let set = |text: &str| text.parse::<PortSet>().unwrap().numbers();
        let mut host = Host { list: set("8080,31005"), ..Host::default() };
        host.apply(0, &set("31000-31010"), 4);
        host.apply(1, &set("31008-31020"), 4);
        assert_eq!(host.list, set("8080,31000-31020"));
        host.apply(0, &set(""), 4);
        assert_eq!(host.list, set("8080,31005,31008-31020"));
        host.apply(1, &set(""), 4);
        assert_eq!(host.list, set("8080,31005"));
    }
}
