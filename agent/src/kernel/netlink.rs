//! Netlink messages: making requests, and reading answers without trusting them.
//!
//! Not by netlink-packet-route: that decodes all attributes of an answer, and takes none of it where one is not as long as
//! it expects (its issue 151 and pull request 332). Lengths differ between kernels. Here only what is needed is looked
//! at, and what follows it may grow.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

/// linux/netlink.h
const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;
/// The kernel's answers to a dump are no longer.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a request wants, as in linux/netlink.h.
pub(super) mod flag {
    /// Of everything that asks.
    pub(in crate::kernel) const REQUEST: u16 = 1;
    /// Say whether it worked.
    pub(in crate::kernel) const ACK: u16 = 4;
    /// All there is.
    pub(in crate::kernel) const DUMP: u16 = 0x300;
    /// Make it,
    pub(in crate::kernel) const CREATE: u16 = 0x400;
    /// in the place of what is there.
    pub(in crate::kernel) const REPLACE: u16 = 0x100;
}

/// A message from the kernel: its type, and what follows the header.
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

/// A request, built up from its parts.
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Of this type, with the fixed part that belongs to it.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A new socket; with `groups`, it hears of their events.
pub(super) fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Sends a request and returns everything that is answered. The kernel answers within the call, so this does not wait.
pub(super) fn ask(protocol: SockProtocol, request: Request) -> io::Result<Vec<Message>> {
    let socket = open(protocol, 0, SockFlag::empty())?;
    let bytes = request.finish();
    let is_dump = half(&bytes, 6).is_some_and(|flags| flags & flag::DUMP == flag::DUMP);
    let wants_ack = half(&bytes, 6).is_some_and(|flags| flags & flag::ACK != 0);
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            length => length?,
        };
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => match word(&message.body, 0).unwrap_or_default().cast_signed() {
                    0 => return Ok(answers),
                    negative => return Err(io::Error::from_raw_os_error(-negative)),
                },
                _ => answers.push(message),
            }
        }
        if !is_dump && !wants_ack {
            return Ok(answers);
        }
    }
}

/// Each message in a buffer. Ends at the first that is cut off.
fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::try_from(word(buffer, 0)?).ok()?, half(buffer, 4)?);
        let body = buffer.get(HEADER_BYTES..length)?.to_vec();
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

/// Type and value of each attribute. Ends at the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The 32-bit number at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Text that ends with a NUL byte.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request::new(20, flag::ACK, &[1, 2, 3, 4]).attribute(3, b"eth0\0").attribute(7, &[9]);
        let bytes = request.finish();
        assert_eq!(bytes.len() % 4, 0);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, &message.body[..4]), (20, &[1, 2, 3, 4][..]));
        let found: Vec<_> = attributes(&message.body[4..]).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (7, &[9][..])]);
        assert_eq!(text(found[0].1), "eth0");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let count: usize = messages(&bytes).map(|m| attributes(&m.body).count()).sum();
            prop_assert!(count <= bytes.len());
            let _ = text(&bytes);
        }
    }
}
