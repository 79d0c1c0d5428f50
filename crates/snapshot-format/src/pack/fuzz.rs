//! The bodies of the fuzz targets of packs whose every digest is right: see [`crate::fuzz_targets`].

use std::ops::Range;

use crate::pack::directory::{
    FOOTER_MAGIC, FOOTER_SIZE, Flags, Footer, HEADER_SIZE, PackHeader, PackId, RECORD_SIZE,
    ROOT_ENTRY, ROOT_HEAD, TABLE_FRAMES, TABLE_HEAD,
};
use crate::pack::frame::{FRAME_SIZE, FrameContext, FrameRecord, digest16};
use crate::pack::index::{Opening, PackIndex, Step};

/// Opens what ends like this and reads tables of it; how many records of frames were found.
fn open_forged(pack: &[u8]) -> usize {
    let Ok(mut opening) = Opening::new(pack.len() as u64) else {
        return 0;
    };
    let get = |range: Range<u64>| {
        let start = usize::try_from(range.start).ok()?;
        pack.get(start..usize::try_from(range.end).ok()?)
    };
    let index: PackIndex = loop {
        let Some(bytes) = get(opening.range()) else {
            return 0;
        };
        match opening.feed(bytes) {
            Ok(Step::Read(_)) => {}
            Ok(Step::Done(opened)) => break opened,
            Err(_) => return 0,
        }
    };
    let count = index.frame_count();
    let mut found = 0;
    for frame in [0, count / 2, count.saturating_sub(1), count, u64::MAX] {
        let Ok(place) = index.table_of(frame) else {
            continue;
        };
        assert!(frame < count && place.range.end <= pack.len() as u64);
        if let Some(bytes) = get(place.range.clone())
            && let Ok(table) = index.table(&place, bytes)
            && let Some(record) = table.frame(frame)
        {
            assert_eq!(record.address().frame, frame);
            assert!(record.range().end <= place.range.start, "lies in its table");
            found += 1;
        }
    }
    found
}

/// With a digest that fits behind it.
fn closed(body: &[u8]) -> Vec<u8> {
    [body, &digest16(body)].concat()
}

/// A pack that ends with this footer, of which the length and the digest of the root fit: no mutation finds those.
fn with_footer(before: &[u8], footer: &[u8; 120]) -> usize {
    let pack = [&[0; HEADER_SIZE], before].concat();
    let mut footer = *footer;
    let root = |footer: &[u8; 120]| {
        let offset = footer.get(16..24)?.first_chunk()?;
        pack.get(usize::try_from(u64::from_le_bytes(*offset)).ok()?..)
    };
    if let Some(digest) = root(&footer).map(blake3::hash)
        && let Some(said) = footer.get_mut(88..120)
    {
        said.copy_from_slice(digest.as_bytes());
    }
    if let Some(said) = footer.get_mut(48..56) {
        said.copy_from_slice(&((pack.len() + FOOTER_SIZE) as u64).to_le_bytes());
    }
    open_forged(&[pack, closed(&footer), FOOTER_MAGIC.to_vec()].concat())
}

/// A pack with this root, which ends behind `before`.
fn with_root(before: &[u8], root: &[u8], frame_count: u64) -> usize {
    let footer = Footer {
        id: PackId(*b"forged by a fuzz"),
        root_offset: before.len() as u64,
        root_length: u32::try_from(root.len()).unwrap_or(u32::MAX),
        frame_count,
        start_up_frames: 0,
        snapshot_frame: 0,
        snapshot_frames: 0,
        total_length: (before.len() + root.len() + FOOTER_SIZE) as u64,
        flags: Flags::default(),
        root_digest: *blake3::hash(root).as_bytes(),
    };
    open_forged(&[before, root, &footer.to_bytes()].concat())
}

/// A pack of one table, behind so many bytes of frames.
fn with_table(frames: usize, table: &[u8]) -> usize {
    let at = HEADER_SIZE + frames;
    let digest = digest16(table);
    let root = [
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &(at as u64).to_le_bytes()[..],
        &digest,
    ]
    .concat();
    let count = table.len().saturating_sub(TABLE_HEAD) / RECORD_SIZE;
    with_root(&[vec![0; at], table.to_vec()].concat(), &root, count as u64)
}

