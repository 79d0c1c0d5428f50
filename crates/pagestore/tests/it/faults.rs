//! Every storage call may fail, before or after it took effect: nothing that was reported is lost, nothing half done is
//! seen, and the next try succeeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neon_pagestore::crypt::{KeyKind, KeySource};
use neon_pagestore::read::{Snapshot, SnapshotSource};
use neon_pagestore::{CommitId, Error, OpenOptions, Repository, Result};
use neon_snapshot_format::Source;
use neon_snapshot_format::basebackup::{BaseBackupWriter, TarOptions};
use neon_snapshot_format::pack::{NeonFile, NeonWriter, PackId, PackOptions};
use neon_storage::{ErrorKind, Fault, Faulty, Storage, StorageExt};
use neon_testkit::{Cluster, PgMajor, Scratch};

use crate::clocked::Clocked;
use crate::files::{Files, reader, several, try_make, try_restored};
use crate::stopped::steps;
use crate::support::{GRACE, init, open, options, read, try_write, write};

/// A passphrase that costs little.
fn phrase(text: &str) -> KeySource {
    KeySource::passphrase(text).with_cost(64, 1)
}

fn with(key: Option<KeySource>) -> OpenOptions {
    let mut options = options();
    options.key = key;
    options
}

/// Opens it with the first of these keys that does; the first is that of who works.
async fn open_sound(storage: &Clocked, keys: &[KeySource]) -> Repository {
    if keys.is_empty() {
        return open(storage).await;
    }
    for key in keys {
        match Repository::open(Arc::new(storage.clone()), with(Some(key.clone()))).await {
            Ok(opened) => return opened,
            Err(error) => assert_eq!(error.kind(), neon_pagestore::ErrorKind::Locked, "{error:?}"),
        }
    }
    panic!("no key is left");
}

/// Runs something on a storage of which the n-th call fails, for every n, and checks the repository after each: in a
/// repository that is not encrypted, and for some n, as [`steps`] has them, in one that is.
async fn every_call_fails<S, W>(before: S, work: W)
where
    S: AsyncFn(&Clocked, Repository),
    W: AsyncFn(Repository) -> Result<()>,
{
    for (keys, some) in [(&[][..], false), (&[phrase("one")], true)] {
        every_call_fails_of(keys, some, &before, &work, async |_, _| {}).await;
    }
}

/// As [`every_call_fails`], of a repository that one of these keys opens whatever happens; `after` sees last what is left, and
/// whether it was done.
async fn every_call_fails_of<S, W, A>(keys: &[KeySource], some: bool, before: S, work: W, after: A)
where
    S: AsyncFn(&Clocked, Repository),
    W: AsyncFn(Repository) -> Result<()>,
    A: AsyncFn(Repository, bool),
{
    let options = || with(keys.first().cloned());
    for fault in [
        Fault::Fail(ErrorKind::Unavailable),
        Fault::LoseAnswer(ErrorKind::Unavailable),
    ] {
        let (first, step) = steps(some);
        for nth in (first..2000).step_by(step) {
            let storage = Clocked::new();
            let made = Repository::init(Arc::new(storage.clone()), options()).await;
            before(&storage, made.unwrap()).await;
            let (faulty, calls) = failing(&storage, nth, fault);
            let outcome = async {
                let repository = Repository::open(faulty, options()).await?;
                work(repository).await
            };
            let outcome = outcome.await;
            let done = calls.load(Ordering::SeqCst) <= nth;
            let sound = open_sound(&storage, keys).await;
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
            after(sound, outcome.is_ok()).await;
            if done {
                outcome.unwrap();
                break;
            }
            assert!(nth < 1990);
        }
    }
}

/// As [`every_call_fails`], of what leaves a repository as it is: it fails, or finds the same as when no call does.
async fn every_call_of_a_reader_fails<S, W, T>(before: S, work: W)
where
    S: AsyncFn(&Clocked, Repository),
    W: AsyncFn(Repository) -> Result<T>,
    T: PartialEq + std::fmt::Debug,
{
    for key in [None, Some(phrase("one"))] {
        let storage = Clocked::new();
        let options = || with(key.clone());
        let made = Repository::init(Arc::new(storage.clone()), options()).await;
        before(&storage, made.unwrap()).await;
        let stored = storage.list_all("").await.unwrap();
        let sound = Repository::open(Arc::new(storage.clone()), options()).await;
        let expected = work(sound.unwrap()).await.unwrap();
        // What took effect without an answer is as bad for who reads as what did not.
        for nth in 0..2000 {
            let (faulty, calls) = failing(&storage, nth, Fault::Fail(ErrorKind::Unavailable));
            let outcome = async {
                let repository = Repository::open(faulty, options()).await?;
                work(repository).await
            };
            let outcome = outcome.await;
            assert_eq!(storage.list_all("").await.unwrap(), stored);
            let done = calls.load(Ordering::SeqCst) <= nth;
            if done || outcome.is_ok() {
                assert_eq!(outcome.unwrap(), expected, "call {nth}");
            }
            if done {
                break;
            }
            assert!(nth < 1999);
        }
    }
}

