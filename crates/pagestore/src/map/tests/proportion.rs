//! What the metadata of snapshots costs in proportion to what changed, counted in bytes as they would be stored.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pack::{
    Codec, EncodedFrame, FRAME_SIZE, PackId, PackOptions, PackWriter,
};

use crate::crypt::DataKey;
use crate::error::{Error, Result};
use crate::map::machine::FrameId;
use crate::map::run::IndexRef;
use crate::map::{
    At, Attributes, BlockSink, Extent, FileKind, FileState, FrameRef, KEEP_ALL, MapFrame, Merge,
    PackRef, PageDigest, PageKey, RunRef, RunSize, RunWriter, Spool, drive, policy,
};

const PAGE: u32 = 8192;
/// A frame's record in the directory of its pack.
const RECORD: u64 = 28;

/// The long form has ten times the changes, and writes the map of 1 TB.
fn long() -> bool {
    std::env::var_os("NEON_LONG_TESTS").is_some()
}

/// Compresses frames as a writer would, and counts what is stored.
struct Counting {
    pack: PackRef,
    packs: u8,
    writer: Option<PackWriter<std::io::Sink>>,
    frames: HashMap<FrameId, Bytes>,
    keep: bool,
    stored: u64,
}

impl Counting {
    fn new() -> Self {
        let mut counting = Self {
            pack: PackRef {
                id: PackId([0; 16]),
                key: DataKey([0; 32]),
            },
            packs: 0,
            writer: None,
            frames: HashMap::new(),
            keep: true,
            stored: 0,
        };
        counting.next_pack();
        counting
    }

    /// Ends the pack, and with it what a snapshot costs; tells those bytes.
    fn next_pack(&mut self) -> u64 {
        self.packs += 1;
        let id = PackId(random(self.packs.into()));
        self.pack = PackRef {
            id,
            key: DataKey(*blake3::hash(&id.0).as_bytes()),
        };
        let writer = PackWriter::new(std::io::sink(), PackOptions::new(id)).unwrap();
        let before = self.writer.replace(writer);
        // Header, root and footer of a pack.
        let stored = before.map_or(0, |_| std::mem::take(&mut self.stored) + 64 + 32 + 24 + 144);
        self.stored = 0;
        stored
    }
}

impl BlockSink for Counting {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let failed = |error| Error::format("frame", error);
        let encoded = EncodedFrame::new(plain, Codec::Zstd(3)).map_err(failed)?;
        let writer = self.writer.as_mut().unwrap();
        let frame = writer.next_frame();
        let record = writer.append_encoded(&encoded).map_err(failed)?;
        let range = record.range();
        let frame = FrameRef {
            pack: self.pack,
            frame,
            offset: range.start,
            stored_length: u32::try_from(range.end - range.start).unwrap(),
            plain_length: record.plain_length(),
            codec: 2,
            sealed: false,
            digest: *record.digest(),
        };
        self.stored += range.end - range.start + RECORD;
        if self.keep {
            self.frames
                .insert(frame.id(), Bytes::copy_from_slice(plain));
        }
        Ok(frame)
    }
}

