//! One record of the log: its header, its block references, its data.
//!
//! Layout (`access/xlogrecord.h`): a header of 24 bytes; items, each opened by an id byte (0 to 32 a
//! block reference, 252 the top-level transaction, 253 the origin, 254 and 255 the length of the
//! main data, always last); then per block its image and its data; then the main data. The checks
//! are those of PostgreSQL's `DecodeXLogRecord` and a few more that cost nothing.

use std::fmt;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::page::BlockSize;
use crate::relation::{BlockNumber, Fork, RelFileLocator};
use crate::timeline::TimelineId;
use crate::version::VersionLayout;
use crate::wal::rmgr::ResourceManager;

const SUBJECT: &str = "WAL record";

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordHeader {
    /// Bytes of the whole record, header included, padding not.
    pub total_len: u32,
    /// The transaction that wrote it; 0 for none.
    pub xid: u32,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// The resource manager's code in the high half, flags in the low half.
    pub info: u8,
    /// Who wrote it and would replay it.
    pub rmgr: ResourceManager,
    /// CRC-32C of everything after the header, then of the header up to here.
    pub crc: u32,
}

impl RecordHeader {
    /// Bytes of the header.
    pub const SIZE: usize = 24;
    /// Bytes of the header that the CRC covers.
    const BEFORE_CRC: usize = 20;

    pub(super) fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let [
            l0,
            l1,
            l2,
            l3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            rmgr,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = *bytes;
        Self {
            total_len: u32::from_le_bytes([l0, l1, l2, l3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            previous: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmgr: ResourceManager(rmgr),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// The resource manager's own code: the high half of `info`, the low half zero.
    #[must_use]
    pub const fn code(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether the record changes relation files other than through its block references
    /// (`XLR_SPECIAL_REL_UPDATE`).
    #[must_use]
    pub const fn is_special_update(&self) -> bool {
        self.info & 0x01 != 0
    }

    /// Whether the record carries images only so that replay can be checked against them
    /// (`XLR_CHECK_CONSISTENCY`).
    #[must_use]
    pub const fn checks_consistency(&self) -> bool {
        self.info & 0x02 != 0
    }
}

/// The checksum a record must carry.
pub(super) fn crc_of(record: &[u8]) -> Option<u32> {
    let (header, body) = record.split_at_checked(RecordHeader::SIZE)?;
    let header = header.get(..RecordHeader::BEFORE_CRC)?;
    Some(crc32c::crc32c_append(crc32c::crc32c(body), header))
}

/// What decoding a record needs to know about the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordFormat {
    pub(super) layout: &'static VersionLayout,
    pub(super) block_size: BlockSize,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) lsn: Lsn,
    pub(super) end: Lsn,
    pub(super) timeline: TimelineId,
}

/// One record of the log, checked and borrowed from the bytes it was read from.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    place: Place,
    header: RecordHeader,
    format: RecordFormat,
    items: &'a [u8],
    payload: &'a [u8],
    main_data: &'a [u8],
    block_count: u8,
    origin: Option<u16>,
    toplevel_xid: Option<u32>,
}

impl<'a> Record<'a> {
    /// Reads the record that fills `bytes`, whose header (but not its CRC) was checked.
    #[inline(always)]
    pub(super) fn decode(bytes: &'a [u8], place: Place, format: RecordFormat) -> Result<Self> {
        Self::decode_unplaced(bytes, place, format).map_err(|error| at_record(&error, place.lsn))
    }

    #[inline(always)]
    fn decode_unplaced(bytes: &'a [u8], place: Place, format: RecordFormat) -> Result<Self> {
        let mut at = Cursor::new(SUBJECT, bytes);
        let header = RecordHeader::decode(&at.array()?);
        let mut items = Items {
            at,
            relation: None,
            highest_id: None,
            format,
        };
        let (mut payload, mut main) = (0, 0);
        let (mut block_count, mut origin, mut toplevel_xid) = (0, None, None);
        while items.at.remaining() > payload {
            let id = items.at.u8()?;
            if id <= HIGHEST_BLOCK_ID {
                block_count += 1;
                payload += items.block(id)?.payload_len();
                continue;
            }
            match items.other(id)? {
                Item::MainData(len) => {
                    main = len as usize;
                    payload += main;
                    break;
                }
                Item::Origin(number) => origin = Some(number),
                Item::ToplevelXid(xid) => toplevel_xid = Some(xid),
            }
        }
        let left = items.at.remaining();
        if left != payload {
            return Err(Error::malformed(
                SUBJECT,
                format!("its items announce {payload} bytes of data, {left} follow"),
            ));
        }
        let split = items.at.position();
        let (items, payload) = bytes.split_at(split);
        let (payload, main_data) = payload.split_at(left - main);
        Ok(Self {
            place,
            header,
            format,
            items: items.get(RecordHeader::SIZE..).unwrap_or_default(),
            payload,
            main_data,
            block_count,
            origin,
            toplevel_xid,
        })
    }

    /// Where the record begins.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        self.place.lsn
    }

    /// Where the record ends and the next may begin; what replay writes into the pages it changes.
    ///
    /// For a record that switches segments, the end of its segment.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.place.end
    }

