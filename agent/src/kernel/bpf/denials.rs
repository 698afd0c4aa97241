//! Denials as they happen.

use std::{marker::PhantomData, os::fd::AsFd as _, path::Path};

use aya::{
    Pod,
    maps::{MapData, RingBuf},
};
use bulkhead_abi::{DenialEvent, DenialKey, DeviceKey, TalkKey, names};
use tokio::io::Interest;

use super::{BpfError, table::open_map};
use crate::kernel::ready::Ready;

/// The ring buffer of denials. One reader at a time; what nobody reads waits, and once the buffer
/// is full new events are lost, while counts stay exact.
pub struct DenialStream<K = DenialKey> {
    ring: RingBuf<MapData>,
    name: &'static str,
    key: PhantomData<fn() -> K>,
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
        Self::open_ring(dir, names::EVENTS)
    }
}

impl DenialStream<DeviceKey> {
    /// The same for the one in [`Loaded::devices`](super::Loaded::devices).
    ///
    /// # Errors
    /// As [`DenialStream::open`].
    pub fn open_devices(dir: &Path) -> Result<Self, BpfError> {
        Self::open_ring(dir, names::DEVICE_EVENTS)
    }
}

impl DenialStream<TalkKey> {
    /// The same for the one in [`Loaded::talk`](super::Loaded::talk).
    ///
    /// # Errors
    /// As [`DenialStream::open`].
    pub fn open_talk(dir: &Path) -> Result<Self, BpfError> {
        Self::open_ring(dir, names::TALK_EVENTS)
    }
}

impl<K: Pod> DenialStream<K> {
    fn open_ring(dir: &Path, name: &'static str) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Map { op: "map", name, source };
        let ring = RingBuf::try_from(open_map(dir, name)?).map_err(failed)?;
        let ready = ring.as_fd().try_clone_to_owned().and_then(|fd| Ready::watch(fd, Interest::READABLE));
        let ready = ready.map_err(BpfError::io("poll", dir.join(name)))?;
        Ok(Self { ring, name, key: PhantomData, ready })
    }

    /// The next event: the same key (task, protocol, IP version and port, or task, device and access) was denied
    /// for the 1st, 2nd, 4th, 8th ... time.
    ///
    /// # Errors
    /// Polling failed, which no amount of trying again will change.
    ///
    /// # Cancel safety
    /// An event is taken only when it is returned.
    pub async fn next(&mut self) -> Result<DenialEvent<K>, BpfError> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            self.ready.wait().await.map_err(BpfError::io("poll", self.name))?;
        }
    }

    /// The next event, if there is one now.
    pub fn take(&mut self) -> Option<DenialEvent<K>> {
        while let Some(bytes) = self.ring.next() {
            // Nothing else writes to this ring, so all entries have this size.
            if bytes.len() == size_of::<DenialEvent<K>>() {
                // SAFETY: as many bytes as the type has; it is plain integers without padding, for
                // which all bytes are valid, and the read asks for no alignment.
                return Some(unsafe { bytes.as_ptr().cast::<DenialEvent<K>>().read_unaligned() });
            }
        }
        None
    }
}
