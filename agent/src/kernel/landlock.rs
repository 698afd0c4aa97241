//! Landlock: which part of the host's files a task reaches, held by the kernel without a root directory of its
//! own (landlock(7), Linux 5.13).

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope,
};

/// The newest version whose rights are used. Those that the running kernel does not know yet are left out.
const NEWEST: ABI = ABI::V7;
/// From this version on the kernel keeps signals and abstract sockets inside too.
const WITH_SCOPES: ABI = ABI::V6;

/// Where programs, libraries and their settings lie on one distribution or another. Of these, what a host does not
/// have is left out; every other path that is named must be there.
pub const SYSTEM: [&str; 13] = [
    "/bin",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/proc",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/sbin",
    "/sys",
    "/usr",
];

/// No ruleset could be made.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// Not in this kernel, or not in its `lsm=` list.
    #[error("this kernel has no Landlock ({0}): see `bulkhead-agent probe`")]
    Unsupported(&'static str),
    /// A path that was named.
    #[error("{}: cannot be opened to everything below it", path.display())]
    Path {
        /// As it was named.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer to the ruleset.
    #[error("make a Landlock ruleset")]
    Ruleset(#[source] RulesetError),
    /// The kernel's answer to one rule.
    #[error("Landlock rule for {}", path.display())]
    Rule {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: RulesetError,
    },
}

/// The version of Landlock that the kernel has and this agent uses, and whether that has scopes.
///
/// # Errors
/// Why there is none.
pub fn version() -> Result<(ABI, bool), &'static str> {
    const VERSION: u32 = 1;
    let nothing = std::ptr::null::<u8>();
    // SAFETY: with this flag the call takes no memory, and answers with a number.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    if answer < 0 {
        return Err(match io::Error::last_os_error().raw_os_error() {
            Some(libc::EOPNOTSUPP) => "built in, not enabled at boot: lsm=landlock,...",
            _ => "not built in: CONFIG_SECURITY_LANDLOCK",
        });
    }
    let abi = ABI::from(i32::try_from(answer).unwrap_or(i32::MAX)).min(NEWEST);
    Ok((abi, abi >= WITH_SCOPES))
}

/// Makes a ruleset for `landlock_restrict_self`, which needs `no_new_privs` or CAP_SYS_ADMIN. Everything below the
/// paths of `read_exec` can be read and executed, everything below those of `read_write` also changed, and used as
/// a device; nothing else can be opened. Metadata, and what is already open, are not covered.
///
/// Where the kernel can (version 6, Linux 6.12), signals to processes outside and connections to abstract unix
/// sockets made outside are refused too. Renames between two of the directories need version 2 (Linux 5.19).
///
/// The same ruleset may restrict any number of tasks. Needs no privilege.
///
/// # Errors
/// [`LandlockError`] names the path. Of [`SYSTEM`], what is missing is left out.
pub fn ruleset(read_exec: &[&Path], read_write: &[&Path]) -> Result<OwnedFd, LandlockError> {
    let (abi, scoped) = version().map_err(LandlockError::Unsupported)?;
    let rules = landlock::Ruleset::default().handle_access(AccessFs::from_all(abi));
    let rules = match rules {
        Ok(rules) if scoped => rules.scope(Scope::from_all(abi)),
        other => other,
    };
    let mut rules = rules.and_then(landlock::Ruleset::create).map_err(LandlockError::Ruleset)?;
    for path in read_exec {
        rules = allow(rules, path, AccessFs::from_read(abi), abi)?;
    }
    for path in read_write {
        rules = allow(rules, path, AccessFs::from_all(abi), abi)?;
    }
    Option::<OwnedFd>::from(rules).ok_or(LandlockError::Unsupported("the kernel gave no ruleset"))
}

