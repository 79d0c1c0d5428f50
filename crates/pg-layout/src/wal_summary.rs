//! WAL summary files of 17 and later: names, a reader for streams, a writer.
//!
//! `pg_wal/summaries/<timeline><start><end>.summary` says which blocks the log between two positions of
//! a timeline changed. The file is a magic number, entries in order of relation and fork, an entry of
//! zeros, and a CRC over all of it, in the byte order of the host. Source: `common/blkreftable.c` and
//! `backup/walsummary.c`.

use std::fmt;
use std::str::FromStr;

use crate::block_ref_table::{
    BITMAP_BYTES, BITMAP_FROM, BlockRefTable, CHUNK_BLOCKS, EncodedChunk, offsets_of,
};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::relation::{BlockNumber, Fork, RelFileLocator};
use crate::segment::hex32;
use crate::timeline::TimelineId;

const SUBJECT: &str = "WAL summary";
const MAGIC: u32 = 0x652B_137B;
const ENTRY: usize = 24;
const NO_LIMIT: u32 = u32::MAX;
/// Chunks that 2^32 blocks have.
const MAX_CHUNKS: u32 = 1 << 16;

/// The name of a WAL summary file: the range of the log it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSummaryName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first position described.
    pub start: Lsn,
    /// The position after the last described.
    pub end: Lsn,
}

impl fmt::Display for WalSummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            timeline,
            start,
            end,
        } = self;
        write!(
            f,
            "{:08X}{:016X}{:016X}.summary",
            timeline.get(),
            start.0,
            end.0
        )
    }
}

impl FromStr for WalSummaryName {
    type Err = Error;

    /// Parses 40 upper-case hexadecimal digits and `.summary`; the range must not be empty.
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let digits = text.strip_suffix(".summary")?;
            (digits.len() == 40).then_some(())?;
            let field = |at: usize| hex32(digits.get(at..at + 8)?);
            let lsn = |at| Some(Lsn(u64::from(field(at)?) << 32 | u64::from(field(at + 8)?)));
            let name = Self {
                timeline: TimelineId::new(field(0)?).ok()?,
                start: lsn(8)?,
                end: lsn(24)?,
            };
            (name.start < name.end).then_some(name)
        };
        parse().ok_or_else(|| {
            Error::malformed(
                "WAL summary name",
                format!("{text:?} is not 40 upper-case hexadecimal digits and .summary"),
            )
        })
    }
}

/// A piece of a summary, in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalSummaryItem {
    /// What follows is about this fork.
    Relation {
        /// The relation; file number 0 stands for a whole database's directory.
        locator: RelFileLocator,
        /// The fork.
        fork: Fork,
        /// The shortest length the fork had, if it was cut, created or dropped.
        limit_block: Option<BlockNumber>,
    },
    /// A block of that fork changed. Ascending within a fork.
    Block(BlockNumber),
}

/// Reads a summary as its bytes arrive, in memory bounded by 256 KiB whatever the file says.
///
/// Items come before the CRC is known: act on them only after [`finish`](Self::finish) agrees.
#[derive(Debug)]
pub struct WalSummaryReader {
    expected: Expected,
    /// The start of a part that is not complete yet.
    pending: Vec<u8>,
    crc: u32,
    offset: u64,
}

#[derive(Debug)]
enum Expected {
    Magic,
    Entry,
    /// How many blocks each chunk of the entry holds: two bytes per chunk.
    Usage {
        chunks: usize,
    },
    /// The usage array, and the chunk whose blocks come next.
    Chunk {
        usage: Vec<u8>,
        number: u32,
    },
    Crc,
    Nothing,
}

impl Default for WalSummaryReader {
    fn default() -> Self {
        Self::new()
    }
}

