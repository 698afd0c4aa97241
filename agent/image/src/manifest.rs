//! What the JSON documents of an image say. Pure: bytes in, checked values out.

use std::collections::BTreeMap;

use bulkhead_stage::Digest;
use serde::Deserialize;

/// Largest document that is read, as registries bound it too.
pub(crate) const MAX_BYTES: u64 = 4 << 20;
/// Most layers of an image, as container engines have it. Overlayfs takes 500.
pub const MAX_LAYERS: usize = 127;
/// Indexes within indexes that are followed.
pub(crate) const MAX_NESTING: usize = 4;

/// A document is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No JSON, or not of that form; the text names line and column.
    #[error("it is malformed: {0}")]
    Json(String),
    /// The form is right and the content is not.
    #[error("{0}")]
    Content(String),
}

fn content<T>(why: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Content(why.into()))
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))
}

/// What kind of machine an image is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// As images name it: amd64, arm64, ...
    pub architecture: &'static str,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture }
    }

    fn fits(&self, os: &str, architecture: &str) -> bool {
        os == "linux" && architecture == self.architecture
    }
}

/// A blob, by what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl RawDescriptor {
    fn blob(&self) -> Result<Blob, ManifestError> {
        match self.digest.parse() {
            Ok(digest) => Ok(Blob { digest, size: self.size }),
            Err(e) => content(e.to_string()),
        }
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// An index or a manifest: which of them only shows inside.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

/// One image's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Blob,
    /// Lowest first.
    pub(crate) layers: Vec<Blob>,
}

/// What a document leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// It was an index: look there.
    Elsewhere(Blob),
    /// It was a manifest.
    Image(Manifest),
}

/// The annotation that names an image within a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The one that containerd writes with the whole reference.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Reads an index or a manifest. Of an index, the image for `platform` is chosen; with `tag`, of those that have
/// this name.
pub(crate) fn document(
    bytes: &[u8],
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Document, ManifestError> {
    let raw: RawDocument = json(bytes)?;
    if let Some(manifests) = raw.manifests {
        return choose(&manifests, tag, platform).map(Document::Elsewhere);
    }
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return content(
            "it is neither an index (manifests) nor the manifest of an image (config and layers)",
        );
    };
    if layers.len() > MAX_LAYERS {
        return content(format!("it has {} layers; at most {MAX_LAYERS} are taken", layers.len()));
    }
    if let Some(other) = layers.iter().find(|l| !is_layer(&l.media_type)) {
        let name: String = other.media_type.chars().take(100).collect();
        return content(format!("{name:?} is no layer: this is not the image of a container"));
    }
    let layers = layers.iter().map(RawDescriptor::blob).collect::<Result<_, _>>()?;
    Ok(Document::Image(Manifest { config: config.blob()?, layers }))
}

/// How a layer is compressed is found out by looking; here only what is no layer at all is told apart.
fn is_layer(media_type: &str) -> bool {
    media_type.is_empty()
        || (media_type.contains(".image.")
            && (media_type.contains(".tar") || media_type.contains("rootfs.diff")))
            && !media_type.contains("encrypted")
}

fn choose(all: &[RawDescriptor], tag: Option<&str>, platform: &Platform) -> Result<Blob, ManifestError> {
    let named = |d: &&RawDescriptor| {
        tag.is_none_or(|tag| d.annotation(REF_NAME) == Some(tag) || d.annotation(IMAGE_NAME) == Some(tag))
    };
    let named: Vec<_> = all.iter().filter(named).collect();
    if let (true, Some(tag)) = (named.is_empty(), tag) {
        return content(format!("no image is called {tag:?} there; there are: {}", names(all)));
    }
    // Without a platform it may be an index, or the only image.
    let fits =
        |d: &&&RawDescriptor| d.platform.as_ref().is_none_or(|p| platform.fits(&p.os, &p.architecture));
    let exact = |d: &&&RawDescriptor| d.platform.is_some();
    let fitting: Vec<_> = named.iter().filter(fits).collect();
    let mut best: Vec<_> = fitting.iter().copied().filter(|d| exact(d)).collect();
    if best.is_empty() {
        best = fitting;
    }
    best.sort_by(|a, b| a.digest.cmp(&b.digest));
    best.dedup_by(|a, b| a.digest == b.digest);
    match (best.as_slice(), tag) {
        ([one], _) => one.blob(),
        ([], _) => {
            let there: Vec<_> = named
                .iter()
                .filter_map(|d| d.platform.as_ref())
                .map(|p| format!("{}/{}", p.os, p.architecture))
                .take(20)
                .collect();
            content(format!(
                "it has no image for linux/{}; it has: {}",
                platform.architecture,
                there.join(", ")
            ))
        }
        // Variants of one platform: the first that the publisher wrote.
        (several, None) if several.iter().all(|d| d.annotation(REF_NAME).is_none()) => {
            let first = named.iter().find(|d| several.iter().any(|s| s.digest == d.digest));
            first.map_or_else(|| content("it is empty"), |d| d.blob())
        }
        (_, None) => content(format!("it has several images: name one of {}", names(all))),
        ([first, ..], Some(_)) => first.blob(),
    }
}

