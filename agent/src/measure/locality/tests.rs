//! Whole looks at trees that are made for it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::{fs::symlink, net::UnixListener},
    },
    path::Path,
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::{stat::Mode, statfs::statfs},
    unistd::mkfifo,
};

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn look(dir: &Path, name: &str) -> Result<Tally, LookError> {
    look_within(dir, name, LONG)
}

fn look_within(dir: &Path, name: &str, time: Duration) -> Result<Tally, LookError> {
    let DataSet::Local(set) = DataSet::parse(dir.join(name).to_str().unwrap()).unwrap() else {
        panic!("{name}")
    };
    let roots = Roots::new(vec![dir.to_owned()]);
    walk::look(&set, &roots, PageCache::probe(), walk::Bounds::within(time, Instant::now()), 1)
}

fn bytes(tally: &Tally) -> u64 {
    tally.cached_bytes + tally.bytes_at(|_| true)
}

fn write(path: &Path, bytes: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![1; bytes]).unwrap();
}

#[test]
fn files_directories_and_patterns_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    for (file, bytes) in
        [("d/day=1/a.orc", 1000), ("d/day=1/b.log", 200), ("d/day=2/c.orc", 30), ("d/.x/d", 4)]
    {
        write(&dir.path().join(file), bytes);
    }
    let seen = |name: &str| {
        let tally = look(dir.path(), name).unwrap();
        assert!(!tally.sampled && tally.skipped == 0, "{tally:?}");
        (bytes(&tally), tally.total)
    };
    assert_eq!(seen("d"), (1234, 4));
    assert_eq!(seen("d/day=1/a.orc"), (1000, 1));
    assert_eq!(seen("d/day=*"), (1230, 3));
    assert_eq!(seen("d/*/*.orc"), (1030, 2));
    assert_eq!(seen("d/day=[2-9]/c.or?"), (30, 1));
    assert_eq!(seen("d/*"), (1230, 3), "hidden ones only where they are meant");
    assert_eq!(seen("d/.*"), (4, 1));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert_eq!(seen("empty"), (0, 0));
}

#[test]
fn what_cannot_be_told_says_why() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("file"), 1);
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    for (name, expected) in [
        ("none", "no such file"),
        ("no*ne", "matches the pattern"),
        ("file/x*", "matches the pattern"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("file/x", "no such file"),
    ] {
        let error = look(dir.path(), name).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let roots = Roots::new(vec!["/dev".into()]);
    let DataSet::Local(null) = DataSet::parse("/dev/null").unwrap() else { panic!() };
    let bounds = walk::Bounds::within(LONG, Instant::now());
    let error = walk::look(&null, &roots, PageCache::probe(), bounds, 1).unwrap_err();
    assert!(matches!(error, LookError::Kind("a device")), "{error}");
}

#[test]
fn only_regular_files_count_and_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("d/file"), 5000);
    write(&at("outside"), 7_000_000);
    fs::hard_link(at("d/file"), at("d/again")).unwrap();
    symlink("file", at("d/link")).unwrap();
    symlink("../outside", at("d/out")).unwrap();
    symlink("..", at("d/up")).unwrap();
    mkfifo(&at("d/fifo"), Mode::S_IRWXU).unwrap();
    write(&at("d/two\nlines"), 11);
    let tally = look(dir.path(), "d").unwrap();
    assert_eq!((bytes(&tally), tally.total, tally.skipped), (5011, 3, 0));
    assert_eq!(bytes(&look(dir.path(), "d/two\nlines").unwrap()), 11);
}

#[test]
fn a_large_tree_is_sampled_and_extrapolated() {
    const DIRS: usize = 200;
    const FILES: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    for d in 0..DIRS {
        let sub = dir.path().join(format!("t/{d}"));
        fs::create_dir_all(&sub).unwrap();
        for f in 0..FILES {
            File::create(sub.join(f.to_string())).unwrap().write_all(&[1; 100]).unwrap();
        }
    }
    let all = (DIRS * FILES) as u64;
    let tiny = look_within(dir.path(), "t", Duration::from_nanos(1)).unwrap();
    assert!(tiny.sampled && tiny.seen >= 1 && tiny.seen < all, "{tiny:?}");
    assert_eq!(bytes(&tiny), tiny.total * 100, "all files are alike");
    // More files than are kept, and time for all of them.
    let long = look(dir.path(), "t").unwrap();
    assert!(long.sampled && long.seen < all, "{long:?}");
    assert_eq!((long.total, bytes(&long)), (all, all * 100));
}

