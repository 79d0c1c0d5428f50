//! The body of the fuzz target of thinned frames; see [`crate::fuzz_targets`].

use neon_snapshot_format::pack::PackId;

use crate::crypt::DataKey;
use crate::map::{Cells, FrameRef, PackRef};
use crate::read::form::{Thinned, keep};

/// Decodes a thinned frame whose digest is right, and takes from it what is there and what is not: the input is the length of
/// the frame in three bytes, its cells that are there, and others, in two bytes each, its codec, and its stored bytes.
pub fn thinned_frame(bytes: &[u8]) {
    read(bytes);
}

/// How many cells were read.
fn read(bytes: &[u8]) -> u32 {
    let Some(([low, middle, high, cells @ .., codec], stored)) = bytes.split_first_chunk::<8>()
    else {
        return 0;
    };
    let [there, more, others, yet_others] = *cells;
    let frame = FrameRef {
        pack: PackRef {
            id: PackId(*b"forged by a fuzz"),
            key: DataKey([1; 32]),
        },
        frame: 7,
        offset: 64,
        stored_length: 100,
        plain_length: u32::from_le_bytes([*low, *middle, *high, 0]),
        codec: *codec,
        sealed: false,
        digest: [0; 16],
    };
    let digest = blake3::hash(stored);
    let thinned = Thinned {
        cells: Cells::from_bits(u16::from_le_bytes([there, more])),
        codec: *codec,
        sealed: false,
        digest: digest.as_bytes().first_chunk().copied().unwrap_or_default(),
    };
    let Ok(plain) = thinned.decode(&frame, stored) else {
        return 0;
    };
    let all = plain.side_by_side();
    let mut seen = 0;
    for number in 0..16 {
        let range = Cells::range(number, frame.plain_length);
        let range = range.start.into()..range.end.into();
        let (cell, found) = (Cells::of(&range), plain.range(&frame, &range).ok());
        let kept = (!cell.is_empty())
            .then(|| keep(all, thinned.cells, cell))
            .flatten();
        assert!(
            cell.is_empty() || found.as_deref() == kept.as_deref(),
            "a cell is not what was thinned"
        );
        if kept.is_some() {
            assert!(thinned.cells.contains(cell), "a cell that is not there");
            seen += 1;
        }
    }
    let others = Cells::from_bits(u16::from_le_bytes([others, yet_others]));
    assert_eq!(
        keep(all, thinned.cells, others).is_some(),
        thinned.cells.contains(others),
        "what is there is kept, and nothing else"
    );
    seen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use neon_snapshot_format::pack::{Codec, EncodedFrame};

    fn thinned(length: u32, cells: u16, codec: Codec) -> Vec<u8> {
        let whole = Cells::whole(length);
        let plain: Vec<u8> = (0..length)
            .map(|at| (at / 5 + at / 8192).to_le_bytes()[0])
            .collect();
        let there = whole.common(Cells::from_bits(cells));
        let plain = keep(&plain, whole, there).unwrap();
        let frame = EncodedFrame::new(&plain, codec).unwrap();
        let [low, middle, high, _] = length.to_le_bytes();
        let [there, more] = there.bits().to_le_bytes();
        let codec = match codec {
            Codec::None => 0,
            Codec::Lz4 => 1,
            _ => 2,
        };
        let head = [low, middle, high, there, more, 3, 0, codec];
        [&head, frame.bytes()].concat()
    }

    /// That the target gets behind what only who knows the format gets past.
    #[test]
    fn what_is_thinned_well_is_read() {
        for codec in [Codec::None, Codec::Lz4, Codec::default()] {
            assert_eq!(read(&thinned(131_072, 0b1010_0110_0000_0001, codec)), 5);
            assert_eq!(read(&thinned(30_000, 0b1001, codec)), 2);
        }
    }

    proptest! {
        #[test]
        fn forged_thinned_frames_are_survived(
            length in 1..140_000_u32,
            cells in 1..=u16::MAX,
            lz4: bool,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let whole = Cells::whole(length.min(131_072));
            prop_assume!(!whole.common(Cells::from_bits(cells)).is_empty());
            let codec = if lz4 { Codec::Lz4 } else { Codec::default() };
            let mut bytes = thinned(length.min(131_072), cells, codec);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            thinned_frame(&bytes);
        }
    }
}
