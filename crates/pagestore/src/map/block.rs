//! Record blocks: what a run says about neighbouring files. `docs/formats/page-map.md` has the bytes.
//!
//! A file with many extents goes over several blocks: the first part has its state, the others ("rest") only
//! the limit, so that a page is looked up in one block.

use bytes::{Buf, BufMut};
use neon_snapshot_format::pack::FRAME_SIZE;
use neon_snapshot_format::{Owner, SnapshotPath};

use crate::error::{Error, ErrorKind, Result};
use crate::map::frame_table::{FrameTableBuilder, get_frame_table};
use crate::map::machine::malformed;
use crate::map::wire::{
    cut, get_bytes, get_count, get_number, get_path, get_varint, put_path, put_varint,
};
use crate::map::{At, Attributes, Extent, FileKind, FileState, FrameRef, KEEP_ALL};

pub(crate) const BLOCK_MAGIC: &[u8; 4] = b"NMB1";
/// Pages with digests in a block at most: their digests, with a few bytes before them, fill a frame.
pub(crate) const MAX_PAGES: u32 = 8160;
/// Bytes of all paths of a block at most, for what they share with each other is written once.
const MAX_PATHS: usize = 1 << 20;
/// Pages of 1 KiB in a frame.
pub(crate) const MAX_EXTENT: u32 = 128;
/// Paths and places are not longer than a system accepts.
const MAX_LOCATION: usize = 4095;

const STATE: u8 = 0b11;
const SAME: u8 = 0;
const PRESENT: u8 = 1;
const REMOVED: u8 = 2;
const REST: u8 = 3;
const KIND_SHIFT: u8 = 2;
const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const TABLESPACE: u8 = 2;
/// User and group follow.
const OWNED: u8 = 0b1_0000;
/// Pages of older runs are seen as far as the file reaches.
const LIMIT_IS_SIZE: u8 = 0b10_0000;
/// Mode and owner are those of the last file that had any in this block.
const LIKE_LAST: u8 = 0b100_0000;

/// The low four bits of an extent's first number.
const TAG_BITS: u32 = 4;
const ZEROS: u64 = 9;
const LAST_FRAME: u64 = 0;
const NEXT_FRAME: u64 = 3;
const NAMED_FRAME: u64 = 6;
const CONTINUES: u64 = 0;
const OFFSET_IN_PAGES: u64 = 1;
const OFFSET_IN_BYTES: u64 = 2;

/// A decoded record block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) page_size: u32,
    pub(crate) frames: Vec<FrameRef>,
    pub(crate) parts: Vec<Part>,
    pub(crate) extents: Vec<PackedExtent>,
    /// Pages that are not zero.
    pub(crate) pages: u32,
}

/// What a block says about one file.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) path: SnapshotPath,
    /// Nothing when an earlier block has it.
    pub(crate) state: Option<FileState>,
    /// Pages of older runs are seen below it, within the pages that this part is about.
    pub(crate) limit: u32,
    /// Its extents are those from `first` up to `end`.
    pub(crate) first: u32,
    pub(crate) end: u32,
}

/// An extent whose frame is a number in the block's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedExtent {
    pub(crate) page: u32,
    pub(crate) count: u32,
    /// [`NO_FRAME`] for zeros.
    pub(crate) frame: u32,
    pub(crate) offset: u32,
    /// The number of its first page's digest.
    pub(crate) digest: u32,
}

pub(crate) const NO_FRAME: u32 = u32::MAX;

impl PackedExtent {
    pub(crate) const fn end(&self) -> u32 {
        self.page + self.count
    }
}

impl Block {
    pub(crate) fn extents_of(&self, part: &Part) -> &[PackedExtent] {
        self.extents
            .get(part.first as usize..part.end as usize)
            .unwrap_or_default()
    }

    pub(crate) fn unpack(&self, extent: &PackedExtent) -> Extent {
        let at = match self.frames.get(extent.frame as usize) {
            Some(frame) => At::Frame {
                frame: *frame,
                offset: extent.offset,
            },
            None => At::Zeros,
        };
        Extent {
            page: extent.page,
            count: extent.count,
            at,
        }
    }

