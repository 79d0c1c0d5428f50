//! Which blocks of which relations changed: the table that WAL summaries hold.
//!
//! Beside changed blocks a fork has a *limit block*: the shortest length it had in the range, 0 when it
//! was created or dropped. A copy from before the range must not be believed for blocks at or beyond
//! it. Semantics: `common/blkreftable.c`, so that tables merged here and by the server agree.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::relation::{BlockNumber, Fork, Oid, RelFileLocator};

/// Blocks in one chunk.
pub(crate) const CHUNK_BLOCKS: u32 = 1 << 16;
/// From this many blocks on a chunk is a bitmap of [`BITMAP_BYTES`].
pub(crate) const BITMAP_FROM: usize = 4096;
pub(crate) const BITMAP_BYTES: usize = 8192;

/// Changed blocks and limit blocks by relation fork.
///
/// An entry for file number 0 and the main fork with limit block 0 says that the directory of a whole
/// database was created or dropped.
///
/// ```
/// use neon_pg_layout::{BlockRefTable, DEFAULT_TABLESPACE, Fork, RelFileLocator};
/// let locator = RelFileLocator { tablespace: DEFAULT_TABLESPACE, database: 5, number: 16384 };
/// let mut table = BlockRefTable::new();
/// table.mark(locator, Fork::Main, 7);
/// table.mark(locator, Fork::Main, 90);
/// table.limit(locator, Fork::Main, 50);
/// let refs = table.get(locator, Fork::Main).ok_or("no entry")?;
/// assert_eq!(refs.limit_block(), Some(50));
/// assert_eq!(refs.blocks().collect::<Vec<_>>(), [7]);
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockRefTable {
    entries: BTreeMap<(RelFileLocator, Fork), BlockRefs>,
}

/// What a [`BlockRefTable`] says about one fork.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockRefs {
    limit: Option<BlockNumber>,
    chunks: BTreeMap<u16, Chunk>,
}

/// The changed blocks among 65536 neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    /// Fewer than [`BITMAP_FROM`] offsets, ascending.
    Offsets(Vec<u16>),
    /// A bit per block, lowest bit of the first byte first, and how many are set.
    Bitmap(Box<[u8; BITMAP_BYTES]>, usize),
}

impl BlockRefTable {
    /// A table without entries.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }

    /// Records that a block was changed.
    pub fn mark(&mut self, locator: RelFileLocator, fork: Fork, block: BlockNumber) {
        self.entries.entry((locator, fork)).or_default().mark(block);
    }

    /// Records that the fork was cut to `length` blocks, or created or dropped (length 0). Changes
    /// recorded so far at or beyond a new lowest length are forgotten; those recorded later stay.
    pub fn limit(&mut self, locator: RelFileLocator, fork: Fork, length: BlockNumber) {
        self.entries
            .entry((locator, fork))
            .or_default()
            .set_limit(length);
    }

    /// Adds what happened in a range that follows the one this table describes.
    pub fn append(&mut self, later: &Self) {
        for (key, refs) in &later.entries {
            let entry = self.entries.entry(*key).or_default();
            if let Some(limit) = refs.limit {
                entry.set_limit(limit);
            }
            for (number, chunk) in &refs.chunks {
                match entry.chunks.get_mut(number) {
                    Some(known) => chunk.for_each(|offset| known.insert(offset)),
                    None => {
                        entry.chunks.insert(*number, chunk.clone());
                    }
                }
            }
        }
    }

    /// What is known about a fork.
    #[must_use]
    pub fn get(&self, locator: RelFileLocator, fork: Fork) -> Option<&BlockRefs> {
        self.entries.get(&(locator, fork))
    }

    /// Whether the directory of a database in a tablespace was created or dropped, so that nothing in it
    /// can be taken from before.
    #[must_use]
    pub fn database_replaced(&self, tablespace: Oid, database: Oid) -> bool {
        let whole = RelFileLocator {
            tablespace,
            database,
            number: 0,
        };
        self.get(whole, Fork::Main)
            .is_some_and(|refs| refs.limit == Some(0))
    }

    /// Every entry, ordered by tablespace, database, file number and fork.
    pub fn iter(&self) -> impl Iterator<Item = (RelFileLocator, Fork, &BlockRefs)> {
        self.entries
            .iter()
            .map(|((locator, fork), refs)| (*locator, *fork, refs))
    }

