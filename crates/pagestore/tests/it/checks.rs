//! What is damaged is found and named.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::crypt::KeySource;
use neon_pagestore::map::{At, Walk};
use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::write::{SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, Repository};
use neon_snapshot_format::SnapshotKind;
use neon_storage::{Key, Memory, Meter, Storage, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Files, Kept, Selection, make, noise, path, reader, send_all};
use crate::support::{GRACE, empty_commit, init, open, options, read, write};

/// A small repository in which everything occurs: moves, tombstones, pins, several snapshots, a catalogue.
async fn busy(storage: &Clocked, repository: &Repository) {
    let first = write(repository, None, &[("a", 1), ("b", 2), ("c", 3)], &["pg@1"]).await;
    let second = write(repository, Some(first), &[("b", 4), ("c", 5)], &["pg@2"]).await;
    repository.destroy(first).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    let third = write(repository, Some(second), &[("a", 6)], &["pg@3"]).await;
    write(repository, Some(second), &[("d", 7)], &["pg@3"]).await;
    repository.pin(third, "a mount").await.unwrap();
    repository.list().await.unwrap();
    repository.destroy(third).await.unwrap();
}

#[tokio::test]
async fn a_sound_repository_is_found_sound() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    busy(&storage, &repository).await;
    for read_data in [false, true] {
        let checked = open(&storage).await.check(read_data).await.unwrap();
        assert_eq!(checked.findings, []);
        assert_eq!(checked.snapshots, 2);
        assert_eq!(checked.pages > 0, read_data);
    }
    let sealed = Clocked::new();
    let key = KeySource::passphrase("x").with_cost(64, 1);
    let other = Repository::init(std::sync::Arc::new(sealed.clone()), options().key(key))
        .await
        .unwrap();
    for id in repository.snapshot_ids().await.unwrap() {
        repository.copy_to(&other, id).await.unwrap();
    }
    let checked = other.check(true).await.unwrap();
    assert_eq!((checked.findings, checked.snapshots), (vec![], 2));
}

#[tokio::test]
async fn one_snapshot_is_checked_by_itself_and_what_it_needs_is_what_counts() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    busy(&storage, &repository).await;
    let ids = repository.snapshot_ids().await.unwrap();
    for id in &ids {
        for read_data in [false, true] {
            let checked = open(&storage).await;
            let checked = checked.check_snapshot(*id, read_data).await.unwrap();
            assert_eq!((checked.findings, checked.snapshots), (vec![], 1));
            assert_eq!(checked.pages > 0, read_data);
        }
    }
    // A pack that goes hurts those that need it, as the check of everything says too.
    for object in storage.list_all("packs/").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        storage.delete(&object.key).await.unwrap();
        let all = open(&storage).await.check(true).await.unwrap();
        for id in &ids {
            let one = open(&storage)
                .await
                .check_snapshot(*id, true)
                .await
                .unwrap();
            let hurt = all
                .findings
                .iter()
                .any(|finding| finding.snapshots.contains(id));
            assert_eq!(one.is_sound(), !hurt, "{} {one:?} {all:?}", object.key);
        }
        storage.create(&object.key, whole).await.unwrap();
    }
    let gone = open(&storage).await;
    repository.destroy(ids[0]).await.unwrap();
    let error = gone.check_snapshot(ids[0], false).await.unwrap_err();
    assert_eq!(error.kind(), neon_pagestore::ErrorKind::NotFound);
}

#[tokio::test]
async fn changed_bytes_are_found_and_the_object_named() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    busy(&storage, &repository).await;
    for object in storage.list_all("").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        let is_pack = object.key.as_str().starts_with("packs/");
        // Every seventh byte of what is small and of the ends of a pack, and some bytes of its frames.
        let step = |at: usize| match is_pack && at > 80 && at + 500 < whole.len() {
            true => 997,
            false => 7,
        };
        let mut at = 0;
        while at < whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 1 << (at % 8);
            storage.overwrite(&object.key, changed).await.unwrap();
            let opened = Repository::open(std::sync::Arc::new(storage.clone()), options()).await;
            if object.key.as_str() == "neon.json" {
                assert!(opened.is_err(), "{at}");
            } else {
                let checked = opened.unwrap().check(true).await.unwrap();
                let id = object.key.segments().last().unwrap().to_owned();
                let named = checked
                    .findings
                    .iter()
                    .any(|finding| finding.object.contains(&id));
                assert!(named, "{} byte {at}: {:?}", object.key, checked.findings);
            }
            at += step(at);
        }
        storage.overwrite(&object.key, whole).await.unwrap();
    }
    assert!(repository.check(true).await.unwrap().is_sound());
}