/// Every right that a ruleset of [`ruleset`] withholds, as `LANDLOCK_ACCESS_FS_...`; none without Landlock.
pub fn everything() -> u64 {
    version().map_or(0, |(abi, _)| AccessFs::from_all(abi).bits())
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
    abi: ABI,
) -> Result<RulesetCreated, LandlockError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && is_system(path) => return Ok(rules),
        Err(source) => return Err(LandlockError::Path { path: path.to_owned(), source }),
    };
    let meta = file.metadata().map_err(|source| LandlockError::Path { path: path.to_owned(), source })?;
    let access = if meta.is_dir() { access } else { access & AccessFs::from_file(abi) };
    let rule = PathBeneath::new(file, access);
    rules.add_rule(rule).map_err(|source| LandlockError::Rule { path: path.to_owned(), source })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| Path::new(system) == path)
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io::ErrorKind::PermissionDenied, os::fd::AsRawFd as _, os::linux::net::SocketAddrExt as _,
    };

    use super::*;

    /// Restricts a thread of its own, where it does something.
    fn under<T: Send + 'static>(ruleset: OwnedFd, act: impl FnOnce() -> T + Send + 'static) -> T {
        let restricted = move || {
            // SAFETY: prctl and landlock_restrict_self with these arguments read no memory; the descriptor is open.
            let done = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) == 0
            };
            assert!(done, "{}", io::Error::last_os_error());
            act()
        };
        std::thread::spawn(restricted).join().unwrap()
    }

    fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
        result.err().map(|e| e.kind())
    }

    #[test]
    fn what_is_not_named_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "text").unwrap();
        }
        if let Err(why) = version() {
            eprintln!("skipped: no Landlock here: {why}");
            return;
        }
        let device = Path::new("/dev/null");
        let mut readable: Vec<&Path> = SYSTEM.iter().map(Path::new).collect();
        let read = path("read");
        readable.push(&read);
        let rules = ruleset(&readable, &[&path("write"), device]).unwrap();
        let (read, write, other) = (path("read"), path("write"), path("other"));
        under(rules, move || {
            assert_eq!(fs::read_to_string(read.join("file")).unwrap(), "text");
            assert_eq!(kind(fs::write(read.join("file"), "x")), Some(PermissionDenied));
            assert_eq!(kind(fs::write(read.join("new"), "x")), Some(PermissionDenied));
            assert_eq!(kind(fs::remove_file(read.join("file"))), Some(PermissionDenied));
            fs::write(write.join("new"), "x").unwrap();
            fs::create_dir(write.join("dir")).unwrap();
            fs::rename(write.join("new"), write.join("dir/new")).unwrap();
            assert_eq!(kind(fs::read(other.join("file"))), Some(PermissionDenied));
            assert_eq!(kind(fs::read_dir(&other)), Some(PermissionDenied));
            assert_eq!(kind(fs::read_dir("/")), Some(PermissionDenied));
            fs::write("/dev/null", "x").unwrap();
            assert_eq!(kind(fs::read("/dev/zero")), Some(PermissionDenied));
            assert!(std::process::Command::new("true").status().unwrap().success());
        });
    }

    #[test]
    fn signals_and_abstract_sockets_stay_inside() {
        match version() {
            Ok((_, true)) => {}
            other => {
                eprintln!("skipped: no scopes here: {other:?}");
                return;
            }
        }
        let name = format!("bulkhead-landlock-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let outside = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let mut victim = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(victim.id().cast_signed());
        let rules = ruleset(&[Path::new("/usr")], &[]).unwrap();
        let (signal, connect) = under(rules, move || {
            (nix::sys::signal::kill(pid, None), kind(std::os::unix::net::UnixStream::connect_addr(&address)))
        });
        victim.kill().unwrap();
        victim.wait().unwrap();
        drop(outside);
        assert_eq!(signal, Err(nix::errno::Errno::EPERM));
        assert_eq!(connect, Some(PermissionDenied));
    }

    #[test]
    fn only_system_directories_may_be_missing() {
        if let Err(why) = version() {
            eprintln!("skipped: no Landlock here: {why}");
            return;
        }
        assert!(ruleset(&[Path::new("/libx32")], &[]).is_ok());
        let error = ruleset(&[Path::new("/nonexistent/data")], &[]).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/data: "), "{error}");
    }
}
