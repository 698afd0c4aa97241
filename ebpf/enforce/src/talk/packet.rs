//! Packets of tasks with rules: those that open something are asked about, all others belong to what was opened.
//!
//! Going in, that is whatever a listening socket or a socket without a connection gets. Going out, calls were asked
//! about already; what is left are sockets that those hooks do not see (raw IP, ping, SCTP), the first packet of a TCP
//! connection, and packets whose IP header sends them elsewhere first.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_load_bytes},
};
use bulkhead_abi::{INGRESS_CELL, Opening, TalkKey, class, denied, net_task};

use super::{
    address::Address,
    class_of, conversation, opening,
    rules::{self, Attempt, PeerTask},
};
use crate::{denial::deny_packet, opaque::opaque};

const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;
const SOCK_RAW: u32 = 3;
const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_LISTEN: u32 = 10;
const IPV4_PLAIN: u8 = 0x45;
const IPV4_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;

/// Whose packet it is.
#[derive(Clone, Copy)]
pub struct Owner {
    pub cgroup_id: u64,
    /// Of [`net_task`].
    pub flags: u32,
}

/// May this packet go out?
#[inline(always)]
pub fn leaves(skb: *mut __sk_buff, owner: Owner) -> bool {
    let noted = owner.flags & net_task::OWN_NAMESPACE == 0 && opening::matters();
    if owner.flags & net_task::RULES == 0 && !noted {
        return true;
    }
    let Some(socket) = Socket::of(skb) else { return true };
    let class = socket.class();
    // First what needs no look at the packet, which is nearly all.
    if class == class::TCP && socket.state != TCP_SYN_SENT {
        return true;
    }
    let Some(header) = Header::of(skb, false) else { return owner.flags & net_task::RULES == 0 };
    if noted && class != class::OTHER {
        opening::note(owner.cgroup_id, header.opening((socket.port, header.peer_port), false, class));
    }
    let was_asked = class == class::UDP && header.plain;
    was_asked
        || owner.flags & net_task::RULES == 0
        || asks(skb, owner, false, opaque(class), &socket, &header)
}

/// May this packet come in?
#[inline(always)]
pub fn enters(skb: *mut __sk_buff, owner: Owner) -> bool {
    if owner.flags & net_task::RULES == 0 {
        return true;
    }
    let Some(socket) = Socket::of(skb) else { return true };
    let class = socket.class();
    let was_asked = match class {
        class::TCP => socket.state != TCP_LISTEN,
        class::UDP => socket.state == TCP_ESTABLISHED,
        _ => false,
    };
    if was_asked {
        return true;
    }
    let Some(header) = Header::of(skb, true) else { return false };
    asks(skb, owner, true, opaque(class), &socket, &header)
}

#[inline(always)]
fn asks(
    skb: *mut __sk_buff,
    owner: Owner,
    incoming: bool,
    class: u32,
    socket: &Socket,
    header: &Header,
) -> bool {
    let cgroup_id = owner.cgroup_id;
    let (peer_port, own_port) = if class == class::OTHER { (0, 0) } else { (header.peer_port, socket.port) };
    let (cell, port) = if incoming { (class | INGRESS_CELL, own_port) } else { (class, peer_port) };
    let named = owner.flags & net_task::NAMES != 0 && owner.flags & net_task::OWN_NAMESPACE == 0;
    let peer = match (named && class != class::OTHER, incoming) {
        (true, true) => PeerTask::Known(opening::sender(header.opening((peer_port, own_port), true, class))),
        (true, false) => PeerTask::HoldsPort,
        _ => PeerTask::None,
    };
    let answers = class != class::TCP;
    let attempt = Attempt { cgroup_id, address: header.peer, port, cell, answers, peer };
    let Some(decision) = rules::decide(&attempt) else { return true };
    if decision.is_plain() {
        return true;
    }
    if class != class::TCP {
        // SAFETY: the helper takes the context of a cgroup_skb hook.
        let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        if decision.allowed {
            conversation::remember(cookie, &header.peer, peer_port);
            return true;
        }
        if conversation::goes_on(cookie, &header.peer, peer_port) {
            return true;
        }
    } else if decision.allowed {
        return true;
    }
    let what = if incoming { denied::PACKET_IN } else { denied::PACKET_OUT };
    let (protocol, address) = (u16::from(header.protocol), header.peer.bytes());
    deny_packet(TalkKey { cgroup_id, what, protocol, port, other: 0, address });
    false
}

