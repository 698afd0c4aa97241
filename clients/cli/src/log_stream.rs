//! A task's output, read from its agent to the last byte.
//!
//! A connection that breaks is opened again at the offset that was reached, so that every byte is
//! written once. The end is believed only after a last look that finds nothing new.

use std::time::Duration;

use bulkhead_proto::v1::{LogChunk, LogStream, ReadLogRequest, agent_client::AgentClient};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{connect, error::CliError, log_sink::Sink};

/// Between attempts to reach an agent that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long the output of an ended task may stand still before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose output, and from where on.
#[derive(Debug, Clone)]
pub(crate) struct LogSource {
    pub(crate) api_address: String,
    pub(crate) framework_id: String,
    pub(crate) task_id: String,
    /// UNSPECIFIED is both.
    pub(crate) stream: LogStream,
    /// Start this much before the end; 0 starts at the beginning.
    pub(crate) tail_bytes: u64,
}

/// How far each stream was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reached {
    stdout: Option<u64>,
    stderr: Option<u64>,
}

/// What of a chunk is new.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'c> {
    /// Bytes that the agent no longer had.
    missing_bytes: u64,
    offset: u64,
    data: &'c [u8],
}

impl Reached {
    /// Takes a chunk: what of it was not seen before, and how much is missing in front of it.
    /// The first chunk of a stream may start anywhere when only the tail was asked for.
    fn take<'c>(&mut self, chunk: &'c LogChunk, from_start: bool) -> Piece<'c> {
        let reached = match chunk.stream() {
            LogStream::Stderr => &mut self.stderr,
            LogStream::Stdout | LogStream::Unspecified => &mut self.stdout,
        };
        let expected = reached.unwrap_or(if from_start { 0 } else { chunk.offset });
        let seen = expected.saturating_sub(chunk.offset);
        let skip = usize::try_from(seen).unwrap_or(usize::MAX).min(chunk.data.len());
        let data = &chunk.data[skip..];
        let offset = expected.max(chunk.offset);
        *reached = Some(offset + u64::try_from(data.len()).unwrap_or(0));
        Piece { missing_bytes: chunk.offset.saturating_sub(expected), offset, data }
    }
}

/// Writes what there is now.
pub(crate) async fn print(source: &LogSource, sink: &mut Sink) -> Result<(), CliError> {
    let mut reader = Reader::new(source);
    match reader.pass(false, sink).await {
        Ok(()) => Ok(sink.finish().await?),
        Err(Broken::Sink(error)) => Err(error),
        Err(Broken::NoAgent(error)) => Err(error),
        Err(Broken::Status(status)) => Err(CliError::Refused {
            who: format!("the agent at {}", source.api_address),
            call: "ReadLog",
            message: connect::status_text(&status),
        }),
    }
}

/// Writes what there is and what comes, until the task has ended and all of it is written.
///
/// `ended` turns true when the end of the task is known from elsewhere; where nobody else knows
/// (`None`), the agent's end of the stream is the end.
pub(crate) async fn follow(
    source: &LogSource,
    sink: &mut Sink,
    mut ended: Option<watch::Receiver<bool>>,
) -> Result<(), CliError> {
    let mut reader = Reader::new(source);
    let mut over_since = None;
    loop {
        let broken = match reader.pass_until_ended(sink, ended.as_mut()).await {
            Ok(()) => {
                wait_for_end(ended.as_mut()).await;
                match reader.pass(false, sink).await {
                    Ok(()) => return Ok(sink.finish().await?),
                    Err(broken) => broken,
                }
            }
            Err(broken) => broken,
        };
        let over = ended.as_ref().is_none_or(|e| *e.borrow());
        if over {
            over_since.get_or_insert_with(Instant::now);
        }
        let stalled = over_since.is_some_and(|since| since.max(reader.last_progress).elapsed() > PATIENCE);
        match broken {
            Broken::Sink(error) => return Err(error),
            // The task never got as far as a sandbox, or has only just been accepted.
            Broken::Status(status) if status.code() == Code::NotFound && over => {
                return match &ended {
                    Some(_) => Ok(sink.finish().await?),
                    None => Err(reader.incomplete(connect::status_text(&status))),
                };
            }
            Broken::Status(status) if stalled => {
                return Err(reader.incomplete(connect::status_text(&status)));
            }
            Broken::NoAgent(error) if stalled => return Err(reader.incomplete(error.to_string())),
            Broken::Status(_) | Broken::NoAgent(_) => sleep(RETRY_PAUSE).await,
        }
    }
}

async fn wait_for_end(ended: Option<&mut watch::Receiver<bool>>) {
    if let Some(ended) = ended {
        // A sender that is gone can say nothing more: then this is the end as well.
        let _ = ended.wait_for(|over| *over).await;
    }
}

enum Broken {
    Sink(CliError),
    NoAgent(CliError),
    Status(Status),
}

