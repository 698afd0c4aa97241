//! When processes executed their programs, by the kernel's own clock: its process events connector.
//!
//! Whoever waits for an exec learns of it when the scheduler lets him, after the program has already run for a while.
//!
//! Layout of the messages: linux/netlink.h, linux/connector.h and linux/cn_proc.h.

use std::io;

use anyhow::{Context as _, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_CONNECTOR};

/// Of the connector: process events, as id and as multicast group.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_EXEC: u32 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr` and `struct cn_msg`, which go before the event.
const HEADERS_BYTES: usize = 16 + 20;
/// Events of other processes arrive as well, while runtimes run.
const BUFFER_BYTES: usize = 4 << 20;
/// Larger than any event.
const EVENT_BYTES: usize = 256;

/// Hears of every exec on the machine.
pub(crate) struct ExecTimes {
    socket: Socket,
}

impl ExecTimes {
    /// Needs root, and a kernel with `CONFIG_PROC_EVENTS`.
    pub(crate) fn listen() -> Result<Self> {
        let needs = "the kernel does not tell when programs are executed (CONFIG_PROC_EVENTS, root)";
        let mut socket = Socket::new(NETLINK_CONNECTOR).context(needs)?;
        socket.bind(&SocketAddr::new(0, CN_IDX_PROC)).context(needs)?;
        socket.set_rx_buf_sz(BUFFER_BYTES).context("enlarge the buffer of process events")?;
        socket.set_non_blocking(true).context("read process events without waiting")?;
        socket.send_to(&subscription(), &SocketAddr::new(0, 0), 0).context(needs)?;
        Ok(Self { socket })
    }

    /// Forgets what happened so far.
    pub(crate) fn clear(&self) -> Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }

    /// CLOCK_MONOTONIC at the first exec of a process, which has happened; everything up to it is forgotten.
    pub(crate) fn of(&self, pid: u32) -> Result<u64> {
        while let Some(event) = self.next()? {
            if let Some((of, at_ns)) = exec(&event)
                && of == pid
            {
                return Ok(at_ns);
            }
        }
        bail!("the kernel did not tell when process {pid} executed its program")
    }

    fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut event = Vec::with_capacity(EVENT_BYTES);
        match self.socket.recv(&mut event, 0) {
            Ok(_) => Ok(Some(event)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e).context("read process events"),
        }
    }
}

fn subscription() -> Vec<u8> {
    let payload = PROC_CN_MCAST_LISTEN.to_ne_bytes();
    let total = HEADERS_BYTES + payload.len();
    let mut message = Vec::with_capacity(total);
    message.extend(u32::try_from(total).unwrap_or_default().to_ne_bytes());
    message.extend(NLMSG_DONE.to_ne_bytes());
    // Flags, sequence and port of the sender; then sequence and acknowledgement of the connector, and its flags.
    message.extend([0; 10]);
    message.extend(CN_IDX_PROC.to_ne_bytes());
    message.extend(CN_VAL_PROC.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(u16::try_from(payload.len()).unwrap_or_default().to_ne_bytes());
    message.extend([0; 2]);
    message.extend(payload);
    message
}

/// The process and the time, where the event is an exec.
fn exec(event: &[u8]) -> Option<(u32, u64)> {
    let event = event.get(HEADERS_BYTES..)?;
    let word = |at: usize| event.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let time = event.get(8..16)?.try_into().ok().map(u64::from_ne_bytes)?;
    (word(0)? == PROC_EVENT_EXEC).then_some((word(16)?, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_has_a_process_and_a_time() {
        let mut event = vec![0; HEADERS_BYTES];
        event.extend(PROC_EVENT_EXEC.to_ne_bytes());
        event.extend([0; 4]);
        event.extend(77_u64.to_ne_bytes());
        event.extend(4711_u32.to_ne_bytes());
        assert_eq!(exec(&event), Some((4711, 77)));
        event[HEADERS_BYTES] = 1;
        assert_eq!(exec(&event), None, "a fork");
        assert_eq!(exec(&event[..50]), None, "cut off");
    }

    #[test]
    fn a_subscription_says_its_length() {
        let message = subscription();
        assert_eq!(message.len(), 40);
        assert_eq!(message[..4], 40_u32.to_ne_bytes());
        assert_eq!(message[32..34], 4_u16.to_ne_bytes());
    }
}
