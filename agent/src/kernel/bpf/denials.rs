//! Denials as they happen.

use std::path::Path;

use aya::maps::{MapData, RingBuf};
use bulkhead_abi::{DenialEvent, names};
use tokio::io::{Interest, unix::AsyncFd};

use super::{BpfError, table::open_map};

/// The ring buffer of denials. One reader at a time; what nobody reads waits, and once the buffer
/// is full new events are lost, while counts stay exact.
pub struct DenialStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl DenialStream {
    /// Opens the ring buffer in [`Loaded::ports`](super::Loaded::ports). Begins with the first event
    /// that no earlier reader has taken. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The map is not pinned there, or cannot be mapped.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Map { op: "map", name: names::EVENTS, source };
        let ring = RingBuf::try_from(open_map(dir, names::EVENTS)?).map_err(failed)?;
        let ring = AsyncFd::with_interest(ring, Interest::READABLE).map_err(BpfError::io("poll", dir))?;
        Ok(Self { ring })
    }

    /// The next event: a (task, protocol, IP version, port) was denied for the 1st, 2nd, 4th, 8th ... time.
    ///
    /// # Errors
    /// Polling failed, which no amount of trying again will change.
    ///
    /// # Cancel safety
    /// An event is taken only when it is returned.
    pub async fn next(&mut self) -> Result<DenialEvent, BpfError> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            let ready = self.ring.readable_mut().await;
            let mut ready = ready.map_err(BpfError::io("poll", names::EVENTS))?;
            // Readiness goes first: an event that comes after it makes the ring ready again.
            ready.clear_ready();
        }
    }

    /// The next event, if there is one now.
    pub fn take(&mut self) -> Option<DenialEvent> {
        let ring = self.ring.get_mut();
        while let Some(bytes) = ring.next() {
            // Nothing else writes to this ring, so all entries have this size.
            if bytes.len() == size_of::<DenialEvent>() {
                // SAFETY: as many bytes as the type has; it is plain integers without padding, for
                // which all bytes are valid, and the read asks for no alignment.
                return Some(unsafe { bytes.as_ptr().cast::<DenialEvent>().read_unaligned() });
            }
        }
        None
    }
}
