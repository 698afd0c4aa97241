//! A task in an image: its root, its program and user, and what is left when it has ended.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use bulkhead_proto::v1::{Image, LogStream, TaskReason, TaskState};
use bulkhead_stage::{Digest, digest::Algorithm};
use bulkhead_testkit::{
    Cluster, Framework, HANG, Options, Task,
    cluster::{Verdict, until},
    harness, trials,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::watch,
};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_task_sees_its_image_and_cannot_change_it,
        the_task_overrides_what_the_image_says,
        images_that_cannot_be_had_are_told,
        a_restarted_agent_keeps_the_layers_of_a_running_task,
        a_hundred_layers_are_one_root,
        a_kill_ends_the_fetching_of_an_image,
    ]
}

/// A statically linked shell with everything else in it.
const BUSYBOX: &str = "/bin/busybox";

/// # Errors
/// A skip where it is not there.
pub(crate) fn need_busybox() -> Result<()> {
    if Path::new(BUSYBOX).exists() {
        return Ok(());
    }
    harness::skip("/bin/busybox is not there (package busybox-static)")
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// Writes a blob, and says how a manifest refers to it.
fn put_blob(layout: &Path, bytes: &[u8]) -> Result<Value> {
    let digest = sha256(bytes);
    fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes)?;
    Ok(json!({"digest": digest.to_string(), "size": bytes.len()}))
}

/// The tar archive of a directory, as root made it.
fn pack(dir: &Path) -> Result<Vec<u8>> {
    let packed =
        Command::new("tar").args(["--numeric-owner", "-cf", "-", "-C"]).arg(dir).arg(".").output()?;
    if !packed.status.success() {
        bail!("tar: {}", String::from_utf8_lossy(&packed.stderr));
    }
    Ok(packed.stdout)
}

/// An image below `dir`: a shell with a user database, and whatever is laid over it, the last on top.
pub(crate) fn make_image(dir: &Path, config: &Value, over: &[PathBuf]) -> Result<PathBuf> {
    let (lower, layout) = (dir.join("lower"), dir.join("images/app"));
    for part in ["bin", "etc", "srv"] {
        fs::create_dir_all(lower.join(part))?;
    }
    fs::copy(BUSYBOX, lower.join("bin/busybox"))?;
    fs::set_permissions(lower.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for tool in ["sh", "id", "cat", "dd", "ls", "pwd", "touch", "sleep"] {
        std::os::unix::fs::symlink("busybox", lower.join("bin").join(tool))?;
    }
    fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:4321:4322::/srv:/bin/sh\n")?;
    fs::write(lower.join("etc/group"), "root:x:0:\napp:x:4322:\nmore:x:4323:app\n")?;
    fs::write(lower.join("srv/gone"), "below")?;
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let layers = [lower].iter().chain(over).map(|layer| pack(layer)).collect::<Result<Vec<_>>>()?;
    let (manifest, _) = put_manifest(&layout, config, &layers)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    fs::write(layout.join("index.json"), json!({"manifests": [manifest]}).to_string())?;
    Ok(layout)
}

/// Writes an image of these layers, and says how an index refers to it, and where its last layer is.
fn put_manifest(layout: &Path, config: &Value, layers: &[Vec<u8>]) -> Result<(Value, String)> {
    let ids: Vec<_> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let document = json!({
        "os": "linux", "architecture": architecture, "config": config, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = put_blob(layout, document.to_string().as_bytes())?;
    let layers = layers.iter().map(|layer| put_blob(layout, layer)).collect::<Result<Vec<_>>>()?;
    let manifest = put_blob(layout, json!({"config": config, "layers": layers}).to_string().as_bytes())?;
    Ok((manifest, ids.last().cloned().unwrap_or_default()))
}

/// A second layer, which takes a file of the first away.
fn upper(dir: &Path) -> Result<PathBuf> {
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("srv"))?;
    fs::write(upper.join("srv/.wh.gone"), "")?;
    fs::write(upper.join("srv/own"), "above")?;
    Ok(upper)
}

/// A cluster whose agent takes images from a directory, and one image there.
struct Setup {
    cluster: Cluster,
    dir: tempfile::TempDir,
    reference: String,
}

impl Setup {
    async fn new(config: &Value) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let over = upper(dir.path())?;
        Self::over(dir, config, &[over]).await
    }

    async fn over(dir: tempfile::TempDir, config: &Value, over: &[PathBuf]) -> Result<Self> {
        need_busybox()?;
        let layout = make_image(dir.path(), config, over)?;
        let images = dir.path().join("images").display().to_string();
        let agent_args = vec!["--image-dir".into(), images];
        let options =
            Options { agent_args, dir: crate::IMAGE_PARENT.map(PathBuf::from), ..Options::default() };
        let cluster = Cluster::start(options).await?;
        Ok(Self { cluster, dir, reference: format!("oci:{}", layout.display()) })
    }

    fn task(&self, id: &str, argv: &[&str]) -> Task {
        let image = Image { reference: self.reference.clone() };
        Task::new(id, argv.iter().copied()).with(|spec| spec.image = Some(image))
    }

    async fn output(&self, framework: &Framework, id: &str) -> Result<String> {
        self.cluster.output(framework.id(), id, LogStream::Stdout).await
    }
}

async fn a_task_sees_its_image_and_cannot_change_it() -> Result<()> {
    let script = "id; pwd; echo $GREETING; cat own; ls /srv; touch /srv/new 2>/dev/null || echo refused; \
                  touch /tmp/x && echo written; ls /";
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": [script], "Env": ["GREETING=hello", "PATH=/bin"], "User": "app",
        "WorkingDir": "/srv",
    });
    let setup = Setup::new(&config).await?;
    let framework = setup.cluster.framework("image").await?;
    let end = framework.run(setup.task("t", &[])).await?;
    assert_eq!((end.state(), end.exit_code), (TaskState::Finished, Some(0)), "{end:?}");
    let output = setup.output(&framework, "t").await?;
    let mut lines = output.lines();
    let id = lines.next().context("no output")?;
    assert!(id.starts_with("uid=4321(app) gid=4322(app)") && id.contains("4323"), "{id}");
    let rest: Vec<_> = lines.collect();
    assert_eq!(
        rest.get(..6),
        Some(&["/srv", "hello", "aboveown", "refused", "written", "bin"][..]),
        "{output}"
    );
    assert!(!rest.contains(&"root") && !rest.contains(&"home"), "{output}");
    framework.teardown().await?;
    setup.cluster.finish().await
}

