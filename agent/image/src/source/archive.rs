//! What `docker save` writes: a tar file with `manifest.json`, the configuration, and the layers as tar files of
//! their own; since Docker 25 the layers and the configuration are blobs of an OCI layout in the same file.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_stage::Digest;

use super::{Bytes, Found, LayerBlob, allowed, bounded};
use crate::{
    error::ImageError,
    manifest::{self, MAX_BYTES},
    tarball::{Kind, Skip, Tarball},
};

/// Most members of an archive: three for each layer, and what an OCI layout adds.
const MAX_MEMBERS: usize = 10_000;
/// Links to links that are followed.
const MAX_LINKS: usize = 8;

/// An open archive, and where its members are.
#[derive(Clone)]
pub(crate) struct Archive {
    file: Arc<File>,
    path: PathBuf,
    image: Option<String>,
    members: Arc<HashMap<Vec<u8>, Member>>,
}

enum Member {
    /// First byte, and length.
    Content(u64, u64),
    /// The same content under another name, from the top of the archive.
    Link(Vec<u8>),
}

impl Archive {
    pub(crate) fn open(
        path: &Path,
        image_dirs: &[PathBuf],
        image: Option<String>,
    ) -> Result<Self, ImageError> {
        let (base, rest) = allowed(path, image_dirs)?;
        let rest =
            rest.ok_or_else(|| ImageError::Archive { path: path.into(), why: "it is a directory".into() })?;
        let file = Arc::new(base.read(&rest)?);
        let length = file.metadata().map_err(ImageError::io("stat", path))?.len();
        let whole = Section { file: Arc::clone(&file), at: 0, end: length };
        let members = members(whole, length).map_err(|why| ImageError::Archive { path: path.into(), why })?;
        Ok(Self { file, path: path.into(), image, members: Arc::new(members) })
    }

    fn bad<T>(&self, why: impl Into<String>) -> Result<T, ImageError> {
        Err(ImageError::Archive { path: self.path.clone(), why: why.into() })
    }

    fn section(&self, name: &str) -> Result<Section, ImageError> {
        let mut wanted = clean(name.as_bytes());
        for _ in 0..MAX_LINKS {
            match self.members.get(&wanted) {
                Some(Member::Content(at, length)) => {
                    return Ok(Section { file: Arc::clone(&self.file), at: *at, end: at + length });
                }
                Some(Member::Link(target)) => wanted = target.clone(),
                None => break,
            }
        }
        let name: String = name.chars().take(200).collect();
        self.bad(format!("it has no file {name:?}"))
    }

    fn small(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        bounded(name, MAX_BYTES, self.section(name)?, &self.path)
    }

    pub(crate) fn find(&self) -> Result<Found, ImageError> {
        let malformed = |what: &str| {
            let what = format!("{}/{what}", self.path.display());
            move |why| ImageError::Manifest { what, why }
        };
        let bytes = self.small("manifest.json")?;
        let saved = manifest::saved(&bytes, self.image.as_deref()).map_err(malformed("manifest.json"))?;
        let config = self.small(&saved.config)?;
        // The configuration is called by its digest, in both forms.
        if let Some(digest) = named_digest(&saved.config) {
            let what = || format!("{}/{}", self.path.display(), saved.config);
            let found = Digest::of(digest.algorithm(), &config);
            digest.check(&found).map_err(|why| ImageError::Corrupt { what: what(), why })?;
        }
        let layer = |name: &String| {
            let section = self.section(name)?;
            let digest = name.starts_with("blobs/").then(|| named_digest(name)).flatten();
            Ok(LayerBlob { name: name.clone(), digest, size: Some(section.end - section.at) })
        };
        let layers = saved.layers.iter().map(layer).collect::<Result<_, ImageError>>()?;
        Ok(Found { manifest: None, config, layers })
    }

    pub(crate) fn layer(&self, layer: &LayerBlob) -> Result<Bytes, ImageError> {
        Ok(Box::new(self.section(&layer.name)?))
    }
}

/// The digest in `blobs/sha256/HEX` or `HEX.json`.
fn named_digest(name: &str) -> Option<Digest> {
    let name = name.strip_suffix(".json").unwrap_or(name);
    let hex = name.strip_prefix("blobs/sha256/").unwrap_or(name);
    format!("sha256:{hex}").parse().ok()
}

/// Where every member is. Later ones replace earlier ones of the same name.
fn members(whole: Section, length: u64) -> Result<HashMap<Vec<u8>, Member>, String> {
    let mut head = [0; 4];
    let start = whole.file.read_at(&mut head, 0).unwrap_or(0);
    if matches!(head.get(..start), Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])) {
        return Err("it is compressed: decompress it first".into());
    }
    let mut tarball = Tarball::new(whole);
    let mut members = HashMap::new();
    while let Some(entry) = tarball.next().map_err(|e| describe(&e))? {
        if members.len() >= MAX_MEMBERS {
            return Err(format!("it has more than {MAX_MEMBERS} members"));
        }
        let name = clean(&entry.path);
        let member = match entry.kind {
            Kind::File => {
                let at = tarball.position();
                if at.checked_add(entry.size).is_none_or(|end| end > length) {
                    return Err(format!("it is cut off in {}", String::from_utf8_lossy(&name)));
                }
                Member::Content(at, entry.size)
            }
            Kind::HardLink(target) => Member::Link(clean(&target)),
            Kind::Symlink(target) => {
                let parent = name.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default();
                Member::Link(clean(&[parent, &target].join(&b'/')))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

fn describe(error: &crate::tarball::TarError) -> String {
    match error {
        crate::tarball::TarError::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            "it is cut off".into()
        }
        other => format!("it is no archive of docker save: {other}"),
    }
}

/// A name without what says nothing; it is looked up in the archive and nowhere else.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Part of a file, read without moving the file's own position.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let n = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Skip for Section {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at = self.at.checked_add(bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}
