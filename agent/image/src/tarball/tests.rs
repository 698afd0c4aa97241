use proptest::prelude::*;
use tar::Builder;

use super::*;

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(5);
    header.set_gid(6);
    header.set_mtime(7);
    header
}

fn entries(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tarball = Tarball::new(Stream(stream));
    let mut all = Vec::new();
    while let Some(entry) = tarball.next()? {
        let mut content = Vec::new();
        tarball.read_to_end(&mut content)?;
        all.push((entry, content));
    }
    Ok(all)
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    builder.append_data(&mut header(EntryType::Regular, 3), "plain", &b"abc"[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn names_of_any_length_and_bytes_come_through() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header(EntryType::Regular, 5), &long, &b"hello"[..]).unwrap();
    builder.append_link(&mut header(EntryType::Symlink, 0), "link", &long).unwrap();
    let read = entries(&builder.into_inner().unwrap()).unwrap();
    let (file, content) = &read[0];
    assert_eq!((file.path.as_slice(), content.as_slice()), (long.as_bytes(), &b"hello"[..]));
    assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4755, 5, 6, (7, 0)));
    assert_eq!(read[1].0.kind, Kind::Symlink(long.into_bytes()));
}

#[test]
fn pax_records_override_and_may_hold_any_byte() {
    let value = b"a\nb=c\0d";
    let read = entries(&pax(&[
        ("path", b"other\xff"),
        ("uid", b"70000"),
        ("mtime", b"-1.5"),
        ("SCHILY.xattr.user.x", value),
        ("comment", b"ignored"),
    ]));
    let (entry, content) = &read.unwrap()[0];
    assert_eq!((entry.path.as_slice(), content.as_slice()), (&b"other\xff"[..], &b"abc"[..]));
    assert_eq!((entry.uid, entry.mtime), (70_000, (-2, 500_000_000)));
    assert_eq!(entry.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
}

#[test]
fn what_is_malformed_or_too_large_is_told() {
    let why = |stream: &[u8]| entries(stream).unwrap_err().to_string();
    assert!(why(&[1; 512]).contains("checksum"));
    assert!(matches!(entries(&[1; 100]), Err(TarError::Read(_))));
    assert!(why(&pax(&[("uid", b"4294967295")])).contains("owner"));
    assert!(why(&pax(&[("uid", b"-1")])).contains("owner"));
    assert!(why(&pax(&[("size", b"x")])).contains("size"));
    assert!(why(&pax(&[("path", b"a\0b")])).contains("NUL"));
    assert!(why(&pax(&[("GNU.sparse.major", b"1")])).contains("sparse"));

    assert!(why(&pax(&[("size", b"18446744073709551615")])).contains("larger than a file"));
    let mut endless = header(EntryType::Regular, 0);
    endless.as_mut_bytes()[124..136].copy_from_slice(&[[0x80, 0, 0, 0], [0xff; 4], [0xff; 4]].concat());
    endless.set_cksum();
    assert!(why(endless.as_bytes()).contains("larger than a file"));

    let mut bomb = header(EntryType::GNULongName, 1 << 40);
    bomb.set_path("././@LongLink").unwrap();
    bomb.set_cksum();
    assert!(why(bomb.as_bytes()).contains("1 MiB"));

    let mut unknown = header(EntryType::new(b'V'), 0);
    unknown.set_cksum();
    assert!(why(unknown.as_bytes()).contains("kind"));

    let whole = pax(&[]);
    assert!(matches!(entries(&whole[..513]), Err(TarError::Read(_))));
}

fn sparse(real_size: u64, pieces: &[(u64, u64)], content: &[u8]) -> Vec<u8> {
    let mut header = header(EntryType::GNUSparse, content.len() as u64);
    header.set_path("holes").unwrap();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real_size);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(pieces) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    header.set_cksum();
    let mut stream = header.as_bytes().to_vec();
    stream.extend_from_slice(content);
    stream.resize(stream.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    stream
}

#[test]
fn holes_are_kept_and_lying_maps_refused() {
    let read = entries(&sparse(1 << 30, &[(4096, 2), (1 << 29, 1)], b"abc")).unwrap();
    let expected = Kind::Sparse { size: 1 << 30, pieces: vec![(4096, 2), (1 << 29, 1)] };
    assert_eq!((&read[0].0.kind, read[0].1.as_slice()), (&expected, &b"abc"[..]));
    for pieces in [&[(0, 2)][..], &[(9, 2), (0, 1)], &[(99, 3)], &[(u64::MAX >> 2, 3)]] {
        let why = entries(&sparse(100, pieces, b"abc")).unwrap_err().to_string();
        assert!(why.contains("holes"), "{pieces:?}: {why}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(mut stream: Vec<u8>, fix: bool) {
        if fix && stream.len() >= BLOCK {
            let mut header = Header::from_byte_slice(&stream[..BLOCK]).clone();
            header.set_cksum();
            stream[..BLOCK].copy_from_slice(header.as_bytes());
        }
        drop(entries(&stream));
    }

    #[test]
    fn no_header_panics(kind: u8, size: [u8; 12], rest in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mut header = header(EntryType::new(kind), 0);
        header.as_mut_bytes()[124..136].copy_from_slice(&size);
        header.set_cksum();
        let mut stream = header.as_bytes().to_vec();
        stream.extend(rest);
        drop(entries(&stream));
    }
}