/// What a restore from a repository that may be damaged comes to.
async fn restored(storage: &Clocked, id: CommitId) -> neon_pagestore::Result<Files> {
    let repository = Repository::open(std::sync::Arc::new(storage.clone()), options()).await?;
    let snapshot = Snapshot::open(&repository, id, &reader(&repository)).await?;
    tokio::task::spawn_blocking(move || {
        let (kept, options) = (Kept::default(), RestoreOptions::default());
        restore(&snapshot, &kept, &options)?;
        Ok(kept.into_files())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn every_byte_that_changed_is_found_by_a_check_and_by_a_restore_that_uses_it() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    // Content that is stored in few bytes.
    let page = |text: &str| text.bytes().cycle().take(8192).collect::<Vec<u8>>();
    let mut files = Files::new();
    files.insert("/".to_owned(), Vec::new());
    files.insert("PG_VERSION".to_owned(), b"17\n".to_vec());
    files.insert("large".to_owned(), page("a page ").repeat(6));
    files.insert("small".to_owned(), page("another one "));
    let first = make(&repository, files.clone(), Selection::new(), None).await;
    let first = first.unwrap().id;
    let parent = Snapshot::open(&repository, first, &reader(&repository)).await;
    files.insert("small".to_owned(), page("changed "));
    let second = make(
        &repository,
        files.clone(),
        Selection::new(),
        Some(&parent.unwrap()),
    )
    .await;
    let second = second.unwrap().id;
    let (mut tried, mut met) = (0, 0);
    for object in storage.list_all("").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        let id = object.key.segments().last().unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 1 << (at % 8);
            storage.overwrite(&object.key, changed).await.unwrap();
            let about = format!("byte {at} of {}", object.key);
            match Repository::open(std::sync::Arc::new(storage.clone()), options()).await {
                Ok(opened) => {
                    let found = opened.check(true).await.unwrap().findings;
                    let named = found.iter().any(|finding| finding.object.contains(id));
                    assert!(named, "{about}: {found:?}");
                }
                Err(error) => assert!(error.to_string().contains(id), "{about}: {error:?}"),
            }
            match restored(&storage, second).await {
                Ok(taken) => assert!(taken == files, "{about}: is not what was taken"),
                Err(error) => {
                    met += 1;
                    let mut text = error.to_string();
                    let mut cause = std::error::Error::source(&error);
                    while let Some(source) = cause {
                        text = format!("{text}: {source}");
                        cause = source.source();
                    }
                    assert!(text.contains(id), "{about}: {text}");
                }
            }
            tried += 1;
        }
        storage.overwrite(&object.key, whole).await.unwrap();
    }
    println!("{tried} bytes, {met} of them used by the restore");
    assert!(met > tried / 4, "{met} of {tried}");
    assert_eq!(restored(&storage, second).await.unwrap(), files);
}

#[tokio::test]
async fn changed_bytes_of_an_encrypted_repository_are_found_and_the_object_named() {
    let storage = Clocked::new();
    let key = |text| KeySource::passphrase(text).with_cost(64, 1);
    let sealed = || std::sync::Arc::new(storage.clone());
    let repository = Repository::init(sealed(), options().key(key("one")))
        .await
        .unwrap();
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    repository.add_key(key("two")).await.unwrap();
    repository.pin(first, "a mount").await.unwrap();
    // Sealed on its way, its frames moved; and somebody writes.
    let plain = init(&Clocked::new()).await;
    let other = write(&plain, None, &[("b", 2)], &["pg@2"]).await;
    plain.copy_to(&repository, other).await.unwrap();
    let _writing = repository.begin_writing().await.unwrap();
    for kind in ["moves/", "pins/", "leases/", "keys/", "names/"] {
        assert!(!storage.list_all(kind).await.unwrap().is_empty(), "{kind}");
    }
    for object in storage.list_all("").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        let name = object.key.as_str();
        // Every byte of envelopes; every seventh of what else is small; some of packs. In the long form every byte of all.
        let step = match name.split('/').next() {
            _ if std::env::var_os("NEON_LONG_TESTS").is_some() => 1,
            Some("keys") => 1,
            Some("packs") => 97,
            _ => 7,
        };
        for at in (0..whole.len()).step_by(step) {
            let mut changed = whole.to_vec();
            changed[at] ^= 1 << (at % 8);
            storage.overwrite(&object.key, changed).await.unwrap();
            if name == "neon.json" {
                let opened = Repository::open(sealed(), options().key(key("one"))).await;
                assert!(opened.is_err(), "{at}");
                continue;
            }
            let checked = repository.check(true).await.unwrap();
            let id = object.key.segments().last().unwrap();
            let findings = &checked.findings;
            let named = findings.iter().any(|finding| finding.object.contains(id));
            assert!(named, "{name} byte {at}: {findings:?}");
        }
        storage.overwrite(&object.key, whole).await.unwrap();
    }
    assert!(repository.check(true).await.unwrap().is_sound());
}

