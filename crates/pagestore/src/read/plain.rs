//! The plain bytes of a frame, or of those of its cells that are at hand.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::map::{Cells, FrameRef};

/// A frame, and the cells of it that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The frame.
    pub frame: FrameRef,
    /// The cells.
    pub cells: Cells,
}

impl Part {
    /// All of a frame.
    #[must_use]
    pub fn whole(frame: &FrameRef) -> Self {
        Self {
            frame: *frame,
            cells: frame.whole(),
        }
    }

    /// What a range of a frame's plain bytes touches.
    #[must_use]
    pub fn of(frame: &FrameRef, range: &Range<u64>) -> Self {
        Self {
            frame: *frame,
            cells: Cells::of(range).common(frame.whole()),
        }
    }
}

/// Decoded bytes of a frame: some of its cells, side by side. They are reached through [`range`](Self::range) alone, which
/// gives nothing that is not there.
#[derive(Debug, Clone)]
pub(crate) struct Plain {
    bytes: Bytes,
    cells: Cells,
    length: u32,
}

impl Plain {
    /// These cells of a frame, by their plain bytes in order.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when they are not cells of that frame, or longer or shorter.
    pub(crate) fn new(frame: &FrameRef, cells: Cells, bytes: Bytes) -> Result<Self> {
        let length = frame.plain_length;
        let fits = cells.plain_bytes(length) as usize == bytes.len();
        if !frame.whole().contains(cells) || !fits {
            return Err(Error::malformed(
                subject(frame),
                "has cells of no such frame",
            ));
        }
        Ok(Self {
            bytes,
            cells,
            length,
        })
    }

    pub(crate) fn cells(&self) -> Cells {
        self.cells
    }

    /// Bytes of memory that it takes, itself aside.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len()
    }

    /// Some bytes, by where they lie in the whole frame.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) beyond the end of the frame, [`Damaged`](crate::ErrorKind::Damaged) when
    /// they lie in cells that are not here.
    pub(crate) fn range(&self, frame: &FrameRef, range: &Range<u64>) -> Result<Bytes> {
        let beyond = || {
            let reason = "the map leads beyond the end of a frame";
            Error::malformed(subject(frame), reason)
        };
        if range.start > range.end || range.end > u64::from(self.length) {
            return Err(beyond());
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if !self.cells.contains(Cells::of(range)) {
            let reason = "not all of it that is needed is there";
            return Err(Error::damaged(subject(frame), reason));
        }
        let size = u64::from(Cells::SIZE);
        let number = u32::try_from(range.start / size).map_err(|_| beyond())?;
        // All cells before it are whole ones: only the last of a frame is short.
        let start = u64::from(self.cells.before(number).count()) * size + range.start % size;
        let end = start + (range.end - range.start);
        let (start, end) = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .filter(|(_, end)| *end <= self.bytes.len())
            .ok_or_else(beyond)?;
        Ok(self.bytes.slice(start..end))
    }

    /// All of the frame.
    ///
    /// # Errors
    /// As [`range`](Self::range).
    pub(crate) fn all(&self, frame: &FrameRef) -> Result<Bytes> {
        self.range(frame, &(0..frame.plain_length.into()))
    }

    /// These cells, each from the first that has it.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) when one is in none.
    pub(crate) fn joined(frame: &FrameRef, cells: Cells, parts: &[Self]) -> Result<Self> {
        let mut bytes = BytesMut::new();
        for number in cells.numbers() {
            let range = Cells::range(number, frame.plain_length);
            let range = range.start.into()..range.end.into();
            let cell = Cells::of(&range);
            let part = parts.iter().find(|part| part.cells.contains(cell));
            let part = part.ok_or_else(|| {
                Error::damaged(subject(frame), "not all of it that is needed is there")
            })?;
            bytes.extend_from_slice(&part.range(frame, &range)?);
        }
        Self::new(frame, cells, bytes.freeze())
    }

    /// The bytes of all cells that are here, side by side.
    pub(crate) fn side_by_side(&self) -> &Bytes {
        &self.bytes
    }
}

pub(crate) fn subject(frame: &FrameRef) -> String {
    format!("frame {} of pack {}", frame.frame, frame.pack.id)
}

#[cfg(test)]
mod tests {
    use neon_snapshot_format::pack::PackId;
    use proptest::prelude::*;

    use super::*;
    use crate::crypt::DataKey;
    use crate::map::PackRef;

    fn frame(plain_length: u32) -> FrameRef {
        FrameRef {
            pack: PackRef {
                id: PackId([7; 16]),
                key: DataKey([0; 32]),
            },
            frame: 0,
            offset: 0,
            stored_length: plain_length,
            plain_length,
            codec: 0,
            sealed: false,
            digest: [0; 16],
        }
    }

    proptest! {
        #[test]
        fn what_is_not_there_is_not_shown_and_all_else_is_right(
            length in 1..=131_072_u32,
            bits in any::<[u16; 2]>(),
            start in 0..131_072_usize,
            count in 0..30_000_usize,
        ) {
            let frame = frame(length);
            let bytes: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
            let all = Plain::new(&frame, frame.whole(), bytes.clone().into()).unwrap();
            let cells = bits.map(|bits| frame.whole().common(Cells::from_bits(bits)));
            let some = cells.map(|cells| {
                Plain::joined(&frame, cells, std::slice::from_ref(&all)).unwrap()
            });
            let both = cells[0].and(cells[1]);
            let joined = Plain::joined(&frame, both, &some).unwrap();
            let range = start as u64..(start + count) as u64;
            for plain in some.iter().chain([&joined, &all]) {
                let wanted = Cells::of(&range);
                match plain.range(&frame, &range) {
                    Ok(found) => {
                        prop_assert!(plain.cells().contains(wanted));
                        prop_assert_eq!(&found[..], &bytes[start..start + count]);
                    }
                    Err(_) => prop_assert!(range.end > length.into() || !plain.cells().contains(wanted)),
                }
            }
            prop_assert_eq!(joined.all(&frame).is_ok(), both == frame.whole());
            prop_assert!(Plain::joined(&frame, frame.whole(), &some).is_ok() == (both == frame.whole()));
        }
    }
}
