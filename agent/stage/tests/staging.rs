//! Whole stagings: files of this host and of a server on loopback, into a directory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "staging/server.rs"]
mod server;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bulkhead_proto::v1::Artifact;
use bulkhead_stage::{
    Digest, FetchError, Limits, Mismatch, Problem, Progress, Request, Spent, StageConfig, StageError, Stager,
    check_all,
    digest::Algorithm,
    progress::{Phase, Step},
    unpack::UnpackError,
};
use server::Server;

/// A stager, a directory that tasks may have files of, and a sandbox.
struct Fixture {
    top: tempfile::TempDir,
    stager: Stager,
    limits: Limits,
    progress: Arc<Steps>,
}

#[derive(Default)]
struct Steps(Mutex<Vec<Step>>);

impl Progress for Steps {
    fn step(&self, step: Step) {
        self.0.lock().unwrap().push(step);
    }
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut StageConfig)) -> Self {
        let top = tempfile::tempdir().unwrap();
        for dir in ["srv", "work"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        fs::write(top.path().join("secret"), "secret").unwrap();
        let mut config = StageConfig {
            cache_dir: top.path().join("cache"),
            cache_max_bytes: 1 << 20,
            local_dirs: vec![top.path().join("srv")],
            fetch_max_bytes: 1 << 20,
            fetch_timeout: Duration::from_secs(60),
            ca_file: None,
        };
        change(&mut config);
        let stager = Stager::new(config).unwrap();
        Self { top, stager, limits: Limits { bytes: 1 << 20, entries: 100 }, progress: Arc::default() }
    }

    /// A file that tasks may have.
    fn offer(&self, name: &str, content: &[u8]) -> String {
        let path = self.top.path().join("srv").join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn work(&self, name: &str) -> PathBuf {
        self.top.path().join("work").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.work(name)).unwrap()
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.top.path().join("cache/sha256")).unwrap().count()
    }

    async fn stage(&self, artifacts: &[Artifact]) -> Result<(), StageError> {
        self.stage_until(artifacts, std::future::pending()).await
    }

    async fn stage_until(
        &self,
        artifacts: &[Artifact],
        cancelled: impl Future<Output = ()>,
    ) -> Result<(), StageError> {
        let me = fs::metadata(self.top.path()).unwrap();
        let request = Request {
            artifacts: check_all(artifacts).unwrap(),
            into: self.work(""),
            owner: (me.uid(), me.gid()),
            limits: self.limits,
            progress: Arc::<Steps>::clone(&self.progress),
        };
        self.stager.stage(request, cancelled).await
    }

    /// Staging fails and leaves nothing in the sandbox.
    async fn refuses(&self, artifacts: &[Artifact]) -> Problem {
        let error = self.stage(artifacts).await.unwrap_err();
        assert!(self.is_empty(), "{error}");
        error.problem
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.work("")).unwrap().count() == 0
    }
}

fn artifact(uri: &str) -> Artifact {
    Artifact { uri: uri.into(), ..Artifact::default() }
}

fn verified(uri: &str, content: &[u8]) -> Artifact {
    Artifact { digest: Digest::of(Algorithm::Sha256, content).to_string(), ..artifact(uri) }
}

fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(writer);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[tokio::test]
async fn files_of_this_host_are_copied_and_archives_unpacked() {
    let f = Fixture::new();
    let script = b"#!/bin/sh\n";
    let run = f.offer("run.sh", script);
    let data = f.offer("data", b"data");
    let archive = f.offer("tools.tar.gz", &tar_gz(&[("bin/tool", "tool")]));
    let with_digest = verified(&archive, &fs::read(&archive).unwrap());
    f.stage(&[
        Artifact { executable: true, ..artifact(&run) },
        Artifact { path: "in/dir/data".into(), ..verified(&format!("file://{data}"), b"data") },
        Artifact { path: "tools".into(), ..artifact(&archive) },
        Artifact { path: "verified".into(), ..with_digest },
    ])
    .await
    .unwrap();
    assert_eq!(f.read("run.sh"), script);
    assert_eq!(f.read("in/dir/data"), b"data");
    assert_eq!((f.read("tools/bin/tool"), f.read("verified/bin/tool")), (b"tool".into(), b"tool".into()));
    let mode = |name: &str| fs::metadata(f.work(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("in/dir/data"), mode("tools/bin/tool")), (0o755, 0o644, 0o755));
}

