//! The whole path on the running kernel, as root: what needs no cgroup controllers.

mod artifacts;
mod bad_config;
mod bad_task;
mod calibrate;
mod command_line;
mod confinement;
mod devices;
mod disk;
mod image;
mod kill;
mod locality;
mod ports;
mod program;
mod restart;
mod talk;

use std::process::ExitCode;

use bulkhead_testkit::{
    Options,
    harness::{self, Shared},
    host,
};

/// For tests that neither stop anything nor need it otherwise.
static CLUSTER: Shared = Shared::new(Options::default);

/// Where agents work that unpack images: anywhere.
const IMAGE_PARENT: Option<&str> = None;

fn main() -> ExitCode {
    let unfit = match host::cgroup2_mount() {
        _ if !host::is_root() => Some("needs root"),
        Err(_) => Some("needs a cgroup2 mount"),
        Ok(_) => None,
    };
    let tests = [
        program::tests(),
        kill::tests(),
        locality::tests(),
        ports::tests(),
        talk::tests(),
        restart::tests(),
        disk::tests(),
        devices::tests(),
        image::tests(),
        bad_config::tests(),
        bad_task::tests(),
        command_line::tests(),
        artifacts::tests(),
        calibrate::tests(),
        confinement::tests(),
    ];
    harness::run(unfit, tests.into_iter().flatten().collect(), || harness::block_on(CLUSTER.finish()))
}
