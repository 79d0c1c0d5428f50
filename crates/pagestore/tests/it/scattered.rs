//! A snapshot whose pages lie in the frames of hundreds of snapshots before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::changes::Hints;
use neon_pagestore::read::{FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::restore::{RestoreOptions, Restored, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_snapshot_format::pack::Codec;
use neon_snapshot_format::{Chunk, ChunkData, End, ParallelSink, SnapshotKind, Wanted};
use neon_storage::{Memory, Meter};

use crate::files::{Files, Kept, entry, make_with, noise, restored, sent};
use crate::support::{empty_commit, init};

const PAGE: usize = 8192;
const FILES: usize = 32;
const PAGES: usize = 256;
const SNAPSHOTS: usize = 128;

fn name(file: usize) -> String {
    format!("base/5/{}", 20_000 + file)
}

/// Writes the pages with these numbers, counted over all files, anew.
async fn take(
    repository: &Repository,
    parent: Option<&Snapshot>,
    files: &Files,
    pages: impl Iterator<Item = usize>,
) -> CommitId {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, parent) = (repository.clone(), writing.writer(), parent.map(Parent::of));
    let pages: Vec<usize> = pages.collect();
    let sent: Vec<(usize, usize, Vec<u8>)> = pages
        .iter()
        .map(|page| {
            let (file, page) = (page / PAGES, page % PAGES);
            let from = page * PAGE;
            (file, page, files[&name(file)][from..from + PAGE].to_vec())
        })
        .collect();
    let control = files["global/pg_control"].clone();
    let work = move || {
        let options = SnapshotOptions {
            codec: Codec::None,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options)
            .unwrap()
            .with_hints(Hints::Exact);
        if let Some(parent) = parent {
            sink = sink.with_parent(parent);
        }
        for directory in ["base/", "base/5/", "global/"] {
            sink.entry(&entry(directory, 0)).unwrap();
        }
        let control_file = entry("global/pg_control", PAGE);
        sink.file(&control_file, &Wanted::Whole).unwrap();
        let mut worker = sink.worker().unwrap();
        for file in 0..FILES {
            let entry = entry(&name(file), PAGES * PAGE);
            let own = sent.iter().filter(|(of, ..)| *of == file);
            let ranges = own.map(|(_, page, _)| (page * PAGE) as u64..((page + 1) * PAGE) as u64);
            sink.file(&entry, &Wanted::Ranges(ranges.collect()))
                .unwrap();
        }
        for (file, page, bytes) in &sent {
            let offset = (page * PAGE) as u64;
            let range = offset..offset + PAGE as u64;
            worker
                .begin(&entry(&name(*file), PAGES * PAGE), range)
                .unwrap();
            let data = ChunkData::Bytes(bytes);
            worker.chunk(&Chunk { offset, data }).unwrap();
            worker.commit().unwrap();
        }
        worker.begin(&control_file, 0..PAGE as u64).unwrap();
        let data = ChunkData::Bytes(&control);
        worker.chunk(&Chunk { offset: 0, data }).unwrap();
        worker.commit().unwrap();
        worker.finish().unwrap();
        drop(worker);
        let end = End {
            kind: Some(SnapshotKind::Cold),
            ..End::default()
        };
        sink.end(&end).unwrap();
        sink.complete().unwrap()
    };
    let stored = tokio::task::spawn_blocking(work).await.unwrap();
    let commit = stored.commit(empty_commit(&[]).facts).unwrap();
    writing.commit(&commit).await.unwrap().id
}

/// Every page in a snapshot of its own turn, so that each frame has pages of many files, and there is no file that does not
/// have pages in half of all frames.
async fn chain(memory: &Memory) -> (CommitId, Files) {
    let repository = init(memory).await;
    let maps = MapReader::new(repository.frames(), 32 << 20);
    let mut files: Files = (0..FILES)
        .map(|file| (name(file), noise(PAGES * PAGE, file as u64)))
        .collect();
    files.insert("global/pg_control".to_owned(), noise(PAGE, 5));
    let mut id = take(&repository, None, &files, 0..FILES * PAGES).await;
    for turn in 0..SNAPSHOTS {
        let parent = Snapshot::open(&repository, id, &maps).await.unwrap();
        let changed = || (turn..FILES * PAGES).step_by(SNAPSHOTS);
        for page in changed() {
            let bytes = files.get_mut(&name(page / PAGES)).unwrap();
            let from = page % PAGES * PAGE;
            bytes[from..from + PAGE].copy_from_slice(&noise(PAGE, (1 << 20) + page as u64));
        }
        id = take(&repository, Some(&parent), &files, changed()).await;
    }
    for directory in ["base/", "base/5/", "global/"] {
        files.insert(directory.to_owned(), Vec::new());
    }
    (id, files)
}

struct Reading {
    received: Arc<AtomicU64>,
    snapshot: Snapshot,
}

/// Opens the snapshot afresh, with little memory for frames and a count of what is read.
async fn open(memory: &Memory, id: CommitId, kept: u64) -> Reading {
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let metered = Meter::new(Arc::new(memory.clone()), move |event| {
        counter.fetch_add(event.received, Ordering::Relaxed);
    });
    let repository = Repository::open(Arc::new(metered), OpenOptions::new())
        .await
        .unwrap();
    let frames = repository.frames_with(FrameReaderOptions {
        memory: kept,
        ..FrameReaderOptions::default()
    });
    let maps = MapReader::new(frames, 8 << 20);
    let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
    Reading { received, snapshot }
}

/// What a data directory takes in one part, and holds, may be of any size in a snapshot that somebody forged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_makes_a_restore_hold_all_of_it() {
    let repository = init(&Memory::new()).await;
    let large: Files = ["global/pg_control", "tablespace_map", "backup_manifest"]
        .into_iter()
        .zip(0..)
        .map(|(name, seed)| (name.to_owned(), noise(40 << 20, seed)))
        .collect();
    for (name, content) in large {
        let control = ("global/pg_control".to_owned(), noise(PAGE, 5));
        let mut files: Files = [control, ("global/".to_owned(), Vec::new())].into();
        files.insert(name.clone(), content);
        let options = SnapshotOptions {
            codec: Codec::None,
            ..SnapshotOptions::default()
        };
        let id = make_with(&repository, files.clone(), options)
            .await
            .unwrap();
        let maps = MapReader::new(repository.frames(), 8 << 20);
        let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
        let (found, held) = restored(&snapshot).await;
        assert!(found == files, "{name}");
        assert!(held.held <= 50 << 20, "{name}: {} bytes held", held.held);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_reads_each_frame_once_and_holds_few() {
    const LIVE: u64 = (FILES * PAGES * PAGE) as u64;
    let memory = Memory::new();
    let (id, files) = chain(&memory).await;
    let options = || RestoreOptions {
        check_pages: false,
        ..RestoreOptions::default()
    };
    let bounded = |restored: &Restored, received: u64| {
        assert!(restored.live >= LIVE && restored.used.received <= received);
        assert!(received < LIVE / 4 * 5, "{received} bytes read for {LIVE}");
        // Two threads, each with 8 MiB of frames decoded and stored, and the next 8 MiB stored.
        assert!(restored.held <= 50 << 20, "{} bytes held", restored.held);
    };

    let reading = open(&memory, id, 4 << 20).await;
    let snapshot = reading.snapshot;
    let work = move || {
        let kept = Kept::default();
        let restored = restore(&snapshot, &kept, &options()).unwrap();
        (restored, kept.into_files())
    };
    let (restored, found) = tokio::task::spawn_blocking(work).await.unwrap();
    assert!(found == files);
    bounded(&restored, reading.received.load(Ordering::Relaxed));

    // In order, frames are read once as long as memory holds those that are used here and there: one of each snapshot.
    let reading = open(&memory, id, 32 << 20).await;
    let (found, ..) = sent(&reading.snapshot).await;
    assert!(found == files);
    let received = reading.received.load(Ordering::Relaxed);
    assert!(received < LIVE / 4 * 5, "{received} bytes read for {LIVE}");
}