    /// The timeline of the page on which the record begins.
    ///
    /// The page on which a new timeline starts still carries the number of the old one.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.place.timeline
    }

    /// The fixed part.
    #[must_use]
    pub const fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The layout of the major version that wrote the record.
    #[must_use]
    pub const fn layout(&self) -> &'static VersionLayout {
        self.format.layout
    }

    /// Bytes of a block of a relation.
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.format.block_size
    }

    /// The data that belongs to no block.
    #[must_use]
    pub const fn main_data(&self) -> &'a [u8] {
        self.main_data
    }

    /// The replication origin, when one was set.
    #[must_use]
    pub const fn origin(&self) -> Option<u16> {
        self.origin
    }

    /// The top-level transaction, where the record tells it to logical decoding (14 and later).
    #[must_use]
    pub const fn toplevel_xid(&self) -> Option<u32> {
        self.toplevel_xid
    }

    /// How many blocks the record refers to.
    #[must_use]
    pub const fn block_count(&self) -> usize {
        self.block_count as usize
    }

    /// The blocks the record refers to, ids ascending.
    #[must_use]
    pub const fn blocks(&self) -> Blocks<'a> {
        Blocks {
            left: self.block_count,
            items: Items {
                at: Cursor::new(SUBJECT, self.items),
                relation: None,
                highest_id: None,
                format: self.format,
            },
            payload: Cursor::new(SUBJECT, self.payload),
        }
    }

    /// An error about this record.
    pub(super) fn error(&self, kind: ErrorKind, reason: String) -> Error {
        Error::new(kind, SUBJECT, reason).at_lsn(self.lsn())
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("lsn", &self.place.lsn)
            .field("end", &self.place.end)
            .field("timeline", &self.place.timeline)
            .field("header", &self.header)
            .field("block_count", &self.block_count)
            .field("main_data_len", &self.main_data.len())
            .finish_non_exhaustive()
    }
}

/// A block a record refers to.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockRef<'a> {
    /// The number the record gives it; its meaning is the resource manager's.
    pub id: u8,
    /// The relation.
    pub relation: RelFileLocator,
    /// The fork.
    pub fork: Fork,
    /// The block within the fork.
    pub block: BlockNumber,
    /// Whether replay builds the page anew without reading it.
    pub will_init: bool,
    /// A copy of the page.
    pub image: Option<BlockImage<'a>>,
    /// What the resource manager logged for the block.
    pub data: &'a [u8],
}

