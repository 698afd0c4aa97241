//! Amounts as people write and read them: CPUs, sizes, ports, durations, ages.
//!
//! Reading is strict and exact (no floating point decides what a task is granted); writing is short.

use std::{fmt, time::Duration};

pub(crate) use bulkhead_proto::amount::{cpu_number, size};
use bulkhead_proto::{
    rate::bits_per_sec,
    resources::{PortSet, PortSetError},
    v1::Resources,
};
use bytesize::ByteSize;

/// `--ports N` asks for a number of ports up to here; a larger number names a port.
/// No list of granted ports starts this low, so the two never mean the same.
const MOST_PORTS_BY_NUMBER: u32 = 100;

/// Less memory than this is a forgotten unit (`--mem 128`), not a program.
const LEAST_MEM_BYTES: u64 = 1 << 20;

/// An amount that was written in a way that says nothing, with what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    #[error("write a number of CPUs above zero in steps of 0.001, like 0.5 or 2")]
    Cpus,
    #[error("write an amount above zero with its unit, like 64MiB or 1.5GiB")]
    Size,
    #[error("no program runs in {0} bytes; did you mean {0}MiB?")]
    TooLittleMemory(u64),
    #[error("write a time with its unit, like 500ms, 10s or 2min")]
    Duration,
    #[error(transparent)]
    Ports(#[from] PortSetError),
    #[error(
        "write how many ports (up to {MOST_PORTS_BY_NUMBER}), or which: 8080 or 31000-31002,53/udp,8080/tcp"
    )]
    NoPorts,
}

/// The ports a task asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortsWanted {
    /// Any that are offered, this many.
    Any(usize),
    /// Exactly these.
    These(PortSet),
}

impl PortsWanted {
    /// Could these ports satisfy the wish?
    pub(crate) fn are_in(&self, ports: &PortSet) -> bool {
        match self {
            Self::Any(count) => ports.lowest(*count).is_some(),
            Self::These(set) => ports.is_superset(set),
        }
    }
}

impl fmt::Display for PortsWanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(1) => f.write_str("1 port"),
            Self::Any(count) => write!(f, "{count} ports"),
            Self::These(set) => ports_text(set, f),
        }
    }
}

fn ports_text(set: &PortSet, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let noun = if set.len() == 1 { "port" } else { "ports" };
    write!(f, "{noun} {set}")
}

/// Thousandths of a CPU from `0.5`, `2`, `.25`.
pub(crate) fn parse_cpus(text: &str) -> Result<u64, QuantityError> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 || (whole.is_empty() && part.is_empty()) {
        return Err(QuantityError::Cpus);
    }
    let number = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<u64>().ok() };
    number(whole)
        .and_then(|w| w.checked_mul(1000))
        .and_then(|w| w.checked_add(number(&format!("{part:0<3}"))?))
        .filter(|&milli| milli > 0)
        .ok_or(QuantityError::Cpus)
}

/// Bytes from `64MiB`, `1.5GiB`, `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, QuantityError> {
    match text.trim().parse::<ByteSize>() {
        Ok(ByteSize(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err(QuantityError::Size),
    }
}

/// Bytes of memory a task can live in.
pub(crate) fn parse_mem(text: &str) -> Result<u64, QuantityError> {
    match parse_size(text)? {
        bytes if bytes < LEAST_MEM_BYTES => Err(QuantityError::TooLittleMemory(bytes)),
        bytes => Ok(bytes),
    }
}

/// A number of ports, or a list of them.
pub(crate) fn parse_ports(text: &str) -> Result<PortsWanted, QuantityError> {
    if let Ok(number @ 1..=MOST_PORTS_BY_NUMBER) = text.trim().parse::<u32>() {
        return Ok(PortsWanted::Any(usize::try_from(number).unwrap_or(usize::MAX)));
    }
    let set: PortSet = text.parse()?;
    if set.is_empty() { Err(QuantityError::NoPorts) } else { Ok(PortsWanted::These(set)) }
}

/// A time with its unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    humantime::parse_duration(text.trim()).map_err(|_| QuantityError::Duration)
}

/// `0.5 CPU`, `2 CPUs`.
pub(crate) fn cpus(milli: u64) -> String {
    let noun = if milli > 1000 { "CPUs" } else { "CPU" };
    format!("{} {noun}", cpu_number(milli))
}

