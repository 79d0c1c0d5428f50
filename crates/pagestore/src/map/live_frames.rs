//! A set of cells of frames.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::PackId;

use crate::crypt::DataKey;
use crate::map::{Cells, FrameRef};

/// Frames that lie side by side.
const TOGETHER: usize = 64;
/// Bits of [`Facts`] for the stored length, for the codec, and for whether it is sealed; the rest is for how many cells there are.
const LENGTH_BITS: u32 = 22;
const CODEC_BITS: u32 = 5;
const SEALED: u32 = 1 << (LENGTH_BITS + CODEC_BITS);
const CELLS_AT: u32 = LENGTH_BITS + CODEC_BITS + 1;

/// A set of cells of frames of many packs, in ten bytes a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveFrames {
    packs: HashMap<PackId, LivePack>,
}

/// The frames of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LivePack {
    key: DataKey,
    /// By the number of the frame, divided by 64.
    words: BTreeMap<u64, Box<[Slot; TOGETHER]>>,
    frames: u64,
    bytes: u64,
}

/// What is known of a frame, if any cell of it is in the set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    cells: u16,
    facts: Facts,
    digest: [u8; 4],
}

/// How many bytes are stored; above that their codec and whether they are sealed, as the map says; above that how many cells
/// there are, less one. In bytes, so that nothing is lost to alignment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Facts([u8; 4]);

impl Facts {
    fn of(frame: &FrameRef) -> Self {
        let most = |bits: u32| (1 << bits) - 1;
        let length = frame.stored_length.min(most(LENGTH_BITS));
        let codec = u32::from(frame.codec).min(most(CODEC_BITS)) << LENGTH_BITS;
        let sealed = if frame.sealed { SEALED } else { 0 };
        let cells = frame.whole().count().saturating_sub(1) << CELLS_AT;
        Self((cells | sealed | codec | length).to_le_bytes())
    }

    fn bits(self) -> u32 {
        u32::from_le_bytes(self.0)
    }

    fn stored_length(self) -> u32 {
        self.bits() & ((1 << LENGTH_BITS) - 1)
    }

    fn codec(self) -> u8 {
        u8::try_from(self.bits() >> LENGTH_BITS & ((1 << CODEC_BITS) - 1)).unwrap_or(u8::MAX)
    }

    fn is_sealed(self) -> bool {
        self.bits() & SEALED != 0
    }

    fn whole(self) -> Cells {
        let cells = u64::from(self.bits() >> CELLS_AT) + 1;
        Cells::of(&(0..cells * u64::from(Cells::SIZE)))
    }
}

/// A frame of which cells are in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveFrame {
    /// Its number in its pack.
    pub frame: u64,
    /// The cells that are in the set.
    pub cells: Cells,
    /// All that it has.
    pub whole: Cells,
    /// Bytes that are stored for all of them in its own pack.
    pub stored_length: u32,
    /// How those are compressed, as the map says.
    pub codec: u8,
    /// Whether they are encrypted, as the map says.
    pub sealed: bool,
    /// The first bytes of the digest of those.
    pub digest: [u8; 4],
}

impl LiveFrame {
    /// What of its stored bytes is for the cells that are in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.whole.share(self.cells, self.stored_length)
    }
}

impl LiveFrames {
    /// Adds all of a frame; tells whether any of it is new.
    pub fn insert(&mut self, frame: &FrameRef) -> bool {
        !self.insert_cells(frame, frame.whole()).is_empty()
    }

    /// Adds cells of a frame; returns those that are new.
    pub fn insert_cells(&mut self, frame: &FrameRef, cells: Cells) -> Cells {
        let pack = self.packs.entry(frame.pack.id);
        let pack = pack.or_insert_with(|| LivePack {
            key: frame.pack.key,
            words: BTreeMap::new(),
            frames: 0,
            bytes: 0,
        });
        let word = pack.words.entry(frame.frame / TOGETHER as u64);
        let word = word.or_insert_with(|| Box::new([Slot::default(); TOGETHER]));
        let at = usize::try_from(frame.frame % TOGETHER as u64).unwrap_or_default();
        let Some(slot) = word.get_mut(at) else {
            return Cells::NONE;
        };
        let before = Cells::from_bits(slot.cells);
        let new = cells.common(frame.whole()).without(before);
        if new.is_empty() {
            return new;
        }
        if before.is_empty() {
            pack.frames += 1;
            slot.facts = Facts::of(frame);
            slot.digest = frame.digest.first_chunk().copied().unwrap_or_default();
        }
        slot.cells = before.and(new).bits();
        pack.bytes += frame.whole().share(new, frame.stored_length);
        new
    }

