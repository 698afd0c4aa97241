//! Denials as they happen.

use std::{os::fd::AsFd as _, path::Path};

use aya::maps::{MapData, RingBuf};
use bulkhead_abi::{DenialEvent, names};
use tokio::io::Interest;

use super::{BpfError, table::open_map};
use crate::kernel::ready::Ready;

/// The ring buffer of denials. One reader at a time; what nobody reads waits, and once the buffer
/// is full new events are lost, while counts stay exact.
pub struct DenialStream {
    ring: RingBuf<MapData>,
    /// Of a second descriptor of the same ring.
    ready: Ready,
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
        let ready = ring.as_fd().try_clone_to_owned().and_then(|fd| Ready::watch(fd, Interest::READABLE));
        let ready = ready.map_err(BpfError::io("poll", dir.join(names::EVENTS)))?;
        Ok(Self { ring, ready })
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
            self.ready.wait().await.map_err(BpfError::io("poll", names::EVENTS))?;
        }
    }

    /// The next event, if there is one now.
    pub fn take(&mut self) -> Option<DenialEvent> {
        while let Some(bytes) = self.ring.next() {
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