impl WalSummaryReader {
    /// A reader at the start of a file.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            expected: Expected::Magic,
            pending: Vec::new(),
            crc: 0,
            offset: 0,
        }
    }

    /// Takes the next bytes of the file, in pieces of any size, and hands what they say to `item`.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) for what is not a summary, [`Checksum`](ErrorKind::Checksum)
    /// for a wrong CRC. The reader is of no use afterwards.
    pub fn push(&mut self, mut bytes: &[u8], mut item: impl FnMut(WalSummaryItem)) -> Result<()> {
        loop {
            self.skip_empty_chunks();
            let needed = self.expected.size();
            if needed == 0 {
                return match bytes {
                    [] => Ok(()),
                    _ => Err(self.malformed("bytes after the end")),
                };
            }
            let (part, rest) = if self.pending.is_empty() && bytes.len() >= needed {
                let (part, rest) = bytes.split_at(needed);
                (std::borrow::Cow::Borrowed(part), rest)
            } else {
                let missing = (needed - self.pending.len()).min(bytes.len());
                let (more, rest) = bytes.split_at(missing);
                self.pending.extend_from_slice(more);
                if self.pending.len() < needed {
                    return Ok(());
                }
                (std::mem::take(&mut self.pending).into(), rest)
            };
            self.part(&part, &mut item)?;
            bytes = rest;
        }
    }

    /// Says whether the file was whole.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) when bytes are missing.
    pub fn finish(self) -> Result<()> {
        match self.expected {
            Expected::Nothing => Ok(()),
            _ => Err(
                Error::new(ErrorKind::Truncated, SUBJECT, "ends before its checksum")
                    .at(self.offset + self.pending.len() as u64),
            ),
        }
    }

    fn malformed(&self, reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::malformed(SUBJECT, reason).at(self.offset)
    }

    fn skip_empty_chunks(&mut self) {
        if let Expected::Chunk { usage, number } = &mut self.expected {
            while let Some(0) = used(usage, *number) {
                *number += 1;
            }
            if used(usage, *number).is_none() {
                self.expected = Expected::Entry;
            }
        }
    }

    /// Handles one complete part.
    fn part(&mut self, part: &[u8], item: &mut impl FnMut(WalSummaryItem)) -> Result<()> {
        if !matches!(self.expected, Expected::Crc) {
            self.crc = crc32c::crc32c_append(self.crc, part);
        }
        match &mut self.expected {
            Expected::Magic => {
                if word(part, 0) != MAGIC {
                    return Err(self.malformed("not a WAL summary"));
                }
                self.expected = Expected::Entry;
            }
            Expected::Entry => self.expected = self.entry(part, item)?,
            Expected::Usage { .. } => {
                let usage = part.to_vec();
                let counts = usage.as_chunks::<2>().0.iter();
                if counts
                    .map(|count| usize::from(u16::from_le_bytes(*count)))
                    .any(|count| count > BITMAP_FROM)
                {
                    return Err(self.malformed("a chunk has more than 4096 entries"));
                }
                self.expected = Expected::Chunk { usage, number: 0 };
            }
            Expected::Chunk { usage, number } => {
                let first = *number * CHUNK_BLOCKS;
                let last = used(usage, *number) == Some(BITMAP_FROM);
                *number += 1;
                if !blocks_of(part, last, first, item) {
                    return Err(self.malformed("block 4294967295"));
                }
            }
            Expected::Crc => {
                let stored = word(part, 0);
                if stored != self.crc {
                    let reason = format!("CRC {:08x} instead of {stored:08x}", self.crc);
                    return Err(Error::new(ErrorKind::Checksum, SUBJECT, reason).at(self.offset));
                }
                self.expected = Expected::Nothing;
            }
            Expected::Nothing => {}
        }
        self.offset += part.len() as u64;
        Ok(())
    }

    fn entry(&self, part: &[u8], item: &mut impl FnMut(WalSummaryItem)) -> Result<Expected> {
        if part.iter().all(|byte| *byte == 0) {
            return Ok(Expected::Crc);
        }
        let fork = Fork::from_number(word(part, 12))
            .map_err(|error| self.malformed(error.reason().to_owned()))?;
        let chunks = word(part, 20);
        if chunks > MAX_CHUNKS {
            return Err(self.malformed(format!("an entry of {chunks} chunks")));
        }
        item(WalSummaryItem::Relation {
            locator: RelFileLocator {
                tablespace: word(part, 0),
                database: word(part, 4),
                number: word(part, 8),
            },
            fork,
            limit_block: Some(word(part, 16)).filter(|limit| *limit != NO_LIMIT),
        });
        Ok(match chunks {
            0 => Expected::Entry,
            _ => Expected::Usage {
                chunks: chunks as usize,
            },
        })
    }
}

