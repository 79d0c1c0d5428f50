//! The page maps of a synthetic cluster of 1 TB with ten snapshots: lookup, walk, diff and mark.
//!
//! The floor of a walk and of a mark is decoding the record blocks of the first snapshot, in the same run. The
//! project asks for a warm lookup under 20 µs, and for a diff and a mark in seconds. `PAGE_MAP_FILES` is the number of
//! files of 1 GB, 1024 if not set.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a bench prints what it measured, of numbers that it made, and stops when it cannot"
)]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::Criterion;
use neon_pagestore::crypt::DataKey;
use neon_pagestore::map::{
    At, Attributes, BlockSink, Diff, Extent, FileKind, FileState, FrameRef, KEEP_ALL, Lookup,
    MapFrame, Mark, Merge, PackRef, PageKey, PagePlace, RunRef, RunWriter, Spool, View, Walk,
    drive, policy,
};
use neon_pagestore::{Error, ErrorKind, Result};
use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pack::PackId;

const PAGE: u32 = 8192;
const PAGES: u32 = 131_072;
const PER_FRAME: u32 = 16;
const SNAPSHOTS: u64 = 10;
const CHANGED: usize = 10_000;

/// Frames as they were written, without the digests of pages, which nothing here reads.
struct Store {
    pack: PackRef,
    frames: HashMap<(PackId, u64), Bytes>,
    next: u64,
    offset: u64,
    keep_digests: bool,
}

impl Store {
    fn new() -> Self {
        Self {
            pack: pack(u64::MAX),
            frames: HashMap::new(),
            next: 0,
            offset: 64,
            keep_digests: false,
        }
    }

    fn get(&self, frame: &FrameRef) -> Result<MapFrame> {
        let bytes = self.frames.get(&frame.id());
        let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::NotFound, "frame", "is not kept"))?;
        MapFrame::decode(bytes)
    }
}

impl BlockSink for Store {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let length = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        let frame = FrameRef {
            pack: self.pack,
            frame: self.next,
            offset: self.offset,
            stored_length: length,
            plain_length: length,
            codec: 0,
            sealed: false,
            digest: [0; 16],
        };
        self.next += 1;
        self.offset += u64::from(length);
        if self.keep_digests || !plain.starts_with(b"NMD1") {
            let bytes = Bytes::copy_from_slice(plain);
            self.frames.insert(frame.id(), bytes);
        }
        Ok(frame)
    }
}

thread_local! {
    static KEYS: RefCell<HashMap<u64, PackRef>> = RefCell::new(HashMap::new());
}

fn pack(number: u64) -> PackRef {
    KEYS.with_borrow_mut(|keys| {
        *keys.entry(number).or_insert_with(|| PackRef {
            id: PackId(
                u128::from(mix(number))
                    .wrapping_mul(0x1_0000_0001_0000_0001)
                    .to_le_bytes(),
            ),
            key: DataKey::random().expect("randomness"),
        })
    })
}

fn mix(mut state: u64) -> u64 {
    state = state.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    state ^= state >> 31;
    state = state.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state ^ state >> 29
}

/// The n-th frame that a snapshot wrote: about 50 KB, 1500 in a pack.
fn frame(snapshot: u64, number: u64) -> FrameRef {
    let in_pack = number % 1500;
    let seed = mix(snapshot << 40 | number);
    FrameRef {
        pack: pack((snapshot << 24) | (number / 1500)),
        frame: in_pack,
        offset: 64 + in_pack * 50_000,
        stored_length: 50_000,
        plain_length: PER_FRAME * PAGE,
        codec: 2,
        sealed: false,
        digest: u128::from(seed)
            .wrapping_mul(0x1_0000_0001_0000_0001)
            .to_le_bytes(),
    }
}

fn path(file: u32) -> SnapshotPath {
    SnapshotPath::new(format!("base/16384/{}.{:04}", 16385 + file / 32, file % 32)).expect("a path")
}

fn state(snapshot: u64, limit: u32) -> FileState {
    FileState::Present {
        attributes: Attributes {
            kind: FileKind::File {
                size: u64::from(PAGES) * u64::from(PAGE),
            },
            mode: 0o600,
            owner: None,
            modified: 1_700_000_000 + snapshot as i64,
        },
        limit,
    }
}

fn first(store: &mut Store, files: u32) -> RunRef {
    let mut writer = RunWriter::new(store, PAGE).expect("a page size");
    let mut number = 0;
    for file in 0..files {
        writer.begin(&path(file), &state(0, 0)).expect("a file");
        for page in (0..PAGES).step_by(PER_FRAME as usize) {
            let at = At::Frame {
                frame: frame(0, number),
                offset: 0,
            };
            let extent = Extent {
                page,
                count: PER_FRAME,
                at,
            };
            writer
                .pages(&extent, &[[7; 16]; PER_FRAME as usize])
                .expect("pages");
            number += 1;
        }
    }
    writer.finish().expect("a run").0
}

