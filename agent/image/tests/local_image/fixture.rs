//! Images made of a few bytes, and stores to bring them into.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bulkhead_image::{Lease, Reference, Report, Settings, Store, Unpacked};
use bulkhead_stage::{Digest, digest::Algorithm};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// Room enough for every test that is not about room.
const BOUND: u64 = 64 << 20;

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// The archive of a layer in the making.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header
    }

    /// An entry with exactly this name, however bad.
    pub(crate) fn raw(mut self, mut header: Header, path: &str, link: &str, content: &[u8]) -> Self {
        let name = &mut header.as_old_mut().name;
        name.fill(0);
        name[..path.len()].copy_from_slice(path.as_bytes());
        let slot = &mut header.as_old_mut().linkname;
        slot.fill(0);
        slot[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.mode(path, content, 0o644)
    }

    pub(crate) fn mode(self, path: &str, content: &str, mode: u32) -> Self {
        let mut header = Self::header(EntryType::Regular, content.len() as u64);
        header.set_mode(mode);
        self.raw(header, path, "", content.as_bytes())
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        let mut header = Self::header(EntryType::Directory, 0);
        header.set_mode(0o755);
        self.raw(header, path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Symlink, 0), path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Link, 0), path, target, b"")
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub(crate) fn architecture() -> &'static str {
    bulkhead_image::Platform::host().architecture
}

/// An image: blobs by digest, and the manifest that leads to them.
pub(crate) struct Image {
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

/// An image of these layers: as they are stored, and uncompressed.
pub(crate) fn image_of(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Image {
    let ids: Vec<_> = layers.iter().map(|(_, plain)| sha256(plain).to_string()).collect();
    let config = json!({
        "os": "linux", "architecture": architecture(), "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    image_with(layers.iter().map(|(stored, _)| stored.clone()).collect(), &config)
}

pub(crate) fn image_with(blobs: Vec<Vec<u8>>, config: &Value) -> Image {
    let config = serde_json::to_vec(config).unwrap();
    let descriptor = |bytes: &Vec<u8>, kind: &str| json!({"mediaType": kind, "digest": sha256(bytes).to_string(), "size": bytes.len()});
    let layers: Vec<_> =
        blobs.iter().map(|b| descriptor(b, "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    });
    Image { blobs, config, manifest: serde_json::to_vec(&manifest).unwrap() }
}

/// An image of these uncompressed layers.
pub(crate) fn image(layers: &[Vec<u8>]) -> Image {
    let layers: Vec<_> = layers.iter().map(|layer| (gzip(layer), layer.clone())).collect();
    image_of(&layers, &Value::Null)
}

pub(crate) fn put_blob(dir: &Path, bytes: &[u8]) -> Value {
    let digest = sha256(bytes);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(digest.hex()), bytes).unwrap();
    json!({"digest": digest.to_string(), "size": bytes.len()})
}

pub(crate) fn put_index(dir: &Path, manifests: &[Value]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string())
        .unwrap();
}

/// Writes the image as a layout with one image in it.
pub(crate) fn put_layout(dir: &Path, image: &Image) {
    for blob in image.blobs.iter().chain([&image.config]) {
        put_blob(dir, blob);
    }
    let manifest = put_blob(dir, &image.manifest);
    put_index(dir, &[manifest]);
}

/// A place for images, and a store that reads from there.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) settings: Settings,
}

impl Place {
    /// `None`, and the reason is printed, where these tests cannot run.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let dir = TempDir::new_in("/var/tmp").unwrap();
        let chown = std::os::unix::fs::chown(dir.path(), Some(0), Some(0));
        let opened =
            rustix::fs::open(dir.path(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let xattr = rustix::fs::fsetxattr(&opened, "trusted.bulkhead", b"y", rustix::fs::XattrFlags::empty());
        if chown.is_err() || xattr.is_err() {
            println!(
                "SKIP {test}: needs root, and a file system with trusted extended attributes below /var/tmp"
            );
            return None;
        }
        fs::create_dir(dir.path().join("images")).unwrap();
        let settings = Settings { image_dirs: vec![dir.path().join("images")], ..Settings::new(BOUND) };
        Some(Self { dir, settings })
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.store_dir(), self.settings.clone()).unwrap()
    }

    /// Writes the image as a layout of this name, and says how it is referred to.
    pub(crate) fn layout(&self, name: &str, image: &Image) -> String {
        let dir = self.images().join(name);
        put_layout(&dir, image);
        format!("oci:{}", dir.display())
    }

    /// Files in the store besides whole layers and records: what a failure may not leave.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        names(&self.store_dir().join("tmp"))
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub(crate) fn quiet() -> Report {
    Arc::new(|_| {})
}

pub(crate) async fn get(store: &Store, reference: &str) -> (Unpacked, Lease) {
    let reference: Reference = reference.parse().unwrap();
    store.get(&reference, quiet()).await.unwrap_or_else(|e| panic!("{}", chain(&e)))
}

pub(crate) async fn refused(store: &Store, reference: &str) -> String {
    let reference: Reference = reference.parse().unwrap();
    chain(&store.get(&reference, quiet()).await.expect_err("it was taken"))
}

/// An error with everything behind it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