#[tokio::test]
async fn only_what_the_operator_opened_is_read() {
    let f = Fixture::new();
    let top = f.top.path().display();
    f.offer("real", b"x");
    symlink("../secret", f.top.path().join("srv/link")).unwrap();
    symlink("..", f.top.path().join("srv/up")).unwrap();
    let outside = ["secret", "srv/../secret", "srv", "srvx"].map(|path| format!("{top}/{path}"));
    for path in outside.iter().map(String::as_str).chain(["/etc/shadow"]) {
        assert!(matches!(f.refuses(&[artifact(path)]).await, Problem::NotAllowed(_)), "{path}");
    }
    for link in ["srv/link", "srv/up/secret", "srv/missing"] {
        let problem = f.refuses(&[artifact(&format!("{top}/{link}"))]).await;
        assert!(matches!(problem, Problem::Read { .. }), "{link}: {problem}");
    }
    let closed = Fixture::with(|c| c.local_dirs.clear());
    let there = closed.offer("x", b"x");
    assert!(matches!(closed.refuses(&[artifact(&there)]).await, Problem::NotAllowed(_)));
}

#[tokio::test]
async fn a_bad_digest_is_named_and_leaves_nothing() {
    let f = Fixture::new();
    let file = f.offer("file", b"content");
    let archive = f.offer("a.tar.gz", &tar_gz(&[("a", "a")]));
    let good = Artifact { path: "good/one".into(), ..artifact(&file) };
    for bad in [verified(&file, b"other"), verified(&archive, b"other")] {
        let problem = f.refuses(&[good.clone(), bad]).await;
        assert!(matches!(problem, Problem::Mismatch(Mismatch { .. })), "{problem}");
    }
}

#[tokio::test]
async fn the_first_bad_artifact_is_the_one_that_is_reported() {
    let f = Fixture::new();
    let missing = |n: u32| artifact(&format!("{}/srv/missing{n}", f.top.path().display()));
    let file = f.offer("file", b"x");
    for _ in 0..20 {
        let error = f.stage(&[artifact(&file), missing(1), missing(2), missing(3)]).await.unwrap_err();
        assert!(error.shown.ends_with("missing1"), "{error}");
        assert!(f.is_empty());
    }
}

#[tokio::test]
async fn what_is_more_than_granted_is_refused() {
    let mut f = Fixture::new();
    f.limits = Limits { bytes: 10, entries: 2 };
    let big = f.offer("big", &[0; 11]);
    let small = f.offer("small", &[0; 6]);
    assert!(matches!(f.refuses(&[artifact(&big)]).await, Problem::Spent(Spent::Bytes(10))));
    let twice = [artifact(&small), Artifact { path: "again".into(), ..artifact(&small) }];
    assert!(matches!(f.refuses(&twice).await, Problem::Spent(Spent::Bytes(10))));
    let deep = Artifact { path: "a/b/c".into(), ..artifact(&small) };
    assert!(matches!(f.refuses(&[deep]).await, Problem::Spent(Spent::Entries(2))));
    let archive = f.offer("a.tar.gz", &tar_gz(&[("a", "12345678901")]));
    let problem = f.refuses(&[artifact(&archive)]).await;
    assert!(matches!(problem, Problem::Unpack(UnpackError::Spent(Spent::Bytes(10)))), "{problem}");
}

