//! The address of a peer, whichever family the socket is of.

use crate::{maps::NODE_ADDRESSES, opaque::opaque};

/// In words of the network's byte order; IPv4 as mapped into IPv6.
#[derive(Clone, Copy)]
pub struct Address(pub [u32; 4]);

/// Of an IPv4 address.
const FIRST_BYTE: u32 = u32::from_ne_bytes([255, 0, 0, 0]);
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 0]);
/// The word before a mapped IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    #[inline(always)]
    pub fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    #[inline(always)]
    pub fn v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// `::`, or `0.0.0.0` mapped.
    #[inline(always)]
    pub fn is_nowhere(&self) -> bool {
        let [a, b, c, d] = self.0;
        opaque(a | b | d) == 0 && (c == 0 || c == MAPPED)
    }

    /// The IPv4 address, if it is one.
    #[inline(always)]
    pub fn to_v4(&self) -> Option<u32> {
        let [a, b, c, d] = self.0;
        if opaque(a | b | c ^ MAPPED) == 0 { Some(d) } else { None }
    }

    #[inline(always)]
    pub fn bytes(&self) -> [u8; 16] {
        // SAFETY: both are 16 plain bytes.
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(self.0) }
    }

    /// As two numbers, first and last half.
    #[inline(always)]
    pub fn halves(&self) -> (u64, u64) {
        let [a, b, c, d] = self.0.map(u64::from);
        (a << 32 | b, c << 32 | d)
    }

    #[inline(always)]
    pub fn of_halves(high: u64, low: u64) -> Self {
        Self([(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32])
    }

    /// Is it one of this node's own?
    #[inline(always)]
    pub fn is_here(&self) -> bool {
        let (high, low) = self.halves();
        talk_is_here(high, low) != 0
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn talk_is_here(high: u64, low: u64) -> u32 {
    let address = Address::of_halves(high, low);
    let [a, b, c, d] = address.0;
    let here = match address.to_v4() {
        Some(v4) if v4 & FIRST_BYTE == LOOPBACK => true,
        None if a | b | c | d ^ 1u32.to_be() == 0 => true,
        _ => NODE_ADDRESSES.get_ptr(address.0).is_some(),
    };
    here.into()
}