    /// The part about a file.
    pub(crate) fn part(&self, path: &SnapshotPath) -> Option<&Part> {
        let found = self.parts.binary_search_by(|part| part.path.cmp(path));
        self.parts.get(found.ok()?)
    }

    pub(crate) fn memory(&self) -> usize {
        let paths: usize = self
            .parts
            .iter()
            .map(|part| part.path.as_bytes().len())
            .sum();
        size_of::<Self>()
            + paths
            + self.parts.capacity() * size_of::<Part>()
            + self.frames.capacity() * size_of::<FrameRef>()
            + self.extents.capacity() * size_of::<PackedExtent>()
    }
}

/// How the limit of a file follows from its size.
pub(crate) fn pages_of(size: u64, page_size: u32) -> u32 {
    u32::try_from(size.div_ceil(page_size.max(1).into())).unwrap_or(u32::MAX)
}

/// Page sizes that PostgreSQL can be built with.
pub(crate) fn check_page_size(page_size: u32) -> Result<()> {
    if page_size.is_power_of_two() && (1024..=32768).contains(&page_size) {
        return Ok(());
    }
    Err(malformed("its pages are not of a size that exists"))
}

/// Whether an extent is one that a frame can hold.
pub(crate) fn extent_fits(extent: &Extent, page_size: u32) -> bool {
    let in_file = extent.count > 0 && extent.page.checked_add(extent.count).is_some();
    in_file
        && match &extent.at {
            At::Zeros => true,
            At::Frame { frame, offset } => {
                let last = u64::from(extent.count - 1) * u64::from(page_size) + u64::from(*offset);
                last < u64::from(frame.plain_length) && last < FRAME_SIZE as u64
            }
        }
}

/// What makes an extent short when it follows the one before it.
#[derive(Debug, Default)]
struct Follows {
    /// The frame named last.
    last: Option<u32>,
    /// Where the page after the last one named would begin there.
    offset: u64,
    /// The first frame that was never named.
    next: u32,
}

impl Follows {
    fn moved_to(&mut self, frame: u32, offset: u32, count: u32, page_size: u32) {
        self.last = Some(frame);
        self.offset = u64::from(offset) + u64::from(count) * u64::from(page_size);
        self.next = self.next.max(frame.saturating_add(1));
    }
}

/// The mode and owner of a file, and its time.
#[derive(Debug, Clone, Default)]
struct LastFile {
    mode: u32,
    owner: Option<Owner>,
    modified: i64,
}

/// Writes one block.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    page_size: u32,
    frames: FrameTableBuilder,
    numbers: std::collections::HashMap<FrameRef, u32>,
    follows: Follows,
    last: LastFile,
    path: Vec<u8>,
    path_bytes: usize,
    /// Parts that are closed.
    parts: Vec<u8>,
    part_count: u64,
    /// The open part's beginning and extents.
    head: Vec<u8>,
    extents: Vec<u8>,
    extent_count: u64,
    page: u32,
    open: bool,
    pages: u32,
}

