//! What the kernel says when a write was refused at a quota: the generic netlink family `VFS_DQUOT`.
//!
//! Needs `CONFIG_QUOTA_NETLINK_INTERFACE`, which the usual distributions have (fs/quota/netlink.c). ext4 tells of the
//! first refusal until something is freed again, XFS of each.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};
use tokio::io::Interest;

use super::{quota::PRJQUOTA, ready::Ready};

const FAMILY: &[u8] = b"VFS_DQUOT\0";
/// Sizes of `struct nlmsghdr` and `struct genlmsghdr`.
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
/// linux/quota.h
const QUOTA_NL_A_QTYPE: u16 = 1;
const QUOTA_NL_A_EXCESS_ID: u16 = 2;
const QUOTA_NL_A_WARNING: u16 = 3;
const QUOTA_NL_A_DEV_MAJOR: u16 = 4;
const QUOTA_NL_A_DEV_MINOR: u16 = 5;
const QUOTA_NL_IHARDWARN: u64 = 1;
const QUOTA_NL_BHARDWARN: u64 = 4;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;
/// Warnings that are returned at once, about.
const BATCH: usize = 1024;
/// Larger than any message of either kind.
const BUFFER_BYTES: usize = 8192;

/// A project came to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The number of the file system's device, as `st_dev` has it.
    pub device: u64,
    /// Which project.
    pub project: u32,
    /// The limit of files, and not that of space.
    pub inodes: bool,
}

/// The kernel's warnings from now on.
#[derive(Debug)]
pub struct QuotaWarnings {
    socket: OwnedFd,
    ready: Ready,
}

impl QuotaWarnings {
    /// Begins to listen. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// ENOENT where the kernel has no such family.
    pub fn open() -> io::Result<Self> {
        let socket = generic_socket()?;
        join(&socket, group(&socket)?)?;
        let ready = Ready::watch(socket.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { socket, ready })
    }

    /// Waits for warnings, and returns all that have come. Some are lost when they come faster than they are read.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn next(&mut self) -> io::Result<Vec<Warning>> {
        loop {
            let mut warnings = Vec::new();
            let mut buffer = [0; BUFFER_BYTES];
            while warnings.len() < BATCH {
                match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => {
                        warnings
                            .extend(buffer.get(..length).into_iter().flat_map(messages).filter_map(warning));
                    }
                    Err(Errno::EAGAIN) => break,
                    // Some were lost.
                    Err(Errno::ENOBUFS | Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !warnings.is_empty() {
                return Ok(warnings);
            }
            self.ready.wait().await?;
        }
    }
}

/// Does this kernel tell of refusals?
///
/// # Errors
/// Why not, in words.
pub fn probe() -> Result<String, String> {
    let group = generic_socket().and_then(|socket| group(&socket));
    group.map(|_| "netlink family VFS_DQUOT".to_owned()).map_err(|e| format!("netlink family VFS_DQUOT: {e}"))
}

fn generic_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks for the family's multicast group.
fn group(socket: &OwnedFd) -> io::Result<u32> {
    send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut buffer = [0; BUFFER_BYTES];
    // Answered within the call before, so it is there.
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let found = buffer.get(..length).into_iter().flat_map(messages).find_map(|(_, body)| {
        let groups = attributes(body).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GROUPS)?.1;
        // The family has one group.
        let first = attributes(groups).next()?.1;
        attributes(first).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GRP_ID).and_then(|(_, id)| number(id))
    });
    let group = found.and_then(|group| u32::try_from(group).ok());
    group.ok_or_else(|| Errno::ENOENT.into())
}

fn request() -> Vec<u8> {
    let attribute_bytes = 4 + FAMILY.len();
    let length = MESSAGE_HEADER + GENERIC_HEADER + attribute_bytes.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(GENL_ID_CTRL.to_ne_bytes());
    message.extend(u16::try_from(libc::NLM_F_REQUEST).unwrap_or_default().to_ne_bytes());
    message.extend([0; 8]); // sequence and sender
    message.extend([CTRL_CMD_GETFAMILY, 1, 0, 0]);
    message.extend(u16::try_from(attribute_bytes).unwrap_or_default().to_ne_bytes());
    message.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    message.extend(FAMILY);
    message.resize(length, 0);
    message
}

fn join(socket: &OwnedFd, group: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u32, which lives through the call; the descriptor is borrowed, so it stays open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            libc::socklen_t::try_from(size_of::<u32>()).unwrap_or_default(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Type and body of each message in a buffer, the generic header left out. Ends at the first that is cut off.
fn messages(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (word(buffer, 0)?, half(buffer, 4)?);
        let length = usize::try_from(length).ok()?;
        let body = buffer.get(MESSAGE_HEADER + GENERIC_HEADER..length)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Type and value of each attribute. Ends at the first that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// A refusal at a hard limit of a project; other messages are of no interest.
fn warning((_, body): (u16, &[u8])) -> Option<Warning> {
    let find =
        |wanted| attributes(body).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| number(value));
    let inodes = match find(QUOTA_NL_A_WARNING)? {
        QUOTA_NL_IHARDWARN => true,
        QUOTA_NL_BHARDWARN => false,
        _ => return None,
    };
    if find(QUOTA_NL_A_QTYPE)? != u64::from(PRJQUOTA) {
        return None;
    }
    let part = |wanted| find(wanted).and_then(|part| libc::c_uint::try_from(part).ok());
    Some(Warning {
        device: libc::makedev(part(QUOTA_NL_A_DEV_MAJOR)?, part(QUOTA_NL_A_DEV_MINOR)?),
        project: u32::try_from(find(QUOTA_NL_A_EXCESS_ID)?).ok()?,
        inodes,
    })
}

fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => word(value, 0).map(u64::from),
        8 => value.try_into().ok().map(u64::from_ne_bytes),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u32, warning: u32) -> Vec<u8> {
        let body = [
            attribute(QUOTA_NL_A_QTYPE, &kind.to_ne_bytes()),
            attribute(QUOTA_NL_A_EXCESS_ID, &7u64.to_ne_bytes()),
            attribute(QUOTA_NL_A_WARNING, &warning.to_ne_bytes()),
            attribute(QUOTA_NL_A_DEV_MAJOR, &254u32.to_ne_bytes()),
            attribute(QUOTA_NL_A_DEV_MINOR, &3u32.to_ne_bytes()),
        ]
        .concat();
        let length = u32::try_from(MESSAGE_HEADER + GENERIC_HEADER + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &[0; 16], &body].concat()
    }

    fn read(buffer: &[u8]) -> Vec<Warning> {
        messages(buffer).filter_map(warning).collect()
    }

    #[test]
    fn refusals_of_projects_are_understood() {
        let refused = Warning { device: libc::makedev(254, 3), project: 7, inodes: false };
        let buffer = [message(2, 4), message(0, 4), message(2, 9), message(2, 1)].concat();
        assert_eq!(read(&buffer), [refused, Warning { inodes: true, ..refused }]);
        assert_eq!(read(&buffer[..buffer.len() - 1]), [refused], "the last one is cut off");
    }

    proptest! {
        #[test]
        fn nonsense_is_no_warning_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _whatever = read(&bytes);
        }
    }
}