    /// The cells of a frame that are in it.
    #[must_use]
    pub fn cells(&self, (pack, frame): (PackId, u64)) -> Cells {
        let slot = self.packs.get(&pack).and_then(|pack| {
            let word = pack.words.get(&(frame / TOGETHER as u64))?;
            word.get(usize::try_from(frame % TOGETHER as u64).ok()?)
        });
        slot.map_or(Cells::NONE, |slot| Cells::from_bits(slot.cells))
    }

    /// The packs that a frame in it belongs to: id, how many frames, and what of their stored bytes is for cells in it. In
    /// no order.
    pub fn packs(&self) -> impl Iterator<Item = (PackId, u64, u64)> {
        self.packs
            .iter()
            .map(|(id, pack)| (*id, pack.frames, pack.bytes))
    }

    /// How many frames of a pack are in it, and what of their stored bytes is for cells in it.
    #[must_use]
    pub fn pack(&self, id: PackId) -> (u64, u64) {
        self.packs
            .get(&id)
            .map_or((0, 0), |pack| (pack.frames, pack.bytes))
    }

    /// The key of a pack that has frames in it.
    pub(crate) fn key(&self, id: PackId) -> Option<DataKey> {
        self.packs.get(&id).map(|pack| pack.key)
    }

    /// One frame, if any of it is in it.
    #[must_use]
    pub fn get(&self, (pack, frame): (PackId, u64)) -> Option<LiveFrame> {
        let word = self
            .packs
            .get(&pack)?
            .words
            .get(&(frame / TOGETHER as u64))?;
        let slot = word.get(usize::try_from(frame % TOGETHER as u64).ok()?)?;
        slot.shown(frame)
    }

    /// A pack's frames, in order.
    pub fn frames(&self, id: PackId) -> impl Iterator<Item = LiveFrame> {
        let words = self.packs.get(&id).into_iter().flat_map(|pack| &pack.words);
        words.flat_map(|(number, word)| {
            let first = number.saturating_mul(TOGETHER as u64);
            let slots = word.iter().zip(0..TOGETHER as u64);
            slots.filter_map(move |(slot, at)| slot.shown(first | at))
        })
    }
}

impl Slot {
    fn shown(&self, frame: u64) -> Option<LiveFrame> {
        let (cells, facts) = (Cells::from_bits(self.cells), self.facts);
        (!cells.is_empty()).then(|| LiveFrame {
            frame,
            cells,
            whole: facts.whole(),
            stored_length: facts.stored_length(),
            codec: facts.codec(),
            sealed: facts.is_sealed(),
            digest: self.digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::PackRef;

    const PACK: PackId = PackId([7; 16]);

    fn frame(number: u64) -> FrameRef {
        FrameRef {
            pack: PackRef {
                id: PACK,
                key: DataKey([0; 32]),
            },
            frame: number,
            offset: 64,
            stored_length: 131_136,
            plain_length: 131_072,
            codec: 2,
            sealed: true,
            digest: [9; 16],
        }
    }

    #[test]
    fn what_a_map_says_of_a_frame_is_kept() {
        for (cells, codec, sealed, stored_length) in [
            (1, 0, false, 0),
            (1, 31, true, 131_136),
            (7, 3, false, 1),
            (16, 2, true, 131_136),
            (16, 0, false, 131_072),
        ] {
            let mut live = LiveFrames::default();
            live.insert(&FrameRef {
                stored_length,
                plain_length: cells * Cells::SIZE,
                codec,
                sealed,
                ..frame(5)
            });
            let whole = Cells::whole(cells * Cells::SIZE);
            let expected = LiveFrame {
                frame: 5,
                cells: whole,
                whole,
                stored_length,
                codec,
                sealed,
                digest: [9; 4],
            };
            assert_eq!(live.get((PACK, 5)), Some(expected));
        }
    }

    #[test]
    fn frames_may_have_any_number() {
        let numbers = [0, 63, 64, u64::MAX - 64, u64::MAX - 63, u64::MAX];
        let mut live = LiveFrames::default();
        for number in numbers {
            assert!(live.insert(&frame(number)));
        }
        let found: Vec<u64> = live.frames(PACK).map(|live| live.frame).collect();
        assert_eq!(found, numbers);
    }
}
