//! Cutting what is wanted of files into work for several threads.

use std::ops::Range;

use crate::stream::{CHUNK_SIZE, Entry, Wanted};

/// Parts of one file that one thread reads in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The file, by its place in the plan.
    pub(crate) file: usize,
    parts: Parts,
    /// Whether it is the first of this file.
    pub(crate) first: bool,
    /// Whether it is the only one of this file, so that no other thread can have sent a part.
    pub(crate) only: bool,
}

/// There are as many pieces as files, and nearly all are whole.
#[derive(Debug, PartialEq, Eq)]
enum Parts {
    One(Range<u64>),
    Many(Vec<Range<u64>>),
}

impl Piece {
    pub(crate) fn whole(file: usize, range: Range<u64>) -> Self {
        Self {
            file,
            parts: Parts::One(range),
            first: true,
            only: true,
        }
    }

    pub(crate) fn ranges(&self) -> &[Range<u64>] {
        match &self.parts {
            Parts::One(range) => std::slice::from_ref(range),
            Parts::Many(ranges) => ranges,
        }
    }
}

/// Below this a file, or what is wanted of it, is never cut.
pub(crate) const MIN_EXTENT: u64 = 8 << 20;
/// How much of one file a thread takes at a time, where nothing else is said.
pub(crate) const DEFAULT_EXTENT: u64 = 32 << 20;
/// What opening a file costs, in bytes that could have been read meanwhile.
const OPENING: u64 = 4096;
/// What going to another place in a file costs.
const SEEKING: u64 = 64 << 10;

/// Cuts what is wanted into pieces of work of similar size, neighbours together.
#[derive(Debug)]
pub(crate) struct Cutter {
    extent: u64,
    work: Vec<Vec<Piece>>,
    gathered: Vec<Piece>,
    weight: u64,
}

impl Cutter {
    /// `extent`: how much of one file a thread takes at a time; whole chunks.
    pub(crate) fn new(extent: u64) -> Self {
        Self {
            extent,
            work: Vec::new(),
            gathered: Vec::new(),
            weight: 0,
        }
    }

    /// Adds what is wanted of the next file: sorted ranges inside it.
    pub(crate) fn add(&mut self, file: usize, entry: &Entry, wanted: Wanted) {
        let (parts, weight) = match wanted {
            Wanted::Nothing => return,
            Wanted::Ranges(ranges) if ranges.is_empty() => return,
            Wanted::Whole => (Parts::One(0..entry.size()), entry.size().max(OPENING)),
            Wanted::Ranges(ranges) => {
                let weight = ranges.iter().map(length_with_seek).sum();
                (Parts::Many(ranges), weight)
            }
        };
        if weight < MIN_EXTENT {
            self.gathered.push(Piece {
                file,
                parts,
                first: true,
                only: true,
            });
            self.weight += weight;
            if self.weight >= MIN_EXTENT {
                self.work.push(std::mem::take(&mut self.gathered));
                self.weight = 0;
            }
            return;
        }
        let pieces = self.cut(match parts {
            Parts::One(range) => vec![range],
            Parts::Many(ranges) => ranges,
        });
        let only = pieces.len() == 1;
        for (number, ranges) in pieces.into_iter().enumerate() {
            self.work.push(vec![Piece {
                file,
                parts: Parts::Many(ranges),
                first: number == 0,
                only,
            }]);
        }
    }