/// Bytes that do not compress.
fn random(seed: u64) -> [u8; 16] {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = [0; 16];
    for chunk in bytes.chunks_exact_mut(8) {
        state ^= state >> 30;
        state = state.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state ^= state >> 27;
        state = state.wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^= state >> 31;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn number(seed: u64) -> u64 {
    u64::from_le_bytes(*random(seed).first_chunk().unwrap())
}

/// A cluster of tables of one size.
#[derive(Clone, Copy)]
struct Shape {
    files: u32,
    pages: u32,
}

const MB64: Shape = Shape {
    files: 64,
    pages: 128,
};
const GB1: Shape = Shape {
    files: 64,
    pages: 2048,
};
const TB1: Shape = Shape {
    files: 1024,
    pages: 131_072,
};

impl Shape {
    fn path(self, file: u32) -> SnapshotPath {
        SnapshotPath::new(format!(
            "base/{}/{:05}",
            16384 + file / 100,
            16400 + file % 100
        ))
        .unwrap()
    }

    fn state(self, time: i64, limit: u32) -> FileState {
        let size = u64::from(self.pages) * u64::from(PAGE);
        FileState::Present {
            attributes: Attributes {
                kind: FileKind::File { size },
                mode: 0o600,
                owner: Some(neon_snapshot_format::Owner { uid: 26, gid: 26 }),
                modified: time,
            },
            limit,
        }
    }

    /// Writes all files, or the pages of some that changed, in frames of sixteen pages.
    fn write<S: BlockSink>(
        self,
        writer: &mut RunWriter<S>,
        pages: impl Iterator<Item = (u32, u32)>,
        snapshot: u64,
    ) {
        let per_frame = FRAME_SIZE as u32 / PAGE;
        let base = snapshot == 0;
        let mut frame: Option<FrameRef> = None;
        let (mut used, mut packs, mut file) = (0, 0, None);
        let mut batch: Option<(Extent, Vec<PageDigest>)> = None;
        for (in_file, page) in pages {
            if file != Some(in_file) {
                if let Some((extent, digests)) = batch.take() {
                    writer.pages(&extent, &digests).unwrap();
                }
                let limit = if base { 0 } else { KEEP_ALL };
                let state = self.state(1_700_000_000 + snapshot as i64 * 300, limit);
                writer.begin(&self.path(in_file), &state).unwrap();
                file = Some(in_file);
                if base {
                    used = per_frame;
                }
            }
            // A new frame, and after 64 MiB or so a new pack.
            if frame.is_none() || used >= per_frame {
                let before = frame.filter(|frame| frame.frame < 1500);
                packs += u64::from(before.is_none());
                let seed = snapshot << 40 | packs << 16 | before.map_or(0, |frame| frame.frame + 1);
                frame = Some(FrameRef {
                    pack: PackRef {
                        id: PackId(random(snapshot << 20 | packs)),
                        key: DataKey(*blake3::hash(&random(snapshot << 20 | packs)).as_bytes()),
                    },
                    frame: before.map_or(0, |frame| frame.frame + 1),
                    offset: before
                        .map_or(64, |frame| frame.offset + u64::from(frame.stored_length)),
                    stored_length: 30_000 + (number(seed) % 50_000) as u32,
                    plain_length: FRAME_SIZE as u32,
                    codec: 2,
                    sealed: false,
                    digest: random(!seed),
                });
                used = 0;
            }
            let at = At::Frame {
                frame: frame.unwrap(),
                offset: used * PAGE,
            };
            let digest = random(snapshot << 44 | u64::from(in_file) << 32 | u64::from(page));
            used += 1;
            match &mut batch {
                Some((extent, digests)) if used > 1 && extent.end() == page => {
                    extent.count += 1;
                    digests.push(digest);
                }
                _ => {
                    if let Some((extent, digests)) = batch.take() {
                        writer.pages(&extent, &digests).unwrap();
                    }
                    batch = Some((Extent { page, count: 1, at }, vec![digest]));
                }
            }
        }
        if let Some((extent, digests)) = batch {
            writer.pages(&extent, &digests).unwrap();
        }
    }

    fn all(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.files).flat_map(move |file| (0..self.pages).map(move |page| (file, page)))
    }

    /// The first snapshot. That of a terabyte is not written: no later one may read it, its size is enough.
    fn first(self, store: &mut Counting) -> RunRef {
        if self.files == TB1.files {
            let pages = u64::from(self.files) * u64::from(self.pages);
            let size = RunSize {
                files: 17_000,
                pages,
                bytes: pages * 18,
            };
            let frame = FrameRef {
                pack: store.pack,
                frame: u64::MAX,
                offset: 0,
                stored_length: 60_000,
                plain_length: 60_000,
                codec: 0,
                sealed: false,
                digest: [0; 16],
            };
            let first = PageKey::of(self.path(0));
            return RunRef {
                indexes: vec![IndexRef { first, frame, size }],
            };
        }
        let mut writer = RunWriter::new(&mut *store, PAGE).unwrap();
        self.write(&mut writer, self.all(), 0);
        writer.finish().unwrap().0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Where {
    /// Any page of any table.
    Anywhere,
    /// Neighbours in a few places.
    Together,
    /// As the first, but nine of ten snapshots change hardly anything.
    Unevenly,
}

impl Where {
    fn pages(self, shape: Shape, count: u32, snapshot: u64) -> BTreeSet<(u32, u32)> {
        let count = match self {
            Self::Unevenly if !snapshot.is_multiple_of(10) => count / 1000 + 1,
            _ => count,
        };
        let mut pages = BTreeSet::new();
        let mut seed = snapshot << 32;
        while (pages.len() as u32) < count {
            seed += 1;
            let file = (number(seed) % u64::from(shape.files)) as u32;
            let page = (number(!seed) % u64::from(shape.pages)) as u32;
            let together = if self == Self::Together {
                50.min(shape.pages - page)
            } else {
                1
            };
            pages.extend((0..together).map(|next| (file, page + next)));
        }
        pages
    }
}

/// Takes 200 snapshots; each costs at most 400 bytes for a changed page and 256 KiB, averaged.
fn two_hundred_snapshots(shape: Shape, pages: u32, places: Where) {
    let pages = if long() { pages * 10 } else { pages };
    let mut store = Counting::new();
    let mut runs = vec![shape.first(&mut store)];
    store.next_pack();
    let (mut bytes, mut changed) = (0, 0);
    for snapshot in 1..=200 {
        let delta_pages = places.pages(shape, pages, snapshot);
        changed += delta_pages.len() as u64;
        let mut writer = RunWriter::new(Spool::default(), PAGE).unwrap();
        shape.write(&mut writer, delta_pages.into_iter(), snapshot);
        let (delta, spool) = writer.finish().unwrap();
        let sizes: Vec<_> = runs.iter().map(RunRef::size).collect();
        let merged = policy::plan(&sizes, delta.size());
        let (older, kept) = runs.split_at(merged);
        let frames = std::mem::take(&mut store.frames);
        let mut merge = Merge::new(&mut store, PAGE, &delta, older, kept.is_empty()).unwrap();
        let get = |frame: &FrameRef| match spool.get(frame) {
            Some(bytes) => MapFrame::decode(&bytes),
            None => MapFrame::decode(frames.get(&frame.id()).expect("no frame of the terabyte")),
        };
        let (run, _) = drive(&mut merge, get).unwrap().unwrap();
        drop(merge);
        store.frames.extend(frames);
        runs = std::iter::once(run).chain(kept.iter().cloned()).collect();
        // The commit holds the runs.
        bytes += store.next_pack() + crate::map::encode_runs(&runs).len() as u64;
    }
    let allowed = changed * 400 + 200 * (256 << 10);
    println!(
        "{} files of {} pages, {pages} changed {places:?}: {} bytes a page, {} KiB a snapshot, {} % of what is allowed",
        shape.files,
        shape.pages,
        bytes / changed,
        bytes / 200 / 1024,
        bytes * 100 / allowed,
    );
    assert!(bytes <= allowed, "{bytes} bytes, {allowed} are allowed");
}

macro_rules! proportions {
    ($($name:ident: $shape:expr, $pages:expr, $places:expr;)*) => {
        $(
            #[test]
            fn $name() {
                two_hundred_snapshots($shape, $pages, $places);
            }
        )*
    };
}

proportions! {
    metadata_follows_change_in_64_mb_changed_anywhere: MB64, 80, Where::Anywhere;
    metadata_follows_change_in_64_mb_changed_together: MB64, 200, Where::Together;
    metadata_follows_change_in_1_gb_changed_anywhere: GB1, 300, Where::Anywhere;
    metadata_follows_change_in_1_gb_changed_together: GB1, 700, Where::Together;
    metadata_follows_change_in_1_gb_changed_by_a_few_pages: GB1, 3, Where::Anywhere;
    metadata_follows_change_in_1_tb_changed_anywhere: TB1, 300, Where::Anywhere;
    metadata_follows_change_in_1_tb_changed_together: TB1, 1000, Where::Together;
    metadata_follows_change_in_1_tb_changed_unevenly: TB1, 3000, Where::Unevenly;
}

#[test]
fn the_map_of_a_full_snapshot_takes_under_a_quarter_of_a_percent() {
    let shape = if long() { TB1 } else { GB1 };
    let mut store = Counting::new();
    store.keep = false;
    let mut writer = RunWriter::new(&mut store, PAGE).unwrap();
    shape.write(&mut writer, shape.all(), 0);
    let (run, _) = writer.finish().unwrap();
    let pages = run.size().pages;
    assert_eq!(pages, u64::from(shape.files) * u64::from(shape.pages));
    let bytes =
        store.next_pack() + crate::map::encode_runs(std::slice::from_ref(&run)).len() as u64;
    println!(
        "{pages} pages: {} KiB of map, {:.2} bytes a page",
        bytes >> 10,
        bytes as f64 / pages as f64
    );
    assert!(bytes * 400 < pages * u64::from(PAGE), "{bytes}");
    assert!(run.indexes.len() < 40, "what a commit holds stays small");
}
