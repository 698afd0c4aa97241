//! A task in an image: its root, its program and user, and what is left when it has ended.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use bulkhead_proto::v1::{Image, LogStream, TaskReason, TaskState};
use bulkhead_stage::{Digest, digest::Algorithm};
use bulkhead_testkit::{Cluster, Framework, Options, Task, harness, trials};
use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_task_sees_its_image_and_cannot_change_it,
        the_task_overrides_what_the_image_says,
        images_that_cannot_be_had_are_told,
        a_restarted_agent_keeps_the_layers_of_a_running_task,
    ]
}

/// A statically linked shell with everything else in it.
const BUSYBOX: &str = "/bin/busybox";

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

/// An image of two layers below `dir`: a shell with a user database, and a file that the second layer takes away.
fn make_image(dir: &Path, config: &Value) -> Result<PathBuf> {
    let (lower, upper, layout) = (dir.join("lower"), dir.join("upper"), dir.join("images/app"));
    for part in ["bin", "etc", "srv"] {
        fs::create_dir_all(lower.join(part))?;
    }
    fs::copy(BUSYBOX, lower.join("bin/busybox"))?;
    fs::set_permissions(lower.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for tool in ["sh", "id", "cat", "ls", "pwd", "touch", "sleep"] {
        std::os::unix::fs::symlink("busybox", lower.join("bin").join(tool))?;
    }
    fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:4321:4322::/srv:/bin/sh\n")?;
    fs::write(lower.join("etc/group"), "root:x:0:\napp:x:4322:\nmore:x:4323:app\n")?;
    fs::write(lower.join("srv/gone"), "below")?;
    fs::create_dir_all(upper.join("srv"))?;
    fs::write(upper.join("srv/.wh.gone"), "")?;
    fs::write(upper.join("srv/own"), "above")?;
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let layers = [pack(&lower)?, pack(&upper)?];
    let ids: Vec<_> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let document = json!({
        "os": "linux", "architecture": architecture, "config": config, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = put_blob(&layout, document.to_string().as_bytes())?;
    let layers = layers.iter().map(|layer| put_blob(&layout, layer)).collect::<Result<Vec<_>>>()?;
    let manifest = put_blob(&layout, json!({"config": config, "layers": layers}).to_string().as_bytes())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    fs::write(layout.join("index.json"), json!({"manifests": [manifest]}).to_string())?;
    Ok(layout)
}

/// A cluster whose agent takes images from a directory, and one image there.
struct Setup {
    cluster: Cluster,
    dir: tempfile::TempDir,
    reference: String,
}

impl Setup {
    async fn new(config: &Value) -> Result<Self> {
        if !Path::new(BUSYBOX).exists() {
            return harness::skip("/bin/busybox is not there (package busybox-static)");
        }
        let dir = tempfile::tempdir()?;
        let layout = make_image(dir.path(), config)?;
        let images = dir.path().join("images").display().to_string();
        let agent_args = vec!["--image-dir".into(), images];
        let cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
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
