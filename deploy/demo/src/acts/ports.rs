//! A program that binds a port that it was not granted, one that it was, and any: by TCP and UDP, IPv4 and IPv6.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Act;
use crate::{
    line::Line,
    stage::{Kind, Stage, granted_port, usage},
};

pub(super) const ACT: Act = Act {
    name: "ports",
    title: "a program that tries a port that it was not granted",
    needs: Some(Kind::Ports),
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "intruder";
const WAYS: [(&str, u64); 4] = [("tcp", 4), ("tcp", 6), ("udp", 4), ("udp", 6)];
/// Prints, for each way and port, the port that it got or the error of its own call. It may be granted the port
/// that the web server had, where connections still linger: hence SO_REUSEADDR.
const INTRUDER: &str = "\
import errno, os, socket
mine = int(os.environ['PORT'])
for kind, protocol in (socket.SOCK_STREAM, 'tcp'), (socket.SOCK_DGRAM, 'udp'):
    for family, version in (socket.AF_INET, 4), (socket.AF_INET6, 6):
        for what, port in ('other', mine + 1), ('mine', mine), ('any', 0):
            with socket.socket(family, kind) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if version == 6:
                    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    s.bind(('', port))
                    print(protocol, version, what, s.getsockname()[1])
                except OSError as e:
                    print(protocol, version, what, errno.errorcode[e.errno])
";

async fn play(stage: &Stage) -> Result<Line> {
    let run = ["run", "--name", NAME, "--ports", "1", "--", "python3", "-ISc", INTRUDER];
    let output = stage.done(&run).await?;
    let task = stage.ended(NAME).await?;
    let (mine, refused) = (granted_port(&task)?, usage(&task)?.ports_refused);
    let other = mine.checked_add(1).context("the last port of all was granted")?;
    let events = stage.events(NAME, WAYS.len()).await?;

    let mut line = Line::new(
        ACT.name,
        format!("binds to {other}, {mine} and any\nrun --ports 1 -- python3 -c '...'"),
        format!("port {mine}"),
    );
    line.measured(format!("{mine} and any: both gave it {mine}, by TCP and UDP, IPv4 and IPv6"))
        .refused(format!("{other}: EPERM, {refused} times; an event each for TCP and UDP, IPv4 and IPv6"))
        .figure("granted_port", mine)
        .figure("refused_port", other)
        .figure("ports_refused", refused)
        .figure("events", events.len())
        .check(refused == WAYS.len() as u64, || format!("the kernel counted {refused} refusals"));
    for (protocol, version) in WAYS {
        let told = |what: &str| format!("{protocol} {version} {what} ");
        for (what, wanted) in
            [("other", "EPERM".to_owned()), ("mine", mine.to_string()), ("any", mine.to_string())]
        {
            let got = output.stdout.lines().find_map(|l| l.strip_prefix(&told(what))).unwrap_or("nothing");
            line.check(got == wanted, || {
                format!("bind ({protocol}, IPv{version}, {what} port): {got}, not {wanted}")
            });
        }
        let counted = events.iter().filter(|e| is_refusal(e, protocol, version, other)).count();
        line.check(counted == 1, || format!("{counted} events for {protocol}, IPv{version} instead of one"));
    }
    Ok(line)
}

fn is_refusal(event: &Value, protocol: &str, version: u64, port: u16) -> bool {
    event["kind"] == "port_denied"
        && event["protocol"] == protocol
        && event["ip_version"] == version
        && event["port"] == port
        && event["count"] == 1
}
