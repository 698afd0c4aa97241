//! What the kernel does to a task that leaves its grant. Needs cgroup v2 with controllers: a test guest.
//!
//! A new test is one function, named in the list at the top of its file.

mod books;
mod cores;
mod cpu;
#[path = "../local/devices.rs"]
mod devices;
mod disk_io;
mod disk_space;
mod hostile;
#[path = "../local/image.rs"]
mod image;
#[path = "../local/kill.rs"]
mod kill;
mod memory;
mod network;
mod on_disk;
mod pids;
#[path = "../local/ports.rs"]
mod ports;
mod protection;
mod quota_fences;
mod resize;
mod staging;
mod traces;
mod volumes;

use std::process::ExitCode;

use bulkhead_testkit::{
    Options,
    harness::{self, Shared},
    host,
};

/// For tests that neither stop anything nor need it otherwise.
static CLUSTER: Shared = Shared::new(options);

/// Below it tasks may read what a test puts there.
const READABLE: &str = "/var/tmp/bulkhead-vm";

/// Where agents work that unpack images: the guest's root is an overlay, in which no whiteouts can be made.
const IMAGE_PARENT: Option<&str> = Some("/dev/shm");

fn options() -> Options {
    // Where it cannot be made, the cluster says so.
    drop(std::fs::create_dir_all(READABLE));
    let agent_args = ["--readable-path", READABLE].map(str::to_owned).to_vec();
    Options { agent_args, ..Options::default() }
}

fn main() -> ExitCode {
    let unfit = match host::has_controllers() {
        _ if !host::is_root() => Some("needs root"),
        false => Some("needs cgroup v2 cpu and memory controllers"),
        true => None,
    };
    // What was measured of tasks that burn CPU limits what is lent for a while, so `cpu` lends first.
    let tests = [
        cpu::tests(),
        disk_space::tests(),
        quota_fences::tests(),
        staging::tests(),
        image::tests(),
        volumes::tests(),
        hostile::tests(),
        devices::tests(),
        memory::tests(),
        pids::tests(),
        ports::tests(),
        kill::tests(),
        network::tests(),
        disk_io::tests(),
        books::tests(),
        resize::tests(),
        cores::tests(),
        protection::tests(),
        traces::tests(),
    ];
    harness::run(unfit, tests.into_iter().flatten().collect(), || harness::block_on(CLUSTER.finish()))
}