impl Expected {
    /// Bytes of the part that is expected; zero at the end.
    fn size(&self) -> usize {
        match self {
            Self::Magic | Self::Crc => 4,
            Self::Entry => ENTRY,
            Self::Usage { chunks } => chunks * 2,
            Self::Chunk { usage, number } => match used(usage, *number) {
                Some(BITMAP_FROM) => BITMAP_BYTES,
                Some(count) => count * 2,
                None => 0,
            },
            Self::Nothing => 0,
        }
    }
}

/// How many entries a chunk has; [`BITMAP_FROM`] stands for a bitmap.
fn used(usage: &[u8], number: u32) -> Option<usize> {
    let counts = usage.as_chunks::<2>().0;
    let count = counts.get(usize::try_from(number).ok()?)?;
    Some(u16::from_le_bytes(*count).into())
}

/// Hands out the blocks of a chunk; false when one is not a block number.
fn blocks_of(
    chunk: &[u8],
    bitmap: bool,
    first: BlockNumber,
    item: &mut impl FnMut(WalSummaryItem),
) -> bool {
    let mut hand_out = |offset: u16| {
        let block = first + u32::from(offset);
        if block != u32::MAX {
            item(WalSummaryItem::Block(block));
        }
        block != u32::MAX
    };
    if bitmap {
        return offsets_of(chunk).all(hand_out);
    }
    // The server appends to the list as blocks change.
    let words = chunk.as_chunks::<2>().0.iter();
    let mut offsets: Vec<u16> = words.map(|word| u16::from_le_bytes(*word)).collect();
    offsets.sort_unstable();
    offsets.dedup();
    offsets.into_iter().all(&mut hand_out)
}

