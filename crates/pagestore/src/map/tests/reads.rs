//! What is read and written, and what is held in memory while that is done.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pack::{FRAME_SIZE, PackId};

use super::store::Store;
use crate::crypt::DataKey;
use crate::map::block::Block;
use crate::map::{
    At, Attributes, Diff, Extent, FileKind, FileState, FrameRef, KEEP_ALL, List, MapFrame, Mark,
    Merge, PackRef, RunRef, RunWriter, Spool, View, Walk, drive, policy,
};

const PAGE: u32 = 8192;
const FILES: u32 = 64;
const PAGES: u32 = 2048;

fn frame(pack: u8, number: u64) -> FrameRef {
    FrameRef {
        pack: PackRef {
            id: PackId([pack; 16]),
            key: DataKey([pack; 32]),
        },
        frame: number,
        offset: 64 + number * 40_000,
        stored_length: 40_000,
        plain_length: FRAME_SIZE as u32,
        codec: 2,
        sealed: false,
        digest: [number as u8; 16],
    }
}

fn path(file: u32) -> SnapshotPath {
    SnapshotPath::new(format!("base/5/{}", 20_000 + file)).unwrap()
}

fn present(pages: u32, modified: i64, limit: u32) -> FileState {
    FileState::Present {
        attributes: Attributes {
            kind: FileKind::File {
                size: u64::from(pages) * u64::from(PAGE),
            },
            mode: 0o600,
            owner: None,
            modified,
        },
        limit,
    }
}

fn full(store: &mut Store) -> RunRef {
    let mut writer = RunWriter::new(store, PAGE).unwrap();
    let mut number = 0;
    for file in 0..FILES {
        writer.begin(&path(file), &present(PAGES, 0, 0)).unwrap();
        for page in (0..PAGES).step_by(16) {
            let at = At::Frame {
                frame: frame(1, number),
                offset: 0,
            };
            let digests = [[page as u8; 16]; 16];
            let count = 16;
            writer.pages(&Extent { page, count, at }, &digests).unwrap();
            number += 1;
        }
    }
    writer.finish().unwrap().0
}

/// One page of one file is written.
fn delta(pack: u8, file: u32, page: u32) -> (RunRef, Spool) {
    let mut writer = RunWriter::new(Spool::default(), PAGE).unwrap();
    writer
        .begin(&path(file), &present(PAGES, i64::from(pack), KEEP_ALL))
        .unwrap();
    let at = At::Frame {
        frame: frame(pack, 0),
        offset: 0,
    };
    let count = 1;
    writer
        .pages(&Extent { page, count, at }, &[[pack; 16]])
        .unwrap();
    writer.finish().unwrap()
}

fn merged(store: &mut Store, delta: &(RunRef, Spool), older: &[RunRef], bottom: bool) -> RunRef {
    store.next_pack();
    let known = store.frames.clone();
    let mut merge = Merge::new(&mut *store, PAGE, &delta.0, older, bottom).unwrap();
    let get = |frame: &FrameRef| match delta.1.get(frame) {
        Some(bytes) => MapFrame::decode(&bytes),
        None => Ok(known[&frame.id()].clone()),
    };
    drive(&mut merge, get).unwrap().unwrap().0
}

fn view(runs: &[&RunRef]) -> View {
    View {
        runs: runs.iter().copied().cloned().collect(),
        page_size: PAGE,
    }
}

#[test]
fn a_page_merged_into_a_large_run_writes_the_blocks_of_its_file_only() {
    let mut store = Store::default();
    let base = full(&mut store);
    let written = store.frames.len();
    assert!(written > 2 * 15, "{written} frames");
    let run = merged(
        &mut store,
        &delta(2, 40, 77),
        std::slice::from_ref(&base),
        true,
    );
    // A record block or two with digests, and the index.
    let more = store.frames.len() - written;
    assert!(more <= 6, "{more} frames");
    assert_eq!(run.size().pages, base.size().pages);
}

#[test]
fn a_diff_reads_what_differs_and_no_more() {
    let mut store = Store::default();
    let base = full(&mut store);
    let before = view(&[&base]);
    let run = merged(&mut store, &delta(2, 40, 77), &[], false);
    let beside = view(&[&run, &base]);
    let run = merged(
        &mut store,
        &delta(3, 13, 5),
        std::slice::from_ref(&base),
        true,
    );
    let inside = view(&[&run]);
    for (after, file, page) in [(&beside, 40, 77), (&inside, 13, 5)] {
        for (one, other) in [(&before, after), (after, &before)] {
            store.reads();
            let mut diff = Diff::new(one, other, false);
            let found = drive(&mut diff, |frame| store.get(frame)).unwrap().unwrap();
            assert_eq!(found.path, path(file));
            assert_eq!(found.pages, std::slice::from_ref(&(page..page + 1)));
            assert!(
                drive(&mut diff, |frame| store.get(frame))
                    .unwrap()
                    .is_none()
            );
            let reads = store.reads();
            assert!(reads <= 12, "{reads} frames");
        }
    }
    let mut same = Diff::new(&beside, &beside, true);
    store.reads();
    assert!(
        drive(&mut same, |frame| store.get(frame))
            .unwrap()
            .is_none()
    );
    assert_eq!(store.reads(), 0);
}

