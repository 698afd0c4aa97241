//! A framework names its data, and its offers say what it costs to reach it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{DataAccess, FrameworkInfo, ResourceClass};
use bulkhead_testkit::{Cluster, Framework, Options, Task, trials};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    trials![offers_say_what_it_costs_to_reach_the_data]
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
