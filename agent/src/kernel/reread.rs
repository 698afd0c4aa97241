//! Files of the kernel that are read again and again: opened once, and read from their beginning each time.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// More than any of these files has: the longest, `io.stat`, has some 150 bytes a disk.
const ROOM_BYTES: usize = 16 << 10;

/// Where texts are read into, one after the other, without memory being asked for each.
#[derive(Debug)]
pub struct Room(Vec<u8>);

impl Default for Room {
    fn default() -> Self {
        Self(vec![0; ROOM_BYTES])
    }
}

/// One such file, of a cgroup or below /proc/pressure.
///
/// The kernel makes the whole text anew for a read at offset 0, so one call gets all of it as it is then.
#[derive(Debug)]
pub struct Reread {
    file: File,
    path: PathBuf,
}

impl Reread {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's answer: `ENOENT` also where the cgroup has not this controller.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::open(&path)?, path })
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it now. A text beyond the room is cut off behind its last whole line.
    ///
    /// # Errors
    /// `ENODEV` after the cgroup was removed, `EOPNOTSUPP` for pressure where the kernel was started with `psi=0`.
    pub fn read<'a>(&self, room: &'a mut Room) -> io::Result<&'a str> {
        let filled = self.file.read_at(&mut room.0, 0)?;
        let mut text = room.0.get(..filled).unwrap_or_default();
        if filled == room.0.len() {
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            text = text.get(..whole).unwrap_or_default();
        }
        std::str::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn each_read_begins_at_the_beginning() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a 1\nb 2\n").unwrap();
        let (mut room, reread) = (Room::default(), Reread::open(file.path().to_owned()).unwrap());
        assert_eq!(reread.read(&mut room).unwrap(), "a 1\nb 2\n");
        file.as_file().set_len(4).unwrap();
        assert_eq!(reread.read(&mut room).unwrap(), "a 1\n");
        assert_eq!(reread.path(), file.path());
    }

    #[test]
    fn a_text_beyond_the_room_ends_with_a_whole_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = "0123456789\n";
        file.write_all(line.repeat(ROOM_BYTES / line.len() + 2).as_bytes()).unwrap();
        let (mut room, reread) = (Room::default(), Reread::open(file.path().to_owned()).unwrap());
        let text = reread.read(&mut room).unwrap();
        assert_eq!(text.len(), ROOM_BYTES / line.len() * line.len());
        assert!(text.ends_with(line));
    }

    #[test]
    fn what_is_no_text_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a \xff\n").unwrap();
        let reread = Reread::open(file.path().to_owned()).unwrap();
        assert_eq!(reread.read(&mut Room::default()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
