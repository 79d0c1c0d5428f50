//! Every storage call may fail, before or after it took effect: nothing that was reported is lost, nothing half done is
//! seen, and the next try succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use neon_pagestore::{Repository, Result};
use neon_storage::{ErrorKind, Fault, Faulty};

use crate::clocked::Clocked;
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
