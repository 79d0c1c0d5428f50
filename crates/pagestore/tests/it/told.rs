//! What a writer is told about the cluster and its parent, and what it makes of a lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use neon_pagestore::changes::{
    Answer, ChangeSet, ChangeSource, Hints, ScanFile, ScanFiles, ScanSource,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter, Stored};
use neon_pagestore::{ErrorKind, Facts, Repository, Result};
use neon_snapshot_format::{CHUNK_SIZE, Chunk, ChunkData, End, ParallelSink, Wanted};
use neon_storage::{Memory, StorageExt};

use crate::files::{
    Files, Selection, entry, noise, path, reader, restored, send, send_all, varied,
};
use crate::support::{empty_commit, init};

fn facts(block_size: u32) -> Facts {
    let mut facts = empty_commit(&[]).facts;
    facts.cluster.block_size = block_size;
    facts
}

/// Stores files as snapshots of pages of this size.
async fn store(
    repository: &Repository,
    page_size: u32,
    files: Files,
    selection: Selection,
    parent: Option<(&Snapshot, Hints)>,
) -> (neon_pagestore::Writing, Stored) {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let parent = parent.map(|(parent, hints)| (parent.clone(), hints));
    let work = move || {
        let options = SnapshotOptions {
            page_size,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options).unwrap();
        if let Some((parent, hints)) = &parent {
            sink = sink.with_parent(Parent::of(parent)).with_hints(*hints);
        }
        send_all(&sink, &files, &selection);
        sink.complete().unwrap()
    };
    let stored = tokio::task::spawn_blocking(work).await.unwrap();
    (writing, stored)
}

