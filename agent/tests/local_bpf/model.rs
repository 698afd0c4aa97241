//! Whatever is granted and whatever is called: the kernel allows what a plain model of the grant allows.

use bulkhead_abi::port_choice::{BIND_EPHEMERAL, BIND_GRANTED, CLIENT_EPHEMERAL, CLIENT_GRANTED};
use bulkhead_agent::kernel::bpf::PortGrant;
use bulkhead_proto::resources::{PortNumbers, PortSet};
use nix::errno::Errno;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};

use crate::{
    autobind::{Peer, ephemeral},
    fixture::Node,
    helper::Helper,
};

/// Random sequences of calls; each is a task of its own.
const SEQUENCES: usize = 300;
const KINDS: [&str; 8] = ["tcp4", "udp4", "tcp6", "udp6", "tcp6m", "udp6m", "tcp6d", "udp6d"];
/// Of the ports of a test; grants and calls are about these.
const OFFSETS: [u16; 6] = [0, 1, 63, 64, 65, 130];

#[derive(Clone, Debug)]
enum Call {
    Bind { slot: u8, kind: usize, offset: Option<usize> },
    Connect { slot: u8, kind: usize },
    Send { slot: u8, kind: usize },
    Close { slot: u8 },
}

/// Which of [`OFFSETS`], by protocol, and the policy.
#[derive(Clone, Debug)]
struct Granted {
    tcp: Vec<usize>,
    udp: Vec<usize>,
    choice: u32,
}

impl Granted {
    fn ports(&self, node: &Node) -> PortSet {
        let numbers = |of: &[usize]| of.iter().map(|i| node.port + OFFSETS[*i]).collect::<PortNumbers>();
        PortSet::new(numbers(&self.tcp), numbers(&self.udp))
    }
}

fn granted() -> impl Strategy<Value = Granted> {
    let some = || prop::collection::vec(0..OFFSETS.len(), 0..5);
    let choice = prop::sample::select(vec![
        BIND_GRANTED | CLIENT_EPHEMERAL,
        BIND_GRANTED | CLIENT_GRANTED,
        BIND_EPHEMERAL | CLIENT_EPHEMERAL,
        0,
    ]);
    (some(), some(), choice).prop_map(|(tcp, udp, choice)| Granted { tcp, udp, choice })
}

fn call() -> impl Strategy<Value = Call> {
    let (slot, kind) = (0u8..4, 0..KINDS.len());
    let bind = (slot.clone(), kind.clone(), prop::option::of(0..OFFSETS.len()))
        .prop_map(|(slot, kind, offset)| Call::Bind { slot, kind, offset });
    // A wildcard address is none to connect to.
    let connect = (slot.clone(), 0..6usize).prop_map(|(slot, kind)| Call::Connect { slot, kind });
    let send = (slot.clone(), 0..3usize).prop_map(|(slot, kind)| Call::Send { slot, kind: 2 * kind + 1 });
    let close = slot.prop_map(|slot| Call::Close { slot });
    prop_oneof![6 => bind, 3 => connect, 2 => send, 1 => close]
}

/// What the policy says of a call that asks the kernel to choose.
enum Choice<'a> {
    Refused,
    From(&'a PortNumbers),
    Ephemeral,
}

/// Whether a call was to be refused; and panics where the port that it got is none that it may have.
fn judge(choice: &Choice<'_>, result: Result<u16, Errno>, what: &str) -> bool {
    match (choice, result) {
        (Choice::Refused, result) => {
            assert_eq!(result, Err(Errno::EPERM), "{what}");
            return true;
        }
        (Choice::From(ports), Ok(port)) => assert!(ports.contains(port), "{what}: {port} of {ports:?}"),
        // All in use; connect() says it in another way.
        (Choice::From(ports), Err(errno)) => {
            assert!(
                [Errno::EADDRINUSE, Errno::EADDRNOTAVAIL].contains(&errno),
                "{what}: {errno} of {ports:?}"
            );
        }
        (Choice::Ephemeral, Ok(port)) => assert!(ephemeral().contains(&port), "{what}: {port}"),
        (Choice::Ephemeral, Err(errno)) => panic!("{what}: {errno}"),
    }
    false
}

