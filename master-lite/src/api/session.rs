//! One stream's two halves: the outbox that the driver fills, and the reader that feeds the driver.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::driver::Handle;
use crate::{core::Event, ids::SessionId};

/// Where the driver puts messages for a peer. Dropping it ends the stream.
pub(super) struct Outbox<T> {
    messages: mpsc::Sender<T>,
    last_word: Arc<OnceLock<Status>>,
    /// Dropped with the outbox: the reader stops.
    _open: oneshot::Sender<()>,
}

/// The stream that the peer reads: what was pushed, then the status that the outbox was closed with.
pub(super) struct Outgoing<T> {
    messages: mpsc::Receiver<T>,
    last_word: Option<Arc<OnceLock<Status>>>,
}

/// Resolves when the outbox is gone.
pub(super) type Closed = oneshot::Receiver<()>;

/// An outbox for at most `capacity` unread messages.
pub(super) fn outbox<T>(capacity: usize) -> (Outbox<T>, Outgoing<T>, Closed) {
    let (sender, receiver) = mpsc::channel(capacity);
    let (open, closed) = oneshot::channel();
    let last_word = Arc::new(OnceLock::new());
    let outgoing = Outgoing { messages: receiver, last_word: Some(last_word.clone()) };
    (Outbox { messages: sender, last_word, _open: open }, outgoing, closed)
}

impl<T> Outbox<T> {
    /// Puts a message in; false where there is no room. A peer that hung up is not full: its reader tells.
    pub(super) fn push(&self, message: T) -> bool {
        !matches!(self.messages.try_send(message), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Ends the stream with this status, or well.
    pub(super) fn close(self, status: Option<Status>) {
        if let Some(status) = status {
            // Set only here, and closing consumes the outbox.
            drop(self.last_word.set(status));
        }
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(message) = ready!(self.messages.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(message)));
        }
        let last_word = self.last_word.take().and_then(|word| word.get().cloned());
        Poll::Ready(last_word.map(Err))
    }
}

/// Feeds a peer's messages to the driver until either side ends the session.
pub(super) async fn read<M>(
    mut inbound: Streaming<M>,
    driver: Handle,
    session: SessionId,
    mut closed: Closed,
    event: impl Fn(M) -> Option<Event>,
) {
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            _ = &mut closed => return,
        };
        let event = match message {
            Ok(Some(message)) => event(message),
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(session = session.0, %status, "stream broke");
                break;
            }
        };
        // A message of a newer protocol version is passed over.
        let Some(event) = event else { continue };
        if driver.feed(event).await.is_err() {
            return;
        }
    }
    // An error means that the master is shutting down and has ended every session.
    drop(driver.feed(Event::SessionEnded { session }).await);
}

/// The first message of a stream.
pub(super) async fn first<M>(inbound: &mut Streaming<M>, expected: &str) -> Result<M, Status> {
    inbound.message().await?.ok_or_else(|| {
        Status::invalid_argument(format!(
            "the stream ended without a message; the first one must be {expected}"
        ))
    })
}
