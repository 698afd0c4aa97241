//! The end of a task that does not want to end: it ignores SIGTERM and has a descendant in a session of its own.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use bulkhead_proto::v1::{TaskReason, TaskState};
use bulkhead_testkit::cluster::{Verdict, until};
use procfs::process::{Process, Stat};

use super::Act;
use crate::{
    line::Line,
    stage::{Stage, state},
};

pub(super) const ACT: Act = Act {
    name: "kill",
    title: "a task that ignores SIGTERM, and its daemon",
    needs: None,
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "stubborn";
/// The shell, the daemon and one more child, which all ignore SIGTERM.
const STUBBORN: &str = "trap '' TERM; setsid --fork sleep 600; sleep 600; :";
const PROCESSES: usize = 3;
const GRACE: &str = "500ms";

async fn play(stage: &Stage) -> Result<Line> {
    stage.done(&["run", "--name", NAME, "--detach", "--", "sh", "-c", STUBBORN]).await?;
    let cgroup = stage.cgroup(&stage.task(NAME).await?)?;
    let before = until("the task's processes", || async {
        let processes = processes(&cgroup).map_err(|e| Verdict::Never(format!("{e:#}")))?;
        if processes.len() < PROCESSES || !processes.iter().any(is_daemon) {
            return Err(Verdict::NotYet(format!("{} processes", processes.len())));
        }
        Ok(processes)
    })
    .await?;
    stage.done(&["kill", "--grace", GRACE, NAME]).await?;
    let task = stage.ended(NAME).await?;
    let reason = task.status.as_ref().map(|status| status.reason()).unwrap_or_default();
    let alive = before.iter().filter(|stat| is_alive(stat)).count();
    let daemons = before.iter().filter(|stat| is_daemon(stat)).count();

    let mut line = Line::new(
        ACT.name,
        format!(
            "a daemon that ignores SIGTERM\nrun -- sh -c \"trap '' TERM; setsid ...\"\nkill --grace {GRACE}"
        ),
        format!("{GRACE} of grace"),
    );
    line.measured(format!(
        "{} processes before, {daemons} of them in a session of its own; {alive} after, and no cgroup",
        before.len()
    ))
    .refused("to go on: killed with all that was in its cgroup")
    .figure("processes_before", before.len())
    .figure("processes_after", alive)
    .check(alive == 0, || format!("{alive} processes are left"))
    .check(!cgroup.exists(), || "its cgroup is still there".to_owned())
    .check(state(&task) == TaskState::Killed, || format!("its state is {:?}", state(&task)))
    .check(reason == TaskReason::KilledByOperator, || format!("its end is put down to {reason:?}"));
    Ok(line)
}

/// Those in the cgroup now.
fn processes(cgroup: &Path) -> Result<Vec<Stat>> {
    let file = cgroup.join("cgroup.procs");
    let ids = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    // One that ended in between is none of them.
    Ok(ids.lines().filter_map(|id| Process::new(id.parse().ok()?).ok()?.stat().ok()).collect())
}

/// Does it lead a session that its parent is not of?
fn is_daemon(stat: &Stat) -> bool {
    stat.comm == "sleep" && stat.session == stat.pid
}

/// Is it still there, and not another with its id?
fn is_alive(stat: &Stat) -> bool {
    let now = Process::new(stat.pid).and_then(|process| process.stat());
    // A zombie has ended, and waits only for its new parent to take note.
    now.is_ok_and(|now| now.starttime == stat.starttime && now.state != 'Z')
}