#[test]
fn a_directory_that_is_too_long_is_estimated_where_its_file_system_helps() {
    const FILES: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    for n in 0..FILES {
        File::create(dir.path().join(format!("d/{n}"))).unwrap().write_all(&[1; 10]).unwrap();
    }
    let tally = look_within(dir.path(), "d", Duration::from_nanos(1)).unwrap();
    assert!(tally.sampled && tally.seen >= 1 && bytes(&tally) == tally.total * 10, "{tally:?}");
    let kind = statfs(dir.path()).unwrap().filesystem_type();
    if kind == nix::sys::statfs::EXT4_SUPER_MAGIC {
        let all = FILES as u64;
        assert!((all / 5..all * 5).contains(&tally.total), "{tally:?}");
    } else {
        println!("SKIP: {kind:?} does not tell how far a listing is");
    }
}

#[test]
fn files_that_vanish_meanwhile_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..2000 {
        write(&dir.path().join(format!("d/{n}")), 10);
    }
    let path = dir.path().join("d");
    let removing = std::thread::spawn(move || {
        for n in 0..2000 {
            fs::remove_file(path.join(n.to_string())).unwrap();
        }
    });
    while !removing.is_finished() {
        match look(dir.path(), "d") {
            Ok(tally) => assert!(tally.total <= 2000 && bytes(&tally) <= 20_000, "{tally:?}"),
            // All of those that were listed were gone.
            Err(error) => assert!(matches!(error, LookError::AllSkipped(..)), "{error}"),
        }
    }
    removing.join().unwrap();
    assert_eq!(look(dir.path(), "d").unwrap().total, 0);
}

#[test]
fn a_tree_that_is_closed_says_so() {
    if nix::unistd::geteuid().is_root() {
        println!("SKIP: nothing is closed to root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs::set_permissions(dir.path().join("d"), closed).unwrap();
    let error = look(dir.path(), "d").unwrap_err().to_string();
    assert!(error.contains("Permission denied"), "{error}");
}

#[test]
fn looking_does_not_change_what_is_cached() {
    const BYTES: usize = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write(&path, BYTES);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    let cached = || PageCache::probe().cached_bytes(file.as_fd(), 0, BYTES as u64).unwrap();
    assert!(look(dir.path(), "file").unwrap().cached_bytes > 0, "just written");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    if cached() > 0 {
        println!("SKIP: {:?} keeps its files in memory", statfs(&path).unwrap().filesystem_type());
        return;
    }
    for _ in 0..3 {
        let tally = look(dir.path(), "file").unwrap();
        assert_eq!((tally.cached_bytes, bytes(&tally)), (0, BYTES as u64));
        assert_eq!(cached(), 0, "the look brought something into memory");
    }
    io::Read::read_exact(&mut &file, &mut vec![0; BYTES / 2]).unwrap();
    let tally = look(dir.path(), "file").unwrap();
    assert!(tally.cached_bytes > 0 && bytes(&tally) == BYTES as u64, "{tally:?}");
}

#[tokio::test]
async fn answers_have_a_cost_or_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("file"), 100_000);
    let locality = crate::config::LocalityConfig { roots: vec![dir.path().to_owned()], ..Default::default() };
    let config = Config { locality, ..Config::default() };
    let looker = Arc::new(Looker::new(&config).unwrap());
    let bandwidths = Meter::start(&config).now(Instant::now());
    let known = looker.access(dir.path().join("file").to_str().unwrap(), &bandwidths, 1).await;
    assert_eq!((known.cached_bytes + known.disk_bytes, known.error.as_str()), (100_000, ""));
    assert!(known.access_usec > 0);
    for (name, expected) in [
        ("/etc/passwd", "locality.roots"),
        ("/no\0thing", "zero byte"),
        ("webhdfs://nn:9870/x", "locality.name_nodes"),
        ("relative", "absolute path"),
    ] {
        let access = looker.access(name, &bandwidths, 1).await;
        assert!(access.error.contains(expected) && access.access_usec == 0, "{access:?}");
        assert_eq!(access.data_set, name);
    }
}
