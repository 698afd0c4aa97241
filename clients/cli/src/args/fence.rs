//! The fences around a task: its profile, and what changes it.

use std::{fs, path::Path};

use bulkhead_proto::v1::{Confinement, Rlimit, TaskSpec, Volume};
use clap::Args;

use crate::quantity::parse_size;

/// No `--seccomp` at all.
const UNCONFINED: &str = "unconfined";
/// A limit of setrlimit(2) that is none.
const UNLIMITED: u64 = u64::MAX;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Confinement and files")]
pub(crate) struct FenceArgs {
    /// default (safe for untrusted code) or trusted; the agent's default unless given
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// System calls that it may make: `unconfined`, or a file in the JSON form that containers use
    #[arg(long, value_name = "FILE", value_parser = parse_seccomp)]
    seccomp: Option<String>,
    /// A capability on top of the profile's; needs an agent that allows trusted tasks
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// A capability less
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Root inside, its user outside
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    user_namespace: Option<bool>,
    /// Only a loopback interface of its own
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    network_namespace: Option<bool>,
    /// See only its own processes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pid_namespace: Option<bool>,
    /// Share no System V IPC and message queues with the host
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipc_namespace: Option<bool>,
    /// Never gain privileges, not even by a setuid program
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_new_privs: Option<bool>,
    /// The host's name as the task sees it
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// More of the host's files that it may read and execute
    #[arg(long, value_name = "PATH")]
    readable: Vec<String>,
    /// A limit of setrlimit(2): nofile=1024, core=0:unlimited
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_rlimit)]
    rlimit: Vec<Rlimit>,
    /// Bits that new files do not get, in octal; 022 unless given
    #[arg(long, value_name = "OCTAL", value_parser = parse_umask)]
    umask: Option<u32>,
    /// A supplementary group by name or number; those of the user unless given
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// A host directory that the agent allows, at a path of the task's: /srv/data:/data, /srv/data:/data:ro or, bounded
    /// for all tasks that use it, /srv/data:/data:size=10GiB,files=100000
    #[arg(long, value_name = "SOURCE:TARGET[:OPTION,...]", value_parser = parse_volume)]
    volume: Vec<Volume>,
    /// Where the program starts; the sandbox, or as the image says
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
}

impl FenceArgs {
    /// Writes what was given into a task.
    pub(crate) fn apply(&self, spec: &mut TaskSpec) {
        spec.volumes.clone_from(&self.volume);
        spec.working_dir = self.workdir.clone().unwrap_or_default();
        let confinement = Confinement {
            profile: self.profile.clone().unwrap_or_default(),
            pid_namespace: self.pid_namespace,
            ipc_namespace: self.ipc_namespace,
            user_namespace: self.user_namespace,
            network_namespace: self.network_namespace,
            hostname: self.hostname.clone().unwrap_or_default(),
            add_capabilities: self.cap_add.clone(),
            drop_capabilities: self.cap_drop.clone(),
            no_new_privs: self.no_new_privs,
            seccomp: self.seccomp.clone().unwrap_or_default(),
            readable_paths: self.readable.clone(),
            rlimits: self.rlimit.clone(),
            umask: self.umask,
            groups: self.group.clone(),
        };
        spec.confinement = Some(confinement).filter(|c| *c != Confinement::default());
    }
}

fn parse_seccomp(text: &str) -> Result<String, String> {
    if text == UNCONFINED {
        return Ok(text.to_owned());
    }
    fs::read_to_string(Path::new(text))
        .map_err(|e| format!("{e}; write `{UNCONFINED}` or a file with a profile"))
}

fn parse_rlimit(text: &str) -> Result<Rlimit, String> {
    let advice = "write NAME=SOFT or NAME=SOFT:HARD, like nofile=1024:4096; `unlimited` is no limit";
    let (name, limits) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(advice)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| if text == "unlimited" { Some(UNLIMITED) } else { text.parse().ok() };
    let (soft, hard) = number(soft).zip(number(hard)).ok_or(advice)?;
    if soft > hard {
        return Err("the soft limit is at most the hard one".to_owned());
    }
    Ok(Rlimit { name: name.to_lowercase(), soft, hard })
}

fn parse_umask(text: &str) -> Result<u32, String> {
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| "write 000 to 777".to_owned())
}

fn parse_volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, options] => (source, target, options),
        _ => return Err("write SOURCE:TARGET or SOURCE:TARGET:OPTION,...".to_owned()),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err("both paths begin with /".to_owned());
    }
    let mut volume = Volume { source: source.to_owned(), target: target.to_owned(), ..Volume::default() };
    for option in options.split(',') {
        let positive =
            |number: Option<u64>, advice: &str| number.filter(|n| *n > 0).ok_or_else(|| advice.to_owned());
        match option.split_once('=') {
            None if option == "rw" => volume.read_only = false,
            None if option == "ro" => volume.read_only = true,
            Some(("size", size)) => {
                volume.max_bytes = positive(parse_size(size).ok(), "write a size such as size=10GiB")?;
            }
            Some(("files", files)) => {
                volume.max_inodes = positive(files.parse().ok(), "write a number such as files=100000")?;
            }
            _ => return Err(format!("{option:?}: the options are ro, rw, size=SIZE and files=NUMBER")),
        }
    }
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_soft_and_a_hard_half() {
        let limit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
        assert_eq!(parse_rlimit("nofile=10"), Ok(limit("nofile", 10, 10)));
        assert_eq!(parse_rlimit("CORE=0:unlimited"), Ok(limit("core", 0, u64::MAX)));
        for bad in ["nofile", "=1", "nofile=", "nofile=2:1", "nofile=-1", "nofile=1:2:3"] {
            assert!(parse_rlimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_have_two_absolute_paths() {
        let volume = parse_volume("/srv/data:/data:ro").unwrap();
        assert_eq!(
            (volume.source.as_str(), volume.target.as_str(), volume.read_only),
            ("/srv/data", "/data", true)
        );
        let bounded = parse_volume("/a:/b:size=1MiB,ro,files=7").unwrap();
        assert_eq!((bounded.max_bytes, bounded.max_inodes, bounded.read_only), (1 << 20, 7, true));
        for bad in [
            "/srv",
            "srv:/data",
            "/srv:data",
            "/a:/b:x",
            "/a:/b:ro:rw",
            "",
            "/a:/b:size=0",
            "/a:/b:size=x",
            "/a:/b:files=-1",
            "/a:/b:files",
            "/a:/b:",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn masks_are_octal() {
        assert_eq!(parse_umask("077"), Ok(0o77));
        assert!(parse_umask("8").is_err() && parse_umask("1000").is_err() && parse_umask("-1").is_err());
    }
}
