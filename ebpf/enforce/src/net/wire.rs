//! How long a packet is on the wire.
//!
//! What the hooks see may be many packets in one: the kernel or the card cuts it up on its way out (GSO), or put it
//! together on its way in (GRO), and each piece has headers of its own.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use bulkhead_abi::FRAME_BYTES;

/// What goes over the wire.
#[derive(Clone, Copy)]
pub struct Wire {
    /// With the header of each frame.
    pub bytes: u64,
    pub packets: u64,
}

/// Offsets in IP headers, and numbers of protocols.
const IPV4_PROTOCOL: usize = 9;
const IPV6_NEXT_HEADER: usize = 6;
const IPV6_BYTES: u64 = 40;
const IPV4_LEAST_BYTES: u64 = 20;
const UDP_BYTES: u64 = 8;
const TCP_NUMBER: u8 = 6;
const UDP_NUMBER: u8 = 17;
/// Where a TCP header has its length.
const TCP_OFFSET: u64 = 12;
/// A TCP header with timestamps: for what is behind extension headers.
const USUAL_TCP_BYTES: u64 = 32;

impl Wire {
    /// Measures a packet. `mtu_bytes` is the interface's, or 0.
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff, mtu_bytes: u32) -> Self {
        // SAFETY: `skb` is the context of a cgroup_skb hook; the verifier admits whole, aligned reads of these fields.
        let (bytes, size, segments) = unsafe {
            (
                u64::from((&raw const (*skb).len).read_volatile()),
                u64::from((&raw const (*skb).gso_size).read_volatile()),
                u64::from((&raw const (*skb).gso_segs).read_volatile()),
            )
        };
        if size != 0 && bytes > size {
            return Self::segmented(skb, bytes, size, segments);
        }
        if mtu_bytes != 0 && bytes > u64::from(mtu_bytes) {
            return Self::fragmented(bytes, u64::from(mtu_bytes));
        }
        Self { bytes: bytes + FRAME_BYTES, packets: 1 }
    }

    /// Every segment repeats the headers.
    #[inline(always)]
    fn segmented(skb: *mut __sk_buff, bytes: u64, size: u64, segments: u64) -> Self {
        let headers = headers(skb);
        // A guest's driver may leave the number to whoever needs it.
        let packets = if segments != 0 { segments } else { bytes.saturating_sub(headers).div_ceil(size) };
        let packets = if packets == 0 { 1 } else { packets };
        Self { bytes: bytes + (packets - 1) * headers + packets * FRAME_BYTES, packets }
    }

    /// Every fragment repeats the IP header, and is as long as it may be.
    #[inline(always)]
    fn fragmented(bytes: u64, mtu_bytes: u64) -> Self {
        let room = mtu_bytes.saturating_sub(IPV4_LEAST_BYTES) & !7;
        let room = if room == 0 { 8 } else { room };
        let packets = bytes.saturating_sub(IPV4_LEAST_BYTES).div_ceil(room);
        Self { bytes: bytes + (packets - 1) * IPV4_LEAST_BYTES + packets * FRAME_BYTES, packets }
    }
}

/// Length of the IP header and of what follows it. The context begins with the IP header.
#[inline(always)]
fn headers(skb: *mut __sk_buff) -> u64 {
    let mut start = [0u8; 16];
    if !load(skb, 0, &mut start) {
        return IPV4_LEAST_BYTES + USUAL_TCP_BYTES;
    }
    let (ip_bytes, protocol) = if start[0] >> 4 == 4 {
        (u64::from(start[0] & 15) * 4, start[IPV4_PROTOCOL])
    } else {
        (IPV6_BYTES, start[IPV6_NEXT_HEADER])
    };
    match protocol {
        UDP_NUMBER => ip_bytes + UDP_BYTES,
        TCP_NUMBER => {
            let mut offset = [0u8; 1];
            let read = load(skb, ip_bytes + TCP_OFFSET, &mut offset);
            ip_bytes + if read { u64::from(offset[0] >> 4) * 4 } else { USUAL_TCP_BYTES }
        }
        _ => ip_bytes + USUAL_TCP_BYTES,
    }
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u64, to: &mut [u8; N]) -> bool {
    // SAFETY: the helper takes the context of a cgroup_skb hook, and writes exactly `N` bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset as u32, to.as_mut_ptr().cast(), N as u32) == 0 }
}
