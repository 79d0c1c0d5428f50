//! What a writer is told about the cluster and its parent, and what it makes of a lie.

use neon_pagestore::changes::ChangeSet;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter, Stored};
use neon_pagestore::{ErrorKind, Facts, Repository, Result};
use neon_snapshot_format::{End, ParallelSink, Wanted};
use neon_storage::Memory;

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
    parent: Option<&Snapshot>,
) -> (neon_pagestore::Writing, Stored) {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, parent) = (repository.clone(), writing.writer(), parent.cloned());
    let work = move || {
        let options = SnapshotOptions {
            page_size,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options).unwrap();
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
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
            Some(&first),
        )
        .await;
        let second = open(&repository, made, facts(page_size)).await;
        assert_eq!(restored(&second).await.0, files);
        let page = second.read_page(&path("base/5/16401"), 4).await.unwrap();
        assert_eq!(page.unwrap(), files["base/5/16401"][4 * length..5 * length]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_nobody_read_are_recorded_as_possibly_older() {
    let repository = init(&Memory::new()).await;
    let files = varied();
    let partly = || -> Selection { [("base/5/16401".to_owned(), Wanted::Nothing)].into() };
    let made = store(&repository, 8192, files.clone(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    assert!(!first.facts().hints_may_be_older, "all was read");
    let made = store(&repository, 8192, files.clone(), partly(), Some(&first)).await;
    let second = open(&repository, made, facts(8192)).await;
    assert!(second.facts().hints_may_be_older);
    // A child with its hints in the log leaves those of its parent.
    let mut logged = facts(8192);
    logged.cluster.wal_log_hints = true;
    let made = store(&repository, 8192, files.clone(), partly(), Some(&second)).await;
    let third = open(&repository, made, logged.clone()).await;
    assert!(third.facts().hints_may_be_older);
    let made = store(&repository, 8192, files, partly(), Some(&first)).await;
    let fourth = open(&repository, made, logged).await;
    assert!(!fourth.facts().hints_may_be_older);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_since_another_snapshot_are_refused() {
    let repository = init(&Memory::new()).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let first = open(&repository, made, facts(8192)).await;
    let made = store(&repository, 8192, varied(), Selection::new(), None).await;
    let other = open(&repository, made, facts(8192)).await;
    let work = move || {
        let set = ChangeSet::everything().since(other.id());
        let refused = |result: Result<()>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Inconsistent);
        };
        refused(ChangedSince::new(&set, Parent::of(&first)).map(drop));
        assert!(ChangedSince::new(&set, Parent::of(&other)).is_ok());
        let writer = |parent: &Snapshot| {
            let id = neon_pagestore::WriterId::random().unwrap();
            SnapshotWriter::new(&repository, id, SnapshotOptions::default())
                .unwrap()
                .with_parent(Parent::of(parent))
        };
        refused(writer(&first).with_changes(&set).map(drop));
        assert!(writer(&other).with_changes(&set).is_ok());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
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
            .with_parent(Parent::of(&first));
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