#[tokio::test]
async fn what_is_damaged_or_missing_is_named_with_the_snapshots_it_hurts() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let before = storage.list_all("packs/").await.unwrap();
    let second = write(&repository, Some(first), &[("b", 2)], &["pg@2"]).await;
    write(&repository, None, &[("c", 3)], &["pg@3"]).await;
    for object in before {
        let key: Key = object.key;
        let whole = storage.read(&key).await.unwrap();
        let mut changed = whole.to_vec();
        changed[100] ^= 1;
        storage.overwrite(&key, changed).await.unwrap();
        let checked = repository.check(true).await.unwrap();
        let hurt: Vec<_> = checked
            .findings
            .iter()
            .flat_map(|finding| finding.snapshots.clone())
            .collect();
        assert!(
            hurt.contains(&first) && hurt.contains(&second),
            "{checked:?}"
        );
        assert!(
            hurt.iter().all(|id| [first, second].contains(id)),
            "{checked:?}"
        );
        let reread = open(&storage).await;
        let error = read(&reread, second).await.unwrap_err();
        let pack = key.segments().last().unwrap();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(pack), "{text}");

        storage.delete(&key).await.unwrap();
        let checked = open(&storage).await.check(false).await.unwrap();
        let hurt: Vec<_> = checked
            .findings
            .iter()
            .flat_map(|finding| finding.snapshots.clone())
            .collect();
        assert!(
            hurt.contains(&first) && hurt.contains(&second),
            "{checked:?}"
        );
        storage.create(&key, whole).await.unwrap();
    }
    assert!(repository.check(true).await.unwrap().is_sound());
}

/// Content of a page that no other equals.
fn page_of(seed: u64) -> Vec<u8> {
    noise(8192, seed)
}

/// Changes a byte of a frame, as it is stored, and says which frame that is.
async fn damage_frame(storage: &Clocked, snapshot: &Snapshot, name: &str, page: u32) -> String {
    let mut walk = Walk::new(snapshot.view(), false);
    let maps = snapshot.maps().clone();
    while let Some(file) = maps.run(&mut walk).await.unwrap() {
        let extents = file.extents.iter().filter(|_| file.path == path(name));
        for extent in extents.filter(|extent| (extent.page..extent.end()).contains(&page)) {
            let At::Frame { frame, .. } = &extent.at else {
                continue;
            };
            let key = Repository::pack_key(frame.pack.id).unwrap();
            let mut bytes = storage.read(&key).await.unwrap().to_vec();
            bytes[usize::try_from(frame.offset).unwrap() + 5] ^= 1;
            storage.overwrite(&key, bytes).await.unwrap();
            return format!("frame {} of pack {}", frame.frame, frame.pack.id);
        }
    }
    panic!("no page {page} of {name}");
}

#[tokio::test]
async fn a_damaged_frame_says_nothing_of_pages_in_other_frames() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let files: Files = [("large".to_owned(), noise(48 * 8192, 3))].into();
    let first = make(&repository, files.clone(), Selection::new(), None).await;
    let maps = reader(&repository);
    let first = Snapshot::open(&repository, first.unwrap().id, &maps)
        .await
        .unwrap();
    let mut changed = files.clone();
    changed.insert("small".to_owned(), page_of(9));
    let second = make(&repository, changed, Selection::new(), Some(&first)).await;
    let second = second.unwrap().id;
    let frame = damage_frame(&storage, &first, "large", 3).await;
    let repository = open(&storage).await;
    let all = repository.check(true).await.unwrap();
    let one = repository.check_snapshot(second, true).await.unwrap();
    for checked in [&all, &one] {
        assert!(!checked.is_sound());
        for finding in &checked.findings {
            assert_eq!(finding.object, frame, "{finding:?}");
        }
    }
    for finding in &all.findings {
        assert_eq!(
            finding.snapshots,
            [first.id(), second].into(),
            "{finding:?}"
        );
    }
}

