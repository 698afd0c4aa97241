//! `bulkhead` against a real master and agent.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use bulkhead_testkit::{
    Cluster, HANG,
    binaries::Binaries,
    cluster::{Verdict, until},
    programs, trials,
};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::CLUSTER;

pub(crate) fn tests() -> Vec<Trial> {
    trials![
        run_prints_output_and_exits_as_the_task,
        run_says_what_was_wrong,
        run_as_json,
        ctrl_c_stops_the_task,
        a_detached_task_from_start_to_end,
        lists_as_json,
        every_number_has_a_reason,
        a_task_that_is_not_there,
        a_master_that_is_not_there,
    ]
}

async fn run_prints_output_and_exits_as_the_task() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let script = "echo to out; echo to err >&2; exit 42";
    let done = cluster.run_cli(&["run", "--cpus", "0.1", "--", "sh", "-c", script]).await?;
    assert_eq!((done.code, done.stdout.as_str()), (42, "to out\n"));
    assert!(done.stderr.contains("to err\n"), "{}", done.stderr);
    let ended = cluster.run_cli(&[&["run", "--"][..], &programs::FAULT].concat()).await?;
    assert_eq!(ended.code, 128 + 11, "{}", ended.stderr);
    let with = ["run", "--env", "A=b c", "--ports", "2", "--mem", "32MiB", "--user", "daemon", "--"];
    let script = "echo $A $BULKHEAD_MEM_BYTES; id -un; echo $PORTS | tr , '\\n' | wc -l; [ $PORT = $PORT0 ]";
    let done = cluster.run_cli(&[&with[..], &["sh", "-c", script]].concat()).await?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "b c 33554432\ndaemon\n2\n"), "{}", done.stderr);
    Ok(())
}

async fn run_says_what_was_wrong() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    for (arguments, code, word) in [
        (&["run", "--", "no-such-program"][..], 127, "no-such-program"),
        (&["run", "--", "/etc/passwd"], 126, "/etc/passwd"),
        (&["run", "--user", "no-such-user", "--", "true"], 125, "no-such-user"),
        (&["run", "--cpus", "100000", "--timeout", "500ms", "--", "true"], 125, "100000 CPUs"),
        (&["run", "--ports", "9-10", "--timeout", "500ms", "--", "true"], 125, "port"),
        (&["run", "--cpus", "none", "--", "true"], 125, "none"),
        (&["run", "--no-such-flag", "--", "true"], 125, "--no-such-flag"),
    ] {
        let done = cluster.run_cli(arguments).await?;
        assert_eq!(done.code, code, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(word), "{arguments:?}: {}", done.stderr);
    }
    Ok(())
}

async fn run_as_json() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let done = cluster.run_cli(&["--json", "run", "--", "sh", "-c", "echo hello; exit 3"]).await?;
    assert_eq!(done.code, 3);
    let lines = done.json_lines()?;
    let of = |kind: &str| lines.iter().filter(|l| l["type"] == kind).collect::<Vec<_>>();
    assert_eq!(of("launched").len(), 1, "{lines:?}");
    let text: String = of("output").iter().filter_map(|l| l["text"].as_str()).collect();
    assert_eq!(text, "hello\n");
    assert_eq!(of("ended")[0]["exit_code"], 3);
    Ok(())
}