async fn the_task_overrides_what_the_image_says() -> Result<()> {
    let config = json!({
        "Entrypoint": ["/bin/false"], "Cmd": ["never"], "Env": ["A=image", "B=image", "PATH=/bin"], "User": "app",
    });
    let setup = Setup::new(&config).await?;
    let framework = setup.cluster.framework("override").await?;
    let task = setup.task("t", &["sh", "-c", "id -u; pwd; echo $A $B"]).user("77:88").env("A", "task");
    let end = framework.run(task.with(|spec| spec.working_dir = "/etc".into())).await?;
    assert_eq!((end.state(), end.exit_code), (TaskState::Finished, Some(0)), "{end:?}");
    assert_eq!(setup.output(&framework, "t").await?, "77\n/etc\ntask image\n");
    framework.teardown().await?;
    setup.cluster.finish().await
}

async fn images_that_cannot_be_had_are_told() -> Result<()> {
    let setup = Setup::new(&json!({"Cmd": ["/bin/id"], "User": "root"})).await?;
    let framework = setup.cluster.framework("missing").await?;
    let elsewhere = format!("oci:{}", setup.dir.path().join("lower").display());
    let nothing = format!("oci:{}", setup.dir.path().join("images/none").display());
    for (n, (reference, why)) in [
        ("alpine", "oci:DIRECTORY"),
        (elsewhere.as_str(), "image_dirs"),
        (nothing.as_str(), "No such file"),
        ("docker://registry.invalid/app", "registries"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("t{n}");
        let task =
            setup.task(&id, &[]).with(|spec| spec.image = Some(Image { reference: reference.to_owned() }));
        let end = framework.run(task).await?;
        assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::ImageFailed), "{end:?}");
        assert!(end.message.contains(why), "{reference}: {}", end.message);
    }
    let end = framework.run(setup.task("root", &[])).await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Failed, TaskReason::UserNotAllowed), "{end:?}");
    framework.teardown().await?;
    setup.cluster.finish().await
}

async fn a_restarted_agent_keeps_the_layers_of_a_running_task() -> Result<()> {
    let mut setup = Setup::new(&json!({"Cmd": ["/bin/sleep", "600"], "User": "app"})).await?;
    let framework = setup.cluster.framework("restart").await?;
    framework.start(setup.task("t", &[])).await?;
    setup.cluster.kill_agent_hard().await?;
    setup.cluster.restart_agent().await?;
    let layers = setup.cluster.work_dir().join("images/layers");
    assert_eq!(fs::read_dir(&layers)?.count(), 2);
    assert!(!setup.cluster.agent_log().contains("not in the store"), "the layers were not kept");
    // And the image is as usable as before.
    let end = framework.run(setup.task("u", &["/bin/cat", "/srv/own"])).await?;
    assert_eq!(end.exit_code, Some(0), "{end:?}");
    framework.teardown().await?;
    setup.cluster.finish().await
}