impl BlockBuilder {
    pub(crate) fn new(page_size: u32) -> Self {
        Self {
            page_size,
            frames: FrameTableBuilder::default(),
            numbers: std::collections::HashMap::new(),
            follows: Follows::default(),
            last: LastFile::default(),
            path: Vec::new(),
            path_bytes: 0,
            parts: Vec::new(),
            part_count: 0,
            head: Vec::new(),
            extents: Vec::new(),
            extent_count: 0,
            page: 0,
            open: false,
            pages: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.part_count == 0 && !self.open
    }

    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether the open part has an extent: only then the file can go on in another block.
    pub(crate) fn has_pages(&self) -> bool {
        self.extent_count > 0
    }

    /// Bytes so far, or a little more.
    pub(crate) fn size(&self) -> usize {
        40 + self.frames.size() + self.parts.len() + self.head.len() + self.extents.len()
    }

    /// Bytes once a part of this path, with one extent, is added; or a little more.
    pub(crate) fn size_with_part(&self, path: &SnapshotPath, state: &FileState) -> usize {
        let location = match state {
            FileState::Present { attributes, .. } => match &attributes.kind {
                FileKind::Tablespace { location, .. } => location.as_ref().map_or(0, Vec::len),
                _ => 0,
            },
            _ => 0,
        };
        let length = path.as_bytes().len();
        if self.path_bytes + length > MAX_PATHS {
            return usize::MAX;
        }
        self.size() + length + location + 256
    }

    /// Bytes once an extent is added, or a little more.
    pub(crate) fn size_with_extent(&self) -> usize {
        self.size() + 160
    }

    /// Begins the part about a file: its state, or the limit where an earlier block has the state.
    pub(crate) fn begin(
        &mut self,
        path: &SnapshotPath,
        state: std::result::Result<&FileState, u32>,
    ) -> Result<()> {
        self.close();
        self.open = true;
        self.page = 0;
        put_path(&mut self.head, &self.path, path.as_bytes());
        self.path = path.as_bytes().to_vec();
        self.path_bytes += self.path.len();
        match state {
            Ok(FileState::Same) => self.head.put_u8(SAME),
            Ok(FileState::Removed) => self.head.put_u8(REMOVED),
            Ok(FileState::Present { attributes, limit }) => {
                self.put_attributes(path, attributes, *limit)?;
            }
            Err(limit) => {
                self.head.put_u8(REST);
                put_varint(&mut self.head, limit.into());
            }
        }
        Ok(())
    }

    fn put_attributes(&mut self, path: &SnapshotPath, of: &Attributes, limit: u32) -> Result<()> {
        let (kind, size) = match &of.kind {
            FileKind::File { size } => (FILE, *size),
            FileKind::Directory => (DIRECTORY, 0),
            FileKind::Tablespace { .. } => (TABLESPACE, 0),
        };
        let like_last = self.last.mode == of.mode && self.last.owner == of.owner;
        let limit_is_size = limit == pages_of(size, self.page_size);
        let head = &mut self.head;
        head.put_u8(
            PRESENT
                | kind << KIND_SHIFT
                | if of.owner.is_some() { OWNED } else { 0 }
                | if limit_is_size { LIMIT_IS_SIZE } else { 0 }
                | if like_last { LIKE_LAST } else { 0 },
        );
        if !like_last {
            put_varint(head, of.mode.into());
            if let Some(owner) = of.owner {
                put_varint(head, owner.uid.into());
                put_varint(head, owner.gid.into());
            }
        }
        let moved = of.modified.wrapping_sub(self.last.modified);
        put_varint(head, (moved << 1 ^ moved >> 63).cast_unsigned());
        match &of.kind {
            FileKind::File { size } => put_varint(head, *size),
            FileKind::Directory => {}
            FileKind::Tablespace { oid, location } => {
                let length = location.as_ref().map_or(0, Vec::len);
                if length > MAX_LOCATION {
                    return Err(Error::new(
                        ErrorKind::Limit,
                        path.to_string(),
                        "the place of a tablespace has more than 4095 bytes",
                    ));
                }
                put_varint(head, (*oid).into());
                put_varint(head, location.as_ref().map_or(0, |_| length as u64 + 1));
                head.extend_from_slice(location.as_deref().unwrap_or_default());
            }
        }
        if !limit_is_size {
            put_varint(head, limit.into());
        }
        self.last = LastFile {
            mode: of.mode,
            owner: of.owner,
            modified: of.modified,
        };
        Ok(())
    }

    /// Appends an extent to the open part. It has been checked and follows the one before.
    pub(crate) fn extent(&mut self, extent: &Extent) {
        let gap = extent.page.saturating_sub(self.page);
        let count = u64::from(extent.count) << TAG_BITS;
        put_varint(&mut self.extents, gap.into());
        match &extent.at {
            At::Zeros => put_varint(&mut self.extents, count | ZEROS),
            At::Frame { frame, offset } => {
                self.place(frame, *offset, extent.count, count);
                self.pages += extent.count;
            }
        }
        self.page = extent.end();
        self.extent_count += 1;
    }

    fn place(&mut self, frame: &FrameRef, offset: u32, pages: u32, count: u64) {
        let frames = &mut self.frames;
        let number = *self
            .numbers
            .entry(*frame)
            .or_insert_with(|| u32::try_from(frames.push(frame)).unwrap_or(NO_FRAME));
        let (which, expected) = if self.follows.last == Some(number) {
            (LAST_FRAME, self.follows.offset)
        } else if number == self.follows.next {
            (NEXT_FRAME, 0)
        } else {
            (NAMED_FRAME, 0)
        };
        let (how, written) = if u64::from(offset) == expected {
            (CONTINUES, None)
        } else if offset.is_multiple_of(self.page_size) {
            (OFFSET_IN_PAGES, Some(offset / self.page_size))
        } else {
            (OFFSET_IN_BYTES, Some(offset))
        };
        put_varint(&mut self.extents, count | (which + how));
        if which == NAMED_FRAME {
            put_varint(&mut self.extents, number.into());
        }
        if let Some(written) = written {
            put_varint(&mut self.extents, written.into());
        }
        self.follows.moved_to(number, offset, pages, self.page_size);
    }

    fn close(&mut self) {
        if self.open {
            self.parts.append(&mut self.head);
            put_varint(&mut self.parts, self.extent_count);
            self.parts.append(&mut self.extents);
            self.part_count += 1;
            self.extent_count = 0;
            self.open = false;
        }
    }

    /// The bytes of the block and how many parts it has.
    pub(crate) fn finish(mut self) -> (Vec<u8>, u32) {
        self.close();
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(BLOCK_MAGIC);
        out.extend(u8::try_from(self.page_size.trailing_zeros()));
        self.frames.put(&mut out);
        put_varint(&mut out, self.part_count);
        out.extend_from_slice(&self.parts);
        (out, u32::try_from(self.part_count).unwrap_or(u32::MAX))
    }
}

/// Reads a block; its magic has been read.
pub(crate) fn decode_block(mut from: &[u8]) -> Result<Block> {
    let from = &mut from;
    let exponent = from.try_get_u8().map_err(cut)?;
    let page_size = 1u32.checked_shl(exponent.into()).unwrap_or(0);
    check_page_size(page_size)?;
    let frames = get_frame_table(from)?;
    let part_count = get_count(from, 4)?;
    let mut block = Block {
        page_size,
        frames,
        parts: Vec::with_capacity(part_count),
        extents: Vec::new(),
        pages: 0,
    };
    let (mut last, mut follows) = (LastFile::default(), Follows::default());
    let mut path_bytes = 0;
    for _ in 0..part_count {
        let before = block.parts.last().map(|part| part.path.as_bytes());
        let path = get_path(from, before.unwrap_or_default())?;
        if block.parts.last().is_some_and(|part| part.path >= path) {
            return Err(malformed("its files are not in order"));
        }
        path_bytes += path.as_bytes().len();
        if path_bytes > MAX_PATHS {
            return Err(malformed("its paths are too long together"));
        }
        let (state, limit) = get_state(from, page_size, &mut last)?;
        if state.is_none() && !block.parts.is_empty() {
            return Err(malformed("continues a file where none can"));
        }
        let first = block.extents.len();
        let extent_count = get_count(from, 2)?;
        let has_pages = !matches!(state, Some(FileState::Removed));
        if extent_count > 0 && !has_pages {
            return Err(malformed("a removed file has pages"));
        }
        if extent_count == 0 && state.is_none() {
            return Err(malformed("continues a file with nothing"));
        }
        let mut page = 0;
        for _ in 0..extent_count {
            let extent = get_extent(from, page, &mut block, &mut follows)?;
            page = extent.end();
            block.extents.push(extent);
        }
        block.parts.push(Part {
            path,
            state,
            limit,
            first: u32::try_from(first).unwrap_or(u32::MAX),
            end: u32::try_from(block.extents.len()).unwrap_or(u32::MAX),
        });
    }
    if block.parts.is_empty() || !from.is_empty() || block.pages > MAX_PAGES {
        return Err(malformed("holds more or less than a block does"));
    }
    Ok(block)
}

fn get_state(
    from: &mut &[u8],
    page_size: u32,
    last: &mut LastFile,
) -> Result<(Option<FileState>, u32)> {
    let byte = from.try_get_u8().map_err(cut)?;
    match byte & STATE {
        SAME => return Ok((Some(FileState::Same), KEEP_ALL)),
        REMOVED => return Ok((Some(FileState::Removed), 0)),
        REST => return Ok((None, get_number(from)?)),
        _ => {}
    }
    if byte & LIKE_LAST == 0 {
        last.mode = get_number(from)?;
        last.owner = if byte & OWNED != 0 {
            Some(Owner {
                uid: get_number(from)?,
                gid: get_number(from)?,
            })
        } else {
            None
        };
    }
    let moved = get_varint(from)?;
    let moved = (moved >> 1).cast_signed() ^ -((moved & 1).cast_signed());
    last.modified = last.modified.wrapping_add(moved);
    let (kind, size) = match byte >> KIND_SHIFT & 0b11 {
        FILE => {
            let size = get_varint(from)?;
            (FileKind::File { size }, size)
        }
        DIRECTORY => (FileKind::Directory, 0),
        TABLESPACE => {
            let oid = get_number(from)?;
            let length: usize = get_number(from)?;
            let location = match length.checked_sub(1) {
                Some(length) if length > MAX_LOCATION => {
                    return Err(malformed("the place of a tablespace is too long"));
                }
                Some(length) => Some(get_bytes(from, length)?.to_vec()),
                None => None,
            };
            (FileKind::Tablespace { oid, location }, 0)
        }
        _ => return Err(malformed("an entry of an unknown kind")),
    };
    let limit = if byte & LIMIT_IS_SIZE != 0 {
        pages_of(size, page_size)
    } else {
        get_number(from)?
    };
    let attributes = Attributes {
        kind,
        mode: last.mode,
        owner: last.owner,
        modified: last.modified,
    };
    Ok((Some(FileState::Present { attributes, limit }), limit))
}

fn get_extent(
    from: &mut &[u8],
    page: u32,
    block: &mut Block,
    follows: &mut Follows,
) -> Result<PackedExtent> {
    let gap: u32 = get_number(from)?;
    let first = get_varint(from)?;
    let count = u32::try_from(first >> TAG_BITS).map_err(|_| malformed("too long an extent"))?;
    let page = page
        .checked_add(gap)
        .ok_or_else(|| malformed("pages beyond the last possible"))?;
    let tag = first & ((1 << TAG_BITS) - 1);
    let mut extent = PackedExtent {
        page,
        count,
        frame: NO_FRAME,
        offset: 0,
        digest: block.pages,
    };
    if tag < ZEROS {
        let (number, expected) = match tag / 3 * 3 {
            LAST_FRAME => {
                let last = follows
                    .last
                    .ok_or_else(|| malformed("an extent follows none"))?;
                (last, follows.offset)
            }
            NEXT_FRAME => (follows.next, 0),
            _ => (get_number(from)?, 0),
        };
        let offset = match tag % 3 {
            CONTINUES => expected,
            OFFSET_IN_PAGES => get_varint(from)?.saturating_mul(block.page_size.into()),
            _ => get_varint(from)?,
        };
        extent.frame = number;
        extent.offset =
            u32::try_from(offset).map_err(|_| malformed("pages beyond the end of a frame"))?;
        if block.frames.get(number as usize).is_none() {
            return Err(malformed("an extent in a frame that is not listed"));
        }
        follows.moved_to(number, extent.offset, count, block.page_size);
    } else if tag > ZEROS {
        return Err(malformed("an extent of an unknown kind"));
    }
    if !extent_fits(&block.unpack(&extent), block.page_size) {
        return Err(malformed("an extent that no frame holds"));
    }
    if tag < ZEROS {
        block.pages = block.pages.saturating_add(count);
    }
    Ok(extent)
}
