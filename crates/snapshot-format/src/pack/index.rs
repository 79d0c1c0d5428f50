//! Reading a pack's directory. Nothing here reads: each step says which range of the pack it needs.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::directory::{
    FOOTER_SIZE, Flags, Footer, HEADER_SIZE, PackId, RECORD_SIZE, ROOT_ENTRY, ROOT_HEAD,
    TABLE_FRAMES, TABLE_HEAD, take_record,
};
use crate::pack::frame::{FrameContext, FrameRecord, digest16};
use crate::pack::wire::Fields;
use crate::pack::write::SnapshotRoot;

/// Fetched at once from the end of a pack: holds footer and root of packs below half a terabyte.
const TAIL: u64 = 64 << 10;

/// What to do next.
#[derive(Debug)]
pub enum Step<T> {
    /// Read this range of the pack, whole, and come again with its bytes.
    Read(Range<u64>),
    /// Done.
    Done(T),
}

/// A pack being opened: one read of its end, for large packs a second.
#[derive(Debug)]
pub struct Opening {
    length: u64,
    range: Range<u64>,
    footer: Option<Footer>,
}

impl Opening {
    /// Begins to open a pack of this length.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) when it is too short to be one.
    pub fn new(length: u64) -> Result<Self> {
        if length < (HEADER_SIZE + FOOTER_SIZE + ROOT_HEAD) as u64 {
            return Err(Error::malformed("pack", "is too short to be one"));
        }
        let range = length.saturating_sub(TAIL)..length;
        Ok(Self {
            length,
            range,
            footer: None,
        })
    }

    /// The range to read first.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Takes the bytes of the range that was asked for last.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) or [`Damaged`](ErrorKind::Damaged) for what is no whole pack;
    /// [`Unsupported`](ErrorKind::Unsupported) for a newer version or an addition that must be known.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step<PackIndex>> {
        if bytes.len() as u64 != self.range.end - self.range.start {
            return Err(Error::malformed("pack", "gave fewer bytes than it has"));
        }
        let Some(footer) = self.footer else {
            let at = bytes.len().saturating_sub(FOOTER_SIZE);
            let footer = Footer::parse(bytes.get(at..).unwrap_or_default(), self.length)?;
            self.footer = Some(footer);
            let root_end = footer.root_offset + u64::from(footer.root_length);
            let tail = self.range.clone();
            if footer.root_offset < tail.start {
                self.range = footer.root_offset..root_end;
                return Ok(Step::Read(self.range.clone()));
            }
            let from = usize::try_from(footer.root_offset - tail.start).unwrap_or(usize::MAX);
            return PackIndex::new(footer, bytes.get(from..at).unwrap_or_default()).map(Step::Done);
        };
        PackIndex::new(footer, bytes).map(Step::Done)
    }
}

/// The upper level of a pack's directory: where the tables of frames are.
#[derive(Debug, Clone)]
pub struct PackIndex {
    footer: Footer,
    tables: Vec<(u64, [u8; 16])>,
}

/// A table to be read, and then given to [`PackIndex::table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRef {
    /// Its number, by which it can be kept.
    pub number: u64,
    /// Where it is in the pack.
    pub range: Range<u64>,
}

impl PackIndex {
    fn new(footer: Footer, root: &[u8]) -> Result<Self> {
        if *blake3::hash(root).as_bytes() != footer.root_digest {
            return Err(Error::new(
                ErrorKind::Damaged,
                "directory of a pack",
                "its digest is wrong",
            ));
        }
        let mut fields = Fields::new("directory of a pack", root);
        let count = fields.u32()?;
        fields.take(4)?;
        // The footer was checked against its length, so the count is bounded by what is in memory.
        let mut tables = Vec::with_capacity(root.len() / ROOT_ENTRY);
        for _ in 0..count {
            tables.push((fields.u64()?, fields.array()?));
        }
        fields.end()?;
        Ok(Self { footer, tables })
    }

    /// The pack's identity.
    #[must_use]
    pub fn id(&self) -> PackId {
        self.footer.id
    }

    /// Additions to the format that it uses.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.footer.flags
    }

    /// How many frames it has.
    #[must_use]
    pub fn frame_count(&self) -> u64 {
        self.footer.frame_count
    }

    /// How many of the first frames are needed at once by a server that starts.
    #[must_use]
    pub fn start_up_frames(&self) -> u64 {
        self.footer.start_up_frames
    }

    /// The frames that describe a whole snapshot, if it holds one.
    #[must_use]
    pub fn snapshot(&self) -> Option<SnapshotRoot> {
        let (frame, count) = (self.footer.snapshot_frame, self.footer.snapshot_frames);
        (count > 0).then_some(SnapshotRoot { frame, count })
    }

    /// The digest that vouches for every byte of the pack.
    #[must_use]
    pub fn root_digest(&self) -> &[u8; 32] {
        &self.footer.root_digest
    }

    /// The table that has the record of this frame.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the pack has no such frame; [`Malformed`](ErrorKind::Malformed)
    /// when the table would lie outside of it.
    pub fn table_of(&self, frame: u64) -> Result<TableRef> {
        let number = frame / u64::from(TABLE_FRAMES);
        let known = usize::try_from(number)
            .ok()
            .and_then(|index| self.tables.get(index));
        let Some((offset, _)) = known.filter(|_| frame < self.footer.frame_count) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("frame {frame} of pack {}", self.footer.id),
                "the pack has no such frame",
            ));
        };
        let frames =
            (self.footer.frame_count - number * u64::from(TABLE_FRAMES)).min(TABLE_FRAMES.into());
        let end = offset.checked_add(TABLE_HEAD as u64 + frames * RECORD_SIZE as u64);
        match end {
            Some(end) if end <= self.footer.root_offset => Ok(TableRef {
                number,
                range: *offset..end,
            }),
            _ => Err(Error::malformed(
                "directory of a pack",
                "a table lies outside of it",
            )),
        }
    }

    /// Decodes a table.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when the bytes are not the table's; [`Malformed`](ErrorKind::Malformed).
    pub fn table(&self, which: &TableRef, bytes: &[u8]) -> Result<FrameTable> {
        let known = usize::try_from(which.number)
            .ok()
            .and_then(|index| self.tables.get(index));
        if known.map(|(_, digest)| *digest) != Some(digest16(bytes)) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("table {} of pack {}", which.number, self.footer.id),
                "its digest is wrong",
            ));
        }
        let mut fields = Fields::new("table of a pack", bytes);
        let (first, mut offset, count) = (fields.u64()?, fields.u64()?, fields.u32()?);
        fields.take(4)?;
        let mut records = Vec::with_capacity(bytes.len() / RECORD_SIZE);
        for frame in first..first.saturating_add(count.into()) {
            let context = FrameContext {
                pack: self.footer.id,
                frame,
            };
            let record = take_record(&mut fields, context, offset)?;
            offset = record.range().end;
            records.push(record);
        }
        fields.end()?;
        if first != which.number * u64::from(TABLE_FRAMES) || offset > which.range.start {
            return Err(Error::malformed("table of a pack", "is not where it says"));
        }
        Ok(FrameTable { first, records })
    }
}

/// The records of up to 2048 neighbouring frames.
#[derive(Debug, Clone)]
pub struct FrameTable {
    first: u64,
    records: Vec<FrameRecord>,
}

impl FrameTable {
    /// The record of a frame.
    #[must_use]
    pub fn frame(&self, frame: u64) -> Option<&FrameRecord> {
        let index = usize::try_from(frame.checked_sub(self.first)?).ok()?;
        self.records.get(index)
    }
}
