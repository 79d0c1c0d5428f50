//! What the stored bytes of a frame are that lie elsewhere than where they were first written.

use bytes::Bytes;
use neon_snapshot_format::pack::{
    Codec, EncodedFrame, FrameCipher, FrameContext, FrameRecord, PackId, SealedFrame,
};

use crate::crypt::PackCipher;
use crate::error::{Error, Result};
use crate::map::{Cells, FrameRef, PackRef};
use crate::read::plain::{Plain, subject};

/// What the stored bytes of a frame that moved are of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Those that the map knows.
    Same,
    /// Those, sealed once more when they were brought into an encrypted repository: with the key of the frame's own pack,
    /// for the frame's address.
    Wrapped,
    /// Others, of some of its cells.
    Thinned(Thinned),
}

/// A frame without some of its cells. The map's digest says nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thinned {
    /// The cells that are there, one after the other.
    pub cells: Cells,
    /// How they are compressed, as a pack's directory has it.
    pub codec: u8,
    /// Whether the stored bytes are encrypted: with the key of the frame's own pack, for the frame's address.
    pub sealed: bool,
    /// The first half of the BLAKE3 digest of the stored bytes.
    pub digest: [u8; 16],
}

impl Form {
    /// The cells that are there, of a frame that has these.
    #[must_use]
    pub fn cells(&self, whole: Cells) -> Cells {
        match self {
            Self::Same | Self::Wrapped => whole,
            Self::Thinned(thinned) => thinned.cells.common(whole),
        }
    }
}

impl Thinned {
    /// Whether a frame with these cells can be thinned so. It may have all: who joins what came in several pieces gets other
    /// stored bytes than the map knows.
    pub(crate) fn is_of(&self, whole: Cells) -> bool {
        !self.cells.is_empty() && whole.contains(self.cells)
    }

    /// What the directory of the pack that it lies in says of it.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when nobody thins this frame so.
    pub(crate) fn record(&self, frame: &FrameRef, length: u32) -> Result<FrameRecord> {
        let whole = frame.whole();
        if !self.is_of(whole) {
            let reason = "is said to have cells that are not its own";
            return Err(Error::malformed(subject(frame), reason));
        }
        FrameRecord::from_parts(
            context(frame),
            0,
            length,
            self.cells.plain_bytes(frame.plain_length),
            self.codec,
            self.sealed,
            self.digest,
        )
        .map_err(|error| Error::format(subject(frame), error))
    }

    /// Verifies, opens and decodes its stored bytes.
    pub(crate) fn decode(&self, frame: &FrameRef, stored: &[u8]) -> Result<Plain> {
        let length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        let cipher = self.sealed.then(|| PackCipher::new(&frame.pack.key));
        let cipher = cipher.as_ref().map(|cipher| cipher as &dyn FrameCipher);
        let plain = self.record(frame, length)?.decode(stored, cipher);
        let plain = plain.map_err(|error| Error::format(subject(frame), error))?;
        Plain::new(frame, self.cells, plain.into())
    }
}

/// Encodes cells of a frame as the frame itself is, and seals them for its address if they are to be sealed.
///
/// What it made is read again before it is handed out: it is going to take the place of what it was made from, and nobody but
/// who made it will vouch for it.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) for an unknown codec, what compressing and sealing return, and
/// [`Damaged`](crate::ErrorKind::Damaged) when it is not read as it was given.
pub(crate) fn thin(
    pack: &PackRef,
    frame: u64,
    codec: u8,
    sealed: bool,
    plain: &[u8],
) -> Result<SealedFrame<'static>> {
    let address = FrameContext {
        pack: pack.id,
        frame,
    };
    let name = || format!("frame {frame} of pack {}", pack.id);
    let codec = match codec {
        0 => Codec::None,
        1 => Codec::Lz4,
        2 | 3 => Codec::default(),
        _ => return Err(Error::malformed(name(), "is of an unknown codec")),
    };
    let cipher = sealed.then(|| PackCipher::new(&pack.key));
    let cipher = cipher.as_ref().map(|cipher| cipher as &dyn FrameCipher);
    let format = |error| Error::format(name(), error);
    let made = EncodedFrame::new(plain, codec)
        .and_then(|encoded| encoded.into_owned().seal(address, cipher))
        .map_err(format)?;
    match holds(&made, cipher, plain).map_err(format)? {
        true => Ok(made),
        false => Err(Error::damaged(name(), "is not read as it was thinned")),
    }
}

/// Whether a frame is read as these bytes.
fn holds(
    made: &SealedFrame<'_>,
    cipher: Option<&dyn FrameCipher>,
    plain: &[u8],
) -> neon_snapshot_format::Result<bool> {
    Ok(made.decode(cipher)? == plain)
}

/// Of the plain bytes of some cells, those of a few of them; none if they are not there.
pub(crate) fn keep(plain: &[u8], held: Cells, wanted: Cells) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
    let size = Cells::SIZE as usize;
    for number in wanted.numbers() {
        let rank = held.before(number).count() as usize;
        let there = held.before(number.saturating_add(1)).count() as usize > rank;
        let cell = plain.chunks(size).nth(rank).filter(|_| there)?;
        kept.extend_from_slice(cell);
    }
    Some(kept)
}