async fn open(
    repository: &Repository,
    (writing, stored): (neon_pagestore::Writing, Stored),
    facts: Facts,
) -> Snapshot {
    let commit = stored.commit(facts).unwrap();
    let id = writing.commit(&commit).await.unwrap().id;
    Snapshot::open(repository, id, &reader(repository))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sizes_come_back_and_a_wrong_size_makes_no_commit() {
    let repository = init(&Memory::new()).await;
    for page_size in [1024, 16384, 32768] {
        let mut files = varied();
        let made = store(
            &repository,
            page_size,
            files.clone(),
            Selection::new(),
            None,
        )
        .await;
        let error = made.1.commit(facts(8192)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
        let first = open(&repository, made, facts(page_size)).await;
        assert_eq!(restored(&first).await.0, files);

        // And with a parent, some pages of one file new.
        let page = u64::from(page_size);
        let name = "base/5/16401".to_owned();
        let changed = files.get_mut(&name).unwrap();
        let range = page * 3..page * 5;
        let length = usize::try_from(page).unwrap();
        changed[3 * length..5 * length].copy_from_slice(&noise(2 * length, 99));
        let selection = [(name, Wanted::Ranges(vec![range]))].into();
        let made = store(
            &repository,
            page_size,
            files.clone(),
            selection,
            Some((&first, Hints::Exact)),
        )
        .await;
        let second = open(&repository, made, facts(page_size)).await;
        assert_eq!(restored(&second).await.0, files);
        let page = second.read_page(&path("base/5/16401"), 4).await.unwrap();
        assert_eq!(page.unwrap(), files["base/5/16401"][4 * length..5 * length]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_may_be_older_are_recorded_and_inherited() {
    let repository = init(&Memory::new()).await;
    let files = varied();
    let partly = || -> Selection { [("base/5/16401".to_owned(), Wanted::Nothing)].into() };
    let make = async |selection, parent| {
        let made = store(&repository, 8192, files.clone(), selection, parent).await;
        open(&repository, made, facts(8192)).await
    };
    let first = make(Selection::new(), None).await;
    assert!(!first.facts().hints_may_be_older, "all was read");
    let second = make(partly(), Some((&first, Hints::MayBeOlder))).await;
    assert!(second.facts().hints_may_be_older);
    assert_eq!(second.facts().parent, Some(first.id()));
    // A child with its hints in the log leaves those of its parent.
    let third = make(partly(), Some((&second, Hints::Exact))).await;
    assert!(third.facts().hints_may_be_older);
    let fourth = make(partly(), Some((&first, Hints::Exact))).await;
    assert!(!fourth.facts().hints_may_be_older);
    let whole = make(Selection::new(), Some((&second, Hints::MayBeOlder))).await;
    assert!(!whole.facts().hints_may_be_older, "all was read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_part_are_refused_while_nobody_said_how_the_rest_is_known() {
    let repository = init(&Memory::new()).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    let work = move || {
        let id = neon_pagestore::WriterId::random().unwrap();
        let sink = SnapshotWriter::new(&repository, id, SnapshotOptions::default())
            .unwrap()
            .with_parent(Parent::of(&first));
        let entry = entry("base/5/16401", 3_000_000);
        let ranges = Wanted::Ranges(std::iter::once(0..8192).collect());
        for wanted in [Wanted::Nothing, ranges] {
            let error = sink.file(&entry, &wanted).unwrap_err();
            assert_eq!(error.kind(), neon_snapshot_format::ErrorKind::Inconsistent);
        }
        sink.file(&entry, &Wanted::Whole).unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

struct NoFiles;

impl ScanFiles for NoFiles {
    fn next(&mut self) -> Result<Option<ScanFile<'_>>> {
        Ok(None)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_since_another_snapshot_are_refused() {
    let repository = init(&Memory::new()).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let other = open(&repository, made, facts(8192)).await;
    let work = move || {
        let mut pages = other.parent_pages().unwrap();
        let Answer::Exact(set) = ScanSource::new(8192, &mut NoFiles, &mut pages)
            .changes()
            .unwrap()
        else {
            panic!("a scan always answers");
        };
        assert_eq!(set.parent(), Some(other.id()));
        let refused = |result: Result<()>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Inconsistent);
        };
        refused(ChangedSince::new(&set, Parent::of(&first)).map(drop));
        assert!(ChangedSince::new(&set, Parent::of(&other)).is_ok());
        let new = || {
            let id = neon_pagestore::WriterId::random().unwrap();
            SnapshotWriter::new(&repository, id, SnapshotOptions::default()).unwrap()
        };
        let writer = |parent: &Snapshot| new().with_parent(Parent::of(parent));
        refused(new().with_changes(&set).map(drop));
        refused(writer(&first).with_changes(&set).map(drop));
        assert!(writer(&other).with_changes(&set).is_ok());
        assert!(
            writer(&first)
                .with_changes(&ChangeSet::everything())
                .is_ok()
        );
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_parent_than_the_one_it_was_written_with_makes_no_commit() {
    let repository = init(&Memory::new()).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    let (_, stored) = store(
        &repository,
        8192,
        varied(),
        Selection::new(),
        Some((&first, Hints::Exact)),
    )
    .await;
    let mut wrong = facts(8192);
    wrong.parent = Some(neon_pagestore::CommitId::of(b"another"));
    let error = stored.commit(wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
    let commit = stored.commit(facts(8192)).unwrap();
    assert_eq!(commit.facts.parent, Some(first.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_of_changed_files_and_of_others_is_counted_apart() {
    let repository = init(&Memory::new()).await;
    let mut files = varied();
    let made = store(&repository, 8192, files.clone(), Selection::new(), None).await;
    let all: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    let cost = made.1.commit(facts(8192)).unwrap().facts.cost;
    assert_eq!((cost.read_changed, cost.read_other), (all, 0));
    let first = open(&repository, made, facts(8192)).await;

    let mut selection: Selection = files
        .keys()
        .map(|name| (name.clone(), Wanted::Nothing))
        .collect();
    // Three pages that changed, the last short; a file that is read whole and is what it was; a new one.
    let name = "base/5/16401".to_owned();
    let size = files[&name].len();
    let last = size / 8192 * 8192;
    let bytes = files.get_mut(&name).unwrap();
    for range in [0..16384, last..size] {
        bytes[range.clone()].copy_from_slice(&noise(range.len(), 98));
    }
    let ranges = vec![0..16384, last as u64..size as u64];
    selection.insert(name, Wanted::Ranges(ranges));
    let again = "base/5/16394_fsm".to_owned();
    selection.insert(again.clone(), Wanted::Whole);
    let visible = "base/5/16400_vm".to_owned();
    selection.insert(visible.clone(), Wanted::Whole);
    files.insert("base/5/99999".to_owned(), noise(50_000, 97));
    let changed = 16384 + (size - last) as u64 + 50_000;
    let other = (files[&again].len() + files[&visible].len()) as u64;
    let parent = Some((&first, Hints::Exact));
    let made = store(&repository, 8192, files.clone(), selection, parent).await;
    let commit = made.1.commit(facts(8192)).unwrap();
    let cost = &commit.facts.cost;
    assert_eq!((cost.read_changed, cost.read_other), (changed, other));
    assert_eq!(cost.changed_pages, 3 + 7);
    let second = open(&repository, made, facts(8192)).await;
    assert_eq!(restored(&second).await.0, files);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_told_to_stop_does_and_leaves_garbage_only() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    for stop_at in ["base/5/16401", "global/pg_control", "complete"] {
        let writing = repository.begin_writing().await.unwrap();
        let (to, writer) = (repository.clone(), writing.writer());
        let work = move || {
            let cancel = Arc::new(AtomicBool::new(false));
            let options = SnapshotOptions {
                cancel: Arc::clone(&cancel),
                pack_size: 1 << 20,
                ..SnapshotOptions::default()
            };
            let sink = SnapshotWriter::new(&to, writer, options).unwrap();
            let files = varied();
            let outcome = (|| {
                for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with('/')) {
                    let entry = entry(name, bytes.len());
                    sink.file(&entry, &Wanted::Whole)?;
                    let mut worker = sink.worker()?;
                    worker.begin(&entry, 0..entry.size())?;
                    for (number, piece) in (0..).zip(bytes.chunks(CHUNK_SIZE)) {
                        if name == stop_at {
                            cancel.store(true, Ordering::Relaxed);
                        }
                        let data = ChunkData::Bytes(piece);
                        let offset = number * CHUNK_SIZE as u64;
                        worker.chunk(&Chunk { offset, data })?;
                    }
                    worker.commit()?;
                    worker.finish()?;
                }
                sink.end(&End::default())
            })();
            if stop_at != "complete" {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), neon_snapshot_format::ErrorKind::Cancelled);
                return;
            }
            outcome.unwrap();
            cancel.store(true, Ordering::Relaxed);
            assert_eq!(sink.complete().unwrap_err().kind(), ErrorKind::Cancelled);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        writing.abandon().await;
    }
    let keys = storage.list_all("").await.unwrap();
    let keys: Vec<&str> = keys.iter().map(|object| object.key.as_str()).collect();
    let garbage = |key: &&str| key.starts_with("packs/") || *key == "neon.json";
    assert!(keys.iter().any(|key| key.starts_with("packs/")));
    assert!(keys.iter().all(garbage), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_ranges_that_never_came_are_noticed() {
    let repository = init(&Memory::new()).await;
    let files = varied();
    let made = store(&repository, 8192, files.clone(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    let writing = repository.begin_writing().await.unwrap();
    let writer = writing.writer();
    let work = move || {
        let sink = SnapshotWriter::new(&repository, writer, SnapshotOptions::default())
            .unwrap()
            .with_parent(Parent::of(&first))
            .with_hints(Hints::Exact);
        let bytes = &files["base/5/16401"];
        let entry = entry("base/5/16401", bytes.len());
        let ranges = Wanted::Ranges(vec![0..8192, 24576..40960]);
        sink.file(&entry, &ranges).unwrap();
        let mut worker = sink.worker().unwrap();
        send(&mut *worker, &entry, bytes, 0..8192);
        send(&mut *worker, &entry, bytes, 24576..32768);
        worker.finish().unwrap();
        drop(worker);
        sink.end(&End::default()).unwrap();
        let error = sink.complete().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
