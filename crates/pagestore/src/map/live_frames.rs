//! A set of frames.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::PackId;

use crate::map::FrameRef;

/// A set of frames of many packs, a few bits each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveFrames {
    packs: HashMap<PackId, LivePack>,
}

/// The frames of one pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LivePack {
    /// Frame numbers divided by 64, and a bit for each of those 64.
    words: BTreeMap<u64, u64>,
    frames: u64,
    bytes: u64,
}

impl LiveFrames {
    /// Adds a frame; tells whether it is new.
    pub fn insert(&mut self, frame: &FrameRef) -> bool {
        let pack = self.packs.entry(frame.pack.id).or_default();
        let word = pack.words.entry(frame.frame / 64).or_default();
        let bit = 1 << (frame.frame % 64);
        let new = *word & bit == 0;
        if new {
            *word |= bit;
            pack.frames += 1;
            pack.bytes += u64::from(frame.stored_length);
        }
        new
    }

    /// Whether a frame is in it.
    #[must_use]
    pub fn contains(&self, pack: PackId, frame: u64) -> bool {
        let word = self
            .packs
            .get(&pack)
            .and_then(|pack| pack.words.get(&(frame / 64)));
        word.is_some_and(|word| word & 1 << (frame % 64) != 0)
    }

    /// The packs that a frame in it belongs to: id, how many frames, their stored bytes. In no order.
    pub fn packs(&self) -> impl Iterator<Item = (PackId, u64, u64)> {
        self.packs
            .iter()
            .map(|(id, pack)| (*id, pack.frames, pack.bytes))
    }

    /// How many frames of a pack are in it, and their stored bytes.
    #[must_use]
    pub fn pack(&self, id: PackId) -> (u64, u64) {
        self.packs
            .get(&id)
            .map_or((0, 0), |pack| (pack.frames, pack.bytes))
    }

    /// The numbers of a pack's frames, in order.
    pub fn frames(&self, id: PackId) -> impl Iterator<Item = u64> {
        let words = self.packs.get(&id).into_iter().flat_map(|pack| &pack.words);
        words.flat_map(|(number, word)| {
            (0..64)
                .filter(move |bit| word & 1 << bit != 0)
                .map(move |bit| number * 64 + bit)
        })
    }
}
