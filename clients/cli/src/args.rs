//! The command line: every option, its default and the words that explain it.

use std::{collections::BTreeMap, env, time::Duration};

use bulkhead_proto::{
    resources::PortSet,
    v1::{Artifact, ResourceClass},
};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};

mod artifact;
mod fence;
mod grant;
mod peer;
mod roles;

use artifact::parse_artifact;
pub(crate) use fence::FenceArgs;
pub(crate) use grant::GrantArgs;
pub(crate) use roles::{RolesAction, RolesArgs, SetRoleArgs};

use crate::{
    connect::Address,
    quantity::{PortsWanted, parse_cpus, parse_duration, parse_mem, parse_ports, parse_size},
};

/// Where a master listens unless it is told otherwise.
const DEFAULT_MASTER: &str = "127.0.0.1:5050";

const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

Tasks:
  run         Run a command as a task, with its output and exit code here
  ps          List tasks
  logs        Print what a task wrote
  kill        Stop tasks
  resize      Give a running task another grant
  events      Show what the kernel refused or ended

Cluster:
  agents      List agents with what each has, holds and may offer
  offers      List offers that frameworks hold now
  frameworks  List frameworks
  roles       List roles, or change their weights and quotas
  explain     Say where the numbers of an offer come from, and who is offered what

  help        Explain a command

Options:
{options}{after-help}";

const EXAMPLES: &str = "\
Examples:
  bulkhead run -- echo hello
  bulkhead run --cpus 2 --mem 1GiB -- ./train --epochs 3
  bulkhead run --name web --ports 1 --detach -- sh -c 'exec python3 -m http.server $PORT'
  bulkhead ps -a
  bulkhead logs -f web
  bulkhead kill web

Exit status:
  0    done
  1    could not be done; standard error says why
  2    the command line says nothing meaningful
  141  the reader of the output went away
  `run` has its own table: bulkhead help run

`bulkhead help COMMAND` explains a command, with examples.";

const RUN_EXAMPLES: &str = "\
The task gets its ports in PORT (the first), PORTS (all, with commas) and PORT0, PORT1, ...; what it was
granted in all is in BULKHEAD_CPU_MILLI, BULKHEAD_MEM_BYTES, BULKHEAD_PORTS (ranges) and BULKHEAD_CLASS.
It has no standard input, and no shell is involved unless you name one.

The first Ctrl-C (or SIGTERM, SIGHUP) stops the task and waits for its end; the second leaves at once.

Examples:
  bulkhead run -- echo hello
  bulkhead run --cpus 0.5 --mem 64MiB -- python3 -c 'print(sum(range(10**7)))'
  bulkhead run --ports 2 -- sh -c 'echo I may bind $PORT0 and $PORT1'
  bulkhead run --ports 31000-31002,8080 -- ./server
  bulkhead run --class revocable --cpus 4 -- make -j4
  bulkhead run --net-default deny --allow 10.0.0.0/8,out,tcp=443 -- ./client
  bulkhead run --name web --ports 1 --detach -- sh -c 'exec python3 -m http.server $PORT'

Exit status:
  0-124, 128-255  the task's own
  125             Bulkhead failed: no master, no offer in time, launch refused, task lost
  126             the command is there and cannot be executed
  127             the command was not found
  128+N           signal N ended the task (143: SIGTERM, 137: SIGKILL)
  137             also: the kernel ended the task at its memory limit (standard error says so)
  130             Ctrl-C before the task ran, or pressed twice";

const LIST_JSON: &str =
    "With --json: one document, an array; fields carry their unit (cpu_milli, mem_bytes, ..._unix_ms).";