#[test]
fn the_kernel_allows_what_a_model_of_the_grant_allows() {
    const TEST: &str = "the_kernel_allows_what_a_model_of_the_grant_allows";
    let Some(node) = Node::new(TEST) else { return };
    let (rules, peer) = (node.rules(), Peer::new());
    let mut runner = TestRunner::new(Config::default());
    let strategy = (granted(), granted(), prop::collection::vec(call(), 1..24));
    for n in 0..SEQUENCES {
        let (first, second, calls) = strategy.new_tree(&mut runner).unwrap().current();
        let task = node.task(&n.to_string());
        let mut helper = task.helper();
        let mut refused = 0;
        let half = calls.len() / 2;
        // The grant changes in the middle: what is bound stays, what is asked for from then on is held to the new one.
        for (granted, calls) in [(&first, &calls[..half]), (&second, &calls[half..])] {
            let ports = granted.ports(&node);
            rules.grant(task.id, &PortGrant { choice: granted.choice, ..ports.clone().into() }).unwrap();
            for call in calls {
                let what = format!("{granted:?}: {call:?}");
                refused += u64::from(make(call, &node, &peer, &mut helper, &ports, granted.choice, &what));
            }
        }
        assert_eq!(rules.total_denied(task.id).unwrap(), refused, "{first:?} {second:?} {calls:?}");
        rules.revoke(task.id).unwrap();
    }
}

/// Makes the call; was it refused, as the model says?
fn make(
    call: &Call,
    node: &Node,
    peer: &Peer,
    helper: &mut Helper,
    ports: &PortSet,
    choice: u32,
    what: &str,
) -> bool {
    let of = |kind: usize| if KINDS[kind].starts_with("tcp") { ports.tcp() } else { ports.udp() };
    let chosen = |from_grant: u32, ephemeral: u32, kind: usize, binds: bool| match of(kind) {
        _ if !binds && choice & ephemeral != 0 => Choice::Ephemeral,
        granted if choice & from_grant != 0 && !granted.is_empty() => Choice::From(granted),
        _ if choice & ephemeral != 0 => Choice::Ephemeral,
        _ => Choice::Refused,
    };
    match *call {
        Call::Close { slot } => {
            assert_eq!(helper.ask(&format!("close s{slot}")), "0");
            false
        }
        Call::Bind { slot, kind, offset: Some(offset) } => {
            let port = node.port + OFFSETS[offset];
            let result = helper.bind(&format!("s{slot}"), KINDS[kind], port);
            let may = of(kind).contains(port);
            assert!(
                matches!(result, Ok(got) if got == port && may)
                    || (result == Err(Errno::EADDRINUSE) && may)
                    || (result == Err(Errno::EPERM) && !may),
                "{what}: {result:?}"
            );
            !may
        }
        Call::Bind { slot, kind, offset: None } => {
            let result = helper.bind(&format!("s{slot}"), KINDS[kind], 0);
            judge(&chosen(BIND_GRANTED, BIND_EPHEMERAL, kind, true), result, what)
        }
        Call::Connect { slot, kind } => {
            let result = helper.connect(&format!("s{slot}"), KINDS[kind], peer.port(KINDS[kind]));
            judge(&chosen(CLIENT_GRANTED, CLIENT_EPHEMERAL, kind, false), result, what)
        }
        Call::Send { slot, kind } => {
            assert_eq!(helper.ask(&format!("close s{slot}")), "0");
            let order = format!("send s{slot} {} {}", KINDS[kind], peer.port(KINDS[kind]));
            let lax = choice & CLIENT_EPHEMERAL != 0;
            let result = helper.port(&order);
            judge(&if lax { Choice::Ephemeral } else { Choice::Refused }, result, what)
        }
    }
}
