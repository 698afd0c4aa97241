//! Connections that a [`Peer`](crate::traffic::Peer) opens and accepts, and what the kernel says of their sockets.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use socket2::{Domain, Protocol, Socket, Type};

// The beginning of `struct tcp_info`, which newer kernels made longer.
sockopt_impl!(TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, [u32; 26]);
const RTT_USEC: usize = 17;
const TOTAL_RETRANS: usize = 25;

/// A listening socket that takes no second connection before the first was accepted.
pub(crate) const SMALLEST_BACKLOG: i32 = 0;

/// What the orders before left open.
#[derive(Default)]
pub(crate) struct Sockets {
    listener: Option<TcpListener>,
    stream: Option<TcpStream>,
}

impl Sockets {
    /// The numbers that answer this order; `None` for an order of others.
    pub(crate) fn order(&mut self, words: &[&str]) -> Option<io::Result<Vec<u64>>> {
        let answer = match *words {
            ["tcp-listen", at] => self.listen(at, Protocol::TCP),
            ["mptcp-listen", at] => self.listen(at, Protocol::MPTCP),
            ["tcp-accept", count] => self.accept(count.parse().unwrap()),
            ["tcp-sink"] => self.sink(),
            ["tcp-open", to, count] => open(to, count.parse().unwrap()),
            ["tcp-rounds", to, count] => self.rounds(to, count.parse().unwrap()),
            ["tcp-close"] => Ok(vec![self.stream.take().is_some().into()]),
            ["tcp-bulk", to, bytes] => bulk(to, bytes.parse().unwrap()),
            _ => return None,
        };
        Some(answer)
    }

    /// 1 where it listens now, 0 where the kernel knows no such sockets.
    fn listen(&mut self, at: &str, protocol: Protocol) -> io::Result<Vec<u64>> {
        let at: SocketAddr = at.parse().unwrap();
        let Ok(socket) = Socket::new(Domain::for_address(at), Type::STREAM, Some(protocol)) else {
            return Ok(vec![0]);
        };
        socket.bind(&at.into())?;
        socket.listen(128)?;
        self.listener = Some(socket.into());
        Ok(vec![1])
    }

    /// Takes a byte from each of so many connections.
    fn accept(&mut self, count: u64) -> io::Result<Vec<u64>> {
        let listener = self.listener.as_ref().unwrap();
        for _ in 0..count {
            listener.accept()?.0.read_exact(&mut [0])?;
        }
        Ok(vec![count])
    }

    /// Receives all that comes over one connection; how many bytes.
    fn sink(&mut self) -> io::Result<Vec<u64>> {
        let (mut stream, _) = self.listener.as_ref().unwrap().accept()?;
        Ok(vec![io::copy(&mut stream, &mut io::sink())?])
    }

    /// Sends a byte and waits for one, so many times, and leaves the connection open; how many segments were sent again,
    /// and the round trip in microseconds as the socket tells it when it is connected and after each time.
    fn rounds(&mut self, to: &str, count: u64) -> io::Result<Vec<u64>> {
        let stream = self.stream.insert(TcpStream::connect(to)?);
        stream.set_nodelay(true)?;
        let mut seen = vec![rtt_usec(stream)?];
        for _ in 0..count {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            seen.push(rtt_usec(stream)?);
        }
        seen.insert(0, retransmitted(stream)?);
        Ok(seen)
    }
}

/// Tries to open so many connections, and sends a byte over each; how many were opened.
fn open(to: &str, count: u64) -> io::Result<Vec<u64>> {
    let mut opened = 0;
    for _ in 0..count {
        match TcpStream::connect(to) {
            Ok(mut stream) => stream.write_all(b"x")?,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        }
        opened += 1;
    }
    Ok(vec![opened])
}

/// Sends so many bytes, until all of them have arrived; how many segments were sent again.
fn bulk(to: &str, bytes: usize) -> io::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(Shutdown::Write)?;
    // The other end closes when it has seen this one close.
    stream.read_to_end(&mut Vec::new())?;
    Ok(vec![retransmitted(&stream)?])
}

fn rtt_usec(stream: &TcpStream) -> io::Result<u64> {
    Ok(getsockopt(stream, TcpInfo)?[RTT_USEC].into())
}

fn retransmitted(stream: &TcpStream) -> io::Result<u64> {
    Ok(getsockopt(stream, TcpInfo)?[TOTAL_RETRANS].into())
}
