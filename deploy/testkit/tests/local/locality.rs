//! A framework names its data, and its offers say what it costs to reach it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{DataAccess, FrameworkInfo, ResourceClass};
use bulkhead_testkit::{Cluster, Framework, Options, Task, binaries::Binaries, harness, trials};
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        offers_say_what_it_costs_to_reach_the_data,
        the_agent_shows_its_answers,
        files_of_overlay_and_tmpfs_have_a_place,
    ]
}

const BYTES: u64 = 3 << 20;

/// What the agent says about a data set: with its offer, or, where that is older than the answer, after it.
async fn known(framework: &Framework, name: &str) -> Result<DataAccess> {
    let wanted = Task::new("t", ["true"]).wanted();
    let offers = framework.offers_for(ResourceClass::Guaranteed, &wanted).await?;
    let access = offers.iter().flat_map(|o| &o.data_access).find(|a| a.data_set == name).cloned();
    let mut access = access.with_context(|| format!("nothing about {name}: {offers:?}"))?;
    if !is_answer(&access) {
        access = framework.data_access(|a| a.data_set == name && is_answer(a)).await?;
    }
    framework.decline(&offers, 1).await?;
    Ok(access)
}

fn is_answer(access: &DataAccess) -> bool {
    !access.error.contains("not answered")
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

async fn offers_say_what_it_costs_to_reach_the_data() -> Result<()> {
    let data = tempfile::tempdir()?;
    fs::write(data.path().join("part-0"), vec![7; usize::try_from(BYTES)?])?;
    let agent_args = vec!["--locality-root".to_owned(), path(data.path(), "")];
    let mut cluster = Cluster::start(Options { agent_args, ..Options::default() }).await?;
    let (file, pattern) = (path(data.path(), "part-0"), path(data.path(), "part-*"));
    let (dangling, outside) = (path(data.path(), "none-*"), "/etc/hostname".to_owned());
    let info = FrameworkInfo {
        name: "data".into(),
        data_sets: vec![file.clone(), pattern.clone(), dangling.clone(), outside.clone()],
        ..FrameworkInfo::default()
    };
    let framework = Framework::subscribe_as(cluster.master_channel().await?, info, true).await?;

    let access = known(&framework, &file).await?;
    assert_eq!(access.cached_bytes + access.disk_bytes + access.elsewhere_bytes, BYTES, "{access:?}");
    assert!(access.access_usec > 0 && !access.sampled && access.entries_total == 1, "{access:?}");
    let access = known(&framework, &pattern).await?;
    assert_eq!(access.cached_bytes + access.disk_bytes + access.elsewhere_bytes, BYTES, "{access:?}");
    let access = known(&framework, &dangling).await?;
    assert!(access.error.contains("matches the pattern"), "{access:?}");
    let access = known(&framework, &outside).await?;
    assert!(access.error.contains("locality.roots"), "{access:?}");

    // The agent comes back, and is asked again.
    framework.name_data_sets(&[&file]).await?;
    cluster.stop_agent().await?;
    cluster.restart_agent().await?;
    let access = known(&framework, &file).await?;
    assert_eq!((access.error.as_str(), access.entries_total), ("", 1), "{access:?}");
    framework.teardown().await?;
    cluster.finish().await
}

/// Exit code and answers of `bulkhead-agent locality`.
fn locality(arguments: &[&str]) -> Result<(Option<i32>, Vec<Value>)> {
    let output =
        Command::new(Binaries::find()?.agent).arg("locality").arg("--json").args(arguments).output()?;
    let answers = serde_json::from_slice(&output.stdout);
    let answers = answers.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), answers))
}

async fn the_agent_shows_its_answers() -> Result<()> {
    let data = tempfile::tempdir()?;
    fs::write(data.path().join("two\nlines"), vec![7; 1000])?;
    let (root, file) = (path(data.path(), ""), path(data.path(), "two\nlines"));
    let (code, answers) = locality(&["--locality-root", &root, &root, &file])?;
    assert_eq!((code, answers.len()), (Some(0), 2), "{answers:?}");
    for (answer, name) in answers.iter().zip([&root, &file]) {
        assert_eq!((&answer["data_set"], &answer["entries_total"]), (&json!(name), &json!(1)), "{answer}");
        assert_eq!(
            answer["cached_bytes"].as_u64().zip(answer["disk_bytes"].as_u64()).map(|(a, b)| a + b),
            Some(1000)
        );
    }
    let (code, answers) = locality(&[&file])?;
    assert_eq!(code, Some(1), "nothing may be asked by default");
    assert!(answers[0]["error"].as_str().is_some_and(|why| why.contains("locality.roots")), "{answers:?}");
    Ok(())
}

/// A mount for as long as this lives.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
    }
}

async fn files_of_overlay_and_tmpfs_have_a_place() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    for name in ["lower", "upper", "work", "overlay", "tmpfs"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("lower/file"), vec![7; usize::try_from(BYTES)?])?;
    let flags = MsFlags::empty();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        path(dir.path(), "lower"),
        path(dir.path(), "upper"),
        path(dir.path(), "work")
    );
    if let Err(error) = mount(Some("overlay"), &at("overlay"), Some("overlay"), flags, Some(layers.as_str()))
    {
        return harness::skip(&format!("no overlay can be mounted here: {error}"));
    }
    let _overlay = Mounted(at("overlay"));
    mount(Some("tmpfs"), &at("tmpfs"), Some("tmpfs"), flags, Some("size=8m")).context("mount a tmpfs")?;
    let _tmpfs = Mounted(at("tmpfs"));
    fs::write(at("tmpfs/file"), vec![7; usize::try_from(BYTES)?])?;
    // Brought into memory through the overlay: the pages are those of the file below.
    assert_eq!(fs::read(at("overlay/file"))?.len() as u64, BYTES);
    let (overlay, tmpfs) = (path(dir.path(), "overlay"), path(dir.path(), "tmpfs"));
    let (_, answers) = locality(&["--locality-root", &path(dir.path(), ""), &overlay, &tmpfs])?;
    for answer in &answers {
        let bytes = |key: &str| answer[key].as_u64().unwrap_or_default();
        assert_eq!(bytes("cached_bytes") + bytes("disk_bytes"), BYTES, "{answer}");
        assert!(bytes("cached_bytes") > 0, "{answer}");
    }
    Ok(())
}
