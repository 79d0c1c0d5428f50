//! What is damaged is found and named.

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::{CommitId, Repository};
use neon_storage::{Key, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Files, Kept, Selection, make, reader};
use crate::support::{GRACE, init, open, options, read, write};

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
    for object in storage.list_all("").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        let name = object.key.as_str();
        // Every byte of envelopes; every seventh of what else is small; some of packs.
        let step = match name.split('/').next() {
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
