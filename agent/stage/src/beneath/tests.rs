use std::{
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
};

use proptest::prelude::*;

use super::*;

fn at(path: &str) -> Inside {
    Inside::new(path).unwrap()
}

/// A directory beside a secret that nothing may reach.
struct Fixture {
    top: tempfile::TempDir,
    inside: Beneath,
}

impl Fixture {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("in")).unwrap();
        fs::create_dir(top.path().join("out")).unwrap();
        fs::write(top.path().join("out/secret"), "secret").unwrap();
        let inside = Beneath::open(&top.path().join("in")).unwrap();
        Self { top, inside }
    }

    /// Is there nothing outside but the secret, unchanged?
    fn outside_is_untouched(&self) -> bool {
        let outside = self.top.path().join("out");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        names == ["secret"] && fs::read(outside.join("secret")).unwrap() == b"secret"
    }
}

#[test]
fn paths_that_leave_are_refused_before_the_kernel_is_asked() {
    for (path, why) in [
        ("", BadPath::Empty),
        ("./.", BadPath::Empty),
        ("/etc/passwd", BadPath::Absolute),
        ("..", BadPath::Parent),
        ("a/../../b", BadPath::Parent),
        ("a/..", BadPath::Parent),
        ("a\0b", BadPath::Nul),
    ] {
        assert_eq!(Inside::new(path), Err(why), "{path:?}");
    }
    assert_eq!(Inside::new("a/".repeat(MAX_DEPTH + 1)), Err(BadPath::Long));
    assert_eq!(Inside::new("x".repeat(MAX_PATH_BYTES + 1)), Err(BadPath::Long));
    assert_eq!(at("./a//b/./c").as_path(), Path::new("a/b/c"));
    let bytes = OsStr::from_bytes(b"caf\xe9/\xff");
    assert_eq!(Inside::new(bytes).unwrap().as_path().as_os_str(), bytes);
}

