//! Every storage call may fail, before or after it took effect: nothing that was reported is lost, nothing half done is
//! seen, and the next try succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::{CommitId, Repository, Result};
use neon_storage::{ErrorKind, Fault, Faulty, Memory};

use crate::clocked::Clocked;
use crate::files::{Kept, Selection, make, reader, several, try_make};
use crate::support::{GRACE, init, open, options, read, try_write, write};

/// Runs something on a storage of which the n-th call fails, for every n, and checks the repository after each.
async fn every_call_fails<S, W>(before: S, work: W)
where
    S: AsyncFn(&Clocked),
    W: AsyncFn(Repository) -> Result<()>,
{
    for fault in [
        Fault::Fail(ErrorKind::Unavailable),
        Fault::LoseAnswer(ErrorKind::Unavailable),
    ] {
        for nth in 0..2000 {
            let storage = Clocked::new();
            before(&storage).await;
            let calls = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&calls);
            let faulty = Faulty::planned(Arc::new(storage.clone()), move |_, _, _| {
                (counter.fetch_add(1, Ordering::SeqCst) == nth).then_some(fault)
            });
            let faulty: Arc<dyn neon_storage::Storage> = Arc::new(faulty);
            let outcome = async {
                let repository = Repository::open(faulty, options()).await?;
                work(repository).await
            };
            let outcome = outcome.await;
            let done = calls.load(Ordering::SeqCst) <= nth;
            let sound = open(&storage).await;
            for _ in 0..4 {
                for listed in sound.list().await.unwrap() {
                    read(&sound, listed.id).await.unwrap();
                }
                let checked = sound.check(true).await.unwrap();
                assert!(
                    checked.is_sound(),
                    "call {nth}, {fault:?}: {:?}",
                    checked.findings
                );
                sound.collect().await.unwrap();
                storage.advance(GRACE * 2);
            }
            if done {
                outcome.unwrap();
                break;
            }
            assert!(nth < 1999);
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_written_over_failing_calls() {
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    };
    every_call_fails(prepare, async |repository| {
        let parent = repository.resolve("pg@1").await?;
        let committed = try_write(&repository, Some(parent), &[("b", 2)], &["pg@2"]).await?;
        read(&repository, committed.id).await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_collection_runs_over_failing_calls() {
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
        let first = write(&repository, None, &files, &["pg@1"]).await;
        let newer = files.map(|(name, seed)| (name, seed + 10));
        write(&repository, Some(first), &newer[..3], &["pg@2"]).await;
        repository.destroy(first).await.unwrap();
        repository.collect().await.unwrap();
        storage.advance(GRACE + Duration::from_secs(1));
    };
    every_call_fails(prepare, async |repository| {
        repository.collect().await.map(drop)
    })
    .await;
}

/// Frames of which this and that is live are thinned, then thinned again, and what they came from is deleted.
#[tokio::test]
async fn a_collection_that_thins_runs_over_failing_calls() {
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
        let first = write(&repository, None, &files, &["pg@1"]).await;
        let second = write(&repository, Some(first), &[("a", 11), ("b", 12)], &["pg@2"]).await;
        repository.destroy(first).await.unwrap();
        repository.collect().await.unwrap();
        storage.advance(GRACE + Duration::from_secs(1));
        repository.collect().await.unwrap();
        write(&repository, Some(second), &[("c", 23)], &["pg@3"]).await;
        repository.destroy(second).await.unwrap();
        storage.advance(GRACE + Duration::from_secs(1));
    };
    every_call_fails(prepare, async |repository| {
        let collected = repository.collect().await?;
        assert!(collected.moved > 0);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn destroying_undoing_pinning_and_listing_run_over_failing_calls() {
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    };
    every_call_fails(prepare, async |repository| {
        let id = repository.resolve("pg@1").await?;
        repository.destroy(id).await?;
        repository.undo_destroy(id).await?;
        let pin = repository.pin(id, "test").await?;
        repository.list().await?;
        repository.unpin(pin.id).await
    })
    .await;
}

/// Restores it to memory.
async fn restored(repository: &Repository, id: CommitId) -> Result<crate::files::Files> {
    let snapshot = Snapshot::open(repository, id, &reader(repository)).await?;
    let work = move || {
        let options = RestoreOptions {
            check_pages: false,
            ..RestoreOptions::default()
        };
        let kept = Kept::default();
        restore(&snapshot, &kept, &options)?;
        Ok(kept.into_files())
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// The writer that programs use: packs under way in several threads, and a map that is merged with the parent's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_itself_and_a_restore_run_over_failing_calls() {
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        try_make(&repository, None, &several(1), &["pg@1"])
            .await
            .unwrap();
    };
    every_call_fails(prepare, async |repository| {
        let parent = repository.resolve("pg@1").await?;
        let made = try_make(&repository, Some(parent), &several(2), &["pg@2"]).await?;
        assert!(restored(&repository, made.id).await? == several(2));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_runs_over_failing_calls_of_either_side() {
    let prepare = async |storage: &Clocked| drop(init(storage).await);
    let source = init(&Memory::new()).await;
    let made = make(&source, several(1), Selection::new(), None)
        .await
        .unwrap();
    every_call_fails(prepare, async |repository| {
        source.copy_to(&repository, made.id).await.map(drop)
    })
    .await;
    // And from where calls fail.
    let prepare = async |storage: &Clocked| {
        let repository = init(storage).await;
        try_make(&repository, None, &several(1), &["pg@1"])
            .await
            .unwrap();
    };
    every_call_fails(prepare, async |repository| {
        let storage = Clocked::new();
        let target = init(&storage).await;
        let id = repository.resolve("pg@1").await?;
        let copied = repository.copy_to(&target, id).await;
        let checked = target.check(true).await.unwrap();
        assert!(checked.is_sound(), "{:?}", checked.findings);
        let there = target.snapshot_ids().await.unwrap();
        assert!(copied.is_err() || there == [id]);
        copied.map(drop)
    })
    .await;
}
