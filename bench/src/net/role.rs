//! What tasks do while something is measured.

use std::{
    io::{IoSlice, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Subcommand;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};

use crate::latency::{Latencies, Summary};

/// Between two requests.
const THINK: Duration = Duration::from_millis(1);
/// Of one request, and of its answer.
pub(crate) const REQUEST_BYTES: usize = 64;
/// Written at once by who has much to send.
const BULK_BYTES: usize = 256 << 10;

/// A part in a measurement.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Role {
    /// Sends datagrams, several in one call
    Flood { to: SocketAddr, payload: u16, segments: usize, seconds: u64 },
    /// Sends over several connections
    Bulk { to: SocketAddr, connections: usize, seconds: u64 },
    /// Asks again and again, and prints how long answers took
    Ask {
        to: SocketAddr,
        seconds: u64,
        #[arg(action = clap::ArgAction::Set)]
        pause: bool,
    },
    /// Binds and connects sockets
    Call { port: u16, times: u32 },
}

impl Role {
    /// Plays it to its end.
    pub(crate) fn play(&self) -> Result<Option<Summary>> {
        match *self {
            Self::Flood { to, payload, segments, seconds } => {
                flood(to, payload, segments, seconds).map(|()| None)
            }
            Self::Bulk { to, connections, seconds } => bulk(to, connections, seconds).map(|()| None),
            Self::Ask { to, seconds, pause } => ask(to, seconds, pause).map(Some),
            Self::Call { port, times } => call(port, times).map(|()| None),
        }
    }
}

fn over(seconds: u64) -> impl Fn() -> bool + Clone {
    let end = Instant::now() + Duration::from_secs(seconds);
    move || Instant::now() >= end
}

fn flood(to: SocketAddr, payload: u16, segments: usize, seconds: u64) -> Result<()> {
    let socket = UdpSocket::from(nix_udp()?);
    socket.connect(to)?;
    let bytes = vec![7; usize::from(payload) * segments];
    let over = over(seconds);
    while !over() {
        // What a full queue drops is no concern of the sender's.
        let _: nix::Result<usize> = if segments == 1 {
            send(socket.as_raw_fd(), &bytes, MsgFlags::empty())
        } else {
            let size = [ControlMessage::UdpGsoSegments(&payload)];
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], &size, MsgFlags::empty(), None)
        };
    }
    Ok(())
}

/// Not bound: a task without ports could not be.
fn nix_udp() -> nix::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn bulk(to: SocketAddr, connections: usize, seconds: u64) -> Result<()> {
    let over = over(seconds);
    let senders: Vec<_> = (0..connections)
        .map(|_| {
            let over = over.clone();
            thread::spawn(move || -> std::io::Result<()> {
                let mut stream = TcpStream::connect(to)?;
                stream.set_write_timeout(Some(Duration::from_secs(1)))?;
                let bytes = vec![7; BULK_BYTES];
                while !over() {
                    // A connection that stands still is looked at again.
                    drop(stream.write(&bytes));
                }
                Ok(())
            })
        })
        .collect();
    senders
        .into_iter()
        .try_for_each(|sender| Ok(sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??))
}

fn ask(to: SocketAddr, seconds: u64, pause: bool) -> Result<Summary> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut latencies = Latencies::new()?;
    let over = over(seconds);
    let mut message = [7; REQUEST_BYTES];
    while !over() {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        latencies.add(begun.elapsed());
        if pause {
            thread::sleep(THINK);
        }
    }
    Ok(latencies.summary())
}

fn call(port: u16, times: u32) -> Result<()> {
    for _ in 0..times {
        let socket = UdpSocket::bind(("127.0.0.1", port))?;
        socket.connect(("127.0.0.1", port))?;
    }
    Ok(())
}