/// Stored bytes of one frame as they came: verified when they are decoded.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// The pack that they came from, where that is not the frame's own.
    pub(crate) from: Option<PackId>,
    /// Those that the map knows, or of some cells.
    pub(crate) bytes: Bytes,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// The whole frame; if its bytes were sealed once more where they came from, those too.
    Whole {
        sealed: Option<Bytes>,
    },
    Thinned(Thinned),
}

impl Piece {
    fn decode(&self, frame: &FrameRef, shared: bool) -> Result<Plain> {
        let decoded = match &self.content {
            Content::Whole { .. } => self.whole(frame, shared),
            Content::Thinned(thinned) => thinned.decode(frame, &self.bytes),
        };
        decoded.map_err(|error| self.about(frame, error))
    }

    fn whole(&self, frame: &FrameRef, shared: bool) -> Result<Plain> {
        let record = record(frame)?;
        let format = |error| Error::format(subject(frame), error);
        if shared && record.is_stored_plain() {
            record.check(&self.bytes).map_err(format)?;
            return Plain::new(frame, frame.whole(), self.bytes.clone());
        }
        let cipher = frame.sealed.then(|| PackCipher::new(&frame.pack.key));
        let cipher = cipher.as_ref().map(|cipher| cipher as &dyn FrameCipher);
        let plain = record.decode(&self.bytes, cipher).map_err(format)?;
        Plain::new(frame, frame.whole(), plain.into())
    }

    /// Says where it lies, if not in its own pack.
    pub(crate) fn about(&self, frame: &FrameRef, error: Error) -> Error {
        match self.from {
            Some(pack) => not_from(frame, pack, error),
            None => error,
        }
    }
}

/// A frame cannot be had from the pack that it moved to.
pub(crate) fn not_from(frame: &FrameRef, pack: PackId, error: Error) -> Error {
    let reason = format!("is not whole in pack {pack}, where it moved to");
    Error::new(error.kind(), subject(frame), reason).caused_by(error)
}

/// Stored bytes of a frame, from as many packs as it takes.
#[derive(Debug, Clone)]
pub(crate) struct Stored(pub(crate) Vec<Piece>);

impl Stored {
    pub(crate) fn bytes(&self) -> usize {
        let lengths = self.0.iter().map(|piece| piece.bytes.len());
        lengths.fold(0, usize::saturating_add)
    }

    /// Verifies, opens and decodes it.
    pub(crate) fn decode(&self, frame: &FrameRef) -> Result<Plain> {
        self.decoded(frame, false)
    }

    /// As [`decode`](Self::decode), without a copy where the stored bytes are the plain ones. The result may then keep all
    /// of its request in memory: not for caches.
    pub(crate) fn decode_shared(&self, frame: &FrameRef) -> Result<Plain> {
        self.decoded(frame, true)
    }

    fn decoded(&self, frame: &FrameRef, shared: bool) -> Result<Plain> {
        if let [piece] = self.0.as_slice() {
            return piece.decode(frame, shared);
        }
        let parts = self.0.iter().map(|piece| piece.decode(frame, shared));
        let parts: Vec<Plain> = parts.collect::<Result<_>>()?;
        let cells = parts.iter().map(Plain::cells);
        Plain::joined(frame, cells.fold(Cells::NONE, Cells::and), &parts)
    }
}

/// Opens what was sealed for an encrypted repository around the bytes that the map knows.
pub(crate) fn unwrap(frame: &FrameRef, stored: &[u8]) -> Result<Bytes> {
    let opened = PackCipher::new(&frame.pack.key).open(context(frame), stored);
    opened
        .map(Bytes::from)
        .map_err(|error| Error::format(subject(frame), error))
}

pub(crate) fn context(frame: &FrameRef) -> FrameContext {
    FrameContext {
        pack: frame.pack.id,
        frame: frame.frame,
    }
}

pub(crate) fn record(frame: &FrameRef) -> Result<FrameRecord> {
    FrameRecord::from_parts(
        context(frame),
        frame.offset,
        frame.stored_length,
        frame.plain_length,
        frame.codec,
        frame.sealed,
        frame.digest,
    )
    .map_err(|error| Error::format(subject(frame), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::DataKey;

    #[test]
    fn what_is_thinned_is_read_again_with_its_codec_and_its_key() {
        let pack = PackRef {
            id: PackId([7; 16]),
            key: DataKey([3; 32]),
        };
        let plain: Vec<u8> = (0..40_000_u32)
            .map(|at| (at / 7).to_le_bytes()[0])
            .collect();
        let mut wrong = plain.clone();
        wrong[39_999] ^= 1;
        let cipher = PackCipher::new(&pack.key);
        let cipher = &cipher as &dyn FrameCipher;
        for (codec, sealed) in [(0, false), (1, true), (2, false), (3, true)] {
            let made = thin(&pack, 5, codec, sealed, &plain).unwrap();
            let cipher = sealed.then_some(cipher);
            assert!(holds(&made, cipher, &plain).unwrap());
            assert!(!holds(&made, cipher, &wrong).unwrap());
            assert!(!holds(&made, cipher, &plain[..39_999]).unwrap());
            if sealed {
                let other = PackCipher::new(&DataKey([4; 32]));
                assert!(holds(&made, Some(&other), &plain).is_err());
            }
        }
    }
}
