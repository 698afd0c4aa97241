//! SHA-2 digests in the form `sha256:HEX`, and readers and writers that compute them on the way.

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

use sha2::{Digest as _, Sha256, Sha512};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// As digests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Digits of a digest in hexadecimal.
    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// What some content must be. Its text is safe as a file name but for the colon.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// In lower case, of the right length.
    hex: String,
}

/// No digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no digest: write sha256: and 64 hexadecimal digits, or sha512: and 128")]
pub struct DigestError {
    text: String,
}

impl Digest {
    /// Which function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits, in lower case.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// `Ok` where `found` is this digest.
    ///
    /// # Errors
    /// [`Mismatch`] names both.
    pub fn check(&self, found: &Self) -> Result<(), Mismatch> {
        if self == found {
            return Ok(());
        }
        Err(Mismatch { expected: self.clone(), found: found.clone() })
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let no_digest = || DigestError { text: text.chars().take(160).collect() };
        let (name, hex) = text.split_once(':').ok_or_else(no_digest)?;
        let known = [Algorithm::Sha256, Algorithm::Sha512];
        let algorithm = known.into_iter().find(|a| a.name() == name).ok_or_else(no_digest)?;
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(no_digest());
        }
        Ok(Self { algorithm, hex: hex.to_ascii_lowercase() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// The content is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content has the digest {found} and not {expected}")]
pub struct Mismatch {
    /// What was asked for.
    pub expected: Digest,
    /// What came.
    pub found: Digest,
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Of nothing so far.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// More content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Of everything seen.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => digest(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => digest(Algorithm::Sha512, &state.finalize()),
        }
    }
}

fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    let hex = bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect();
    Digest { algorithm, hex }
}

/// A reader or writer that hashes and counts what passes through it.
///
/// ```
/// # use std::io::Write as _;
/// use bulkhead_stage::digest::{Algorithm, Hashed};
/// let mut writer = Hashed::new(Vec::new(), Algorithm::Sha256);
/// writer.write_all(b"content")?;
/// let (content, bytes, digest) = writer.finish();
/// assert_eq!((content.len(), bytes), (7, 7));
/// assert!(digest.to_string().starts_with("sha256:ed7002b439e9ac84"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Hashed<T> {
    inner: T,
    hasher: Hasher,
    bytes: u64,
}

impl<T> Hashed<T> {
    /// Around `inner`.
    pub fn new(inner: T, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), bytes: 0 }
    }

    /// How much passed through.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it is around, the bytes that passed through, and their digest.
    pub fn finish(self) -> (T, u64, Digest) {
        (self.inner, self.bytes, self.hasher.finish())
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.pass(&buf[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.pass(&buf[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // FIPS 180-4 examples: the message "abc".
    const ABC_256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                           2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn known_answers() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"abc").to_string(), ABC_256);
        assert_eq!(Digest::of(Algorithm::Sha512, b"abc").to_string(), ABC_512);
    }

    #[test]
    fn case_does_not_matter_and_length_and_name_do() {
        let upper = format!("sha256:{}", ABC_256.trim_start_matches("sha256:").to_uppercase());
        assert_eq!(upper.parse::<Digest>().unwrap().to_string(), ABC_256);
        for bad in ["", "sha256", "sha256:", "md5:00", "sha256:zz", &ABC_256[..70], &ABC_512[..71]] {
            assert!(bad.parse::<Digest>().unwrap_err().to_string().contains("sha256:"), "{bad}");
        }
        let no_hex = format!("sha256:{}", "g".repeat(64));
        assert!(no_hex.parse::<Digest>().is_err());
        assert!(format!("sha256:../{}", "a".repeat(61)).parse::<Digest>().is_err());
    }

    #[test]
    fn a_mismatch_names_both() {
        let expected: Digest = ABC_256.parse().unwrap();
        let text = expected.check(&Digest::of(Algorithm::Sha256, b"abd")).unwrap_err().to_string();
        assert!(text.contains(ABC_256) && text.contains("a52d159f262b2c6ddb"), "{text}");
        expected.check(&Digest::of(Algorithm::Sha256, b"abc")).unwrap();
    }

    proptest! {
        #[test]
        fn pieces_hash_like_the_whole(pieces: Vec<Vec<u8>>) {
            let whole = pieces.concat();
            let mut writer = Hashed::new(Vec::new(), Algorithm::Sha512);
            for piece in &pieces {
                writer.write_all(piece).unwrap();
            }
            let mut reader = Hashed::new(&whole[..], Algorithm::Sha512);
            io::copy(&mut reader, &mut io::sink()).unwrap();
            let expected = Digest::of(Algorithm::Sha512, &whole);
            prop_assert_eq!(reader.finish(), (&[][..], whole.len() as u64, expected.clone()));
            prop_assert_eq!(writer.finish(), (whole.clone(), whole.len() as u64, expected));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Digest>();
        }
    }
}
