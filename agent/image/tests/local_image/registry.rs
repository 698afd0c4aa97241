//! A registry on loopback, pulled from through `oci-client`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get as route,
};
use bulkhead_image::Credentials;
use serde_json::json;

use crate::fixture::{Image, Layer, Place, architecture, get, image, names, refused, sha256};

/// `me:secret` in base64.
const BASIC: &str = "Basic bWU6c2VjcmV0";

#[derive(Default)]
struct Content {
    /// By tag or digest: media type and bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    private: bool,
    requests: AtomicUsize,
}

impl Content {
    fn add(&mut self, tag: &str, image: &Image) {
        for blob in image.blobs.iter().chain([&image.config]) {
            self.blobs.insert(sha256(blob).to_string(), blob.clone());
        }
        self.add_manifest(tag, "application/vnd.oci.image.manifest.v1+json", &image.manifest);
    }

    fn add_manifest(&mut self, tag: &str, kind: &str, bytes: &[u8]) {
        for name in [tag.to_owned(), sha256(bytes).to_string()] {
            self.manifests.insert(name, (kind.into(), bytes.to_vec()));
        }
    }

    fn refuse(&self, headers: &HeaderMap) -> Option<Response> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == BASIC);
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        (self.private && !known).then(|| (StatusCode::UNAUTHORIZED, challenge, "no").into_response())
    }
}

type Shared = State<Arc<Content>>;

async fn manifest(
    State(content): Shared,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = content.refuse(&headers) {
        return refusal;
    }
    if name == "endless" {
        let forever = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16]));
        return Body::from_stream(forever).into_response();
    }
    match content.manifests.get(&name) {
        Some((kind, bytes)) => ([(header::CONTENT_TYPE, kind.clone())], bytes.clone()).into_response(),
        None => (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#)
            .into_response(),
    }
}

async fn blob(
    State(content): Shared,
    Path((_, digest)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = content.refuse(&headers) {
        return refusal;
    }
    let found = content.blobs.get(&digest);
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |b| Body::from(b.clone()).into_response())
}

/// Serves until the test's runtime ends; returns HOST:PORT.
async fn serve(content: Content) -> (String, Arc<Content>) {
    let content = Arc::new(content);
    let base = |State(content): Shared, headers: HeaderMap| async move {
        content.refuse(&headers).unwrap_or_else(|| StatusCode::OK.into_response())
    };
    let routes = Router::new()
        .route("/v2/", route(base))
        .route("/v2/{name}/manifests/{reference}", route(manifest))
        .route("/v2/{name}/blobs/{digest}", route(blob))
        .with_state(Arc::clone(&content));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (address, content)
}

