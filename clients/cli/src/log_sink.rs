//! Where a task's output goes: to our own two streams as it is, or to standard output as JSON lines.

use std::io;

use bulkhead_proto::v1::LogStream;
use serde::Serialize;
use tokio::io::{AsyncWriteExt, Stderr, Stdout};

use crate::screen::Screen;

/// Writes pieces of output in the order they come.
#[derive(Debug)]
pub(crate) struct Sink {
    screen: Screen,
    shape: Shape,
    stdout: Stdout,
    stderr: Stderr,
}

#[derive(Debug)]
enum Shape {
    /// Each stream to our stream of the same name.
    Apart,
    /// The only stream that was asked for, to standard output.
    Together,
    /// One JSON line a piece; the text that waits for the rest of a character, by stream.
    Json { tag: Option<&'static str>, stdout: Utf8Rest, stderr: Utf8Rest },
}

#[derive(Serialize)]
struct JsonPiece<'t> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    tag: Option<&'static str>,
    stream: &'static str,
    offset: u64,
    text: &'t str,
}

impl Sink {
    /// Each stream to our stream of the same name.
    pub(crate) fn apart(screen: Screen) -> Self {
        Self::new(screen, Shape::Apart)
    }

    /// One stream, to standard output.
    pub(crate) fn together(screen: Screen) -> Self {
        Self::new(screen, Shape::Together)
    }

    /// JSON lines, each with `"type": tag` where a tag is given.
    pub(crate) fn json(screen: Screen, tag: Option<&'static str>) -> Self {
        Self::new(screen, Shape::Json { tag, stdout: Utf8Rest::default(), stderr: Utf8Rest::default() })
    }

    fn new(screen: Screen, shape: Shape) -> Self {
        Self { screen, shape, stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }

    /// Writes and flushes one piece. `offset` is that of its first byte in the task's stream.
    pub(crate) async fn write(&mut self, stream: LogStream, offset: u64, data: &[u8]) -> io::Result<()> {
        let is_err = stream == LogStream::Stderr;
        match &mut self.shape {
            Shape::Apart if is_err => {
                self.stderr.write_all(data).await?;
                self.stderr.flush().await
            }
            Shape::Apart | Shape::Together => {
                self.stdout.write_all(data).await?;
                self.stdout.flush().await
            }
            Shape::Json { tag, stdout, stderr } => {
                let rest = if is_err { stderr } else { stdout };
                let (at, text) = rest.push(offset, data);
                let line = json_line(*tag, is_err, at, &text)?;
                self.stdout.write_all(line.as_bytes()).await?;
                self.stdout.flush().await
            }
        }
    }

    /// Says that the agent no longer has a part of the output.
    pub(crate) fn gap(&self, stream: LogStream, missing_bytes: u64) {
        let name = stream_name(stream == LogStream::Stderr);
        self.screen.warn(&format!("{missing_bytes} bytes of {name} are gone: the agent keeps a bounded log"));
    }

    /// Writes what waited for more, once nothing more comes.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        if let Shape::Json { tag, stdout, stderr } = &mut self.shape {
            for (is_err, rest) in [(false, stdout), (true, stderr)] {
                let (at, text) = rest.end();
                let line = json_line(*tag, is_err, at, &text)?;
                self.stdout.write_all(line.as_bytes()).await?;
            }
        }
        self.stdout.flush().await?;
        self.stderr.flush().await
    }
}

fn stream_name(is_err: bool) -> &'static str {
    if is_err { "stderr" } else { "stdout" }
}

fn json_line(tag: Option<&'static str>, is_err: bool, offset: u64, text: &str) -> io::Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let piece = JsonPiece { tag, stream: stream_name(is_err), offset, text };
    Ok(serde_json::to_string(&piece).map_err(io::Error::other)? + "\n")
}

/// The first bytes of a character whose last bytes have not come yet.
#[derive(Debug, Default)]
struct Utf8Rest {
    offset: u64,
    bytes: Vec<u8>,
}

impl Utf8Rest {
    /// The whole characters so far, with the offset of the first; what is no UTF-8 becomes U+FFFD.
    fn push(&mut self, offset: u64, data: &[u8]) -> (u64, String) {
        let start = if self.bytes.is_empty() { offset } else { self.offset };
        self.bytes.extend_from_slice(data);
        let keep = incomplete_suffix(&self.bytes);
        let rest = self.bytes.split_off(self.bytes.len() - keep);
        let whole = std::mem::replace(&mut self.bytes, rest);
        self.offset = start + u64::try_from(whole.len()).unwrap_or(0);
        (start, String::from_utf8_lossy(&whole).into_owned())
    }

    fn end(&mut self) -> (u64, String) {
        let bytes = std::mem::take(&mut self.bytes);
        (self.offset, String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// How many bytes at the end begin a character without completing it.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        // No length: the error is that the input ends, within at most 3 bytes.
        Some(chunk) if std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none()) => {
            chunk.invalid().len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_in_two_comes_out_whole() {
        let mut rest = Utf8Rest::default();
        let euro = "a€b".as_bytes();
        assert_eq!(rest.push(10, &euro[..2]), (10, "a".to_owned()));
        assert_eq!(rest.push(12, &euro[2..]), (11, "€b".to_owned()));
        assert_eq!(rest.end().1, "");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_wait() {
        let mut rest = Utf8Rest::default();
        assert_eq!(rest.push(0, b"\xff\xfe\n"), (0, "\u{fffd}\u{fffd}\n".to_owned()));
        assert_eq!(rest.push(3, b"x\xe2\x82"), (3, "x".to_owned()));
        assert_eq!(rest.end(), (4, "\u{fffd}".to_owned()));
    }

    #[test]
    fn lines_carry_the_stream_and_the_offset() {
        assert_eq!(
            json_line(Some("output"), true, 7, "a\n").unwrap(),
            "{\"type\":\"output\",\"stream\":\"stderr\",\"offset\":7,\"text\":\"a\\n\"}\n"
        );
        assert_eq!(json_line(None, false, 7, "").unwrap(), "");
    }
}