    /// How many forks have an entry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl BlockRefs {
    /// The shortest length the fork had, if it was cut, created or dropped.
    #[must_use]
    pub const fn limit_block(&self) -> Option<BlockNumber> {
        self.limit
    }

    /// The changed blocks, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = BlockNumber> + '_ {
        self.chunks.iter().flat_map(|(number, chunk)| {
            let first = u32::from(*number) * CHUNK_BLOCKS;
            chunk.offsets().map(move |offset| first + u32::from(offset))
        })
    }

    /// The changed blocks of a range, ascending. Costs nothing for those before it.
    pub fn blocks_in(&self, range: Range<BlockNumber>) -> impl Iterator<Item = BlockNumber> + '_ {
        let (first, _) = split(range.start);
        self.chunks
            .range(first..)
            .flat_map(|(number, chunk)| {
                let first = u32::from(*number) * CHUNK_BLOCKS;
                chunk.offsets().map(move |offset| first + u32::from(offset))
            })
            .skip_while(move |block| *block < range.start)
            .take_while(move |block| *block < range.end)
    }

    /// How many blocks changed.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.len() as u64).sum()
    }

    /// Whether a block changed.
    #[must_use]
    pub fn contains(&self, block: BlockNumber) -> bool {
        let (number, offset) = split(block);
        self.chunks
            .get(&number)
            .is_some_and(|chunk| chunk.contains(offset))
    }

    fn mark(&mut self, block: BlockNumber) {
        let (number, offset) = split(block);
        let empty = || Chunk::Offsets(Vec::new());
        self.chunks
            .entry(number)
            .or_insert_with(empty)
            .insert(offset);
    }

    fn set_limit(&mut self, limit: BlockNumber) {
        if self.limit.is_some_and(|known| limit >= known) {
            return;
        }
        self.limit = Some(limit);
        let (number, offset) = split(limit);
        let mut cut = self.chunks.split_off(&number);
        if let Some(chunk) = cut.remove(&number) {
            let kept: Vec<u16> = chunk.offsets().take_while(|kept| *kept < offset).collect();
            if !kept.is_empty() {
                self.chunks.insert(number, Chunk::of(kept));
            }
        }
    }

    /// The chunks in the form of summary files: number, and offsets or bitmap.
    pub(crate) fn encoded_chunks(&self) -> impl Iterator<Item = (u16, EncodedChunk<'_>)> {
        self.chunks.iter().map(|(number, chunk)| {
            let encoded = match chunk {
                Chunk::Offsets(offsets) => EncodedChunk::Offsets(offsets),
                Chunk::Bitmap(bits, _) => EncodedChunk::Bitmap(bits),
            };
            (*number, encoded)
        })
    }
}

/// A chunk as a summary file stores it.
pub(crate) enum EncodedChunk<'a> {
    Offsets(&'a [u16]),
    Bitmap(&'a [u8; BITMAP_BYTES]),
}

impl Chunk {
    fn of(offsets: Vec<u16>) -> Self {
        if offsets.len() < BITMAP_FROM {
            return Self::Offsets(offsets);
        }
        let mut bits = Box::new([0; BITMAP_BYTES]);
        for offset in &offsets {
            set(&mut bits, *offset);
        }
        Self::Bitmap(bits, offsets.len())
    }

    fn insert(&mut self, offset: u16) {
        match self {
            Self::Bitmap(bits, count) => *count += usize::from(set(bits, offset)),
            Self::Offsets(offsets) => {
                let Err(place) = offsets.binary_search(&offset) else {
                    return;
                };
                offsets.insert(place, offset);
                if offsets.len() >= BITMAP_FROM {
                    *self = Self::of(std::mem::take(offsets));
                }
            }
        }
    }

    fn contains(&self, offset: u16) -> bool {
        match self {
            Self::Offsets(offsets) => offsets.binary_search(&offset).is_ok(),
            Self::Bitmap(bits, _) => bits
                .get(usize::from(offset / 8))
                .is_some_and(|byte| byte & 1 << (offset % 8) != 0),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Offsets(offsets) => offsets.len(),
            Self::Bitmap(_, count) => *count,
        }
    }

    fn offsets(&self) -> impl Iterator<Item = u16> + '_ {
        let (list, bits) = match self {
            Self::Offsets(offsets) => (offsets.as_slice(), None),
            Self::Bitmap(bits, _) => (&[][..], Some(bits)),
        };
        list.iter()
            .copied()
            .chain(bits.into_iter().flat_map(|bits| offsets_of(&bits[..])))
    }

    fn for_each(&self, mut each: impl FnMut(u16)) {
        for offset in self.offsets() {
            each(offset);
        }
    }
}