/// Run, watch and stop tasks on a Bulkhead cluster.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, help_template = TEMPLATE, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The master's address
    #[arg(long, global = true, env = "BULKHEAD_MASTER", value_name = "HOST:PORT", default_value = DEFAULT_MASTER)]
    pub(crate) master: Address,
    /// Print JSON: one document for a list, one line each for a stream
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to colour; `auto` is on terminals where NO_COLOR is not set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// Say more on standard error; -vv adds what is sent, -vvv the network libraries' words
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command as a task, with its output and exit code here
    ///
    /// Waits for the first offer that has what the task needs, launches the task on it, and prints what the
    /// task writes until it has ended.
    #[command(after_long_help = RUN_EXAMPLES, after_help = "`--help` adds examples and exit codes.")]
    Run(RunArgs),
    /// List tasks
    #[command(after_help = LIST_JSON)]
    Ps(PsArgs),
    /// Print what a task wrote
    ///
    /// Standard output goes to standard output, standard error to standard error; with --stdout or --stderr,
    /// that one alone goes to standard output.
    #[command(after_long_help = "\
Examples:
  bulkhead logs web
  bulkhead logs -f --tail 4KiB web
  bulkhead logs --stderr web | grep -i warn

With --json: one line for each piece: {\"stream\":\"stdout\",\"offset\":0,\"text\":\"...\"}; bytes that are not
UTF-8 become U+FFFD.")]
    Logs(LogsArgs),
    /// Stop tasks
    ///
    /// Each task gets SIGTERM, and what is left of it after the grace period is killed by the kernel as a
    /// whole. Returns when the master has taken the order; `bulkhead ps` shows the end.
    Kill(KillArgs),
    /// Give a running task another grant
    ///
    /// Changes what is named and keeps the rest. Growth comes out of what the task's agent has free; offers that are
    /// in the way are taken back. Memory that is in use is reclaimed before its limit is lowered; where that does
    /// not work out, the task keeps what it had.
    #[command(after_long_help = "\
Examples:
  bulkhead resize --cpus 2 --mem 1GiB web
  bulkhead resize --cpu-burst=false web")]
    Resize(ResizeArgs),
    /// List offers that frameworks hold now
    #[command(after_help = LIST_JSON)]
    Offers,
    /// List agents with what each has, holds and may offer
    #[command(after_help = LIST_JSON)]
    Agents,
    /// List frameworks
    #[command(after_help = LIST_JSON)]
    Frameworks,
    /// List roles, or change their weights and quotas
    ///
    /// What each role has been given and holds, frameworks and roles below it included.
    #[command(after_help = LIST_JSON)]
    Roles(RolesArgs),
    /// Say where the numbers of an offer come from, and who is offered what
    ///
    /// With --agent, asks the agent itself: what it has, what is granted, what it keeps back and for whom, what it lends
    /// and which prediction that rests on, as of this moment. With --framework, asks the master: the shares of the
    /// framework and of the roles above it, what it is entitled to, what quotas leave for it, and why it is not offered
    /// which agents. With both, the master says why this framework is or is not offered this agent.
    #[command(after_long_help = "\
Examples:
  bulkhead explain --agent node7.example
  bulkhead explain --framework batch
  bulkhead explain --framework batch --agent node7.example
  bulkhead --json explain --agent 3f2a | jq '.provenance.revocable_cpu'

With --json: one document, the answer; fields carry their unit.")]
    Explain(ExplainArgs),
    /// Show what the kernel refused or ended
    ///
    /// Asks every agent and merges the answers by time. An agent that does not answer is named on standard
    /// error and left out.
    #[command(after_help = "With --json: one line for each event.")]
    Events(EventsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// CPUs to be granted, in steps of 0.001
    #[arg(long, help_heading = "Grant", value_name = "NUMBER", default_value = "0.5", value_parser = parse_cpus, allow_negative_numbers = true)]
    pub(crate) cpus: u64,
    /// Memory to be granted: 64MiB, 1.5GiB
    #[arg(long, help_heading = "Grant", value_name = "SIZE", default_value = "128MiB", value_parser = parse_mem, allow_negative_numbers = true)]
    pub(crate) mem: u64,
    /// How many ports (up to 100), or which: 8080 or 31000-31002,53/udp
    #[arg(long, help_heading = "Grant", value_name = "COUNT|LIST", value_parser = parse_ports, allow_negative_numbers = true)]
    pub(crate) ports: Option<PortsWanted>,
    /// How firmly: held until the task ends, or measured slack that may be taken back
    #[arg(long, help_heading = "Grant", default_value = "guaranteed")]
    pub(crate) class: Class,
    #[command(flatten)]
    pub(crate) more: GrantArgs,
    #[command(flatten)]
    pub(crate) fences: FenceArgs,

    /// Name for lists and for `logs` and `kill`; the command's own unless given
    #[arg(long, help_heading = "Task", value_parser = parse_name)]
    pub(crate) name: Option<String>,
    /// A variable for the task: K=V, or K to pass on yours
    #[arg(long, short, help_heading = "Task", value_name = "K[=V]", value_parser = parse_env)]
    pub(crate) env: Vec<(String, String)>,
    /// User to run as; the agent's task user unless given
    #[arg(long, help_heading = "Task", value_name = "NAME|UID")]
    pub(crate) user: Option<String>,
    /// Time between SIGTERM and the end when the task is stopped; the agent's default unless given
    #[arg(long, help_heading = "Task", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) grace: Option<Duration>,
    /// A file for the sandbox: URI[,digest=sha256:HEX][,path=PATH][,unpack[=BOOL]][,executable]
    ///
    /// Of the agent's host (an absolute path or file://, below what its operator opened to tasks) or of a server
    /// (http:// with a digest, https://). Archives (tar, tar.gz, tar.zst, zip) are unpacked into the sandbox, or below
    /// `path`. May be repeated.
    #[arg(long, help_heading = "Task", value_name = "URI[,OPTION]...", value_parser = parse_artifact)]
    pub(crate) artifact: Vec<Artifact>,

    /// Its root directory: oci:DIR[:TAG], docker-archive:FILE[:REF] or docker://HOST/NAME[:TAG|@DIGEST]
    ///
    /// Paths are those of the agent's host; its operator says from where images may come.
    #[arg(long, help_heading = "Task", value_name = "REFERENCE")]
    pub(crate) image: Option<String>,

    /// Print the task's id once it runs, and leave it running
    #[arg(long, short, help_heading = "Behaviour")]
    pub(crate) detach: bool,
    /// How long to wait for an offer; 0s waits for ever
    #[arg(long, help_heading = "Behaviour", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,

    /// The command and its arguments; with --image, the image's own unless given
    #[arg(required_unless_present = "image", last = true, value_name = "COMMAND")]
    pub(crate) argv: Vec<String>,
}

/// A resource class by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    Guaranteed,
    Revocable,
}

