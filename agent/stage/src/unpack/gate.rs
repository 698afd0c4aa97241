//! Bounds what a reader of tar headers takes into memory.
//!
//! The headers of a tar entry can be followed by names and attributes of any length, which the `tar` crate reads
//! into memory. An archive of a few kilobytes can unpack to a name of many gigabytes. So its reader is gated: open
//! while content is read, and with a bounded allowance while headers are.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

/// Headers, names and attributes of one entry, and the padding before them.
const HEADER_BYTES: u64 = 1 << 20;

/// A reader that stops when its gate says so.
#[derive(Debug)]
pub struct Gated<R> {
    inner: R,
    gate: Gate,
}

/// Opens and narrows a [`Gated`] reader that is elsewhere.
#[derive(Clone, Debug)]
pub struct Gate(Rc<Cell<u64>>);

impl Gate {
    /// Content follows: whoever reads it bounds it.
    pub fn open(&self) {
        self.0.set(u64::MAX);
    }

    /// Headers follow.
    pub fn headers(&self) {
        self.0.set(HEADER_BYTES);
    }
}

impl<R> Gated<R> {
    /// A reader whose gate expects headers.
    pub fn new(inner: R) -> (Self, Gate) {
        let gate = Gate(Rc::new(Cell::new(HEADER_BYTES)));
        (Self { inner, gate: gate.clone() }, gate)
    }
}

impl<R: Read> Read for Gated<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.gate.0.get();
        if left == 0 && !buf.is_empty() {
            return Err(io::Error::other(format!(
                "the headers of an entry are longer than {HEADER_BYTES} bytes"
            )));
        }
        let most = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.inner.read(&mut buf[..most])?;
        if left != u64::MAX {
            self.gate.0.set(left - read as u64);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_bounded_and_content_is_not() {
        let (mut reader, gate) = Gated::new(io::repeat(0));
        let mut sink = vec![0; 1 << 20];
        reader.read_exact(&mut sink).unwrap();
        assert!(reader.read(&mut sink).unwrap_err().to_string().contains("headers"));
        gate.open();
        reader.read_exact(&mut sink).unwrap();
        reader.read_exact(&mut sink).unwrap();
        gate.headers();
        reader.read_exact(&mut sink).unwrap();
        assert!(reader.read(&mut sink).is_err());
    }
}
