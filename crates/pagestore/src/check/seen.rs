//! Which pages were looked at, in two bytes a frame: snapshots share most of their pages.

use std::collections::{HashMap, HashSet};

use neon_snapshot_format::pack::{FRAME_SIZE, PackId};

use crate::map::FrameRef;

/// Frames that are kept side by side.
const TOGETHER: u8 = 64;

/// Pages by the frame they lie in, and where they begin in it.
#[derive(Debug)]
pub(super) struct SeenPages {
    page_size: u32,
    /// A bit for each page, of some frames of a pack.
    bits: HashMap<(PackId, u64), Box<[u8]>>,
    /// Those that begin where no page of a large file does: of small files, which share frames.
    odd: HashSet<(PackId, u64, u32)>,
}

impl SeenPages {
    pub(super) fn new(page_size: u32) -> Self {
        Self {
            page_size: page_size.max(512),
            bits: HashMap::new(),
            odd: HashSet::new(),
        }
    }

    fn per_frame(&self) -> usize {
        FRAME_SIZE.div_ceil(self.page_size as usize * 8)
    }

    /// Where the bit of a page is: which byte of its frames, and which bit of that.
    fn bit(&self, frame: &FrameRef, start: u32) -> Option<(usize, u8)> {
        let page = (start / self.page_size) as usize;
        if !start.is_multiple_of(self.page_size) || page >= self.per_frame() * 8 {
            return None;
        }
        let before = usize::try_from(frame.frame % u64::from(TOGETHER)).ok()?;
        let byte = before * self.per_frame() + page / 8;
        Some((byte, 1 << (page % 8)))
    }

    pub(super) fn contains(&self, frame: &FrameRef, start: u32) -> bool {
        match self.bit(frame, start) {
            Some((byte, bit)) => {
                let bits = self.bits.get(&group(frame));
                let byte = bits.and_then(|bits| bits.get(byte));
                byte.is_some_and(|byte| byte & bit != 0)
            }
            None => self.odd.contains(&(frame.pack.id, frame.frame, start)),
        }
    }

    pub(super) fn insert(&mut self, frame: &FrameRef, start: u32) {
        let Some((byte, bit)) = self.bit(frame, start) else {
            self.odd.insert((frame.pack.id, frame.frame, start));
            return;
        };
        let length = self.per_frame() * usize::from(TOGETHER);
        let bits = self.bits.entry(group(frame));
        let bits = bits.or_insert_with(|| vec![0; length].into());
        if let Some(byte) = bits.get_mut(byte) {
            *byte |= bit;
        }
    }
}

fn group(frame: &FrameRef) -> (PackId, u64) {
    (frame.pack.id, frame.frame / u64::from(TOGETHER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::DataKey;
    use crate::map::PackRef;

    fn frame(pack: u64, frame: u64) -> FrameRef {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&pack.to_le_bytes());
        FrameRef {
            pack: PackRef {
                id: PackId(id),
                key: DataKey([0; 32]),
            },
            frame,
            offset: frame << 17,
            stored_length: 128 << 10,
            plain_length: 128 << 10,
            codec: 0,
            sealed: false,
            digest: [0; 16],
        }
    }

    #[test]
    fn each_page_is_seen_for_itself() {
        for page_size in [512, 1024, 8192, 32768] {
            let mut seen = SeenPages::new(page_size);
            let starts = |odd: u32| {
                let most = u32::try_from(FRAME_SIZE).unwrap();
                (0..most)
                    .step_by(page_size as usize)
                    .map(move |at| at + odd)
            };
            let frames = || (0..3).flat_map(|pack| [0, 1, 63, 64, 1 << 40].map(|n| frame(pack, n)));
            for odd in [0, 7] {
                for at in frames() {
                    for start in starts(odd) {
                        assert!(!seen.contains(&at, start));
                        seen.insert(&at, start);
                        assert!(seen.contains(&at, start));
                    }
                }
            }
        }
    }

    #[test]
    fn the_pages_of_a_terabyte_take_a_few_megabytes() {
        let mut seen = SeenPages::new(8192);
        // A 64th of it: packs of 64 MiB, frames of which each page is seen by itself.
        for pack in 0..256 {
            for number in 0..512 {
                for page in 0..16 {
                    seen.insert(&frame(pack, number), page * 8192);
                }
            }
        }
        let entry = size_of::<((PackId, u64), Box<[u8]>)>() + 1;
        let bits: usize = seen.bits.values().map(|bits| bits.len()).sum();
        let table = seen.bits.capacity() * entry * 8 / 7;
        assert!(seen.odd.is_empty());
        assert!((bits + table) * 64 < 64 << 20, "{bits} and {table}");
    }
}