struct Reader<'s> {
    source: &'s LogSource,
    /// The connection, until it breaks.
    agent: Option<AgentClient<Channel>>,
    reached: Reached,
    last_progress: Instant,
}

impl<'s> Reader<'s> {
    fn new(source: &'s LogSource) -> Self {
        Self { source, agent: None, reached: Reached::default(), last_progress: Instant::now() }
    }

    /// Follows; an agent that keeps the stream of an ended task open without a byte is left after a while.
    async fn pass_until_ended(
        &mut self,
        sink: &mut Sink,
        ended: Option<&mut watch::Receiver<bool>>,
    ) -> Result<(), Broken> {
        let Some(ended) = ended else { return self.pass(true, sink).await };
        let mut told = ended.clone();
        let stream_start = Instant::now();
        let mut inbound = self.request(true).await?;
        loop {
            let over = *told.borrow();
            let next = async {
                if over {
                    timeout(PATIENCE, inbound.message()).await.ok()
                } else {
                    Some(inbound.message().await)
                }
            };
            let message = tokio::select! {
                message = next => message,
                changed = told.changed(), if !over => {
                    if changed.is_err() { return Ok(()) }
                    continue;
                }
            };
            match message {
                Some(Ok(Some(chunk))) => self.write(&chunk, sink).await?,
                Some(Ok(None)) => return Ok(()),
                Some(Err(status)) => return Err(Broken::Status(status)),
                None => {
                    tracing::debug!(open_for = ?stream_start.elapsed(), "the agent keeps the log of an ended task open");
                    return Ok(());
                }
            }
        }
    }

    async fn pass(&mut self, follow: bool, sink: &mut Sink) -> Result<(), Broken> {
        let mut inbound = self.request(follow).await?;
        while let Some(chunk) = inbound.message().await.map_err(Broken::Status)? {
            self.write(&chunk, sink).await?;
        }
        Ok(())
    }

    async fn request(&mut self, follow: bool) -> Result<Streaming<LogChunk>, Broken> {
        let nothing_yet = self.reached == Reached::default();
        let request = ReadLogRequest {
            framework_id: self.source.framework_id.clone(),
            task_id: self.source.task_id.clone(),
            stream: self.source.stream.into(),
            stdout_offset: self.reached.stdout.unwrap_or(0),
            stderr_offset: self.reached.stderr.unwrap_or(0),
            tail_bytes: if nothing_yet { self.source.tail_bytes } else { 0 },
            follow,
        };
        // Kept only where the call went well, so that after any trouble a new connection is tried.
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => connect::agent(&self.source.api_address).await.map_err(Broken::NoAgent)?,
        };
        let answer = agent.read_log(request).await.map_err(Broken::Status)?;
        self.agent = Some(agent);
        Ok(answer.into_inner())
    }

    async fn write(&mut self, chunk: &LogChunk, sink: &mut Sink) -> Result<(), Broken> {
        let piece = self.reached.take(chunk, self.source.tail_bytes == 0);
        self.last_progress = Instant::now();
        if piece.missing_bytes > 0 {
            sink.gap(chunk.stream(), piece.missing_bytes);
        }
        sink.write(chunk.stream(), piece.offset, piece.data).await.map_err(|e| Broken::Sink(e.into()))
    }

    fn incomplete(&self, cause: String) -> CliError {
        CliError::OutputIncomplete { task_id: self.source.task_id.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(stream: LogStream, offset: u64, data: &str) -> LogChunk {
        LogChunk { stream: stream.into(), offset, data: data.into() }
    }

    #[test]
    fn a_repeated_part_is_dropped_and_a_hole_is_counted() {
        let mut reached = Reached::default();
        let first = chunk(LogStream::Stdout, 0, "abcd");
        assert_eq!(reached.take(&first, true), Piece { missing_bytes: 0, offset: 0, data: b"abcd" });
        let overlap = chunk(LogStream::Stdout, 2, "cdef");
        assert_eq!(reached.take(&overlap, true), Piece { missing_bytes: 0, offset: 4, data: b"ef" });
        let seen = chunk(LogStream::Stdout, 0, "ab");
        assert_eq!(reached.take(&seen, true), Piece { missing_bytes: 0, offset: 6, data: b"" });
        let hole = chunk(LogStream::Stdout, 10, "z");
        assert_eq!(reached.take(&hole, true), Piece { missing_bytes: 4, offset: 10, data: b"z" });
        assert_eq!(reached, Reached { stdout: Some(11), stderr: None });
    }

    #[test]
    fn a_tail_starts_anywhere_and_streams_are_counted_apart() {
        let mut reached = Reached::default();
        let tail = chunk(LogStream::Stderr, 500, "x");
        assert_eq!(reached.take(&tail, false), Piece { missing_bytes: 0, offset: 500, data: b"x" });
        assert_eq!(reached, Reached { stdout: None, stderr: Some(501) });
        let head_gone = chunk(LogStream::Stdout, 7, "y");
        assert_eq!(reached.take(&head_gone, true).missing_bytes, 7);
    }
}