async fn ctrl_c_stops_the_task() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let script = "trap 'echo stopping; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let arguments = ["run", "--name", "interrupted", "--grace", "60s", "--", "sh", "-c", script];
    let mut run = cluster.cli(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(run.stdout.take().context("stdout")?).lines();
    assert_eq!(tokio::time::timeout(HANG, lines.next_line()).await??.as_deref(), Some("ready"));
    let pid = i32::try_from(run.id().context("it runs")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
    assert_eq!(tokio::time::timeout(HANG, lines.next_line()).await??.as_deref(), Some("stopping"));
    assert_eq!(tokio::time::timeout(HANG, run.wait()).await??.code(), Some(5));
    Ok(())
}

/// The tasks that `ps` lists under this id.
async fn ps(cluster: &Cluster, flags: &[&str], id: &str) -> Result<Vec<Value>> {
    let listed = cluster.run_cli(&[&["ps", "--json"], flags].concat()).await?.json()?;
    let tasks = listed.as_array().context("an array")?;
    Ok(tasks.iter().filter(|t| t["spec"]["task_id"] == id).cloned().collect())
}

async fn a_detached_task_from_start_to_end() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let script = "echo one; until [ -e go ]; do sleep 0.05; done; echo two; sleep 600";
    let started = cluster.run_cli(&["run", "--name", "web", "--detach", "--", "sh", "-c", script]).await?;
    assert_eq!(started.code, 0, "{}", started.stderr);
    let id = started.stdout.trim();
    let listed = ps(&cluster, &[], id).await?;
    assert_eq!(
        (&listed[0]["status"]["state"], &listed[0]["spec"]["name"]),
        (&"running".into(), &"web".into())
    );

    let mut follow = cluster.cli(["logs", "-f", "web"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("stdout")?).lines();
    assert_eq!(tokio::time::timeout(HANG, lines.next_line()).await??.as_deref(), Some("one"));
    let framework = listed[0]["framework_id"].as_str().context("a framework")?;
    let work = cluster.work_dir().join("sandboxes").join(framework).join(id).join("work");
    std::fs::write(work.join("go"), "")?;
    assert_eq!(tokio::time::timeout(HANG, lines.next_line()).await??.as_deref(), Some("two"));

    let killed = cluster.run_cli(&["kill", "web"]).await?;
    assert_eq!((killed.code, killed.stdout.trim()), (0, id), "{}", killed.stderr);
    assert_eq!(tokio::time::timeout(HANG, follow.wait()).await??.code(), Some(0));
    until("the end of the task", || async {
        let listed = ps(&cluster, &["--all"], id).await.map_err(|e| Verdict::Never(e.to_string()))?;
        let status = &listed[0]["status"];
        match (status["state"].as_str(), status["reason"].as_str()) {
            (Some("killed"), Some("killed_by_operator")) => Ok(()),
            _ => Err(Verdict::NotYet(status.to_string())),
        }
    })
    .await?;
    assert!(ps(&cluster, &[], id).await?.is_empty(), "only live tasks without --all");
    let logs = cluster.run_cli(&["logs", id]).await?;
    assert_eq!((logs.code, logs.stdout.as_str()), (0, "one\ntwo\n"));
    Ok(())
}

async fn lists_as_json() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let framework = cluster.framework("lists").await?;
    let agents = cluster.run_cli(&["agents", "--json"]).await?.json()?;
    let agent = &agents[0];
    assert_eq!(agent["connected"], true);
    assert_eq!(agent["agent"]["api_address"].as_str(), Some(cluster.agent_address().await?.as_str()));
    let part = |name: &str| agent["report"][name]["mem_bytes"].as_u64().unwrap_or_default();
    assert!(part("capacity") > 0);
    assert_eq!(part("capacity"), part("reserve") + part("allocated") + part("free"));
    let frameworks = cluster.run_cli(&["frameworks", "--json"]).await?.json()?;
    let listed = frameworks.as_array().context("an array")?;
    assert!(listed.iter().any(|f| f["framework_id"] == framework.id() && f["name"] == "lists"), "{listed:?}");
    assert!(cluster.run_cli(&["offers", "--json"]).await?.json()?.is_array());
    for list in ["agents", "offers", "frameworks", "ps", "events"] {
        let shown = cluster.run_cli(&[list]).await?;
        assert_eq!(shown.code, 0, "{list}: {}", shown.stderr);
    }
    framework.teardown().await
}

async fn every_number_has_a_reason() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let id = cluster.agent_info().await?.agent.context("an agent")?.agent_id;
    let told = until("a measurement", || async {
        let told = cluster.run_cli(&["--json", "explain", "--agent", &id]).await.and_then(|t| t.json());
        let told = told.map_err(|e| Verdict::Never(format!("{e:#}")))?;
        if told["provenance"]["measured_ms_ago"].is_u64() {
            Ok(told)
        } else {
            Err(Verdict::NotYet(told.to_string()))
        }
    })
    .await?;
    let told = &told["provenance"];
    for kind in told["kinds"].as_array().context("kinds")? {
        let part = |name: &str| kind[name].as_u64().unwrap_or_default();
        let left = part("capacity").saturating_sub(part("allocated"));
        assert_eq!(part("reserve") + part("free"), left, "{kind}");
    }
    let lending = |name: &str| told["revocable_cpu"][name].as_u64().unwrap_or_default();
    let parts = ["exclusive_milli", "strangers_milli", "guaranteed_milli", "kept_milli", "lendable_milli"];
    assert_eq!(parts.map(lending).iter().sum::<u64>(), lending("capacity_milli"), "{told}");
    let nodes = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let nodes = nodes.filter(|n| n.path().join("meminfo").exists()).count();
    assert_eq!(told["numa"].as_array().map(Vec::len), Some(nodes), "{told}");

    let table = cluster.run_cli(&["explain", "--agent", &id]).await?;
    assert!(table.stdout.contains("as set (reserve_mem)"), "{}", table.stdout);
    let mut command = tokio::process::Command::new(Binaries::find()?.agent);
    let asked = command.arg("--work-dir").arg(cluster.work_dir()).arg("explain").output().await?;
    let words = String::from_utf8_lossy(&asked.stdout);
    assert!(asked.status.success() && words.contains("as set (reserve_mem)"), "{asked:?}");
    let nowhere = tempfile::tempdir()?;
    let mut command = tokio::process::Command::new(Binaries::find()?.agent);
    let refused = command.arg("--work-dir").arg(nowhere.path()).arg("explain").output().await?;
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && words.contains("no agent answers"), "{words}");
    Ok(())
}

async fn a_task_that_is_not_there() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    for command in ["logs", "kill", "events"] {
        let refused = cluster.run_cli(&[command, "no-such-task"]).await?;
        assert_eq!(refused.code, 1, "{command}: {}", refused.stderr);
        assert!(refused.stderr.contains("no-such-task"), "{command}: {}", refused.stderr);
    }
    Ok(())
}

async fn a_master_that_is_not_there() -> Result<()> {
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    for (arguments, code) in [(&["agents"][..], 1), (&["run", "--", "true"], 125)] {
        let mut command = tokio::process::Command::new(Binaries::find()?.cli);
        let refused = command.env("BULKHEAD_MASTER", &address).args(arguments).output().await?;
        let words = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{words}");
        assert!(words.contains(&address) && words.contains("--master"), "{words}");
    }
    Ok(())
}