/// A copy of a page inside a record, without the zeros between its line pointers and its tuples.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockImage<'a> {
    /// The stored bytes: the page without its hole, perhaps compressed.
    pub bytes: &'a [u8],
    /// Where in the page the hole begins.
    pub hole_offset: u16,
    /// Bytes of the hole; zero when there is none.
    pub hole_len: u16,
    /// How the bytes are compressed.
    pub compression: Option<Compression>,
    /// Whether replay restores the page from it. An image that only serves
    /// `wal_consistency_checking` does not.
    pub restores: bool,
}

impl fmt::Debug for BlockRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockRef")
            .field("id", &self.id)
            .field("relation", &self.relation)
            .field("fork", &self.fork)
            .field("block", &self.block)
            .field("will_init", &self.will_init)
            .field("image", &self.image)
            .field("data_len", &self.data.len())
            .finish()
    }
}

impl fmt::Debug for BlockImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockImage")
            .field("len", &self.bytes.len())
            .field("hole_offset", &self.hole_offset)
            .field("hole_len", &self.hole_len)
            .field("compression", &self.compression)
            .field("restores", &self.restores)
            .finish()
    }
}

/// How a block image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// PostgreSQL's own LZ.
    Pglz,
    /// LZ4 block format (15 and later).
    Lz4,
    /// Zstandard (15 and later).
    Zstd,
}

/// The blocks of one record.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    left: u8,
    items: Items<'a>,
    payload: Cursor<'a>,
}

impl<'a> Iterator for Blocks<'a> {
    type Item = BlockRef<'a>;

    // The record was decoded once in full, so no step here fails.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let id = self.items.at.u8().ok()?;
            if id > HIGHEST_BLOCK_ID {
                self.items.other(id).ok()?;
                continue;
            }
            let header = self.items.block(id).ok()?;
            self.left -= 1;
            let image = match header.image {
                None => None,
                Some(image) => Some(BlockImage {
                    bytes: self.payload.take(image.len.into()).ok()?,
                    hole_offset: image.hole_offset,
                    hole_len: image.hole_len,
                    compression: image.compression,
                    restores: image.restores,
                }),
            };
            return Some(BlockRef {
                id: header.id,
                relation: header.relation,
                fork: header.fork,
                block: header.block,
                will_init: header.flags & WILL_INIT != 0,
                image,
                data: self.payload.take(header.data_len.into()).ok()?,
            });
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

impl ExactSizeIterator for Blocks<'_> {}

const HIGHEST_BLOCK_ID: u8 = 32;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

enum Item {
    MainData(u32),
    Origin(u16),
    ToplevelXid(u32),
}

struct BlockHeader {
    id: u8,
    flags: u8,
    fork: Fork,
    data_len: u16,
    image: Option<ImageHeader>,
    relation: RelFileLocator,
    block: BlockNumber,
}

impl BlockHeader {
    fn payload_len(&self) -> usize {
        let image = self.image.as_ref().map_or(0, |image| image.len);
        usize::from(self.data_len) + usize::from(image)
    }
}

struct ImageHeader {
    len: u16,
    hole_offset: u16,
    hole_len: u16,
    compression: Option<Compression>,
    restores: bool,
}

/// Reads the items between a record's header and its data.
#[derive(Debug, Clone)]
struct Items<'a> {
    at: Cursor<'a>,
    relation: Option<RelFileLocator>,
    highest_id: Option<u8>,
    format: RecordFormat,
}

