//! The bodies of the fuzz targets of page maps; see [`crate::fuzz_targets`].

use bytes::{Buf, Bytes};
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, ErrorKind, Result};
use crate::map::block::{BLOCK_MAGIC, Block, BlockBuilder, decode_block};
use crate::map::index::{INDEX_MAGIC, IndexBuilder, decode_index};
use crate::map::{
    Diff, FrameRef, List, Lookup, Machine, MapFrame, Mark, PageKey, Stat, View, Walk, decode_runs,
    drive, encode_runs,
};

fn encode(block: &Block) -> Option<Vec<u8>> {
    let mut builder = BlockBuilder::new(block.page_size);
    for part in &block.parts {
        let state = part.state.as_ref().ok_or(part.limit);
        builder.begin(&part.path, state).ok()?;
        for extent in block.extents_of(part) {
            builder.extent(&block.unpack(extent));
        }
    }
    Some(builder.finish().0)
}

/// Decodes a record block; what is written of it again says the same.
pub fn page_map_block(bytes: &[u8]) {
    let Ok(block) = decode_block(bytes) else {
        return;
    };
    assert!(!block.parts.is_empty(), "a block is about nothing");
    let Some(again) = encode(&block) else { return };
    let second = again
        .strip_prefix(BLOCK_MAGIC)
        .and_then(|rest| decode_block(rest).ok());
    let same = second.is_some_and(|second| {
        let unpacked = |block: &Block| -> Vec<_> {
            let extents = block.extents.iter();
            extents.map(|extent| block.unpack(extent)).collect()
        };
        let parts = |block: &Block| -> Vec<_> {
            let parts = block.parts.iter().cloned();
            parts
                .map(|part| (part.path, part.state, part.limit, part.first, part.end))
                .collect()
        };
        unpacked(&block) == unpacked(&second) && parts(&block) == parts(&second)
    });
    assert!(same, "a block changes when it is written again");
}

/// Decodes an index frame; what is written of it again says the same.
pub fn page_map_index(bytes: &[u8]) {
    let Ok(index) = decode_index(bytes) else {
        return;
    };
    let mut builder = IndexBuilder::default();
    for block in &index.blocks {
        builder.push(block.clone());
    }
    let (again, _) = builder.finish();
    let second = again
        .strip_prefix(INDEX_MAGIC)
        .and_then(|rest| decode_index(rest).ok());
    let same = second.is_some_and(|second| second.blocks == index.blocks);
    assert!(same, "an index changes when it is written again");
}

/// Decodes the runs of a commit; what is written of them again says the same.
pub fn page_map_runs(bytes: &[u8]) {
    if let Ok(runs) = decode_runs(bytes) {
        let second = decode_runs(&encode_runs(&runs)).ok();
        assert_eq!(
            second,
            Some(runs),
            "runs change when they are written again"
        );
    }
}

/// Cuts texts with their lengths off.
fn texts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut texts = Vec::new();
    while let Ok(length) = bytes.try_get_u16_le() {
        let (text, rest) = bytes
            .split_at_checked(length.into())
            .unwrap_or((bytes, &[]));
        texts.push(text);
        bytes = rest;
    }
    texts
}

/// Uses a map made of any frames: the first text is its runs, the others the frames, found by number. No machine
/// panics, or asks for ever.
pub fn page_map_view(bytes: &[u8]) {
    let texts = texts(bytes);
    let Some((runs, frames)) = texts.split_first() else {
        return;
    };
    let Ok(runs) = decode_runs(runs) else { return };
    let view = View {
        runs,
        page_size: 8192,
    };
    let older = View {
        runs: view.runs.iter().skip(1).cloned().collect(),
        page_size: 8192,
    };
    // What each machine may ask for, far more than these frames make it.
    let mut left = 100_000u32;
    let mut get = |frame: &FrameRef| {
        left = left.checked_sub(1).ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                "page map",
                "more was asked for than there is",
            )
        })?;
        let number = usize::try_from(frame.frame).unwrap_or(usize::MAX);
        let text = frames.get(number);
        let text = text.ok_or_else(|| Error::new(ErrorKind::NotFound, "frame", "is not there"))?;
        MapFrame::decode(&Bytes::copy_from_slice(text))
    };
    fn all<M: Machine<Output = Option<T>>, T>(
        mut machine: M,
        mut get: impl FnMut(&FrameRef) -> Result<MapFrame>,
    ) {
        while let Ok(Some(_)) = drive(&mut machine, &mut get) {}
    }
    let mut get = |frame: &FrameRef| get(frame);
    all(Walk::new(&view, true), &mut get);
    let root = SnapshotPath::root();
    all(List::new(&view, &root), &mut get);
    for with_digests in [false, true] {
        all(Diff::new(&older, &view, with_digests), &mut get);
    }
    drop(drive(&mut Stat::new(&view, root.clone()), &mut get));
    let key = PageKey {
        path: root,
        page: 3,
    };
    drop(drive(&mut Lookup::new(&view, key, true), &mut get));
    let mut mark = Mark::new();
    mark.add(view);
    mark.add(older);
    drop(drive(&mut mark, &mut get));
}