/// The task's own.
struct Socket {
    kind: u32,
    protocol: u32,
    state: u32,
    port: u16,
}

impl Socket {
    #[inline(always)]
    fn class(&self) -> u32 {
        if self.kind == SOCK_RAW { class::OTHER } else { class_of(self.protocol) }
    }

    /// `None` for answers that the kernel gives before there is a connection: those to who was let in.
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: `skb` is the context of a cgroup_skb hook; the verifier sees that the socket is there, and admits whole,
        // aligned reads of its fields.
        unsafe {
            let any: *mut bpf_sock = (&raw const (*skb).__bindgen_anon_2.sk).read_volatile();
            if any.is_null() {
                return None;
            }
            let full: *mut bpf_sock = bpf_sk_fullsock(any);
            if full.is_null() {
                return None;
            }
            Some(Self {
                kind: (&raw const (*full).type_).read_volatile(),
                protocol: (&raw const (*full).protocol).read_volatile(),
                state: (&raw const (*full).state).read_volatile(),
                port: (&raw const (*full).src_port).read_volatile() as u16,
            })
        }
    }
}

/// What is needed of the packet's.
struct Header {
    protocol: u8,
    /// The address of this end.
    own: Address,
    peer: Address,
    /// 0 where the header has options, behind which it is not looked for.
    peer_port: u16,
    /// Without options, so that it goes where its socket was let.
    plain: bool,
}

impl Header {
    /// `ports`: where it comes from, and where it goes.
    #[inline(always)]
    fn opening(&self, (from_port, to_port): (u16, u16), incoming: bool, class: u32) -> Opening {
        let (from, to) = if incoming { (&self.peer, &self.own) } else { (&self.own, &self.peer) };
        Opening { from: from.bytes(), to: to.bytes(), from_port, to_port, class }
    }

    /// `None` for what is no IP packet.
    #[inline(always)]
    fn of(skb: *mut __sk_buff, incoming: bool) -> Option<Self> {
        // SAFETY: `skb` is the context of this hook; the verifier admits whole, aligned reads of its fields.
        let protocol = unsafe { (&raw const (*skb).protocol).read_volatile() };
        let (number, from, to, plain, end) = if protocol == ETH_P_IP.to_be() >> 16 {
            let [version, number] = [byte(skb, 0)?, byte(skb, 9)?];
            let [from, to] = load::<[u32; 2]>(skb, 12)?.map(Address::v4);
            (number, from, to, version == IPV4_PLAIN, IPV4_BYTES)
        } else if protocol == ETH_P_IPV6.to_be() >> 16 {
            let number = byte(skb, 6)?;
            let [from, to] = load::<[[u32; 4]; 2]>(skb, 8)?.map(Address::v6);
            (number, from, to, is_transport(number), IPV6_BYTES)
        } else {
            return None;
        };
        let port = if plain { load::<u16>(skb, if incoming { end } else { end + 2 }) } else { None };
        let peer_port = port.map_or(0, u16::from_be);
        let (own, peer) = if incoming { (to, from) } else { (from, to) };
        Some(Self { protocol: number, own, peer, peer_port, plain })
    }
}

/// No extension header, which could name another destination.
#[inline(always)]
fn is_transport(number: u8) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const UDP_LITE: u8 = 136;
    number == TCP || number == UDP || number == UDP_LITE
}

#[inline(always)]
fn byte(skb: *mut __sk_buff, at: u32) -> Option<u8> {
    load::<u8>(skb, at)
}

#[inline(always)]
fn load<T>(skb: *mut __sk_buff, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills as many bytes as the type has; all types here are plain integers.
    unsafe {
        let filled = bpf_skb_load_bytes(skb.cast(), at, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        if filled == 0 { Some(value.assume_init()) } else { None }
    }
}
