//! What the port hooks cost, by the kernel's own count of their run time. It asserts no time; to see the figures:
//!
//! ```text
//! cargo test -p bulkhead-agent --test local_bpf -- --ignored --nocapture cost::
//! ```

use std::path::Path;

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use bulkhead_abi::{
    names,
    port_choice::{BIND_GRANTED, CLIENT_GRANTED},
};
use bulkhead_agent::kernel::bpf::{PortGrant, PortRules};

use crate::{autobind::Peer, fixture::Node, helper::Helper};

const CALLS: u32 = 100_000;

/// Runs, and nanoseconds of all of them, of a program by its pinned link.
pub(crate) fn runs(dir: &Path, name: &str) -> (u64, u64) {
    let link = libbpf_rs::Link::open(dir.join(name)).unwrap();
    let id = link.info().unwrap().prog_id;
    let program = loaded_programs().flatten().find(|program| program.id() == id).unwrap();
    (program.run_count(), u64::try_from(program.run_time().as_nanos()).unwrap())
}

/// Prints what each of the programs took for these orders.
fn record(dir: &Path, helper: &mut Helper, what: &str, order: &str) {
    let before = names::ENFORCE_PROGRAMS.map(|name| runs(dir, name));
    assert_eq!(helper.ask(order), "0", "{order}");
    for (name, (count, ns)) in names::ENFORCE_PROGRAMS.into_iter().zip(before) {
        let (count_after, ns_after) = runs(dir, name);
        if let Some(mean) = (ns_after - ns).checked_div(count_after - count).filter(|_| count_after > count) {
            println!("{what}: {name} {mean} ns, {} runs", count_after - count);
        }
    }
}

#[test]
#[ignore = "records figures and asserts none"]
fn of_each_hook() {
    let Some(node) = Node::new("of_each_hook") else { return };
    let dir = node.load().ports;
    let (rules, peer, task) = (PortRules::open(&dir).unwrap(), Peer::new(), node.task("a"));
    let stats = enable_stats(Stats::RunTime).unwrap();
    let mut helper = task.helper();
    let many = node.ports(&(0..200).collect::<Vec<_>>());
    for (grant, size) in [(node.ports(&[0, 1, 2]), "3 ports"), (many, "200 ports")] {
        rules.grant(task.id, &grant).unwrap();
        for kind in ["tcp4", "udp6"] {
            let what = format!("{size}, bind {kind} by number");
            record(&dir, &mut helper, &what, &format!("binds {kind} {} {CALLS}", node.port));
            let what = format!("{size}, bind {kind} to port 0");
            record(&dir, &mut helper, &what, &format!("binds {kind} 0 {CALLS}"));
        }
        for kind in ["udp4", "udp6"] {
            let order = format!("connects {kind} {} {CALLS}", peer.port(kind));
            record(&dir, &mut helper, &format!("{size}, connect {kind}, ephemeral"), &order);
        }
        let strict = PortGrant { choice: BIND_GRANTED | CLIENT_GRANTED, ..grant.clone() };
        rules.grant(task.id, &strict).unwrap();
        for kind in ["udp4", "udp6"] {
            let order = format!("connects {kind} {} {CALLS}", peer.port(kind));
            record(&dir, &mut helper, &format!("{size}, connect {kind}, granted"), &order);
        }
    }
    drop(stats);
}