fn next(store: &mut Store, runs: &[RunRef], files: u32, snapshot: u64) -> Vec<RunRef> {
    let random = |seed: u64| {
        let file = mix(seed) % u64::from(files);
        let page = mix(!seed) % u64::from(PAGES);
        (file as u32, page as u32)
    };
    let mut seed = snapshot << 32;
    let mut changed = BTreeSet::new();
    while changed.len() < CHANGED {
        seed += 1;
        changed.insert(random(seed));
    }
    let mut writer = RunWriter::new(Spool::default(), PAGE).expect("a page size");
    let mut at_file = None;
    for (number, (file, page)) in (0u32..).zip(&changed) {
        if at_file != Some(file) {
            writer
                .begin(&path(*file), &state(snapshot, KEEP_ALL))
                .expect("a file");
            at_file = Some(file);
        }
        let at = At::Frame {
            frame: frame(snapshot, u64::from(number / PER_FRAME)),
            offset: number % PER_FRAME * PAGE,
        };
        let extent = Extent {
            page: *page,
            count: 1,
            at,
        };
        writer.pages(&extent, &[[8; 16]]).expect("pages");
    }
    let (delta, spool) = writer.finish().expect("a run");
    let sizes: Vec<_> = runs.iter().map(RunRef::size).collect();
    let merged = policy::plan(&sizes, delta.size());
    let (older, kept) = runs.split_at(merged.min(runs.len()));
    let known = std::mem::take(&mut store.frames);
    store.keep_digests = true;
    let mut merge =
        Merge::new(&mut *store, PAGE, &delta, older, kept.is_empty()).expect("a page size");
    let get = |frame: &FrameRef| match spool.get(frame).as_ref().or(known.get(&frame.id())) {
        Some(bytes) => MapFrame::decode(bytes),
        None => Err(Error::new(ErrorKind::NotFound, "frame", "is not kept")),
    };
    let (run, _) = drive(&mut merge, get).expect("a merge").expect("a run");
    drop(merge);
    store.frames.extend(known);
    std::iter::once(run).chain(kept.iter().cloned()).collect()
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn main() {
    let files = std::env::var("PAGE_MAP_FILES").ok();
    let files: u32 = files.map_or(1024, |files| files.parse().expect("a number of files"));
    let mut criterion = Criterion::default().configure_from_args();
    let mut store = Store::new();
    let (run, written) = timed(|| first(&mut store, files));
    let map: usize = store.frames.values().map(Bytes::len).sum();
    println!(
        "{files} GB: the first map is written in {written:.1?}, {} MB without digests",
        map >> 20
    );
    let mut views = vec![View {
        runs: vec![run],
        page_size: PAGE,
    }];
    let mut slowest = Duration::ZERO;
    for snapshot in 1..SNAPSHOTS {
        let runs = views
            .last()
            .map(|view| view.runs.clone())
            .unwrap_or_default();
        let (runs, merged) = timed(|| next(&mut store, &runs, files, snapshot));
        slowest = slowest.max(merged);
        views.push(View {
            runs,
            page_size: PAGE,
        });
    }
    println!("{CHANGED} pages changed anywhere: their map is merged in at most {slowest:.1?}");

    let (blocks, floor) = timed(|| {
        let blocks = store
            .frames
            .values()
            .filter(|bytes| bytes.starts_with(b"NMB1"));
        blocks
            .filter(|bytes| black_box(MapFrame::decode(bytes)).is_ok())
            .count()
    });
    println!("floor: {blocks} record blocks are decoded in {floor:.1?}");
    let ratio = |time: Duration| time.as_secs_f64() / floor.as_secs_f64();

    let last = views.last().expect("a view").clone();
    let (walked, time) = timed(|| {
        let mut walk = Walk::new(&last, false);
        let mut extents = 0;
        while let Some(file) = drive(&mut walk, |frame| store.get(frame)).expect("a walk") {
            extents += file.extents.len();
        }
        extents
    });
    println!(
        "walk: {walked} extents in {time:.1?}, {:.2} of the floor",
        ratio(time)
    );

    for (name, before) in [("the one before", SNAPSHOTS - 2), ("the first", 0)] {
        let before = usize::try_from(before)
            .ok()
            .and_then(|at| views.get(at))
            .expect("a view");
        let ((pages, reads), time) = timed(|| {
            let mut diff = Diff::new(before, &last, false);
            let (mut pages, mut reads) = (0, 0);
            let mut get = |frame: &FrameRef| {
                reads += 1;
                store.get(frame)
            };
            while let Some(file) = drive(&mut diff, &mut get).expect("a diff") {
                pages += file.pages.iter().map(|range| range.len()).sum::<usize>();
            }
            (pages, reads)
        });
        println!("diff of the last with {name}: {pages} pages, {reads} frames read, {time:.1?}");
    }

    for order in ["oldest first", "newest first"] {
        let (live, time) = timed(|| {
            let mut mark = Mark::new();
            let mut views = views.clone();
            if order == "newest first" {
                views.reverse();
            }
            views.into_iter().for_each(|view| mark.add(view));
            drive(&mut mark, |frame| store.get(frame)).expect("a mark");
            mark.into_live()
        });
        let frames: u64 = live.packs().map(|(_, frames, _)| frames).sum();
        println!(
            "mark of {SNAPSHOTS} snapshots, {order}: {frames} frames in {time:.1?}, {:.2} of the floor",
            ratio(time)
        );
    }

    // Warm: everything that these lookups need is decoded.
    let decoded: RefCell<HashMap<(PackId, u64), MapFrame>> = RefCell::new(HashMap::new());
    let get = |frame: &FrameRef| {
        if let Some(content) = decoded.borrow().get(&frame.id()) {
            return Ok(content.clone());
        }
        let content = store.get(frame)?;
        decoded.borrow_mut().insert(frame.id(), content.clone());
        Ok(content)
    };
    let keys: Vec<PageKey> = (0..1000u64)
        .map(|seed| PageKey {
            path: path((mix(seed) % u64::from(files.min(32))) as u32),
            page: (mix(!seed) % u64::from(PAGES)) as u32,
        })
        .collect();
    let look =
        |key: &PageKey| drive(&mut Lookup::new(&last, key.clone(), false), get).expect("a lookup");
    for key in &keys {
        assert_ne!(look(key), PagePlace::NotThere, "a page is missing");
    }
    let mut next = keys.iter().cycle();
    criterion.bench_function("lookup in four runs, warm", |bench| {
        bench.iter(|| look(next.next().expect("a key")));
    });
    criterion.final_summary();
}
