//! Where the path of an entry leads, and what it means there. Pure.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

use super::MAX_DEPTH;

/// What an entry's path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// The root of the layer.
    Root,
    /// Something of this name in this directory.
    Plain { dir: Vec<&'a OsStr>, name: &'a OsStr },
    /// What lower layers have of this name is hidden.
    Whiteout { dir: Vec<&'a OsStr>, name: &'a OsStr },
    /// All that lower layers have in this directory is hidden.
    Opaque { dir: Vec<&'a OsStr> },
    /// Bookkeeping of a file system that nobody uses any more.
    Metadata,
}

const WHITEOUT: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The names in a path: what is empty or `.` says nothing.
fn parts(path: &[u8]) -> impl Iterator<Item = &OsStr> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").map(OsStr::from_bytes)
}

impl<'a> Target<'a> {
    /// Reads a path. An absolute one starts at the layer's root, as all others do.
    pub(super) fn of(path: &'a [u8]) -> Result<Self, &'static str> {
        let mut dir: Vec<&OsStr> = parts(path).collect();
        if dir.iter().any(|part| *part == "..") {
            return Err("its path has '..' in it, and would lead outside");
        }
        if dir.len() > MAX_DEPTH || path.len() > 4095 || dir.iter().any(|part| part.len() > 255) {
            return Err("its path is deeper or longer than any that images have");
        }
        let Some(name) = dir.pop() else { return Ok(Self::Root) };
        let starts = |part: &OsStr, prefix| part.as_bytes().starts_with(prefix);
        if dir.iter().any(|part| starts(part, RESERVED)) {
            return Ok(Self::Metadata);
        }
        if dir.iter().any(|part| starts(part, WHITEOUT)) {
            return Err("it lies in a whiteout, which has nothing in it");
        }
        if name.as_bytes() == OPAQUE {
            return if dir.is_empty() {
                Err("it is a whiteout of the root, which would hide the whole image")
            } else {
                Ok(Self::Opaque { dir })
            };
        }
        if starts(name, RESERVED) {
            return Ok(Self::Metadata);
        }
        match name.as_bytes().strip_prefix(WHITEOUT) {
            None => Ok(Self::Plain { dir, name }),
            Some(b"") => Err("it is a whiteout without a name"),
            Some(b"." | b"..") => Err("it is a whiteout of a directory by '.' or '..'"),
            Some(hidden) => Ok(Self::Whiteout { dir, name: OsStr::from_bytes(hidden) }),
        }
    }

    /// A path without what says nothing, relative to the root.
    pub(super) fn relative(path: &[u8]) -> PathBuf {
        std::iter::once(OsStr::new(".")).chain(parts(path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(path: &str) -> Result<Target<'_>, &'static str> {
        Target::of(path.as_bytes())
    }

    #[test]
    fn names_say_what_they_hide() {
        let (a, b) = (OsStr::new("a"), OsStr::new("b"));
        assert_eq!(of("/a//./b/"), Ok(Target::Plain { dir: vec![a], name: b }));
        assert_eq!(of("a/.wh.b"), Ok(Target::Whiteout { dir: vec![a], name: b }));
        assert_eq!(of("a/.wh..wh..opq"), Ok(Target::Opaque { dir: vec![a] }));
        assert_eq!(of(".wh..wh.plnk/1"), Ok(Target::Metadata));
        assert_eq!(of(".wh..wh.aufs"), Ok(Target::Metadata));
        for root in ["", "/", "./", "./."] {
            assert_eq!(of(root), Ok(Target::Root));
        }
    }

    #[test]
    fn what_leads_outside_or_hides_the_root_is_refused() {
        let deep = "d/".repeat(200);
        for bad in ["../x", "a/../../x", ".wh.", ".wh..", ".wh...", ".wh..wh..opq", ".wh.a/b", &deep] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(of(&"n".repeat(256)).is_err());
    }

    proptest! {
        #[test]
        fn no_path_leads_up(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'w'), Just(b'h'), any::<u8>()], 0..40)) {
            if let Ok(Target::Plain { dir, name } | Target::Whiteout { dir, name }) = Target::of(&path) {
                for part in dir.into_iter().chain([name]) {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.as_bytes().contains(&b'/'));
                }
            }
        }
    }
}
