//! Settings that cannot work: each is named, with what would.

use std::fs;

use anyhow::Result;
use bulkhead_testkit::{Cluster, cluster::CliOutput, trials};
use libtest_mimic::Trial;

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        a_malformed_file_is_named_with_its_line,
        an_unknown_flag_is_named,
        impossible_values_are_named,
        a_work_directory_must_be_writable,
        a_second_agent_on_the_work_directory_is_refused,
        a_second_agent_on_the_cgroup_is_refused,
        an_address_that_is_taken_is_named,
    ]
}

/// The agent's usual command line with another value for one flag.
fn with(cluster: &Cluster, flag: &str, value: &str) -> Vec<String> {
    let mut arguments = cluster.agent_arguments();
    match arguments.iter().position(|a| a == flag) {
        Some(at) => value.clone_into(&mut arguments[at + 1]),
        None => arguments.extend([flag.to_owned(), value.to_owned()]),
    }
    arguments
}

fn assert_refused(output: &CliOutput, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} in {}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

async fn a_malformed_file_is_named_with_its_line() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("agent.toml");
    let path = file.display().to_string();
    for (text, words) in [
        ("master = \"x:1\"\nmastre = 3\n", ["line 2", "mastre"]),
        ("cpus = \"many\"\n", ["line 1", "cpus"]),
        ("ports = \"5-\n", ["line 1", "ports"]),
    ] {
        fs::write(&file, text)?;
        let refused = cluster.run_agent(&["--config".to_owned(), path.clone()]).await?;
        assert_refused(&refused, 1, &[words[0], words[1], "agent.toml"]);
    }
    let missing = cluster.run_agent(&["--config".to_owned(), "/no/such.toml".to_owned()]).await?;
    assert_refused(&missing, 1, &["/no/such.toml", "No such file"]);
    Ok(())
}

async fn an_unknown_flag_is_named() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let refused = cluster.run_agent(&["--wrok-dir".to_owned(), "/x".to_owned()]).await?;
    assert_refused(&refused, 2, &["--wrok-dir", "--work-dir"]);
    Ok(())
}

async fn impossible_values_are_named() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    for (setting, word) in [
        ("--ports=9-3", "9-3"),
        ("--ports=70000", "70000"),
        ("--cpus=-1", "cpus"),
        ("--mem=much", "much"),
        ("--allow-unenforced=gpu", "gpu"),
        ("--cgroup-root=../elsewhere", "cgroup_root"),
        ("--master=nowhere", "HOST:PORT"),
        ("--listen=nowhere", "nowhere"),
        ("--task-user=no-such-user", "no-such-user"),
        ("--task-user=root", "allow_root_tasks"),
    ] {
        let refused = cluster.run_agent(&[setting.to_owned()]).await?;
        assert!(refused.code == 1 || refused.code == 2, "{setting}: {}", refused.stderr);
        assert_refused(&refused, refused.code, &[word]);
    }
    Ok(())
}

async fn a_work_directory_must_be_writable() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    for path in ["/proc/bulkhead", "/dev/null/bulkhead"] {
        let refused = cluster.run_agent(&with(&cluster, "--work-dir", path)).await?;
        assert_refused(&refused, 1, &[path, "--work-dir"]);
    }
    Ok(())
}

async fn a_second_agent_on_the_work_directory_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let refused = cluster.run_agent(&cluster.agent_arguments()).await?;
    let holder = format!("process {}", cluster.agent_pid()?);
    assert_refused(&refused, 1, &["another agent", &holder, &cluster.work_dir().display().to_string()]);
    cluster.registered().await
}

async fn a_second_agent_on_the_cgroup_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let dir = tempfile::tempdir()?;
    let arguments = with(&cluster, "--work-dir", &dir.path().display().to_string());
    let refused = cluster.run_agent(&arguments).await?;
    assert_refused(&refused, 1, &["another agent", "--cgroup-root"]);
    cluster.registered().await
}

async fn an_address_that_is_taken_is_named() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let address = cluster.agent_address().await?;
    let dir = tempfile::tempdir()?;
    let mut arguments = with(&cluster, "--listen", &address);
    for (flag, value) in [
        ("--work-dir", dir.path().join("work").display().to_string()),
        ("--cgroup-root", format!("bulkhead-test-{}-second", std::process::id())),
    ] {
        let at = arguments.iter().position(|a| a == flag).unwrap_or_default();
        arguments[at + 1] = value;
    }
    let refused = cluster.run_agent(&arguments).await;
    arguments.insert(0, "cleanup".to_owned());
    let cleaned = cluster.run_agent(&arguments).await?;
    assert_refused(&refused?, 1, &[&address, "--listen"]);
    assert_eq!(cleaned.code, 0, "{}", cleaned.stderr);
    Ok(())
}
