//! Servers on loopback that do as they are told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode, header},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
};

#[derive(Default)]
struct Orders {
    files: HashMap<String, Vec<u8>>,
    redirects: HashMap<String, String>,
    /// Statuses of the next answers.
    failures: HashMap<String, Vec<u16>>,
}

#[derive(Clone)]
struct Shared {
    orders: Arc<Mutex<Orders>>,
    requests: watch::Sender<Vec<String>>,
}

/// Plain HTTP.
pub(crate) struct Server {
    base: String,
    shared: Shared,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Shared { orders: Arc::default(), requests: watch::Sender::new(Vec::new()) };
        let app = axum::Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { base, shared, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn serve(&self, path: &str, content: &[u8]) {
        self.shared.orders.lock().unwrap().files.insert(path.into(), content.into());
    }

    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.shared.orders.lock().unwrap().redirects.insert(path.into(), to.into());
    }

    /// The next answer is this status.
    pub(crate) fn fail(&self, path: &str, status: u16) {
        self.shared.orders.lock().unwrap().failures.entry(path.into()).or_default().push(status);
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.borrow().clone()
    }

    /// Waits until somebody asks for it.
    pub(crate) async fn asked(&self, path: &str) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|all| all.iter().any(|p| p == path)).await.unwrap();
    }

    pub(crate) fn stop(self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    shared.requests.send_modify(|all| all.push(path.clone()));
    let status = |status: u16| Response::builder().status(status);
    if path == "/silent" {
        return std::future::pending().await;
    }
    if path == "/endless" {
        let zeros =
            futures::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[0; 512])));
        return Response::new(Body::from_stream(zeros));
    }
    let mut orders = shared.orders.lock().unwrap();
    if let Some(failure) = orders.failures.get_mut(&path).and_then(Vec::pop) {
        return status(failure).body(Body::empty()).unwrap();
    }
    if let Some(to) = orders.redirects.get(&path) {
        return status(302).header(header::LOCATION, to).body(Body::empty()).unwrap();
    }
    match orders.files.get(&path) {
        Some(content) => Response::new(Body::from(content.clone())),
        None => Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap(),
    }
}

/// HTTPS that answers everything with `content`; its address, and the certificate of who signed its own.
pub(crate) async fn tls(content: &'static [u8]) -> (String, String) {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len())
            .into_bytes();
    answer.extend(content);
    tls_answer(answer).await
}

/// HTTPS that sends everybody elsewhere.
pub(crate) async fn tls_redirect(to: &str) -> (String, String) {
    let answer =
        format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    tls_answer(answer.into_bytes()).await
}

async fn tls_answer(answer: Vec<u8>) -> (String, String) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_cert = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Who does not trust us goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (url, authority_cert.pem())
}