impl From<Class> for ResourceClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Guaranteed => Self::Guaranteed,
            Class::Revocable => Self::Revocable,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Tasks that have ended, too
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on until the task has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only its standard output
    #[arg(long, conflicts_with = "stderr")]
    pub(crate) stdout: bool,
    /// Only its standard error
    #[arg(long)]
    pub(crate) stderr: bool,
    /// Start this much before the end of each stream
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) tail: Option<u64>,
    /// Id, the start of one, or name
    #[arg(value_name = "TASK")]
    pub(crate) task: String,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Time between SIGTERM and the end; what the task was launched with unless given
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) grace: Option<Duration>,
    /// Ids, starts of ids, or names
    #[arg(required = true, value_name = "TASK")]
    pub(crate) tasks: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// CPUs, in steps of 0.001
    #[arg(long, help_heading = "Grant", value_name = "NUMBER", value_parser = parse_cpus, allow_negative_numbers = true)]
    pub(crate) cpus: Option<u64>,
    /// Memory: 64MiB, 1.5GiB
    #[arg(long, help_heading = "Grant", value_name = "SIZE", value_parser = parse_mem, allow_negative_numbers = true)]
    pub(crate) mem: Option<u64>,
    /// All of its ports: 31000-31002,53/udp,8080/tcp
    #[arg(long, help_heading = "Grant", value_name = "LIST")]
    pub(crate) ports: Option<PortSet>,
    #[command(flatten)]
    pub(crate) more: GrantArgs,
    /// Id, the start of one, or name
    #[arg(value_name = "TASK")]
    pub(crate) task: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true))]