fn sample() -> Image {
    image(&[Layer::new().file("a", &"a".repeat(3 << 20)).done(), Layer::new().file("b", "b").done()])
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_by_tag_and_by_digest() {
    let Some(mut place) = Place::new("images_are_pulled_by_tag_and_by_digest") else { return };
    let image = sample();
    let mut content = Content::default();
    content.add("v1", &image);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(&image.manifest).to_string(),
         "size": image.manifest.len(), "platform": {"os": "linux", "architecture": architecture()}},
    ]})
    .to_string();
    content.add_manifest("latest", "application/vnd.oci.image.index.v1+json", index.as_bytes());
    let (host, served) = serve(content).await;
    place.settings.insecure_registries = vec![host.clone()];
    let store = place.store();
    let (unpacked, lease) = get(&store, &format!("docker://{host}/app:v1")).await;
    assert_eq!(
        (names(&unpacked.layers[0]), names(&unpacked.layers[1])),
        (vec!["a".into()], vec!["b".into()])
    );
    assert_eq!(get(&store, &format!("docker://{host}/app")).await.0, unpacked);
    drop(lease);

    // What a digest names is on the disk already, and cannot have changed: nobody is asked.
    let before = served.requests.load(Ordering::Relaxed);
    for digest in [sha256(&image.manifest), sha256(index.as_bytes())] {
        let (again, _lease) = get(&store, &format!("docker://{host}/app@{digest}")).await;
        assert_eq!(again, unpacked);
        assert_eq!(served.requests.load(Ordering::Relaxed) > before, digest == sha256(index.as_bytes()));
    }
    let missing = refused(&store, &format!("docker://{host}/app:v9")).await;
    assert!(missing.contains(&host) && missing.contains("manifest"), "{missing}");
    assert!(place.leftovers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn private_images_need_the_credentials() {
    let Some(mut place) = Place::new("private_images_need_the_credentials") else { return };
    let mut content = Content { private: true, ..Content::default() };
    content.add("v1", &sample());
    let (host, _) = serve(content).await;
    place.settings.insecure_registries = vec![host.clone()];
    let reference = format!("docker://{host}/app:v1");
    let error = refused(&place.store(), &reference).await;
    assert!(error.contains("uthor"), "{error}");
    let file = place.dir.path().join("auth.json");
    std::fs::write(&file, json!({"auths": {&host: {"auth": "bWU6c2VjcmV0"}}}).to_string()).unwrap();
    place.settings.credentials = Credentials::read(&file).unwrap();
    assert_eq!(get(&place.store(), &reference).await.0.layers.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_registry_is_found_out() {
    let Some(mut place) = Place::new("a_lying_registry_is_found_out") else { return };
    let good = sample();
    let lie = |change: &dyn Fn(&mut Content)| {
        let mut content = Content::default();
        content.add("v1", &good);
        change(&mut content);
        content
    };
    let digest = |bytes: &[u8]| sha256(bytes).to_string();
    let (layer, config, manifest) = (digest(&good.blobs[0]), digest(&good.config), digest(&good.manifest));
    let by_digest = format!("app@{manifest}");
    let longer = [good.blobs[0].clone(), vec![0; 100]].concat();
    let other = b"{}".to_vec();
    let cases = [
        ("app:v1", lie(&|c| drop(c.blobs.insert(layer.clone(), longer.clone()))), "corrupt"),
        ("app:v1", lie(&|c| drop(c.blobs.insert(layer.clone(), other.clone()))), "Invalid digest"),
        ("app:v1", lie(&|c| drop(c.blobs.remove(&layer))), "pull layer"),
        ("app:v1", lie(&|c| drop(c.blobs.insert(config.clone(), vec![b' '; 9 << 20]))), "corrupt"),
        ("app:v1", lie(&|c| drop(c.blobs.remove(&config))), "configuration"),
        (by_digest.as_str(), lie(&|c| c.manifests.get_mut(&manifest).unwrap().1.push(b' ')), "corrupt"),
        ("app:v1", lie(&|c| c.manifests.get_mut("v1").unwrap().1 = b"nonsense".to_vec()), "malformed"),
    ];
    for (n, (name, content, why)) in cases.into_iter().enumerate() {
        let (host, _) = serve(content).await;
        place.settings.insecure_registries = vec![host.clone()];
        let store = place.store();
        let error = refused(&store, &format!("docker://{host}/{name}")).await;
        assert!(error.contains(why), "{n}: {error}");
        assert!(place.leftovers().is_empty(), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_end_is_not_read_to_it() {
    let Some(mut place) = Place::new("a_manifest_without_end_is_not_read_to_it") else { return };
    let (host, _) = serve(Content::default()).await;
    place.settings.insecure_registries = vec![host.clone()];
    let error = refused(&place.store(), &format!("docker://{host}/app:endless")).await;
    assert!(error.contains("larger than"), "{error}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let Some(mut place) = Place::new("a_registry_that_is_not_there_is_named") else { return };
    place.settings.insecure_registries = vec!["127.0.0.1:1".into()];
    let error = refused(&place.store(), "docker://127.0.0.1:1/app").await;
    assert!(error.contains("127.0.0.1:1"), "{error}");
}
