//! Ports that are in use on the host, TCP and UDP, IPv4 and IPv6, in any state: a port in TIME_WAIT
//! cannot be promised either.

use bulkhead_proto::resources::PortSet;

use super::node::MeasureError;
use crate::kernel::sock_diag;

/// Which of these ports some socket in the agent's network namespace holds.
///
/// # Errors
/// When the kernel does not tell.
pub fn in_use(offered: &PortSet) -> Result<PortSet, MeasureError> {
    let numbers = offered.numbers();
    let (Some(first), Some(last)) = (numbers.ranges().first(), numbers.ranges().last()) else {
        return Ok(PortSet::default());
    };
    let failed =
        |error: std::io::Error| MeasureError { file: "the sockets (sock_diag)", source: error.into() };
    Ok(sock_diag::ports_in_use(&(first.0..=last.1)).map_err(failed)?.intersection(offered))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn sees_those_that_are_offered_by_their_protocol() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp, udp) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let used = in_use(&format!("{tcp}/tcp,{udp}").parse().unwrap()).unwrap();
        assert!(used.tcp().contains(tcp) && used.udp().contains(udp));
        assert!(!used.udp().contains(tcp), "not offered");
        assert_eq!(in_use(&PortSet::default()).unwrap(), PortSet::default());
    }
}
