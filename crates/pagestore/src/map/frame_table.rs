//! A list of frames as the frames of a map hold it: packs once each, neighbours in a few bytes.

use std::collections::HashMap;

use bytes::Buf;
use neon_snapshot_format::pack::{FRAME_SIZE, PackId};

use crate::crypt::DataKey;
use crate::error::Result;
use crate::map::machine::malformed;
use crate::map::wire::{cut, get_bytes, get_count, get_number, get_varint, put_varint};
use crate::map::{FrameRef, PackRef};

/// The frame's pack, number and offset are given; otherwise it follows the one before it in the same pack.
const ELSEWHERE: u8 = 0x80;
/// Its plain length is given; otherwise it is that of a full frame.
const SHORT: u8 = 0x40;
const SEALED: u8 = 0x20;
const CODEC: u8 = 0x1f;
/// Plain bytes of a full frame.
const FULL: u32 = 128 << 10;
const _: () = assert!(FULL as usize == FRAME_SIZE);
/// What a pack's directory can say at most: a full frame with nonce and tag.
pub(crate) const MAX_STORED: u32 = FULL + 64;

/// Collects frames in the order of their first mention.
#[derive(Debug, Default)]
pub(crate) struct FrameTableBuilder {
    packs: Vec<PackRef>,
    pack_numbers: HashMap<PackRef, usize>,
    last: Option<FrameRef>,
    count: usize,
    fields: Vec<u8>,
    digests: Vec<u8>,
}

impl FrameTableBuilder {
    /// Appends a frame; tells its number.
    pub(crate) fn push(&mut self, frame: &FrameRef) -> usize {
        let follows = self.last.is_some_and(|last| {
            last.pack == frame.pack
                && last.frame.checked_add(1) == Some(frame.frame)
                && last.offset.checked_add(last.stored_length.into()) == Some(frame.offset)
        });
        let full = frame.plain_length == FULL;
        let tag = if follows { 0 } else { ELSEWHERE }
            | if full { 0 } else { SHORT }
            | if frame.sealed { SEALED } else { 0 }
            | frame.codec & CODEC;
        self.fields.push(tag);
        if !follows {
            let pack = *self.pack_numbers.entry(frame.pack).or_insert_with(|| {
                self.packs.push(frame.pack);
                self.packs.len() - 1
            });
            put_varint(&mut self.fields, pack as u64);
            put_varint(&mut self.fields, frame.frame);
            put_varint(&mut self.fields, frame.offset);
        }
        put_varint(&mut self.fields, frame.stored_length.into());
        if !full {
            put_varint(&mut self.fields, frame.plain_length.into());
        }
        self.digests.extend_from_slice(&frame.digest);
        self.last = Some(*frame);
        self.count += 1;
        self.count - 1
    }

    /// Bytes that it will take, or a little more.
    pub(crate) fn size(&self) -> usize {
        20 + self.packs.len() * 48 + self.fields.len() + self.digests.len()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.packs.len() as u64);
        put_varint(out, self.count as u64);
        for pack in &self.packs {
            out.extend_from_slice(&pack.id.0);
            out.extend_from_slice(&pack.key.0);
        }
        out.extend_from_slice(&self.fields);
        out.extend_from_slice(&self.digests);
    }
}

fn get_array<const N: usize>(from: &mut &[u8]) -> Result<[u8; N]> {
    let mut array = [0; N];
    from.try_copy_to_slice(&mut array).map_err(cut)?;
    Ok(array)
}

/// Reads what [`FrameTableBuilder::put`] wrote.
pub(crate) fn get_frame_table(from: &mut &[u8]) -> Result<Vec<FrameRef>> {
    let pack_count: usize = get_number(from)?;
    let frame_count = get_count(from, 18)?;
    if pack_count > frame_count {
        return Err(malformed("has packs without frames"));
    }
    let mut packs = Vec::with_capacity(pack_count);
    for _ in 0..pack_count {
        packs.push(PackRef {
            id: PackId(get_array(from)?),
            key: DataKey(get_array(from)?),
        });
    }
    let mut frames: Vec<FrameRef> = Vec::with_capacity(frame_count);
    for _ in 0..frame_count {
        let tag = from.try_get_u8().map_err(cut)?;
        let (pack, frame, offset) = if tag & ELSEWHERE != 0 {
            let number: usize = get_number(from)?;
            let pack = *packs
                .get(number)
                .ok_or_else(|| malformed("names a pack that it does not list"))?;
            (pack, get_varint(from)?, get_varint(from)?)
        } else {
            let place = frames.last().and_then(|last| {
                let offset = last.offset.checked_add(last.stored_length.into())?;
                Some((last.pack, last.frame.checked_add(1)?, offset))
            });
            place.ok_or_else(|| malformed("a frame follows none"))?
        };
        let stored_length: u32 = get_number(from)?;
        let plain_length = if tag & SHORT != 0 {
            get_number(from)?
        } else {
            FULL
        };
        let fits = plain_length > 0
            && plain_length <= FULL
            && stored_length <= MAX_STORED
            && offset.checked_add(stored_length.into()).is_some();
        if !fits {
            return Err(malformed("lists a frame that no writer makes"));
        }
        frames.push(FrameRef {
            pack,
            frame,
            offset,
            stored_length,
            plain_length,
            codec: tag & CODEC,
            sealed: tag & SEALED != 0,
            digest: [0; 16],
        });
    }
    let (digests, _) = get_bytes(from, frame_count.saturating_mul(16))?.as_chunks::<16>();
    for (frame, digest) in frames.iter_mut().zip(digests) {
        frame.digest = *digest;
    }
    Ok(frames)
}
