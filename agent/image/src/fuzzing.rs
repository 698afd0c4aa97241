//! What the fuzzer calls with arbitrary bytes. Each panics when an invariant is broken.

use std::fs;

use crate::{
    manifest::{self, Platform},
    unpack::{self, LayerBounds},
    user,
};

/// Unpacks the bytes as the tar stream of a layer, as root or as somebody else. False where it was refused.
///
/// # Panics
/// When something was written outside of the layer's directory, or the directory cannot be removed.
#[expect(clippy::expect_used, reason = "a fuzzer reports what panics")]
pub fn layer(data: &[u8]) -> bool {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("the layer's directory");
    fs::write(dir.path().join("beside"), "untouched").expect("a file beside it");
    let bounds = LayerBounds { bytes: 1 << 20, entries: 1000 };
    let unpacked = unpack::unpack(data, &root, bounds, &|_| Ok(())).is_ok();
    let beside: Vec<_> = fs::read_dir(dir.path()).expect("the directory").collect();
    assert_eq!(beside.len(), 2, "something was made outside");
    assert_eq!(fs::read(dir.path().join("beside")).expect("the file"), b"untouched");
    dir.close().expect("what was unpacked can be removed");
    unpacked
}

/// Reads the bytes as each of the documents of an image, and as the files that name users.
pub fn documents(data: &[u8]) {
    let platform = Platform::host();
    drop(manifest::document(data, None, &platform));
    drop(manifest::document(data, Some("tag"), &platform));
    drop(manifest::config(data, &platform));
    drop(manifest::saved(data, None));
    drop(user::resolve("web", data, data));
    if let Ok(text) = std::str::from_utf8(data) {
        drop(text.parse::<crate::Reference>());
    }
}
