//! The items between a record's header and its data: references to blocks and what else it announces.

use super::{Compression, RecordFormat, SUBJECT};
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::relation::{BlockNumber, Fork, RelFileLocator};

pub(super) const HIGHEST_BLOCK_ID: u8 = 32;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

pub(super) enum Item {
    MainData(u32),
    Origin(u16),
    ToplevelXid(u32),
}

pub(super) struct BlockHeader {
    pub(super) id: u8,
    pub(super) flags: u8,
    pub(super) fork: Fork,
    pub(super) data_len: u16,
    pub(super) image: Option<ImageHeader>,
    pub(super) relation: RelFileLocator,
    pub(super) block: BlockNumber,
}

impl BlockHeader {
    #[inline]
    pub(super) fn will_init(&self) -> bool {
        self.flags & WILL_INIT != 0
    }

    pub(super) fn payload_len(&self) -> usize {
        let image = self.image.as_ref().map_or(0, |image| image.len);
        usize::from(self.data_len) + usize::from(image)
    }
}

pub(super) struct ImageHeader {
    pub(super) len: u16,
    pub(super) hole_offset: u16,
    pub(super) hole_len: u16,
    pub(super) compression: Option<Compression>,
    pub(super) restores: bool,
}

/// Reads the items between a record's header and its data.
#[derive(Debug, Clone)]
pub(super) struct Items<'a> {
    pub(super) at: Cursor<'a>,
    relation: Option<RelFileLocator>,
    highest_id: Option<u8>,
    format: RecordFormat,
}

impl<'a> Items<'a> {
    pub(super) const fn new(at: Cursor<'a>, format: RecordFormat) -> Self {
        Self {
            at,
            relation: None,
            highest_id: None,
            format,
        }
    }

    /// The item that opens with this id; not a block.
    pub(super) fn other(&mut self, id: u8) -> Result<Item> {
        match id {
            255 => Ok(Item::MainData(self.at.u8()?.into())),
            254 => Ok(Item::MainData(self.at.u32()?)),
            253 => Ok(Item::Origin(self.at.u16()?)),
            252 if self.format.layout.has_toplevel_xid => Ok(Item::ToplevelXid(self.at.u32()?)),
            id => Err(malformed(format!("invalid block id {id}"))),
        }
    }

    #[inline(always)]
    pub(super) fn block(&mut self, id: u8) -> Result<BlockHeader> {
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
