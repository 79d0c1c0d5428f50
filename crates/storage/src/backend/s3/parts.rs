//! How a body is cut into parts: sizes that grow, and a cutter that holds one part at a time.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::config::S3Config;
use crate::body::{Body, ByteStream};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;

/// What S3 allows.
const MOST_PARTS: u32 = 10_000;
/// After so many parts of one size the next are twice as large.
const STEP: u32 = 1000;
/// The smallest part that isn't the last.
const SMALLEST: u64 = 5 << 20;

/// The sizes of the parts of an upload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    first: u64,
    most: u64,
}

impl Sizes {
    pub(super) fn new(config: &S3Config) -> Self {
        let first = config.part_size.max(SMALLEST);
        Self {
            first,
            most: config.max_part_size.max(first),
        }
    }

    /// The size of a part, counted from one; `None` beyond the last.
    pub(super) fn of(self, number: u32) -> Option<u64> {
        if !(1..=MOST_PARTS).contains(&number) {
            return None;
        }
        let doublings = number.saturating_sub(1) / STEP;
        Some(
            self.first
                .checked_shl(doublings)
                .unwrap_or(self.most)
                .min(self.most),
        )
    }

    /// The largest object that these parts can make.
    pub(super) fn maximum(self) -> u64 {
        (1..=MOST_PARTS)
            .filter_map(|number| self.of(number))
            .fold(0, u64::saturating_add)
    }
}

/// Cuts a body into pieces of asked lengths.
pub(super) struct Cutter {
    stream: ByteStream,
    left: Bytes,
    ended: bool,
}

impl Cutter {
    pub(super) fn new(body: Body) -> Self {
        match body.as_bytes() {
            Some(bytes) => {
                let left = bytes.clone();
                Self {
                    stream: futures_util::stream::empty().boxed(),
                    left,
                    ended: true,
                }
            }
            None => Self {
                stream: body.into_stream(),
                left: Bytes::new(),
                ended: false,
            },
        }
    }

    /// True when nothing is left for sure.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.left.is_empty()
    }

    /// The next `length` bytes; fewer at the end of the body.
    pub(super) async fn next(&mut self, key: &Key, length: u64) -> Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.left.len() >= length || self.ended {
            return Ok(self.left.split_to(length.min(self.left.len())));
        }
        let mut piece = BytesMut::new();
        loop {
            let wanted = length.saturating_sub(piece.len());
            if piece.capacity() < length && !self.left.is_empty() {
                // One allocation of the whole part, made when its first bytes arrive.
                piece.reserve(length.saturating_sub(piece.len()));
            }
            let take = wanted.min(self.left.len());
            piece.extend_from_slice(&self.left.split_to(take));
            if piece.len() >= length || self.ended {
                return Ok(piece.freeze());
            }
            match self.stream.next().await {
                Some(Ok(chunk)) => self.left = chunk,
                None => self.ended = true,
                Some(Err(error)) => {
                    return Err(Error::new(ErrorKind::Body, Operation::Put)
                        .subject(key.as_str())
                        .because(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_and_the_maximum_is_stated() {
        let sizes = Sizes::new(&S3Config::new("b"));
        assert_eq!(sizes.of(1), Some(8 << 20));
        assert_eq!(sizes.of(1000), Some(8 << 20));
        assert_eq!(sizes.of(1001), Some(16 << 20));
        assert_eq!(sizes.of(10_000), Some(64 << 20));
        assert_eq!(sizes.of(10_001), None);
        let expected = 1000 * (8 + 16 + 32) + 7000 * 64;
        assert_eq!(sizes.maximum(), expected << 20);
        let mut equal = S3Config::new("b");
        equal.max_part_size = equal.part_size;
        assert_eq!(Sizes::new(&equal).maximum(), 80_000 << 20);
    }
}