async fn a_hundred_layers_are_one_root() -> Result<()> {
    const LAYERS: usize = 100;
    let dir = tempfile::tempdir()?;
    // Each adds a file and replaces one.
    let layer = |n: usize| -> Result<PathBuf> {
        let layer = dir.path().join(format!("layer-{n}"));
        fs::create_dir_all(layer.join("srv/all"))?;
        fs::write(layer.join(format!("srv/all/{n}")), "")?;
        fs::write(layer.join("srv/last"), n.to_string())?;
        Ok(layer)
    };
    let over = (1..LAYERS).map(layer).collect::<Result<Vec<_>>>()?;
    let config =
        json!({"Cmd": ["/bin/sh", "-c", "set -- /srv/all/*; echo $#; cat /srv/last"], "User": "app"});
    let setup = Setup::over(dir, &config, &over).await?;
    let framework = setup.cluster.framework("layers").await?;
    let end = framework.run(setup.task("t", &[])).await?;
    assert_eq!((end.state(), end.exit_code), (TaskState::Finished, Some(0)), "{end:?}");
    assert_eq!(setup.output(&framework, "t").await?, "99\n99");
    framework.teardown().await?;
    setup.cluster.finish().await
}

/// A registry with one image, whose layer begins and never ends.
async fn stalling_registry(
    layout: PathBuf,
    manifest: String,
    layer: String,
) -> Result<(String, watch::Receiver<bool>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    let (begun, stalled) = watch::channel(false);
    let begun = Arc::new(begun);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (layout, manifest, layer, begun) =
                (layout.clone(), manifest.clone(), layer.clone(), Arc::clone(&begun));
            tokio::spawn(async move {
                let mut lines = BufReader::new(&mut stream).lines();
                let request = lines.next_line().await?.unwrap_or_default();
                while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
                let path = request.split(' ').nth(1).unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default();
                let digest = if path.contains("/manifests/") { manifest } else { name.to_owned() };
                let blob = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
                let content = fs::read(blob).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n\
                     content-length: {}\r\nconnection: close\r\n\r\n",
                    content.len()
                );
                stream.write_all(head.as_bytes()).await?;
                if digest == layer {
                    stream.write_all(&content[..content.len() / 2]).await?;
                    begun.send_replace(true);
                    return std::future::pending().await;
                }
                stream.write_all(&content).await
            });
        }
    });
    Ok((host, stalled))
}

async fn a_kill_ends_the_fetching_of_an_image() -> Result<()> {
    need_busybox()?;
    let dir = tempfile::tempdir()?;
    let over = upper(dir.path())?;
    let config = json!({"Cmd": ["/bin/id"], "User": "app"});
    let layout = make_image(dir.path(), &config, &[])?;
    let layers = [pack(&dir.path().join("lower"))?, pack(&over)?, vec![7; 1 << 20]];
    let (manifest, last) = put_manifest(&layout, &config, &layers)?;
    let manifest = manifest["digest"].as_str().context("a digest")?.to_owned();
    let (host, mut stalled) = stalling_registry(layout, manifest, last).await?;
    let settings = dir.path().join("agent.toml");
    fs::write(&settings, format!("insecure_registries = [{host:?}]\n"))?;
    let agent_args = vec!["--config".to_owned(), settings.display().to_string()];
    let parent = crate::IMAGE_PARENT.map(PathBuf::from);
    let cluster = Cluster::start(Options { agent_args, dir: parent, ..Options::default() }).await?;
    let framework = cluster.framework("stalls").await?;
    let image = Image { reference: format!("docker://{host}/app:latest") };
    framework.launch(Task::new("t", ["/bin/id"]).with(|spec| spec.image = Some(image))).await?;
    tokio::time::timeout(HANG, stalled.wait_for(|begun| *begun))
        .await
        .context("nobody asks for the layer")??;
    framework.kill("t", 0).await?;
    let end = framework.end_of("t").await?;
    assert_eq!((end.state(), end.reason()), (TaskState::Killed, TaskReason::KilledByFramework), "{end:?}");
    assert!(!cluster.task_dir(&framework, "t").exists(), "it had no sandbox so far");
    // The half of a layer goes; whole ones are worth keeping, and no image refers to them.
    let store = cluster.work_dir().join("images");
    let entries =
        |name: &str| fs::read_dir(store.join(name)).map(|dir| dir.flatten().count()).unwrap_or_default();
    until("the unfinished layer to be gone", || async {
        if entries("tmp") == 0 {
            Ok(())
        } else {
            Err(Verdict::NotYet(format!("{} are there", entries("tmp"))))
        }
    })
    .await?;
    assert!(entries("layers") <= 2, "{} layers", entries("layers"));
    assert_eq!(entries("images"), 0);
    framework.teardown().await?;
    cluster.finish().await
}