/// `2 CPUs, 1 GiB, ports 31000-31002`; kinds with nothing are left out.
pub(crate) fn resources(amount: &Resources) -> String {
    let mut parts = Vec::new();
    if amount.cpu_milli > 0 {
        parts.push(cpus(amount.cpu_milli));
    }
    if amount.mem_bytes > 0 {
        parts.push(size(amount.mem_bytes));
    }
    let disk = [
        (amount.disk_bytes, " of disk"),
        (amount.disk_read_bytes_per_sec, "/s read"),
        (amount.disk_write_bytes_per_sec, "/s written"),
    ];
    parts.extend(disk.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{}{what}", size(*n))));
    let iops = [(amount.disk_read_ops_per_sec, "reads/s"), (amount.disk_write_ops_per_sec, "writes/s")];
    parts.extend(iops.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    let net = [(amount.net_egress_bits_per_sec, "to send"), (amount.net_ingress_bits_per_sec, "to receive")];
    parts.extend(net.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", bits_per_sec(*n))));
    if let Ok(set) = amount.port_set()
        && !set.is_empty()
    {
        parts.push(PortsWanted::These(set).to_string());
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

/// The ports of an amount: `31000-31002,8080`, or `-`.
pub(crate) fn port_list(amount: &Resources) -> String {
    match amount.port_set() {
        Ok(set) if !set.is_empty() => set.to_string(),
        _ => "-".to_owned(),
    }
}

/// `450 ms`, `12 s`, `3 min`, `5 h`, `2 d`: the largest unit that fits, rounded down.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{} s", ms / 1_000),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..86_400_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// How long ago, seen from `now_unix_ms`; `-` for a time that was never set.
pub(crate) fn ago(now_unix_ms: u64, then_unix_ms: u64) -> String {
    match then_unix_ms {
        0 => "-".to_owned(),
        then if now_unix_ms.saturating_sub(then) < 1_000 => "just now".to_owned(),
        then => format!("{} ago", span(now_unix_ms - then)),
    }
}

/// Whole milliseconds, at most what a number holds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::PortRange;

    use super::*;

    #[test]
    fn cpus_are_read_exactly() {
        for (text, milli) in [("0.5", 500), ("2", 2000), (".25", 250), ("1.", 1000), ("0.001", 1)] {
            assert_eq!(parse_cpus(text), Ok(milli), "{text}");
        }
        let bad =
            ["nan", "0", "-1", "0.0", "", ".", "1e3", "0.0005", "inf", "1,5", "500m", "99999999999999999999"];
        for text in bad {
            assert_eq!(parse_cpus(text), Err(QuantityError::Cpus), "{text}");
        }
    }

    #[test]
    fn memory_needs_a_sensible_amount() {
        assert_eq!(parse_mem("128MiB"), Ok(128 << 20));
        assert_eq!(parse_mem("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_mem("2M"), Ok(2_000_000));
        assert_eq!(parse_mem("128"), Err(QuantityError::TooLittleMemory(128)));
        for text in ["12parsecs", "0", "-1MiB", "", "MiB", "nan"] {
            assert_eq!(parse_mem(text), Err(QuantityError::Size), "{text}");
        }
    }

    #[test]
    fn a_small_number_counts_ports_and_a_large_one_names_one() {
        assert_eq!(parse_ports("1"), Ok(PortsWanted::Any(1)));
        assert_eq!(parse_ports("100"), Ok(PortsWanted::Any(100)));
        assert_eq!(parse_ports("101").map(|p| p.to_string()), Ok("port 101".to_owned()));
        assert_eq!(
            parse_ports("8080,31000-31002").map(|p| p.to_string()),
            Ok("ports 8080,31000-31002".to_owned())
        );
        assert_eq!(
            parse_ports("70000"),
            Err(QuantityError::Ports(PortSetError::BadRange { first: 70_000, last: 70_000 }))
        );
        assert!(parse_ports("0").is_err());
        assert!(parse_ports("http").is_err());
        assert_eq!(parse_ports(","), Err(QuantityError::NoPorts));
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("10"), Err(QuantityError::Duration));
        assert_eq!(parse_duration("soon"), Err(QuantityError::Duration));
    }

    #[test]
    fn amounts_read_like_speech() {
        assert_eq!(cpus(500), "0.5 CPU");
        assert_eq!(cpus(1000), "1 CPU");
        assert_eq!(cpus(2000), "2 CPUs");
        assert_eq!(cpus(1234), "1.234 CPUs");
        let all = Resources {
            cpu_milli: 2000,
            mem_bytes: 1 << 30,
            ports: vec![PortRange { first: 31000, last: 31002, ..PortRange::default() }],
            ..Resources::default()
        };
        assert_eq!(resources(&all), "2 CPUs, 1 GiB, ports 31000-31002");
        assert_eq!(resources(&Resources::default()), "nothing");
    }

    #[test]
    fn ages_use_one_unit() {
        assert_eq!(ago(10_000, 9_500), "just now");
        assert_eq!(ago(10_000, 5_000), "5 s ago");
        assert_eq!(ago(200_000, 20_000), "3 min ago");
        assert_eq!(ago(0, 5_000), "just now");
        assert_eq!(ago(10_000, 0), "-");
        assert_eq!(span(90_000_000), "1 d");
    }
}
