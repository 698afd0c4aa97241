//! Connections to the master and to agents, with errors that name the address and the cause.

use std::{error::Error, fmt, io, str::FromStr, time::Duration};

use bulkhead_proto::{
    MAX_MESSAGE_BYTES,
    v1::{agent_client::AgentClient, operator_client::OperatorClient, scheduler_client::SchedulerClient},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::error::CliError;

/// A live host on the same network answers within milliseconds; this covers a lost packet or two.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Finds a peer that vanished without closing the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// `HOST:PORT` of a gRPC server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(String);

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("write HOST:PORT, like 127.0.0.1:5050 or [::1]:5050")]
    Shape,
    #[error("{0:?} is no port: it is a number between 1 and 65535")]
    Port(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.trim().trim_start_matches("http://").trim_end_matches('/');
        let (host, port) = bare.rsplit_once(':').ok_or(AddressError::Shape)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let inside = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '[' | ']');
        let fits = if bracketed { host.chars().all(inside) } else { host.chars().all(plain) };
        if host.is_empty() || !fits {
            return Err(AddressError::Shape);
        }
        match port.parse::<u16>() {
            Ok(1..) => Ok(Self(format!("{host}:{port}"))),
            _ => Err(AddressError::Port(port.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    /// A channel that is open now, or the reason why not, in a few words.
    pub(crate) async fn open(&self) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0))
            .map_err(|error| root_cause(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(|error| root_cause(&error))
    }
}

/// A channel to the master.
pub(crate) async fn master_channel(address: &Address) -> Result<Channel, CliError> {
    address.open().await.map_err(|cause| CliError::NoMaster { address: address.to_string(), cause })
}

/// The operator calls of the master.
pub(crate) async fn operator(address: &Address) -> Result<OperatorClient<Channel>, CliError> {
    Ok(OperatorClient::new(master_channel(address).await?).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// The scheduler calls of the master, on a channel to it.
pub(crate) fn scheduler(master: Channel) -> SchedulerClient<Channel> {
    SchedulerClient::new(master).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The API of an agent, at the address it registered with.
pub(crate) async fn agent(api_address: &str) -> Result<AgentClient<Channel>, CliError> {
    let no_agent = |cause: String| CliError::NoAgent { address: api_address.to_owned(), cause };
    let address: Address = api_address.parse().map_err(|e: AddressError| no_agent(e.to_string()))?;
    let channel = address.open().await.map_err(no_agent)?;
    Ok(AgentClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// An error answer of the master to `call`, as this program's own error.
pub(crate) fn refused_by_master(call: &'static str) -> impl FnOnce(Status) -> CliError {
    move |status| CliError::Refused { who: "the master".to_owned(), call, message: status_text(&status) }
}

/// What a gRPC status says: its message, or its code's meaning where it has none.
pub(crate) fn status_text(status: &Status) -> String {
    if status.code() == Code::Unimplemented {
        return "this call is not known there; is it another program, or another version of bulkhead?"
            .to_owned();
    }
    match status.source() {
        Some(source) => root_cause(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// The end of an error's chain, in the words of the operating system where it comes from there.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::TimedOut) => "no answer in time".to_owned(),
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => "connection lost".to_owned(),
        _ => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_host_and_port() {
        for text in ["127.0.0.1:5050", "localhost:1", "[::1]:5050", "node-7.rack_2:65535"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("http://h:1/".parse::<Address>().map(|a| a.to_string()), Ok("h:1".to_owned()));
        for text in ["", "localhost", ":5050", "a b:1", "::1:5050", "h/x:1"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError::Shape), "{text}");
        }
        for port in ["0", "70000", "http", ""] {
            assert_eq!(format!("h:{port}").parse::<Address>(), Err(AddressError::Port(port.to_owned())));
        }
    }

    #[test]
    fn the_cause_is_the_end_of_the_chain() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport")]
        struct Outer(#[source] io::Error);
        assert_eq!(root_cause(&Outer(io::ErrorKind::ConnectionRefused.into())), "connection refused");
        assert_eq!(status_text(&Status::not_found("no such task")), "no such task");
    }
}