pub(crate) struct ExplainArgs {
    /// The agent: its id, the start of one, or its host name
    #[arg(long, value_name = "ID|HOSTNAME", group = "what")]
    pub(crate) agent: Option<String>,
    /// The framework: its id, the start of one, or its name
    #[arg(long, value_name = "ID|NAME", group = "what")]
    pub(crate) framework: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on as they happen
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only of this task: id, the start of one, or name
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
}

impl RunArgs {
    /// The variables of `--env`; the last of a repeated name counts.
    pub(crate) fn env_map(&self) -> BTreeMap<String, String> {
        self.env.iter().cloned().collect()
    }
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, env::var(text).ok()),
    };
    if name.is_empty() || text.contains('\0') {
        return Err("write NAME=VALUE".to_owned());
    }
    match value {
        Some(value) => Ok((name.to_owned(), value)),
        None => Err(format!("{name} is not set here; write {name}=VALUE")),
    }
}

/// Longest name: an id made of it stays a short file name.
const MAX_NAME_BYTES: usize = 63;

/// May this character stand in a name or an id?
pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn parse_name(text: &str) -> Result<String, String> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && text.len() <= MAX_NAME_BYTES && text.chars().all(is_name_char) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a name has up to {MAX_NAME_BYTES} letters, digits, dots, dashes or underscores, and starts with a letter or digit"
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let line = ["bulkhead", "run"].iter().chain(args).copied();
        Cli::try_parse_from(line).map(|cli| match cli.command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_in_the_grouped_list_with_its_own_words() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let line = format!("  {:<10}  {about}\n", command.get_name());
            assert!(TEMPLATE.contains(&line), "{line}");
        }
    }

    #[test]
    fn the_manual_names_every_command_and_option() {
        const MANUAL: &str = include_str!("../../../docs/cli.md");
        let cli = Cli::command();
        for command in cli.get_subcommands().chain([&cli]) {
            assert!(MANUAL.contains(command.get_name()), "{}", command.get_name());
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(MANUAL.contains(&format!("--{option}")), "{} --{option}", command.get_name());
            }
        }
    }

    #[test]
    fn the_command_follows_two_dashes_and_keeps_its_own_flags() {
        let args = run(&["--cpus", "2", "--", "ls", "--json", "-v"]).unwrap();
        assert_eq!(args.argv, ["ls", "--json", "-v"]);
        assert_eq!((args.cpus, args.mem), (2000, 128 << 20));
        assert!(run(&["ls"]).is_err());
        assert!(run(&["--"]).is_err());
    }

    #[test]
    fn bad_amounts_say_what_to_write() {
        for (args, says) in [
            (["--mem", "12parsecs"], "like 64MiB"),
            (["--cpus", "nan"], "like 0.5"),
            (["--cpus", "0"], "above zero"),
            (["--cpus", "-1"], "above zero"),
            (["--ports", "70000"], "between 1 and 65535"),
            (["--timeout", "10"], "like 500ms"),
            (["--pids", "0"], "1.."),
            (["--name", "a b"], "letters"),
            (["--env", "=x"], "NAME=VALUE"),
            (["--env", "BULKHEAD_NOT_SET_ANYWHERE"], "not set here"),
        ] {
            let error = run(&[&args[..], &["--", "true"]].concat()).unwrap_err().to_string();
            assert!(error.contains(says), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_variable_counts() {
        let args = run(&["-e", "A=1", "-e", "B=x=y", "-e", "A=2", "--", "true"]).unwrap();
        let want = [("A", "2"), ("B", "x=y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(args.env_map(), BTreeMap::from(want));
    }
}
