//! Root images as bytes that nobody has to be trusted for: the hash tree over their chunks, the manifest that the head signs, and
//! who fetches which chunk from whom. Cores only: bytes, `now` and a seed come in, outputs are drained. This crate must never open a
//! socket, read a clock or a file, or draw a random number.
//!
//! | module | holds | used by |
//! |---|---|---|
//! | [`tree`] | leaves and nodes as in RFC 9162, built from a stream, checked chunk by chunk | builder, head, agent |
//! | [`manifest`] | what a root image is, its canonical bytes, the head's signature over them | head, agent |
//! | [`bitmap`] | which chunks somebody has | head, agent |
//! | [`download`] | which chunk a node fetches from whom next | agent |
//! | [`serve`] | what a node gives to others | agent |
//! | [`tickets`] | which chunk the head gives to whom | head |
//!
//! Time is a [`core::time::Duration`] since any fixed moment of the caller's monotonic clock.

pub mod bitmap;
pub mod download;
pub mod manifest;
pub mod random;
pub mod serve;
pub mod tickets;
pub mod tree;

pub use bitmap::Bitmap;
pub use download::Download;
pub use manifest::{Promise, Refusal, RootManifest, Signed};
pub use serve::Uploads;
pub use tickets::Tickets;
pub use tree::{ChunkError, Shape, Tree, TreeBuilder, TreeError};

use core::fmt;

/// A SHA-256 digest (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// A text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest: it takes 64 lower-case hexadecimal digits")]
pub struct NotADigest;

impl core::str::FromStr for Digest {
    type Err = NotADigest;

    /// Lower-case only, so that a digest has one text.
    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NotADigest),
        };
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotADigest)?;
        let mut digest = [0; 32];
        for (byte, [high, low]) in digest.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