fn names(all: &[RawDescriptor]) -> String {
    let names: Vec<_> = all.iter().filter_map(|d| d.annotation(REF_NAME)).take(20).collect();
    if names.is_empty() { "none with a name".into() } else { names.join(", ") }
}

/// What the image wants run. Everything a task may override.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct ImageConfig {
    /// Comes before `cmd`.
    pub entrypoint: Vec<String>,
    /// The program with its arguments, or those of the entry point.
    pub cmd: Vec<String>,
    /// Variables and their values, in the image's order.
    pub env: Vec<(String, String)>,
    /// `USER[:GROUP]`, by name or number; empty is root.
    pub user: String,
    /// Absolute; empty is the root.
    pub working_dir: String,
}

#[derive(Deserialize)]
struct RawConfigFile {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Reads an image's configuration: what it runs, and the digests of its layers, lowest first.
pub(crate) fn config(bytes: &[u8], platform: &Platform) -> Result<(ImageConfig, Vec<Digest>), ManifestError> {
    let raw: RawConfigFile = json(bytes)?;
    // Images from scratch may say nothing.
    let silent = raw.os.is_empty() && raw.architecture.is_empty();
    if !silent && !platform.fits(&raw.os, &raw.architecture) {
        let (os, arch) = (raw.os, raw.architecture);
        return content(format!("it is for {os}/{arch}, and this node is linux/{}", platform.architecture));
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    let diff_ids = diff_ids.iter().map(|id| id.parse()).collect::<Result<Vec<Digest>, _>>();
    let diff_ids = diff_ids.or_else(|e| content(e.to_string()))?;
    if diff_ids.is_empty() || diff_ids.len() > MAX_LAYERS {
        return content(format!("it has {} layers; 1 to {MAX_LAYERS} are taken", diff_ids.len()));
    }
    let raw = raw.config.unwrap_or_default();
    let mut env = Vec::new();
    for variable in raw.env.unwrap_or_default() {
        match variable.split_once('=') {
            Some((name, value)) if !name.is_empty() => env.push((name.into(), value.into())),
            _ => return content(format!("{variable:?} is no environment variable")),
        }
    }
    let read = ImageConfig {
        entrypoint: raw.entrypoint.unwrap_or_default(),
        cmd: raw.cmd.unwrap_or_default(),
        env,
        user: raw.user.unwrap_or_default(),
        working_dir: raw.working_dir.unwrap_or_default(),
    };
    let texts = read.entrypoint.iter().chain(&read.cmd).chain([&read.user, &read.working_dir]);
    if texts.chain(read.env.iter().flat_map(|(n, v)| [n, v])).any(|text| text.contains('\0')) {
        return content("it has a NUL byte in what it runs");
    }
    Ok((read, diff_ids))
}

/// One image of what `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Saved {
    pub(crate) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}

/// The image that is meant by `image` in a `manifest.json`.
pub(crate) fn saved(bytes: &[u8], image: Option<&str>) -> Result<Saved, ManifestError> {
    let all: Vec<Saved> = json(bytes)?;
    let tags = |s: &Saved| s.repo_tags.clone().unwrap_or_default();
    let there: Vec<String> = all.iter().flat_map(tags).take(20).collect();
    let mut found: Vec<Saved> = match image {
        None => all,
        Some(image) => {
            let latest = format!("{image}:latest");
            all.into_iter().filter(|s| tags(s).iter().any(|t| t == image || *t == latest)).collect()
        }
    };
    match (found.pop(), found.is_empty(), image) {
        (Some(one), true, _) if one.layers.len() <= MAX_LAYERS => Ok(one),
        (Some(one), true, _) => {
            content(format!("it has {} layers; at most {MAX_LAYERS} are taken", one.layers.len()))
        }
        (Some(_), false, _) => content(format!("it has several images: name one of {}", there.join(", "))),
        (None, _, Some(image)) => {
            content(format!("no image is called {image:?} there; there are: {}", there.join(", ")))
        }
        (None, _, None) => content("it has no image"),
    }
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