/// A snapshot of an online backup, made by whoever did not record where its log begins to be replayed.
async fn backed_up(repository: &Repository, content: &[u8], log: (&str, &str)) -> CommitId {
    let files: Files = [("base/5/20000".to_owned(), content.to_vec())].into();
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let stored = tokio::task::spawn_blocking(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        send_all(&sink, &files, &Selection::new());
        sink.complete().unwrap()
    });
    let mut facts = empty_commit(&[]).facts;
    facts.cluster.checksum_version = 1;
    facts.log.start = Some(log.0.parse().unwrap());
    facts.log.stop = Some(log.1.parse().unwrap());
    let mut commit = stored.await.unwrap().commit(facts).unwrap();
    commit.facts.kind = SnapshotKind::Online;
    writing.commit(&commit).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_and_a_restore_judge_pages_alike() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    // A header that a server accepts, written last at 0/2000100, and a checksum that is another page's: torn.
    let mut torn = page_of(1);
    torn[..24].copy_from_slice(&[
        0, 0, 0, 0, 0, 1, 0, 2, 7, 7, 0, 0, 40, 0, 0, 32, 0, 32, 4, 32, 0, 0, 0, 0,
    ]);
    let within = backed_up(&repository, &torn, ("0/2000000", "0/3000000")).await;
    let before = backed_up(&repository, &torn, ("0/2000200", "0/3000000")).await;
    for (id, sound) in [(within, true), (before, false)] {
        let checked = repository.check_snapshot(id, true).await.unwrap();
        assert_eq!(checked.is_sound(), sound, "{checked:?}");
        let snapshot = Snapshot::open(&repository, id, &reader(&repository))
            .await
            .unwrap();
        let restored = tokio::task::spawn_blocking(move || {
            let (kept, options) = (Kept::default(), RestoreOptions::default());
            restore(&snapshot, &kept, &options).unwrap()
        });
        assert_eq!(restored.await.unwrap().bad_pages.is_empty(), sound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_page_is_named_for_each_snapshot_that_shows_it() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let content = page_of(1);
    let first = backed_up(&repository, &content, ("0/2000000", "0/2000001")).await;
    let parent = Snapshot::open(&repository, first, &reader(&repository))
        .await
        .unwrap();
    let mut files: Files = [("base/5/20000".to_owned(), content)].into();
    files.insert("small".to_owned(), page_of(9));
    let made = make(&repository, files, Selection::new(), Some(&parent))
        .await
        .unwrap();
    let checked = repository.check(true).await.unwrap();
    let mut page = checked.findings.iter();
    let page = page.find(|finding| finding.object == "page 0 of base/5/20000");
    assert_eq!(page.unwrap().snapshots, [first, made.id].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_frames_moved_is_checked_in_few_requests() {
    let source = init(&Memory::new()).await;
    let files: Files = [("large".to_owned(), noise(400 * 8192, 3))].into();
    let made = make(&source, files, Selection::new(), None).await.unwrap();
    let memory = Memory::new();
    let key = || KeySource::passphrase("x").with_cost(64, 1);
    let to: Arc<dyn Storage> = Arc::new(memory.clone());
    let to = Repository::init(to, options().key(key())).await.unwrap();
    // Plain frames are sealed on their way, so all of them are found by moves.
    source.copy_to(&to, made.id).await.unwrap();
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let metered = Meter::new(Arc::new(memory.clone()), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let opened = Repository::open(Arc::new(metered), options().key(key()))
        .await
        .unwrap();
    let count = async |read_data| {
        let before = requests.load(Ordering::Relaxed);
        let checked = opened.check_snapshot(made.id, read_data).await.unwrap();
        assert!(checked.is_sound() && checked.frames >= 25, "{checked:?}");
        requests.load(Ordering::Relaxed) - before
    };
    let packs = memory.list_all("packs/").await.unwrap().len() as u64;
    let (without, with) = (count(false).await, count(true).await);
    println!("{packs} packs: {without} requests, with data {with}");
    assert!(
        without < 40 + 8 * packs,
        "{without} requests for {packs} packs"
    );
}

#[tokio::test]
async fn what_is_not_ours_is_in_nobodys_way_and_a_check_names_it() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let strays = [
        "tombstones/x",
        "tombstones/writer-x",
        "tombstones/condemned-x",
        "leases/x",
        "leases/x/y",
        "leases/0123456789abcdef/y",
    ];
    for stray in strays {
        let key = Key::new(stray).unwrap();
        storage
            .create(&key, b"by an editor".to_vec())
            .await
            .unwrap();
    }
    let repository = open(&storage).await;
    assert_eq!(repository.list().await.unwrap().len(), 1);
    assert_eq!(repository.resolve("pg@1").await.unwrap(), first);
    let second = write(&repository, Some(first), &[("b", 1)], &["pg@2"]).await;
    let checked = repository.check(true).await.unwrap();
    for stray in strays {
        let named = checked
            .findings
            .iter()
            .any(|finding| finding.object == stray);
        assert!(named, "{stray}: {checked:?}");
    }
    repository.destroy(first).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    assert_eq!(repository.snapshot_ids().await.unwrap(), [second]);
    assert_eq!(read(&repository, second).await.unwrap(), ["a", "b"]);
}