#[test]
fn files_and_directories_are_made_once() {
    let f = Fixture::new();
    let mut made = Vec::new();
    f.inside.make_dirs(&at("a/b"), 0o755, |d| made.push(d.to_string())).unwrap();
    f.inside.make_dirs(&at("a/b/c"), 0o755, |d| made.push(d.to_string())).unwrap();
    assert_eq!(made, ["a", "a/b", "a/b/c"]);
    f.inside.create(&at("a/b/file"), 0o644).unwrap().write_all(b"x").unwrap();
    let again = f.inside.create(&at("a/b/file"), 0o644).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let mut text = String::new();
    f.inside.read(&at("a/b/file")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
    let through_file = f.inside.make_dirs(&at("a/b/file/d"), 0o755, |_| {}).unwrap_err();
    assert_eq!(through_file.kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn no_link_is_followed_at_the_end_or_on_the_way() {
    let f = Fixture::new();
    let inside = f.inside.path().to_owned();
    symlink("../out", inside.join("up")).unwrap();
    symlink(f.top.path().join("out"), inside.join("absolute")).unwrap();
    symlink("../out/secret", inside.join("file")).unwrap();
    symlink("../out/new", inside.join("dangling")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    for through in ["up/x", "absolute/x", "magic/x"] {
        let through = at(through);
        assert!(f.inside.create(&through, 0o644).unwrap_err().leaves());
        assert!(f.inside.make_dirs(&through, 0o755, |_| {}).unwrap_err().leaves());
        assert!(f.inside.make_dir(&through, 0o755).unwrap_err().leaves());
        assert!(f.inside.symlink(OsStr::new("x"), &through).unwrap_err().leaves());
        assert!(f.inside.remove_all(&through).unwrap_err().leaves());
        assert!(f.inside.dir(&through).unwrap_err().leaves());
    }
    assert!(f.inside.read(&at("file")).unwrap_err().leaves());
    assert!(f.inside.read(&at("up/secret")).unwrap_err().leaves());
    assert!(f.inside.dir(&at("up")).unwrap_err().leaves());
    assert!(f.inside.create(&at("dangling"), 0o644).is_err());
    assert!(f.inside.hard_link(&at("file"), &at("stolen")).unwrap_err().leaves());
    assert!(f.inside.hard_link(&at("up/secret"), &at("stolen")).unwrap_err().leaves());
    f.inside.remove_all(&at("up")).unwrap();
    f.inside.remove(&at("file")).unwrap();
    assert!(f.outside_is_untouched());
}

#[test]
fn trees_are_removed_with_the_links_in_them_and_not_what_they_point_to() {
    let f = Fixture::new();
    f.inside.make_dirs(&at("a/b"), 0o755, |_| {}).unwrap();
    f.inside.create(&at("a/b/file"), 0o600).unwrap();
    f.inside.symlink(OsStr::new("../../../out"), &at("a/b/up")).unwrap();
    assert_eq!(f.inside.remove(&at("a")).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
    f.inside.remove_all(&at("a")).unwrap();
    f.inside.remove_all(&at("a")).unwrap();
    assert_eq!(f.inside.stat(&at("a")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(f.outside_is_untouched());
}

#[test]
fn hard_links_are_of_ordinary_files_inside() {
    let f = Fixture::new();
    f.inside.create(&at("one"), 0o600).unwrap().write_all(b"1").unwrap();
    f.inside.make_dirs(&at("d"), 0o755, |_| {}).unwrap();
    f.inside.hard_link(&at("one"), &at("d/two")).unwrap();
    let inode = |path: &str| f.inside.stat(&at(path)).unwrap().st_ino;
    assert_eq!(inode("one"), inode("d/two"));
    assert!(f.inside.hard_link(&at("d"), &at("e")).is_err());
}

#[test]
fn a_pipe_is_no_file_to_read_and_does_not_block() {
    let f = Fixture::new();
    nix::unistd::mkfifo(&f.inside.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = f.inside.read(&at("pipe")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// One move of an attacker or of the agent, by small numbers so that they meet.
#[derive(Clone, Debug)]
enum Move {
    Link { target: &'static str, at: String },
    Create(String),
    Dirs(String),
    HardLink(String, String),
    Remove(String),
}

fn any_move() -> impl Strategy<Value = Move> {
    let path =
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"));
    let target = prop::sample::select(vec![
        "..",
        "../out",
        "../out/secret",
        "/",
        "a",
        ".",
        "../../out",
        "/proc/self/root",
    ]);
    prop_oneof![
        (target, path.clone()).prop_map(|(target, at)| Move::Link { target, at }),
        path.clone().prop_map(Move::Create),
        path.clone().prop_map(Move::Dirs),
        (path.clone(), path.clone()).prop_map(|(a, b)| Move::HardLink(a, b)),
        path.prop_map(Move::Remove),
    ]
}

proptest! {
    #[test]
    fn whatever_is_done_nothing_outside_changes(moves in prop::collection::vec(any_move(), 1..24)) {
        let f = Fixture::new();
        for step in moves {
            match step {
                Move::Link { target, at: path } => drop(f.inside.symlink(OsStr::new(target), &at(&path))),
                Move::Create(path) => {
                    if let Ok(mut file) = f.inside.create(&at(&path), 0o644) {
                        file.write_all(b"changed").unwrap();
                    }
                }
                Move::Dirs(path) => drop(f.inside.make_dirs(&at(&path), 0o755, |_| {})),
                Move::HardLink(from, to) => drop(f.inside.hard_link(&at(&from), &at(&to))),
                Move::Remove(path) => drop(f.inside.remove_all(&at(&path))),
            }
        }
        prop_assert!(f.outside_is_untouched());
    }

    #[test]
    fn what_is_inside_stays_inside(path: String) {
        if let Ok(inside) = Inside::new(&path) {
            prop_assert!(inside.as_path().is_relative());
            prop_assert!(inside.as_path().components().all(|c| matches!(c, Component::Normal(_))));
            prop_assert_eq!(Inside::new(inside.as_path()), Ok(inside));
        }
    }
}
