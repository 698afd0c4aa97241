//! Images of a registry, through `oci-client`.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bulkhead_stage::{Digest, digest::Algorithm};
use futures::TryStreamExt as _;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
        OCI_IMAGE_MEDIA_TYPE,
    },
    secrets::RegistryAuth,
};
use tokio::sync::OnceCell;
use tokio_util::io::{StreamReader, SyncIoBridge};

mod document;

use document::Failure;

use super::{Bytes, Found, LayerBlob, check};
use crate::{
    error::ImageError,
    manifest::{self, Blob, Document, MAX_BYTES, MAX_NESTING, ManifestError, Platform},
    reference::{Remote, Version},
    store::Settings,
};

/// For a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Without a single byte of an answer.
const SILENT: Duration = Duration::from_secs(30);
/// For a document, which is small, with all its redirections and tokens.
const DOCUMENT: Duration = Duration::from_secs(60);

/// What a manifest may be.
const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];

/// The registries that the agent may use, and the connections to them.
pub(crate) struct Registries {
    settings: Arc<Settings>,
    /// Made when it is first used: most agents never do.
    clients: OnceCell<Clients>,
}

/// Cheap to clone.
#[derive(Clone)]
struct Clients {
    registry: Client,
    /// For what the other does not bound.
    http: reqwest::Client,
}

impl Registries {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, clients: OnceCell::new() }
    }

    /// The image of a registry, where the agent allows it. Nothing is asked for so far.
    pub(crate) async fn pull(&self, remote: &Remote) -> Result<Pull, ImageError> {
        let host = &remote.host;
        let settings = &self.settings;
        let named = |list: &[String]| list.iter().any(|h| h.eq_ignore_ascii_case(host));
        if !named(&settings.registries) && !named(&settings.insecure_registries) {
            return Err(ImageError::RegistryNotAllowed { host: host.clone() });
        }
        let clients = self.clients.get_or_try_init(|| connect(settings.insecure_registries.clone())).await?;
        let scheme = if named(&settings.insecure_registries) { "http" } else { "https" };
        let (registry, name) = (host.clone(), remote.name.clone());
        let image = match &remote.version {
            Version::Tag(tag) => Reference::with_tag(registry, name, tag.clone()),
            Version::Digest(digest) => Reference::with_digest(registry, name, digest.to_string()),
        };
        let wanted = match &remote.version {
            Version::Digest(digest) => Some(digest.clone()),
            Version::Tag(_) => None,
        };
        Ok(Pull {
            clients: clients.clone(),
            scheme,
            image,
            wanted,
            auth: settings.credentials.of(host),
            host: host.clone(),
        })
    }
}

async fn connect(insecure: Vec<String>) -> Result<Clients, ImageError> {
    // Another part of the agent may have chosen the same already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure),
        connect_timeout: Some(CONNECT),
        read_timeout: Some(SILENT),
        user_agent: concat!("bulkhead/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    // On a host without any certificates, the libraries below panic instead of failing.
    let made = tokio::task::spawn_blocking(|| {
        let http = reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(SILENT);
        let http = http.user_agent(config.user_agent).build().ok()?;
        Some(Clients { registry: Client::try_from(config).ok()?, http })
    });
    made.await.ok().flatten().ok_or(ImageError::Tls)
}

/// One image of a registry.
pub(crate) struct Pull {
    clients: Clients,
    scheme: &'static str,
    image: Reference,
    wanted: Option<Digest>,
    auth: RegistryAuth,
    host: String,
}

impl Pull {
    fn failed(&self, what: impl Into<String>) -> impl FnOnce(OciDistributionError) -> ImageError {
        let (what, host) = (what.into(), self.host.clone());
        move |e| ImageError::Registry { what, host, source: Box::new(e) }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, ImageError>>) -> Result<T, ImageError> {
        let slow = || ImageError::Slow { host: self.host.clone(), seconds: DOCUMENT.as_secs() };
        tokio::time::timeout(DOCUMENT, work).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn document(
        &self,
        image: &Reference,
        blob: Option<&Blob>,
    ) -> Result<(Vec<u8>, Digest), ImageError> {
        let what = format!("pull the manifest of {}", image.whole());
        let clients = (&self.clients.registry, &self.clients.http);
        let max = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
        let bytes = match document::read(clients, self.scheme, image, &self.auth, max).await {
            Ok(bytes) => bytes,
            Err(Failure::Registry(error)) => return Err(self.failed(what)(error)),
            Err(Failure::TooLong) => {
                let why = ManifestError::Content(format!("it is larger than {MAX_BYTES} bytes"));
                return Err(ImageError::Manifest { what, why });
            }
        };
        if let Some(blob) = blob {
            check(&format!("the manifest {}", blob.digest), blob, &bytes)?;
        }
        let wanted = blob.map(|b| &b.digest).or(self.wanted.as_ref());
        let found = Digest::of(wanted.map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        if let Some(wanted) = wanted {
            let what = format!("the manifest {wanted}");
            wanted.check(&found).map_err(|why| ImageError::Corrupt { what, why })?;
        }
        Ok((bytes, found))
    }

    pub(crate) async fn find(&self, platform: &Platform) -> Result<Found, ImageError> {
        self.in_time(self.find_slowly(platform)).await
    }

    async fn find_slowly(&self, platform: &Platform) -> Result<Found, ImageError> {
        let mut image = self.image.clone();
        let mut blob: Option<Blob> = None;
        for _ in 0..=MAX_NESTING {
            let (bytes, digest) = self.document(&image, blob.as_ref()).await?;
            let malformed = |why| ImageError::Manifest { what: image.whole(), why };
            match manifest::document(&bytes, None, platform).map_err(malformed)? {
                Document::Elsewhere(next) => {
                    image = self.image.clone_with_digest(next.digest.to_string());
                    blob = Some(next);
                }
                Document::Image(found) => {
                    let config = self.config(&found.config).await?;
                    let layers = found.layers.into_iter().map(Into::into).collect();
                    return Ok(Found { manifest: Some(digest), config, layers });
                }
            }
        }
        let why = ManifestError::Content(format!("indexes lead to indexes more than {MAX_NESTING} times"));
        Err(ImageError::Manifest { what: self.image.whole(), why })
    }

    async fn config(&self, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        let what = format!("the image's configuration {}", blob.digest);
        let pulled = self.clients.registry.pull_blob_stream(&self.image, &*blob.digest.to_string()).await;
        let mut stream = pulled.map_err(self.failed(format!("pull {what}")))?.stream;
        let mut bytes = Vec::new();
        let read = |source| ImageError::Io { op: "pull", path: PathBuf::from(&what), source };
        while let Some(chunk) = stream.try_next().await.map_err(read)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_BYTES.min(blob.size) {
                let found = bytes.len() as u64;
                return Err(ImageError::Size { what, expected: blob.size, found });
            }
        }
        check(&what, blob, &bytes)?;
        Ok(bytes)
    }

    pub(crate) async fn layer(&self, layer: &LayerBlob) -> Result<Bytes, ImageError> {
        let what = format!("pull layer {}", layer.name);
        let pulled = self.in_time(async {
            let pulled = self.clients.registry.pull_blob_stream(&self.image, layer.name.as_str()).await;
            pulled.map_err(self.failed(what))
        });
        let stream = pulled.await?.stream.map_err(io::Error::other);
        Ok(Box::new(SyncIoBridge::new(StreamReader::new(stream))))
    }
}
