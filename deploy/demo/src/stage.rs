//! Where the acts play: a master and an agent of their own. Tasks are run and ended through the CLI, as a person
//! would; what became of them is asked of the master, the agent and the kernel.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_proto::v1::{Enforced, ListTasksRequest, Resources, Task, TaskState, TaskUsage};
use bulkhead_testkit::{
    Cluster, Options,
    cluster::{CliOutput, Verdict, until},
    framework::is_last,
};
use serde_json::Value;

use crate::screen::Screen;

/// What a kernel may be unable to enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Memory,
    Processes,
    Ports,
}

impl Kind {
    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Processes => "a number of processes",
            Self::Ports => "ports",
        }
    }
}

/// A running cluster and where its progress is shown.
#[derive(Debug)]
pub(crate) struct Stage {
    cluster: Cluster,
    screen: Screen,
}

impl Stage {
    /// Starts master and agent.
    pub(crate) async fn open(screen: &Screen) -> Result<Self> {
        Ok(Self { cluster: Cluster::start(Options::default()).await?, screen: *screen })
    }

    /// Ends everything and checks that nothing is left.
    pub(crate) async fn close(self) -> Result<()> {
        self.screen.say("ending the master and the agent");
        self.cluster.finish().await
    }

    /// What this kernel does not enforce.
    pub(crate) async fn missing(&self) -> Result<Vec<Kind>> {
        let report = self.cluster.agent_info().await?.report.unwrap_or_default();
        let Enforced { cpu, mem, ports, pids, .. } = report.enforced.unwrap_or_default();
        let kinds = [(Kind::Cpu, cpu), (Kind::Memory, mem), (Kind::Processes, pids), (Kind::Ports, ports)];
        Ok(kinds.into_iter().filter(|(_, enforced)| !enforced).map(|(kind, _)| kind).collect())
    }

    /// Runs `bulkhead` with these arguments to its end.
    pub(crate) async fn bulkhead(&self, arguments: &[&str]) -> Result<CliOutput> {
        self.screen.command(&typed(arguments));
        self.cluster.run_cli(arguments).await
    }

    /// Runs `bulkhead` with arguments that ought to succeed.
    pub(crate) async fn done(&self, arguments: &[&str]) -> Result<CliOutput> {
        let output = self.bulkhead(arguments).await?;
        ensure!(
            output.code == 0,
            "{}: exit status {}: {}",
            typed(arguments),
            output.code,
            output.stderr.trim()
        );
        Ok(output)
    }

    /// The newest that the master knows of the task of this name.
    pub(crate) async fn task(&self, name: &str) -> Result<Task> {
        let request = ListTasksRequest { task: name.to_owned(), ..ListTasksRequest::default() };
        let listed = self.cluster.operator().await?.list_tasks(request).await?.into_inner().tasks;
        listed.into_iter().next().with_context(|| format!("the master does not list a task named {name}"))
    }

    /// The task of this name, once it has ended.
    pub(crate) async fn ended(&self, name: &str) -> Result<Task> {
        until("the end of the task", || async {
            let task = self.task(name).await.map_err(|e| Verdict::Never(format!("{e:#}")))?;
            if task.status.as_ref().is_some_and(is_last) {
                return Ok(task);
            }
            Err(Verdict::NotYet(format!("{name} is {:?}", state(&task))))
        })
        .await
    }

    /// What `bulkhead events` shows of the task, once there are `wanted`.
    pub(crate) async fn events(&self, name: &str, wanted: usize) -> Result<Vec<Value>> {
        let arguments = ["events", "--json", name];
        self.screen.command(&typed(&arguments));
        until("events of the task", || async {
            let output = self.cluster.run_cli(&arguments).await.and_then(|output| output.json_lines());
            let events = output.map_err(|e| Verdict::Never(format!("{e:#}")))?;
            if events.len() < wanted {
                return Err(Verdict::NotYet(format!("{} of {wanted}", events.len())));
            }
            Ok(events)
        })
        .await
    }

    /// The cgroup of a task.
    pub(crate) fn cgroup(&self, task: &Task) -> Result<PathBuf> {
        let id = &task.spec.as_ref().context("a task without a specification")?.task_id;
        self.cluster.task_cgroup("guaranteed", &task.framework_id, id)
    }
}

/// As a person would type it for a shell, with longer programs left out.
fn typed(arguments: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quote = |word: &&str| match word.split_once('\n') {
        Some(_) => "'...'".to_owned(),
        None if word.chars().all(plain) => (*word).to_owned(),
        None if word.contains('\'') => format!("\"{word}\""),
        None => format!("'{word}'"),
    };
    let words: Vec<String> = arguments.iter().map(quote).collect();
    format!("bulkhead {}", words.join(" "))
}

/// The state of a task.
pub(crate) fn state(task: &Task) -> TaskState {
    task.status.as_ref().map(|status| status.state()).unwrap_or_default()
}

/// What the kernel counted over the life of a task that has ended.
pub(crate) fn usage(task: &Task) -> Result<TaskUsage> {
    task.status.as_ref().and_then(|status| status.usage.clone()).context("the last status has no usage")
}

/// What a task was granted.
pub(crate) fn granted(task: &Task) -> Result<Resources> {
    let grant = task.spec.as_ref().and_then(|spec| spec.grant.as_ref());
    grant.and_then(|grant| grant.resources.clone()).context("a task without a grant")
}

/// The one port that a task was granted.
pub(crate) fn granted_port(task: &Task) -> Result<u16> {
    match granted(task)?.ports.as_slice() {
        [range] if range.first == range.last => Ok(u16::try_from(range.first)?),
        other => anyhow::bail!("granted {other:?} instead of one port"),
    }
}

/// The numbers of a cgroup file whose lines are `key number`.
pub(crate) fn numbers(file: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(key, number)| Ok((key.to_owned(), number.trim().parse()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_are_typed() {
        assert_eq!(
            typed(&["run", "--mem", "64MiB", "--", "tail", "/dev/zero"]),
            "bulkhead run --mem 64MiB -- tail /dev/zero"
        );
        assert_eq!(typed(&["run", "--", "sh", "-c", "exec a $PORT"]), "bulkhead run -- sh -c 'exec a $PORT'");
        assert_eq!(
            typed(&["run", "--", "sh", "-c", "trap '' TERM"]),
            "bulkhead run -- sh -c \"trap '' TERM\""
        );
        assert_eq!(
            typed(&["run", "--", "python3", "-c", "import os\nos.fork()"]),
            "bulkhead run -- python3 -c '...'"
        );
    }

    #[test]
    fn cgroup_files_are_read_as_numbers() {
        let dir = std::env::temp_dir().join(format!("bulkhead-demo-{}", std::process::id()));
        fs::write(&dir, "usage_usec 12\nnr_throttled 3\n").unwrap();
        let read = numbers(&dir);
        fs::remove_file(&dir).unwrap();
        let read = read.unwrap();
        assert_eq!((read["usage_usec"], read["nr_throttled"]), (12, 3));
        assert!(numbers(&dir).unwrap_err().to_string().contains("bulkhead-demo"));
    }
}