#[test]
fn what_one_view_made_known_is_not_read_again_for_another() {
    let mut store = Store::default();
    let base = full(&mut store);
    let mut mark = Mark::new();
    mark.add(view(&[&base]));
    drive(&mut mark, |frame| store.get(frame)).unwrap();
    assert!(store.reads() >= 17);
    for pack in 2..20 {
        let run = merged(&mut store, &delta(pack, u32::from(pack), 7), &[], false);
        mark.add(view(&[&run, &base]));
        drive(&mut mark, |frame| store.get(frame)).unwrap();
        // Its index, for the plan and for the mark, and its block.
        let reads = store.reads();
        assert!(reads <= 3, "{reads} frames");
    }
    assert_eq!(
        mark.live().pack(PackId([1; 16])).0,
        u64::from(FILES * PAGES / 16)
    );
    // One page of sixteen.
    assert_eq!(mark.live().pack(PackId([19; 16])), (1, 40_000 / 16));
}

/// Each snapshot overwrites one page in fifty, wherever it lies, and the first of all is destroyed: then some page of every block
/// is hidden, and each snapshot that is left may be the only one that shows another.
#[test]
fn blocks_with_hidden_pages_are_read_at_most_once_for_each_view() {
    let mut store = Store::default();
    let mut random = fastrand::Rng::with_seed(1);
    let mut runs = vec![full(&mut store)];
    let (mut blocks, mut views) = (0, Vec::new());
    for pack in 2..8 {
        let mut writer = RunWriter::new(Spool::default(), PAGE).unwrap();
        for file in 0..FILES {
            let state = present(PAGES, i64::from(pack), KEEP_ALL);
            writer.begin(&path(file), &state).unwrap();
            for page in (0..PAGES)
                .filter(|_| random.u8(0..50) == 0)
                .collect::<Vec<_>>()
            {
                let number = u64::from(file * PAGES + page);
                let at = At::Frame {
                    frame: frame(pack, number / 16),
                    offset: page % 16 * PAGE,
                };
                let extent = Extent { page, count: 1, at };
                writer.pages(&extent, &[[pack; 16]]).unwrap();
            }
        }
        let delta = writer.finish().unwrap();
        let sizes: Vec<_> = runs.iter().map(RunRef::size).collect();
        let count = policy::plan(&sizes, delta.0.size());
        let run = merged(&mut store, &delta, &runs[..count], count == runs.len());
        runs.splice(..count, [run]);
        views.push(view(&runs.iter().collect::<Vec<_>>()));
        let mut alone = Mark::new();
        alone.add(views.last().unwrap().clone());
        store.reads();
        drive(&mut alone, |frame| store.get(frame)).unwrap();
        blocks += store.reads();
    }
    let mut mark = Mark::new();
    views.into_iter().for_each(|view| mark.add(view));
    drive(&mut mark, |frame| store.get(frame)).unwrap();
    let reads = store.reads();
    println!("{reads} frames of maps read, {blocks} for each by itself");
    assert!(reads <= blocks, "{reads} of {blocks}");
}

/// Follows what a machine keeps of the record blocks that it was given.
#[derive(Default)]
struct Held {
    blocks: Vec<(Weak<Block>, usize)>,
    most: usize,
}

impl Held {
    fn given(&mut self, frame: &MapFrame) {
        self.blocks.retain(|(block, _)| block.strong_count() > 0);
        if let Ok(block) = frame.block() {
            self.blocks.push((Arc::downgrade(&block), frame.memory()));
        }
        self.most = self
            .most
            .max(self.blocks.iter().map(|(_, memory)| memory).sum());
    }
}

#[test]
fn a_walk_over_very_many_files_holds_a_handful_of_blocks() {
    let long = std::env::var_os("NEON_LONG_TESTS").is_some();
    let files = if long { 1_000_000 } else { 50_000 };
    let mut spool = Spool::default();
    let mut runs = Vec::new();
    for (run, every) in [(1u8, 1u32), (2, 5), (3, 17), (4, 301)] {
        let mut writer = RunWriter::new(&mut spool, PAGE).unwrap();
        for file in (0..files).step_by(every as usize) {
            let path = SnapshotPath::new(format!("base/5/{:07}", 1_000_000 + file)).unwrap();
            let limit = if run == 1 { 0 } else { KEEP_ALL };
            writer
                .begin(&path, &present(1, i64::from(run), limit))
                .unwrap();
            let extent = Extent {
                page: 0,
                count: 1,
                at: At::Frame {
                    frame: frame(run, u64::from(file / 16)),
                    offset: file % 16 * PAGE,
                },
            };
            writer.pages(&extent, &[[run; 16]]).unwrap();
        }
        runs.insert(0, writer.finish().unwrap().0);
    }
    let view = View {
        runs,
        page_size: PAGE,
    };
    let held = RefCell::new(Held::default());
    let get = |frame: &FrameRef| {
        let content = spool.decode(frame)?;
        held.borrow_mut().given(&content);
        Ok(content)
    };
    let mut walk = Walk::new(&view, false);
    let mut found = 0;
    while drive(&mut walk, get).unwrap().is_some() {
        found += 1;
    }
    assert_eq!(found, files);
    // A listing of what is above passes them without reading them.
    let reads = RefCell::new(0);
    let get = |frame: &FrameRef| {
        *reads.borrow_mut() += 1;
        spool.decode(frame)
    };
    let mut list = List::new(&view, &SnapshotPath::new("base").unwrap());
    assert!(drive(&mut list, get).unwrap().is_none());
    let read = reads.take();
    assert!(read < 4 * 20, "{read} frames");
    let most = held.borrow().most;
    println!("{files} files: {} KiB of blocks held at most", most >> 10);
    assert!(most < 24 << 20, "{most} bytes of blocks");
}