/// The offsets of the set bits, ascending.
pub(crate) fn offsets_of(bits: &[u8]) -> impl Iterator<Item = u16> + '_ {
    (0_u16..).zip(bits).flat_map(|(index, byte)| {
        (0..8_u16)
            .filter(move |bit| byte & 1 << bit != 0)
            .map(move |bit| index * 8 + bit)
    })
}

/// Sets a bit and says whether it was clear.
fn set(bits: &mut [u8; BITMAP_BYTES], offset: u16) -> bool {
    let mask = 1 << (offset % 8);
    match bits.get_mut(usize::from(offset / 8)) {
        Some(byte) if *byte & mask == 0 => {
            *byte |= mask;
            true
        }
        _ => false,
    }
}

/// The number of a block's chunk and the block's offset in it.
const fn split(block: BlockNumber) -> (u16, u16) {
    let [b3, b2, b1, b0] = block.to_be_bytes();
    (u16::from_be_bytes([b3, b2]), u16::from_be_bytes([b1, b0]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LOCATOR: RelFileLocator = RelFileLocator {
        tablespace: 1663,
        database: 5,
        number: 16384,
    };

    #[derive(Debug, Clone)]
    enum Step {
        Mark(u32),
        Run(u32, u32),
        Limit(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let block = prop_oneof![0..200_u32, 65_000..66_000_u32, 200_000..300_000_u32];
        let step = prop_oneof![
            4 => block.clone().prop_map(Step::Mark),
            2 => (block.clone(), 1..5000_u32).prop_map(|(from, count)| Step::Run(from, count)),
            1 => block.prop_map(Step::Limit),
        ];
        prop::collection::vec(step, 0..12)
    }

    /// The plain model: a set and a lowest length.
    #[derive(Default)]
    struct Model(BTreeSet<u32>, Option<u32>);

    impl Model {
        fn limit(&mut self, limit: u32) {
            if self.1.is_none_or(|known| limit < known) {
                self.1 = Some(limit);
                self.0.retain(|block| *block < limit);
            }
        }
    }

    fn run(table: &mut BlockRefTable, model: &mut Model, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Mark(block) => {
                    table.mark(LOCATOR, Fork::Main, block);
                    model.0.insert(block);
                }
                Step::Run(from, count) => {
                    for block in from..from + count {
                        table.mark(LOCATOR, Fork::Main, block);
                        model.0.insert(block);
                    }
                }
                Step::Limit(limit) => {
                    table.limit(LOCATOR, Fork::Main, limit);
                    model.limit(limit);
                }
            }
        }
    }

    fn agree(table: &BlockRefTable, model: &Model) {
        let refs = table.get(LOCATOR, Fork::Main).cloned().unwrap_or_default();
        assert!(refs.blocks().eq(model.0.iter().copied()));
        assert_eq!(refs.limit_block(), model.1);
        assert_eq!(refs.block_count(), model.0.len() as u64);
        for block in (0..70_000).step_by(997) {
            assert_eq!(refs.contains(block), model.0.contains(&block));
        }
        for range in [
            0..0,
            0..150,
            100..65_500,
            65_400..250_000,
            210_000..u32::MAX,
            // One that ends before it begins.
            std::ops::Range { start: 5, end: 1 },
        ] {
            let expected = model
                .0
                .iter()
                .copied()
                .filter(|block| range.contains(block));
            assert!(refs.blocks_in(range.clone()).eq(expected), "{range:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn tables_agree_with_a_plain_set(first in steps(), second in steps()) {
            let (mut table, mut model) = Default::default();
            run(&mut table, &mut model, &first);
            agree(&table, &model);
            let (mut later, mut later_model) = Default::default();
            run(&mut later, &mut later_model, &second);
            table.append(&later);
            if let Some(limit) = later_model.1 {
                model.limit(limit);
            }
            model.0.extend(later_model.0);
            agree(&table, &model);
        }
    }

    #[test]
    fn a_replaced_database_is_told_by_its_file_number_zero() {
        let mut table = BlockRefTable::new();
        let whole = RelFileLocator {
            number: 0,
            ..LOCATOR
        };
        assert!(!table.database_replaced(1663, 5));
        table.limit(whole, Fork::Main, 0);
        assert!(table.database_replaced(1663, 5));
        assert!(!table.database_replaced(1663, 6));
    }
}
