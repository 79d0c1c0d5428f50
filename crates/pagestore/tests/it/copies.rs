//! Snapshots travel between repositories and stay what they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::SnapshotOptions;
use neon_pagestore::{CommitId, CopyProgress, ErrorKind, NameOutcome, Repository};
use neon_storage::{Fault, Faulty, Memory, Meter, Operation, StorageExt};
use neon_testkit::s3::{Conditions, S3Server, S3ServerOptions};

use crate::clocked::Clocked;
use crate::files::{Files, Selection, make, make_with, noise, path, reader, restored};
use crate::stopped::bucket;
use crate::support::{GRACE, empty_commit, init, options, read, write};

const FILES: [(&str, u64); 6] = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 6)];

async fn encrypted(storage: &Clocked, phrase: &str) -> Repository {
    let key = KeySource::passphrase(phrase).with_cost(64, 1);
    Repository::init(Arc::new(storage.clone()), options().key(key))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_snapshot_is_the_same_in_every_repository() {
    let stores: [Clocked; 4] = std::array::from_fn(|_| Clocked::new());
    let repositories = [
        init(&stores[0]).await,
        init(&stores[1]).await,
        encrypted(&stores[2], "two").await,
        encrypted(&stores[3], "three").await,
    ];
    let first = write(&repositories[0], None, &FILES, &["pg@1"]).await;
    let second = write(&repositories[0], Some(first), &[("a", 11)], &["pg@2"]).await;
    // Plain to plain, plain to sealed, sealed to sealed elsewhere, sealed to plain.
    for (from, to) in [(0, 1), (0, 2), (2, 3)] {
        let copied = repositories[from]
            .copy_to(&repositories[to], second)
            .await
            .unwrap();
        assert_eq!(copied.id, second);
        assert!(matches!(copied.names[0].1, NameOutcome::Given));
        assert!(copied.bytes > 6 * 8192, "{copied:?}");
        assert_eq!(
            read(&repositories[to], second).await.unwrap(),
            ["a", "b", "c", "d", "e", "f"]
        );
        assert_eq!(repositories[to].resolve("pg@2").await.unwrap(), second);
        // Again, there is nothing to do; and what the other one shares is not sent again.
        let again = repositories[from]
            .copy_to(&repositories[to], second)
            .await
            .unwrap();
        assert_eq!((again.bytes, again.frames, again.packs_whole), (0, 0, 0));
        assert_eq!(repositories[to].list().await.unwrap().len(), 1);
    }
    let copied = repositories[0]
        .copy_to(&repositories[2], first)
        .await
        .unwrap();
    assert!(copied.bytes < 2 * 8192, "{copied:?}");
    // Collections there keep what was brought, sealed once more or not.
    for to in [1, 2, 3] {
        for _ in 0..3 {
            repositories[to].collect().await.unwrap();
            stores[to].advance(GRACE * 2);
        }
        assert_eq!(read(&repositories[to], second).await.unwrap().len(), 6);
    }
    let plain = Clocked::new();
    let back = init(&plain).await;
    repositories[3].copy_to(&back, second).await.unwrap();
    assert_eq!(read(&back, second).await.unwrap().len(), 6);
    assert_eq!(
        repositories[1]
            .copy_to(&back, first)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn sealed_frames_travel_as_they_are() {
    let stores = [Clocked::new(), Clocked::new()];
    let from = encrypted(&stores[0], "one").await;
    let to = encrypted(&stores[1], "two").await;
    let id = write(&from, None, &FILES, &["pg@1"]).await;
    let copied = from.copy_to(&to, id).await.unwrap();
    assert_eq!((copied.packs_whole, copied.frames), (2, 0));
    for object in stores[0].list_all("packs/").await.unwrap() {
        assert_eq!(
            stores[0].read(&object.key).await.unwrap(),
            stores[1].read(&object.key).await.unwrap()
        );
    }
}

#[tokio::test]
async fn moved_frames_travel_too() {
    let storage = Clocked::new();
    let from = init(&storage).await;
    let first = write(&from, None, &FILES, &["pg@1"]).await;
    let most = FILES.map(|(name, seed)| (name, seed + 100));
    let second = write(&from, Some(first), &most[..5], &["pg@2"]).await;
    from.destroy(first).await.unwrap();
    for _ in 0..3 {
        from.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    assert!(!storage.list_all("moves/").await.unwrap().is_empty());
    let to = init(&Memory::new()).await;
    from.copy_to(&to, second).await.unwrap();
    assert_eq!(read(&to, second).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_copy_that_was_cut_off_goes_on_where_it_was() {
    let from = init(&Memory::new()).await;
    let mut parent = None;
    for (name, seed) in FILES {
        if parent.is_some() && name == "e" {
            break;
        }
        parent = Some(write(&from, parent, &[(name, seed)], &[]).await);
    }
    let id = parent.unwrap();
    let whole = from.copy_to(&init(&Memory::new()).await, id).await.unwrap();
    for key in [None, Some(KeySource::passphrase("x").with_cost(64, 1))] {
        let storage = Memory::new();
        let mut options = options();
        options.key = key;
        Repository::init(Arc::new(storage.clone()), options.clone())
            .await
            .unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let mut tries = 0;
        let mut total = 0;
        loop {
            tries += 1;
            let counter = Arc::clone(&sent);
            counter.store(0, Ordering::SeqCst);
            // Every fifth put of a pack or of moves fails.
            let faulty = Faulty::planned(Arc::new(storage.clone()), move |_, operation, key| {
                let key = key.map_or("", |key| key.as_str());
                let bulk = key.starts_with("packs/") || key.starts_with("moves/");
                (operation == Operation::Put && bulk && counter.fetch_add(1, Ordering::SeqCst) == 2)
                    .then_some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
            });
            let to = Repository::open(Arc::new(faulty), options.clone())
                .await
                .unwrap();
            match from.copy_to(&to, id).await {
                Ok(copied) => {
                    total += copied.bytes;
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Storage),
            }
            assert!(tries < 20);
        }
        assert!(tries > 1);
        assert!(
            total <= whole.bytes + whole.bytes / 8,
            "{total} of {}",
            whole.bytes
        );
        let to = Repository::open(Arc::new(storage.clone()), options)
            .await
            .unwrap();
        assert_eq!(read(&to, id).await.unwrap().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_of_another_is_not_written_over_where_a_storage_lets_it() {
    let server = S3Server::start(S3ServerOptions::default());
    // It says that only one can create an object, and lets everybody.
    server.set_conditions(Conditions::Ignored);
    let storage = bucket(&server.endpoint()).await;
    assert!(storage.capabilities().create_only);
    let repository = Repository::init(storage, crate::stopped::options())
        .await
        .unwrap();
    let commit = empty_commit(&["pg@1"]);
    let id = CommitId::of(&commit.encode().unwrap());
    let mut writers = Vec::new();
    for _ in 0..3 {
        let writing = repository.begin_writing().await.unwrap();
        writers.push(writing.writer());
        assert_eq!(writing.commit(&commit).await.unwrap().id, id);
        let (author, _) = repository.read_commit(id).await.unwrap();
        assert_eq!(author, writers[0]);
    }
    assert_eq!(repository.snapshot_ids().await.unwrap(), [id]);
}

/// The clock goes ahead only when everybody waits for it.
#[tokio::test(start_paused = true)]
async fn some_packs_travel_at_the_same_time_and_progress_goes_ahead_only() {
    let from = init(&Memory::new()).await;
    let mut last = None;
    for file in &FILES[..4] {
        last = Some(write(&from, last, &[*file], &[]).await);
    }
    let storage = Memory::new();
    init(&storage).await;
    let each = Duration::from_secs(1);
    let slow = Faulty::planned(Arc::new(storage.clone()), move |_, operation, key| {
        let pack = key.is_some_and(|key| key.as_str().starts_with("packs/"));
        (operation == Operation::Put && pack).then_some(Fault::Delay(each))
    });
    let to = Repository::open(Arc::new(slow), options()).await.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let begun = tokio::time::Instant::now();
    let watch = move |progress| {
        telling.lock().unwrap().push(progress);
        Ok(())
    };
    let copied = from.copy_to_watched(&to, last.unwrap(), watch);
    let copied = copied.await.unwrap();
    assert!(copied.packs_whole == 4 && copied.frames > 0, "{copied:?}");
    // Four packs at a time, and another one with the frames of packs that are small.
    assert!(
        (2 * each..3 * each).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.is_sorted_by_key(|progress: &CopyProgress| progress.done));
    assert!(told.iter().all(|progress| progress.total == copied.bytes));
    assert_eq!(told.first().unwrap().done, 0);
    assert_eq!(told.last().unwrap().done, copied.bytes);
    assert!(to.check(true).await.unwrap().is_sound());
}

/// A pack of many pieces, larger than any that is read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_pack_travels_piece_by_piece_and_each_is_checked() {
    let from = Clocked::new();
    let source = init(&from).await;
    let mut files = Files::new();
    files.insert("/".to_owned(), Vec::new());
    files.insert("large".to_owned(), noise(20 << 20, 5));
    let sink = SnapshotOptions {
        pack_size: 64 << 20,
        ..SnapshotOptions::default()
    };
    let made = make_with(&source, files.clone(), sink).await.unwrap();
    let target = Clocked::new();
    let repository = init(&target).await;
    let copied = source.copy_to(&repository, made).await.unwrap();
    assert!(copied.packs_whole >= 2, "{copied:?}");
    let snapshot = Snapshot::open(&repository, made, &reader(&repository)).await;
    assert!(restored(&snapshot.unwrap()).await.0 == files);
    // A byte in the last piece.
    let packs = from.list_all("packs/").await.unwrap();
    let large = packs.iter().max_by_key(|pack| pack.size).unwrap();
    let mut bytes = from.read(&large.key).await.unwrap().to_vec();
    let at = bytes.len() - (1 << 20);
    bytes[at] ^= 1;
    from.overwrite(&large.key, bytes).await.unwrap();
    let target = Clocked::new();
    let error = source
        .copy_to(&init(&target).await, made)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert_eq!(target.list_all("snapshots/").await.unwrap(), []);
    assert!(
        target
            .list_all(large.key.as_str())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_were_sealed_on_their_way_are_read_in_as_few_requests_as_others() {
    let source_storage = Memory::new();
    let source = init(&source_storage).await;
    let files: Files = [("large".to_owned(), noise(600 * 8192, 3))].into();
    let made = make(&source, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let sealed = Memory::new();
    let key = || KeySource::passphrase("x").with_cost(64, 1);
    let to = Repository::init(Arc::new(sealed.clone()), options().key(key())).await;
    source.copy_to(&to.unwrap(), made.id).await.unwrap();
    let mut counted = Vec::new();
    for (storage, options) in [
        (&source_storage, options()),
        (&sealed, options().key(key())),
    ] {
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let metered = Meter::new(Arc::new(storage.clone()), move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let taken = || requests.swap(0, Ordering::Relaxed);
        let repository = Repository::open(Arc::new(metered), options).await.unwrap();
        let snapshot = Snapshot::open(&repository, made.id, &reader(&repository))
            .await
            .unwrap();
        // The first page of each pack asks where its frames are.
        for page in (0..600).step_by(100) {
            snapshot.read_page(&path("large"), page).await.unwrap();
        }
        taken();
        for page in [50, 150, 450] {
            let found = snapshot
                .read_page(&path("large"), page)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(found, files["large"][page as usize * 8192..][..8192]);
            assert_eq!(taken(), 1, "page {page}");
        }
        let (found, _) = restored(&snapshot).await;
        assert!(found == files);
        counted.push(taken());
    }
    println!("requests of a restore: {counted:?}");
    assert!(counted[1] <= 2 * counted[0], "{counted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_copy_does_not_ask_for_each_pack_where_its_frames_moved() {
    let source = init(&Memory::new()).await;
    let files: Files = [("large".to_owned(), noise(600 * 8192, 3))].into();
    let small = SnapshotOptions {
        pack_size: 1 << 17,
        ..SnapshotOptions::default()
    };
    let id = make_with(&source, files, small).await.unwrap();
    let storage = Memory::new();
    init(&storage).await;
    let lists = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&lists);
    let metered = Meter::new(Arc::new(storage.clone()), move |event| {
        counter.fetch_add(
            u64::from(event.operation == Operation::List),
            Ordering::Relaxed,
        );
    });
    let to = Repository::open(Arc::new(metered), options())
        .await
        .unwrap();
    let copied = source.copy_to(&to, id).await.unwrap();
    assert!(copied.packs_whole > 30, "{copied:?}");
    let lists = lists.load(Ordering::Relaxed);
    assert!(lists < 15, "{lists} lists");
    assert!(to.check(true).await.unwrap().is_sound());
}

/// A copy lists packs once and may take longer than a grace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_was_rewritten_after_a_copy_had_begun_is_copied_from_where_it_lies_by_now() {
    for sealed in [false, true] {
        let stores = [Clocked::new(), Clocked::new()];
        let (from, to) = match sealed {
            false => (init(&stores[0]).await, init(&stores[1]).await),
            true => (
                encrypted(&stores[0], "one").await,
                encrypted(&stores[1], "two").await,
            ),
        };
        let first = write(&from, None, &FILES, &[]).await;
        let changed = [("a", 11), ("b", 12), ("c", 13)];
        let second = write(&from, Some(first), &changed, &[]).await;
        from.destroy(first).await.unwrap();
        let before = stores[0].list_all("packs/").await.unwrap();
        let (collecting, clock) = (from.clone(), stores[0].clone());
        let gone = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&gone);
        let watch = move |progress: neon_pagestore::CopyProgress| {
            if progress.done == 0 && counted.load(Ordering::Relaxed) == 0 {
                let collect = async {
                    for _ in 0..3 {
                        let packs = collecting.collect().await?.packs;
                        counted.fetch_add(packs, Ordering::Relaxed);
                        clock.advance(GRACE * 2);
                    }
                    Ok(())
                };
                let runtime = tokio::runtime::Handle::current();
                return tokio::task::block_in_place(|| runtime.block_on(collect));
            }
            Ok(())
        };
        let copied = from.copy_to_watched(&to, second, watch).await.unwrap();
        assert!(gone.load(Ordering::Relaxed) > 0, "{before:?}");
        assert!(copied.frames > 0, "{copied:?}");
        assert_eq!(
            read(&to, second).await.unwrap(),
            ["a", "b", "c", "d", "e", "f"]
        );
        assert!(to.check(true).await.unwrap().is_sound());
    }
}

/// Only the pack itself that is gone is looked for elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_other_storage_or_who_watches_does_not_find_ends_a_copy() {
    let from = init(&Memory::new()).await;
    let id = write(&from, None, &FILES, &[]).await;
    let storage = Memory::new();
    init(&storage).await;
    let once = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&once);
    let failing = Faulty::planned(Arc::new(storage.clone()), move |_, operation, key| {
        let pack = key.is_some_and(|key| key.as_str().starts_with("packs/"));
        let first = || counted.fetch_add(1, Ordering::Relaxed) == 0;
        let put = operation == Operation::Put && pack;
        (put && first()).then_some(Fault::Fail(neon_storage::ErrorKind::NotFound))
    });
    let to = Repository::open(Arc::new(failing), options())
        .await
        .unwrap();
    let error = from.copy_to(&to, id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(once.load(Ordering::Relaxed) > 0);

    // After the first piece of a pack, and after the pack.
    for nth in [1, 2] {
        let storage = Memory::new();
        let to = init(&storage).await;
        let told = AtomicU64::new(0);
        let watch = move |_| match told.fetch_add(1, Ordering::Relaxed) == nth {
            true => Err(neon_pagestore::Error::new(
                ErrorKind::NotFound,
                "who watches",
                "is gone",
            )),
            false => Ok(()),
        };
        let error = from.copy_to_watched(&to, id, watch).await.unwrap_err();
        assert_eq!(error.subject(), "who watches", "{error:?}");
        assert!(storage.list_all("snapshots/").await.unwrap().is_empty());
    }
}