/// Opens packs whose every digest is right, by somebody who knows the format: behind two bytes that are a number, the input is
/// a header, a footer, a root, or a table of frames.
pub fn pack_directory(bytes: &[u8]) {
    let Some((number, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let number = u16::from_le_bytes(*number);
    if let Some(header) = bytes.get(..48) {
        drop(PackHeader::parse(&closed(header)));
    }
    if let Some((before, footer)) = bytes.split_last_chunk() {
        with_footer(before, footer);
    }
    let tables = bytes.len().saturating_sub(ROOT_HEAD) / ROOT_ENTRY;
    if let Some(root) = bytes.get(..ROOT_HEAD + tables * ROOT_ENTRY) {
        let all = tables as u64 * u64::from(TABLE_FRAMES);
        let frames = all.saturating_sub(u64::from(number) % u64::from(TABLE_FRAMES));
        with_root(&[0; HEADER_SIZE], root, frames);
    }
    with_table(number.into(), bytes);
}

/// Decodes the stored bytes of a frame whose record fits them: the input is its codec, its plain length in three bytes, and
/// those.
pub fn pack_frame(bytes: &[u8]) {
    frame(bytes);
}

fn frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let ([codec, low, middle, high], stored) = bytes.split_first_chunk()?;
    let plain_length = u32::from_le_bytes([*low, *middle, *high, 0]);
    let address = FrameContext {
        pack: PackId(*b"forged by a fuzz"),
        frame: 0,
    };
    let length = u32::try_from(stored.len()).ok()?;
    let digest = digest16(stored);
    let record =
        FrameRecord::from_parts(address, 0, length, plain_length, *codec, false, digest).ok()?;
    let plain = record.decode(stored, None).ok()?;
    assert!(plain.len() == plain_length as usize && plain.len() <= FRAME_SIZE);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pack::directory::put_record;
    use crate::pack::{Codec, EncodedFrame};

    fn encoded(codec: Codec) -> Vec<u8> {
        let plain: Vec<u8> = (0..20_000_u32)
            .map(|at| (at / 9).to_le_bytes()[0])
            .collect();
        let frame = EncodedFrame::new(&plain, codec).unwrap();
        let length = frame.plain_length().to_le_bytes();
        [&[frame.codec][..], &length[..3], frame.bytes()].concat()
    }

    fn table() -> Vec<u8> {
        let mut table = Vec::new();
        table.extend_from_slice(&0_u64.to_le_bytes());
        table.extend_from_slice(&(HEADER_SIZE as u64).to_le_bytes());
        table.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        for frame in 0..3 {
            let pack = PackId([1; 16]);
            let address = FrameContext { pack, frame };
            let record = FrameRecord::from_parts(address, 0, 100, 8192, 2, false, [9; 16]);
            put_record(&mut table, &record.unwrap());
        }
        table
    }

    /// That the targets get behind what only who knows the format gets past.
    #[test]
    fn what_is_forged_well_is_read_to_its_end() {
        for codec in [Codec::None, Codec::Lz4, Codec::default()] {
            assert_eq!(frame(&encoded(codec)).unwrap().len(), 20_000);
        }
        assert_eq!(with_table(300, &table()), 3);
        assert_eq!(with_table(299, &table()), 0, "frames end in the table");
        let pack = [vec![0; HEADER_SIZE + 300], table()].concat();
        let at = (HEADER_SIZE as u64 + 300).to_le_bytes();
        let root = [&[1, 0, 0, 0, 0, 0, 0, 0], &at[..], &digest16(&table())].concat();
        assert_eq!(with_root(&pack, &root, 3), 3);
        let footer = Footer {
            id: PackId([1; 16]),
            root_offset: pack.len() as u64,
            root_length: 32,
            frame_count: 3,
            start_up_frames: 0,
            snapshot_frame: 0,
            snapshot_frames: 0,
            total_length: 0,
            flags: Flags::default(),
            root_digest: [0; 32],
        };
        let before = [&pack[HEADER_SIZE..], &root].concat();
        let footer = footer.to_bytes();
        assert_eq!(with_footer(&before, footer.first_chunk().unwrap()), 3);
    }

    proptest! {
        #[test]
        fn forged_packs_are_survived(
            number: u16,
            which in 0..4_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = match which {
                0 => table(),
                1 => encoded(Codec::Lz4),
                2 => encoded(Codec::default()),
                _ => encoded(Codec::None),
            };
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            pack_frame(&bytes);
            pack_directory(&[&number.to_le_bytes()[..], &bytes].concat());
        }
    }
}
