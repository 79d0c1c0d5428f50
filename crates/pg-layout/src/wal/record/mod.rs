//! One record of the log: its header, its block references, its data.
//!
//! Layout (`access/xlogrecord.h`): a header of 24 bytes; items, each opened by an id byte (0 to 32 a
//! block reference, 252 the top-level transaction, 253 the origin, 254 and 255 the length of the
//! main data, always last); then per block its image and its data; then the main data. The checks
//! are those of PostgreSQL's `DecodeXLogRecord` and a few more that cost nothing.

mod blocks;
mod items;

use std::fmt;

pub use self::blocks::{BlockImage, BlockRef, Blocks, Compression};
use self::items::{HIGHEST_BLOCK_ID, Item, Items};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::page::BlockSize;
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
        let mut items = Items::new(at, format);
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
        Blocks::new(
            self.block_count,
            Items::new(Cursor::new(SUBJECT, self.items), self.format),
            Cursor::new(SUBJECT, self.payload),
        )
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

/// The record is all there: what ends too early is not cut but wrong.
#[cold]
fn at_record(error: &Error, lsn: Lsn) -> Error {
    Error::malformed(SUBJECT, error.reason().to_owned()).at_lsn(lsn)
}
