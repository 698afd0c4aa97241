//! What a port number belongs to, by arithmetic.

/// TCP or UDP, as its index in `bulkhead_abi::Protocol`.
///
/// A number, so that the verifier follows one path for both; with an enum the compiler makes two.
#[derive(Clone, Copy)]
pub struct Protocol(u32);

const SOCK_STREAM: u32 = 1;
const _: () = {
    assert!(bulkhead_abi::Protocol::Tcp as u32 == 0, "SOCK_STREAM - SOCK_STREAM");
    assert!(bulkhead_abi::Protocol::Udp as u32 == 1, "SOCK_DGRAM - SOCK_STREAM");
};

impl Protocol {
    /// By the type of the socket, where it has ports at all: the callers know that it is an IP socket. The ports of no other
    /// kind are granted.
    #[inline(always)]
    pub fn of_socket(socket_type: u32) -> Option<Self> {
        let index = socket_type.wrapping_sub(SOCK_STREAM);
        if index <= 1 { Some(Self(index)) } else { None }
    }

    /// By its index.
    #[inline(always)]
    pub fn of(index: u32) -> Self {
        Self(index & 1)
    }

    /// 0 or 1.
    #[inline(always)]
    pub fn index(self) -> u32 {
        self.0
    }
}