impl Items<'_> {
    /// The item that opens with this id; not a block.
    fn other(&mut self, id: u8) -> Result<Item> {
        match id {
            255 => Ok(Item::MainData(self.at.u8()?.into())),
            254 => Ok(Item::MainData(self.at.u32()?)),
            253 => Ok(Item::Origin(self.at.u16()?)),
            252 if self.format.layout.has_toplevel_xid => Ok(Item::ToplevelXid(self.at.u32()?)),
            id => Err(malformed(format!("invalid block id {id}"))),
        }
    }

    #[inline(always)]
    fn block(&mut self, id: u8) -> Result<BlockHeader> {
        if let Some(highest) = self.highest_id
            && id <= highest
        {
            return Err(out_of_order(id, highest));
        }
        self.highest_id = Some(id);
        let [flags, len_low, len_high] = self.at.array()?;
        let fork = Fork::from_number(u32::from(flags & 0x0F))?;
        let data_len = u16::from_le_bytes([len_low, len_high]);
        if (flags & HAS_DATA != 0) != (data_len > 0) {
            return Err(data_disagrees(id, flags, data_len));
        }
        let image = if flags & HAS_IMAGE == 0 {
            None
        } else {
            Some(self.image(id)?)
        };
        let relation = if flags & SAME_RELATION == 0 {
            let [s0, s1, s2, s3, d0, d1, d2, d3, n0, n1, n2, n3] = self.at.array()?;
            RelFileLocator {
                tablespace: u32::from_le_bytes([s0, s1, s2, s3]),
                database: u32::from_le_bytes([d0, d1, d2, d3]),
                number: u32::from_le_bytes([n0, n1, n2, n3]),
            }
        } else {
            let Some(relation) = self.relation else {
                return Err(no_relation(id));
            };
            relation
        };
        self.relation = Some(relation);
        Ok(BlockHeader {
            id,
            flags,
            fork,
            data_len,
            image,
            relation,
            block: self.at.u32()?,
        })
    }

    fn image(&mut self, id: u8) -> Result<ImageHeader> {
        let bits = self.format.layout.image_bits;
        let block_size = self.format.block_size.bytes();
        let len = self.at.u16()?;
        let hole_offset = self.at.u16()?;
        let info = self.at.u8()?;
        let known = bits.has_hole | bits.apply | bits.pglz | bits.lz4 | bits.zstd;
        let has_hole = info & bits.has_hole != 0;
        let compression = [
            (bits.pglz, Compression::Pglz),
            (bits.lz4, Compression::Lz4),
            (bits.zstd, Compression::Zstd),
        ]
        .into_iter()
        .find_map(|(bit, compression)| (info & bit != 0).then_some(compression));
        // Without compression the hole is what the stored bytes lack; that of a longer image is
        // none, and refused below.
        let hole_len = match compression {
            Some(_) if has_hole => self.at.u16()?.into(),
            Some(_) => 0,
            None => block_size.saturating_sub(len.into()),
        };
        let hole_end = usize::from(hole_offset) + hole_len;
        let coherent = match (has_hole, compression) {
            (true, _) => {
                hole_offset > 0
                    && hole_len > 0
                    && usize::from(len) < block_size
                    && hole_end <= block_size
            }
            (false, None) => hole_offset == 0 && usize::from(len) == block_size,
            (false, Some(_)) => hole_offset == 0 && usize::from(len) < block_size,
        };
        match u16::try_from(hole_len) {
            Ok(hole_len) if coherent && info & !known == 0 => Ok(ImageHeader {
                len,
                hole_offset,
                hole_len,
                compression,
                restores: info & bits.apply != 0,
            }),
            _ => Err(malformed(format!(
                "image of block {id} with info {info:02X}, {len} bytes, hole of {hole_len} at \
                 {hole_offset} contradicts itself"
            ))),
        }
    }
}

/// The record is all there: what ends too early is not cut but wrong.
#[cold]
fn at_record(error: &Error, lsn: Lsn) -> Error {
    malformed(error.reason().to_owned()).at_lsn(lsn)
}

#[cold]
fn out_of_order(id: u8, highest: u8) -> Error {
    malformed(format!("block id {id} after {highest}"))
}

#[cold]
fn data_disagrees(id: u8, flags: u8, len: u16) -> Error {
    malformed(format!(
        "flags {flags:02X} of block {id} disagree with its {len} bytes of data"
    ))
}

#[cold]
fn no_relation(id: u8) -> Error {
    malformed(format!(
        "block {id} is of the same relation as the block before, but there is none"
    ))
}

#[cold]
fn malformed(reason: String) -> Error {
    Error::malformed(SUBJECT, reason)
}