#[tokio::test]
async fn what_is_there_is_not_overwritten() {
    let f = Fixture::new();
    let file = f.offer("file", b"new");
    symlink("../secret", f.work("file")).unwrap();
    let error = f.stage(&[artifact(&file)]).await.unwrap_err();
    assert!(matches!(error.problem, Problem::Exists(_)));
    assert_eq!(fs::read(f.top.path().join("secret")).unwrap(), b"secret");
    let through = Artifact { path: "file/x".into(), ..artifact(&file) };
    assert!(matches!(f.stage(&[through]).await.unwrap_err().problem, Problem::Place(e) if e.leaves()));
}

#[tokio::test]
async fn http_is_fetched_once_for_all_and_then_from_the_cache() {
    let f = Fixture::new();
    let server = Server::start().await;
    server.serve("/file", b"content");
    let one = verified(&server.url("/file"), b"content");
    let again = Artifact { path: "sub/again".into(), ..one.clone() };
    f.stage(&[one.clone(), again]).await.unwrap();
    assert_eq!((f.read("file"), f.read("sub/again")), (b"content".into(), b"content".into()));
    assert_eq!(server.requests(), ["/file"]);
    // What a task writes to its copy is not what the next one gets.
    fs::write(f.work("file"), "changed").unwrap();
    fs::remove_file(f.work("file")).unwrap();
    server.stop();
    f.stage(&[one]).await.unwrap();
    assert_eq!(f.read("file"), b"content");
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again_and_one_that_refuses_is_not() {
    let f = Fixture::new();
    let server = Server::start().await;
    server.serve("/flaky", b"content");
    server.fail("/flaky", 503);
    f.stage(&[verified(&server.url("/flaky"), b"content")]).await.unwrap();
    assert_eq!(server.requests(), ["/flaky", "/flaky"]);
    let problem = f.stage(&[verified(&server.url("/none"), b"x")]).await.unwrap_err().problem;
    assert!(matches!(problem, Problem::Fetch(FetchError::Status(status)) if status == 404), "{problem}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn redirects_are_followed_so_far() {
    let f = Fixture::new();
    let server = Server::start().await;
    server.serve("/file", b"content");
    server.redirect("/once", "/file");
    server.redirect("/loop", "/loop");
    f.stage(&[verified(&server.url("/once"), b"content")]).await.unwrap();
    assert_eq!(f.read("once"), b"content");
    let problem = f.stage(&[verified(&server.url("/loop"), b"x")]).await.unwrap_err().problem;
    assert!(problem.to_string().contains("redirected"), "{problem}");
    // Not tried again either.
    assert_eq!(server.requests().iter().filter(|r| *r == "/loop").count(), 6);
}

#[tokio::test]
async fn bodies_are_bounded_said_or_not() {
    let f = Fixture::with(|c| c.fetch_max_bytes = 1000);
    let server = Server::start().await;
    server.serve("/said", &[0; 1001]);
    for path in ["/said", "/endless"] {
        let problem = f.refuses(&[verified(&server.url(path), b"x")]).await;
        assert!(matches!(problem, Problem::Fetch(FetchError::TooLarge(1000))), "{problem}");
    }
    assert_eq!(fs::read_dir(f.top.path().join("cache/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_server_that_takes_too_long_is_given_up() {
    let f = Fixture::with(|c| c.fetch_timeout = Duration::from_millis(50));
    let server = Server::start().await;
    let problem = f.refuses(&[verified(&server.url("/silent"), b"x")]).await;
    assert!(matches!(problem, Problem::Fetch(FetchError::TooSlow(_))), "{problem}");
}

#[tokio::test]
async fn a_launch_that_is_not_wanted_ends_at_once() {
    let f = Fixture::new();
    let server = Server::start().await;
    let file = f.offer("file", b"x");
    let waiting = [artifact(&file), verified(&server.url("/silent"), b"x")];
    let error = f.stage_until(&waiting, server.asked("/silent")).await.unwrap_err();
    assert!(error.problem.stopped(), "{error}");
    assert!(f.is_empty());
}

/// A certificate file for [`StageConfig::ca_file`].
fn pem_file(pem: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    fs::write(&path, pem).unwrap();
    (dir, path)
}

#[tokio::test]
async fn https_needs_a_certificate_that_is_known_and_no_digest() {
    let (url, ca) = server::tls(b"content").await;
    let (_dir, ca_file) = pem_file(&ca);
    let f = Fixture::with(|c| c.ca_file = Some(ca_file));
    let file = format!("{url}/file");
    f.stage(&[artifact(&file)]).await.unwrap();
    assert_eq!(f.read("file"), b"content");
    // Without a digest nothing is kept.
    assert_eq!(f.cached(), 0);
    f.stage(&[Artifact { path: "kept".into(), ..verified(&file, b"content") }]).await.unwrap();
    assert_eq!(f.cached(), 1);
    let problem = Fixture::new().refuses(&[artifact(&file)]).await;
    assert!(problem.to_string().contains("certificate known here"), "{problem}");
}

#[tokio::test]
async fn never_from_https_to_http() {
    let plain = Server::start().await;
    plain.serve("/file", b"content");
    let (url, ca) = server::tls_redirect(&plain.url("/file")).await;
    let (_dir, ca_file) = pem_file(&ca);
    let f = Fixture::with(|c| c.ca_file = Some(ca_file));
    let problem = f.refuses(&[artifact(&format!("{url}/file"))]).await;
    assert!(problem.to_string().contains("https to http"), "{problem}");
    assert!(plain.requests().is_empty());
}

#[tokio::test]
async fn certificates_that_are_none_are_named() {
    let (_dir, ca_file) = pem_file("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n");
    for file in [ca_file, "/no/such.pem".into()] {
        let f = Fixture::with(|c| c.ca_file = Some(file.clone()));
        let problem = f.refuses(&[artifact("https://localhost:1/x")]).await;
        assert!(problem.to_string().contains(&file.display().to_string()), "{problem}");
    }
}

#[tokio::test]
async fn progress_grows_to_the_end() {
    let f = Fixture::new();
    let server = Server::start().await;
    let content = vec![7; 300_000];
    server.serve("/big", &content);
    f.stage(&[verified(&server.url("/big"), &content)]).await.unwrap();
    let steps = f.progress.0.lock().unwrap();
    let of = |phase| steps.iter().filter(move |s| s.phase == phase);
    assert!(of(Phase::Fetching).map(|s| s.done_bytes).is_sorted());
    for phase in [Phase::Fetching, Phase::Placing] {
        let last = of(phase).next_back().unwrap();
        assert_eq!((last.done_bytes, last.total_bytes), (300_000, Some(300_000)), "{phase:?}");
    }
    assert_eq!(steps.last().unwrap().phase, Phase::Done);
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let f = Fixture::new();
    let mounted = small_disk(&f.work(""));
    let Ok(_mounted) = mounted else {
        println!("skipped: mounting needs root: {:?}", mounted.err());
        return;
    };
    let big = f.offer("big", &[7; 100_000]);
    let problem = f.refuses(&[artifact(&big)]).await;
    assert!(
        matches!(problem, Problem::Full { .. }) && problem.to_string().contains("more disk"),
        "{problem}"
    );
    let archive = f.offer("a.tar.gz", &tar_gz(&[("a", &"x".repeat(100_000))]));
    let problem = f.refuses(&[artifact(&archive)]).await;
    assert!(matches!(problem, Problem::Unpack(UnpackError::Full { .. })), "{problem}");
}

/// Unmounts when the test ends.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A file system of 64 KiB.
fn small_disk(at: &Path) -> nix::Result<Mounted> {
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=64k"))?;
    Ok(Mounted(at.to_owned()))
}
