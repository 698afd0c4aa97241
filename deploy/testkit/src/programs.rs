//! Small programs that tests run as tasks.

/// Python: binds each `FAMILY TYPE HOST PORT` of its arguments and prints the port it got or the error's name,
/// one line each. Sockets of port 0 stay open, so that no two get the same port.
pub const BIND: &str = "\
import errno, socket, sys
kept = []
for family, kind, host, port in zip(*[iter(sys.argv[1:])] * 4):
    s = socket.socket(getattr(socket, family), getattr(socket, kind))
    if port == '0':
        kept.append(s)
    try:
        s.bind((host, int(port)))
        print(s.getsockname()[1])
    except OSError as e:
        print(errno.errorcode[e.errno])
";

/// Both families and both protocols; the last is IPv4 through an IPv6 socket.
pub const SOCKETS: [(&str, &str, &str); 5] = [
    ("AF_INET", "SOCK_STREAM", "127.0.0.1"),
    ("AF_INET", "SOCK_DGRAM", "0.0.0.0"),
    ("AF_INET6", "SOCK_STREAM", "::1"),
    ("AF_INET6", "SOCK_DGRAM", "::"),
    ("AF_INET6", "SOCK_STREAM", "::ffff:127.0.0.1"),
];

/// The command line of [`BIND`] that binds every one of [`SOCKETS`] to a port.
pub fn bind_all(port: u16) -> Vec<String> {
    bind(&SOCKETS.map(|(family, kind, host)| (family, kind, host, port)))
}

/// The command line of [`BIND`] that binds these.
pub fn bind(sockets: &[(&str, &str, &str, u16)]) -> Vec<String> {
    let mut argv = ["python3", "-ISc", BIND].map(str::to_owned).to_vec();
    for (family, kind, host, port) in sockets {
        argv.extend([(*family).to_owned(), (*kind).to_owned(), (*host).to_owned(), port.to_string()]);
    }
    argv
}

/// Ends by SIGSEGV. A program that is the first of its pid namespace can end itself by no other signal: the kernel
/// keeps from it what it sends to itself.
pub const FAULT: [&str; 3] = ["python3", "-ISc", "import ctypes; ctypes.string_at(0)"];
