//! Ports that are in use on the host, TCP and UDP, IPv4 and IPv6, in any state: a port in TIME_WAIT
//! cannot be promised either.

use bulkhead_proto::resources::{PortNumbers, PortSet};
use procfs::ProcError;

use super::node::MeasureError;

/// Every local port of every socket in the agent's network namespace.
///
/// # Errors
/// When /proc/net cannot be read. A missing IPv6 table means a kernel without IPv6.
pub fn in_use() -> Result<PortSet, MeasureError> {
    let (mut tcp, mut udp) = (PortNumbers::default(), PortNumbers::default());
    for (file, entries) in [("/proc/net/tcp", procfs::net::tcp()), ("/proc/net/tcp6", procfs::net::tcp6())] {
        let ports = present(file, entries)?.into_iter().flatten().map(|e| e.local_address.port());
        tcp = tcp.union(&ports.collect());
    }
    for (file, entries) in [("/proc/net/udp", procfs::net::udp()), ("/proc/net/udp6", procfs::net::udp6())] {
        let ports = present(file, entries)?.into_iter().flatten().map(|e| e.local_address.port());
        udp = udp.union(&ports.collect());
    }
    Ok(PortSet::new(tcp, udp))
}

fn present<T>(file: &'static str, entries: Result<T, ProcError>) -> Result<Option<T>, MeasureError> {
    match entries {
        Ok(entries) => Ok(Some(entries)),
        Err(ProcError::NotFound(_)) if file.ends_with('6') => Ok(None),
        Err(source) => Err(MeasureError { file, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn sees_listeners_of_both_protocols() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let used = in_use().unwrap();
        assert!(used.tcp().contains(tcp.local_addr().unwrap().port()));
        assert!(used.udp().contains(udp.local_addr().unwrap().port()));
    }
}