/// The little-endian word at an offset of a part whose size was checked.
fn word(part: &[u8], at: usize) -> u32 {
    let bytes = part.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl BlockRefTable {
    /// Reads a whole summary file.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated), [`Malformed`](ErrorKind::Malformed) or
    /// [`Checksum`](ErrorKind::Checksum), as [`WalSummaryReader`].
    pub fn from_summary(file: &[u8]) -> Result<Self> {
        let mut table = Self::new();
        table.append_summary(|reader, item| reader.push(file, item))?;
        Ok(table)
    }

    /// Adds a summary that follows what this table describes, read in pieces: `read` pushes them.
    ///
    /// # Errors
    /// What `read` returns, and [`Truncated`](ErrorKind::Truncated); the table is then of no use.
    pub fn append_summary<E: From<Error>>(
        &mut self,
        read: impl FnOnce(
            &mut WalSummaryReader,
            &mut dyn FnMut(WalSummaryItem),
        ) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut reader = WalSummaryReader::new();
        let mut about = None;
        read(&mut reader, &mut |item| match item {
            WalSummaryItem::Relation {
                locator,
                fork,
                limit_block,
            } => {
                about = Some((locator, fork));
                if let Some(limit) = limit_block {
                    self.limit(locator, fork, limit);
                }
            }
            WalSummaryItem::Block(block) => {
                if let Some((locator, fork)) = about {
                    self.mark(locator, fork, block);
                }
            }
        })?;
        reader.finish().map_err(E::from)
    }

    /// Writes the table as a summary file, handing its bytes to `write` piece by piece.
    ///
    /// # Errors
    /// Only those of `write`.
    pub fn write_summary<E>(
        &self,
        mut write: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut crc = 0;
        let mut put = |bytes: &[u8]| {
            crc = crc32c::crc32c_append(crc, bytes);
            write(bytes)
        };
        put(&MAGIC.to_le_bytes())?;
        for (locator, fork, refs) in self.iter() {
            let mut usage = Vec::new();
            for (number, chunk) in refs.encoded_chunks() {
                let count = match chunk {
                    EncodedChunk::Offsets(offsets) => offsets.len(),
                    EncodedChunk::Bitmap(_) => BITMAP_FROM,
                };
                usage.resize(usize::from(number), 0);
                usage.push(u16::try_from(count).unwrap_or(u16::MAX));
            }
            let limit = refs.limit_block().unwrap_or(NO_LIMIT);
            let chunks = u32::try_from(usage.len()).unwrap_or(u32::MAX);
            let fields = [
                locator.tablespace,
                locator.database,
                locator.number,
                fork.number().into(),
                limit,
                chunks,
            ];
            put(fields.map(u32::to_le_bytes).as_flattened())?;
            put(&words(&usage))?;
            for (_, chunk) in refs.encoded_chunks() {
                match chunk {
                    EncodedChunk::Offsets(offsets) => put(&words(offsets))?,
                    EncodedChunk::Bitmap(bits) => put(bits)?,
                }
            }
        }
        put(&[0; ENTRY])?;
        write(&crc.to_le_bytes())
    }
}

fn words(values: &[u16]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BlockRefTable {
        let locator = |number| RelFileLocator {
            tablespace: 1663,
            database: 5,
            number,
        };
        let mut table = BlockRefTable::new();
        table.limit(locator(0), Fork::Main, 0);
        for block in [0, 7, 65_536, 200_000, u32::MAX - 1] {
            table.mark(locator(16384), Fork::Main, block);
        }
        for block in 70_000..80_000 {
            table.mark(locator(16384), Fork::VisibilityMap, block);
        }
        table.limit(locator(16385), Fork::Init, 12);
        table
    }

    fn written(table: &BlockRefTable) -> Vec<u8> {
        let mut bytes = Vec::new();
        let put = table.write_summary(|part| {
            bytes.extend_from_slice(part);
            Ok::<(), Error>(())
        });
        put.unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size() {
        let table = sample();
        let bytes = written(&table);
        assert_eq!(BlockRefTable::from_summary(&bytes).unwrap(), table);
        for size in [1, 3, 7, 24, 4096] {
            let mut again = BlockRefTable::new();
            again
                .append_summary(|reader, item| {
                    bytes
                        .chunks(size)
                        .try_for_each(|piece| reader.push(piece, &mut *item))
                })
                .unwrap();
            assert_eq!(again, table);
        }
        assert_eq!(written(&BlockRefTable::new()).len(), 32);
    }

    #[test]
    fn a_cut_or_damaged_summary_is_refused() {
        let bytes = written(&sample());
        for len in (0..bytes.len()).step_by(1499) {
            let error = BlockRefTable::from_summary(&bytes[..len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{len} bytes");
        }
        for offset in (0..bytes.len()).step_by(1511) {
            let mut bad = bytes.clone();
            bad[offset] ^= 4;
            assert!(
                BlockRefTable::from_summary(&bad).is_err(),
                "offset {offset}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        let error = BlockRefTable::from_summary(&longer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
    }

    #[test]
    fn an_entry_that_announces_much_costs_nothing() {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for field in [1663, 5, 16384, 0, NO_LIMIT, u32::MAX] {
            bytes.extend_from_slice(&u32::to_le_bytes(field));
        }
        let error = BlockRefTable::from_summary(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
    }

    #[test]
    fn names_round_trip_and_others_are_refused() {
        let text = "0000000100000000010000280000000001532530.summary";
        let name: WalSummaryName = text.parse().unwrap();
        assert_eq!((name.start, name.end), (Lsn(0x100_0028), Lsn(0x153_2530)));
        assert_eq!(name.to_string(), text);
        for text in [
            "",
            "temp.summary",
            "0000000100000000010000280000000001532530",
            "0000000000000000010000280000000001532530.summary",
            "0000000100000000015325300000000001532530.summary",
            "000000010000000001000028000000000153253g.summary",
        ] {
            assert!(text.parse::<WalSummaryName>().is_err(), "{text}");
        }
    }
}
