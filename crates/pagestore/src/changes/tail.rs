//! How the log of a snapshot ended: what tells this history from another on the same timeline.

use std::fmt;
use std::str::FromStr;

use neon_pg_layout::{Lsn, WalSegmentSize};

use crate::error::{Error, Result};
use crate::id::from_hex;

/// The end of a log as a snapshot records it, to be found again in the log of its child.
///
/// The BLAKE3 digest of the last bytes before a position: at most [`LogTail::LENGTH`] of them, none from an
/// earlier segment than the one that holds the last byte, so that one file of the log shows them. Bytes
/// before the end of a log never change: not when it goes on, not on standbys, and a new timeline begins
/// with a copy of them. Written as `<start>-<end>:<digest>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogTail {
    start: Lsn,
    end: Lsn,
    digest: [u8; 32],
}

impl LogTail {
    /// Bytes that are looked at, at most.
    pub const LENGTH: u64 = 1 << 20;

    /// Where the tail of a log that ends at `end` begins.
    #[must_use]
    pub fn start_for(end: Lsn, segment_size: WalSegmentSize) -> Lsn {
        let last = Lsn(end.0.saturating_sub(1));
        last.start_of(segment_size.bytes())
            .max(Lsn(end.0.saturating_sub(Self::LENGTH)))
    }

    /// The tail made of these bytes, which stand in the log from `start` on.
    #[must_use]
    pub fn of(start: Lsn, bytes: &[u8]) -> Self {
        Self {
            start,
            end: start.saturating_add(bytes.len() as u64),
            digest: *blake3::hash(bytes).as_bytes(),
        }
    }

    /// The first position.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// The position after the last.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.end
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}:", self.start, self.end)?;
        self.digest
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for LogTail {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (range, digest) = text.split_once(':')?;
            let (start, end) = range.split_once('-')?;
            let tail = Self {
                start: start.parse().ok()?,
                end: end.parse().ok()?,
                digest: from_hex(digest)?,
            };
            (tail.start < tail.end && tail.to_string() == text).then_some(tail)
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(120).collect();
            Error::malformed(shown, "not the end of a log: two positions and a digest")
        })
    }
}

impl serde::Serialize for LogTail {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LogTail {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