    /// Cuts one file. A last piece below the minimum goes with the one before it.
    fn cut(&self, ranges: Vec<Range<u64>>) -> Vec<Vec<Range<u64>>> {
        let single = ranges.len() == 1;
        let cost = |range: &Range<u64>| {
            if single {
                range.end - range.start
            } else {
                length_with_seek(range)
            }
        };
        let mut left: u64 = ranges.iter().map(cost).sum();
        let mut pieces = Vec::new();
        let mut piece = Vec::new();
        let mut weight = 0;
        for mut range in ranges {
            while !range.is_empty() {
                let room = self.extent.saturating_sub(weight);
                let last = left < room + MIN_EXTENT;
                if last || cost(&range) < room {
                    weight += cost(&range);
                    left -= cost(&range);
                    piece.push(range);
                    break;
                }
                // Chunks end at multiples of their size in the file, so pieces do too.
                let at = (range.start + room)
                    .next_multiple_of(CHUNK_SIZE as u64)
                    .min(range.end);
                left -= cost(&range);
                piece.push(range.start..at);
                pieces.push(std::mem::take(&mut piece));
                weight = 0;
                range = at..range.end;
                if !range.is_empty() {
                    left += cost(&range);
                }
            }
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
        pieces
    }

    pub(crate) fn finish(mut self) -> Vec<Vec<Piece>> {
        if !self.gathered.is_empty() {
            self.work.push(self.gathered);
        }
        self.work
    }
}

fn length_with_seek(range: &Range<u64>) -> u64 {
    (range.end - range.start).max(SEEKING)
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are what is tested"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::path::SnapshotPath;
    use crate::stream::EntryKind;

    const PAGE: u64 = 8192;
    const EXTENT: u64 = 32 << 20;

    fn file(size: u64) -> Entry {
        Entry {
            path: SnapshotPath::new("base/5/16384").unwrap(),
            kind: EntryKind::File { size },
            mode: 0o600,
            owner: None,
            modified: 0,
        }
    }

    fn cut(size: u64, wanted: Wanted) -> Vec<Piece> {
        let entry = file(size);
        let mut cutter = Cutter::new(EXTENT);
        cutter.add(7, &entry, wanted);
        cutter.finish().into_iter().flatten().collect()
    }

    #[test]
    fn a_whole_file_is_cut_at_extents_and_has_no_short_last_piece() {
        let pieces = cut(100 << 20, Wanted::Whole);
        let ranges: Vec<_> = pieces.iter().map(|piece| piece.ranges().to_vec()).collect();
        assert_eq!(
            ranges,
            [
                vec![0..EXTENT],
                vec![EXTENT..2 * EXTENT],
                vec![2 * EXTENT..100 << 20],
            ]
        );
        let first: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.first, piece.only))
            .collect();
        assert_eq!(first, [(true, false), (false, false), (false, false)]);
        let [empty] = &cut(0, Wanted::Whole)[..] else {
            panic!("an empty file comes too")
        };
        assert!(empty.only && empty.ranges().len() == 1);
        assert_eq!(cut(100 << 20, Wanted::Nothing), []);
        assert_eq!(cut(100 << 20, Wanted::Ranges(Vec::new())), []);
    }

    #[test]
    fn small_files_are_gathered_and_scattered_pages_are_spread_over_threads() {
        let mut cutter = Cutter::new(EXTENT);
        for index in 0..300 {
            cutter.add(index, &file(64 << 10), Wanted::Whole);
        }
        let work: Vec<_> = cutter.finish().iter().map(Vec::len).collect();
        assert_eq!(work, [128, 128, 44]);

        let pages = (0..2000).map(|page| page * 16 * PAGE..(page * 16 + 1) * PAGE);
        let pieces = cut(1 << 30, Wanted::Ranges(pages.collect()));
        let counts: Vec<_> = pieces.iter().map(|piece| piece.ranges().len()).collect();
        assert_eq!(counts, [512, 512, 512, 464]);
    }

    proptest! {
        #[test]
        fn every_wanted_byte_is_in_one_piece_and_in_order(
            gaps in proptest::collection::vec((0_u64..3000, 1_u64..9000), 1..40),
        ) {
            let mut at = 0;
            let mut wanted: Vec<Range<u64>> = Vec::new();
            for (gap, pages) in gaps {
                at += gap * PAGE;
                wanted.push(at..at + pages * PAGE);
                at += pages * PAGE;
            }
            let pieces = cut(at, Wanted::Ranges(wanted.clone()));
            let joined = |ranges: Vec<Range<u64>>| {
                let mut out: Vec<Range<u64>> = Vec::new();
                for range in ranges {
                    match out.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        _ => out.push(range),
                    }
                }
                out
            };
            for [before, after] in pieces.array_windows() {
                let (end, start) = (before.ranges().last().unwrap().end, after.ranges()[0].start);
                prop_assert!(end < start || end.is_multiple_of(CHUNK_SIZE as u64)
                    || wanted.iter().any(|range| range.end == end));
            }
            for piece in &pieces {
                let weight: u64 = piece.ranges().iter().map(length_with_seek).sum();
                prop_assert!(weight <= EXTENT + MIN_EXTENT + SEEKING + CHUNK_SIZE as u64);
                prop_assert_eq!(piece.only, pieces.len() == 1);
            }
            let sent = pieces.iter().flat_map(|piece| piece.ranges().to_vec()).collect();
            prop_assert_eq!(joined(sent), joined(wanted));
        }
    }
}