/// Its n-th call fails; the calls are counted.
fn failing(storage: &Clocked, nth: u64, fault: Fault) -> (Arc<dyn Storage>, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&calls);
    let faulty = Faulty::planned(Arc::new(storage.clone()), move |_, _, _| {
        (counter.fetch_add(1, Ordering::SeqCst) == nth).then_some(fault)
    });
    (Arc::new(faulty), calls)
}

#[tokio::test]
async fn a_snapshot_is_written_over_failing_calls() {
    let prepare = async |_: &Clocked, repository: Repository| {
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
    let prepare = async |storage: &Clocked, repository: Repository| {
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
    let prepare = async |storage: &Clocked, repository: Repository| {
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
    let prepare = async |_: &Clocked, repository: Repository| {
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
async fn restored(repository: &Repository, id: CommitId) -> Result<Files> {
    let snapshot = Snapshot::open(repository, id, &reader(repository)).await?;
    Ok(try_restored(&snapshot).await?.0)
}

/// The writer that programs use: packs under way in several threads, and a map that is merged with the parent's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_itself_and_a_restore_run_over_failing_calls() {
    let prepare = async |_: &Clocked, repository: Repository| {
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

/// Copies of what lies in packs as it was written, and of what was thinned since, between repositories of each sort.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_runs_over_failing_calls_of_either_side() {
    let nothing = async |_: &Clocked, _: Repository| {};
    let storages = [Clocked::new(), Clocked::new()];
    let source = init(&storages[0]).await;
    let id = thinned(&storages[0], &source).await;
    every_call_fails(nothing, async |repository| {
        source.copy_to(&repository, id).await.map(drop)
    })
    .await;
    let options = with(Some(phrase("source")));
    let source = Repository::init(Arc::new(storages[1].clone()), options).await;
    let source = source.unwrap();
    let id = thinned(&storages[1], &source).await;
    let copy = async |repository: Repository| source.copy_to(&repository, id).await.map(drop);
    every_call_fails_of(&[phrase("one")], true, nothing, copy, async |_, _| {}).await;
    // And from where calls fail.
    let prepare = async |storage: &Clocked, repository: Repository| {
        thinned(storage, &repository).await;
    };
    every_call_fails(prepare, async |repository| {
        let storage = Clocked::new();
        let target = init(&storage).await;
        let id = repository.resolve("pg@last").await?;
        let copied = repository.copy_to(&target, id).await;
        let checked = target.check(true).await.unwrap();
        assert!(checked.is_sound(), "{:?}", checked.findings);
        let there = target.snapshot_ids().await.unwrap();
        assert!(copied.is_err() || there == [id]);
        copied.map(drop)
    })
    .await;
}

/// A snapshot, `pg@last`, of which some frames were thinned and the others are where they were written.
async fn thinned(storage: &Clocked, repository: &Repository) -> CommitId {
    let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
    let first = write(repository, None, &files, &[]).await;
    let newer = [("a", 11), ("b", 12)];
    let last = write(repository, Some(first), &newer, &["pg@last"]).await;
    repository.destroy(first).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    assert!(!storage.list_all("moves/").await.unwrap().is_empty());
    last
}

/// A call that fails is no finding.
#[tokio::test]
async fn a_check_runs_over_failing_calls_and_finds_nothing_wrong() {
    let prepare = async |storage: &Clocked, repository: Repository| {
        let last = thinned(storage, &repository).await;
        repository.pin(last, "test").await.unwrap();
        let gone = write(&repository, None, &[("e", 5)], &["pg@gone"]).await;
        repository.destroy(gone).await.unwrap();
        repository.collect().await.unwrap();
    };
    every_call_of_a_reader_fails(prepare, async |repository| {
        let id = repository.resolve("pg@last").await?;
        let all = [
            repository.check(true).await?,
            repository.check(false).await?,
            repository.check_snapshot(id, true).await?,
        ];
        for checked in &all {
            assert!(checked.is_sound(), "{:?}", checked.findings);
            assert!(checked.packs > 0 && checked.frames > 0);
        }
        Ok(all)
    })
    .await;
}

/// Where a stream goes to, so that what was written is seen also when the rest never comes.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Nobody takes what was exported in part for a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_run_over_failing_calls_and_what_is_there_of_them_is_no_export_before_all_is() {
    let cluster = Cluster::builder(PgMajor::V17).init();
    let control = std::fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    let prepare = async |_: &Clocked, repository: Repository| {
        let mut files = several(1);
        files.insert("global/".to_owned(), Vec::new());
        files.insert("global/pg_control".to_owned(), control.clone());
        let made = try_make(&repository, None, &files, &["pg@1"]).await;
        made.unwrap();
    };
    let format = |error| Error::format("export", error);
    every_call_of_a_reader_fails(prepare, async |repository| {
        let id = repository.resolve("pg@1").await?;
        let snapshot = Snapshot::open(&repository, id, &reader(&repository)).await?;
        let work = move || {
            let written = Written::default();
            let mut writer = NeonWriter::new(written.clone(), PackOptions::new(PackId([7; 16])));
            let exported = SnapshotSource::new(&snapshot)?.send(writer.as_mut().unwrap());
            let bytes = written.0.lock().unwrap().clone();
            let whole = writer.unwrap().into_inner().is_some();
            assert_eq!(exported.is_ok(), whole);
            let opened = NeonFile::open(bytes, None);
            assert_eq!(opened.is_ok(), whole);
            exported.map_err(format)?;
            opened.unwrap().check().unwrap();

            let place = Scratch::new();
            let set = place.path().join("set");
            let mut writer = BaseBackupWriter::in_directory(&set, TarOptions::default()).unwrap();
            let exported = SnapshotSource::new(&snapshot)?.send(&mut writer);
            let whole = set.join("backup_manifest").exists();
            assert_eq!(exported.is_ok(), whole);
            exported.map_err(format)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    })
    .await;
}

fn key_file() -> KeySource {
    KeySource::key_file(&[7; 32]).unwrap()
}

/// The snapshot that was there before keys were changed.
async fn is_readable(repository: &Repository) {
    let id = repository.resolve("pg@1").await.unwrap();
    assert_eq!(read(repository, id).await.unwrap(), ["a"]);
}

#[tokio::test]
async fn keys_are_added_over_failing_calls() {
    let prepare = async |_: &Clocked, repository: Repository| {
        write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    };
    let add = async |repository: Repository| repository.add_key(key_file()).await.map(drop);
    let after = async |repository: Repository, done: bool| {
        let added = repository.keys().await.unwrap();
        let added = added
            .iter()
            .filter(|key| key.kind == Some(KeyKind::KeyFile));
        assert!(!done || added.count() == 1);
        let id = repository.add_key(key_file()).await.unwrap();
        let storage = Arc::clone(repository.storage());
        let opened = Repository::open(storage, with(Some(key_file()))).await;
        is_readable(&opened.unwrap()).await;
        repository.remove_key(id).await.unwrap();
    };
    every_call_fails_of(&[phrase("one")], false, prepare, add, after).await;
}

#[tokio::test]
async fn keys_are_removed_over_failing_calls() {
    let prepare = async |_: &Clocked, repository: Repository| {
        write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        repository.add_key(key_file()).await.unwrap();
    };
    let of_file = async |repository: &Repository| -> Result<Vec<_>> {
        let keys = repository.keys().await?.into_iter();
        let keys = keys.filter(|key| key.kind == Some(KeyKind::KeyFile));
        Ok(keys.map(|key| key.id).collect())
    };
    let remove = async |repository: Repository| {
        match of_file(&repository).await?.as_slice() {
            [id] => repository.remove_key(*id).await,
            // What it is could not be read.
            _ => Err(Error::new(neon_pagestore::ErrorKind::Storage, "key", "?")),
        }
    };
    let after = async |repository: Repository, done: bool| {
        let left = of_file(&repository).await.unwrap();
        assert!(!done || left.is_empty());
        for id in left {
            repository.remove_key(id).await.unwrap();
        }
        let storage = Arc::clone(repository.storage());
        let shut_out = Repository::open(storage, with(Some(key_file()))).await;
        let kind = shut_out.unwrap_err().kind();
        assert_eq!(kind, neon_pagestore::ErrorKind::Locked);
        is_readable(&repository).await;
        // Nothing remains in the way of other keys.
        let id = repository.add_key(key_file()).await.unwrap();
        repository.remove_key(id).await.unwrap();
        assert_eq!(repository.keys().await.unwrap().len(), 1);
    };
    every_call_fails_of(&[phrase("one")], false, prepare, remove, after).await;
}

#[tokio::test]
async fn keys_are_renewed_over_failing_calls() {
    let prepare = async |_: &Clocked, repository: Repository| {
        write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        repository.add_key(key_file()).await.unwrap();
    };
    let renew = async |repository: Repository| {
        let renewed = repository
            .rekey(vec![phrase("two"), phrase("three")])
            .await?;
        let written = try_write(&renewed, None, &[("b", 2)], &["pg@2"]).await;
        written.map(drop)
    };
    let after = async |repository: Repository, done: bool| {
        if done {
            assert_eq!(repository.keys().await.unwrap().len(), 2);
        }
        // Who tries again comes to the end, from wherever the first try had come.
        let renewed = repository.rekey(vec![phrase("two")]).await.unwrap();
        assert_eq!(renewed.keys().await.unwrap().len(), 1);
        is_readable(&renewed).await;
        for shut_out in [phrase("one"), phrase("three"), key_file()] {
            let storage = Arc::clone(renewed.storage());
            let refused = Repository::open(storage, with(Some(shut_out))).await;
            let kind = refused.unwrap_err().kind();
            assert_eq!(kind, neon_pagestore::ErrorKind::Locked);
        }
        assert!(renewed.check(true).await.unwrap().is_sound());
    };
    let keys = ["one", "two", "three"].map(phrase);
    every_call_fails_of(&keys, true, prepare, renew, after).await;
}
