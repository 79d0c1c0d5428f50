//! An encrypted repository tells nothing to who has no key.

use std::sync::Arc;

use neon_pagestore::crypt::{KeyKind, KeySource};
use neon_pagestore::{ErrorKind, Repository, Result};
use neon_storage::{Memory, StorageExt};

use crate::clocked::Clocked;
use crate::support::{GRACE, options, page, read, write};

fn phrase(text: &str) -> KeySource {
    KeySource::passphrase(text).with_cost(64, 1)
}

async fn open(storage: &Memory, key: KeySource) -> Result<Repository> {
    Repository::open(Arc::new(storage.clone()), options().key(key)).await
}

async fn init(storage: &Memory) -> Repository {
    let options = options().key(phrase("one"));
    Repository::init(Arc::new(storage.clone()), options)
        .await
        .unwrap()
}

#[tokio::test]
async fn only_a_right_key_opens_a_repository() {
    let storage = Memory::new();
    let made = init(&storage).await;
    assert!(made.is_encrypted());
    let file = KeySource::key_file(&[7; 32]).unwrap();
    for wrong in [Some(phrase("two")), Some(file), None] {
        let mut options = options();
        options.key = wrong;
        let refused = Repository::open(Arc::new(storage.clone()), options)
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
    }
    let again = Repository::init(Arc::new(storage.clone()), options().key(phrase("x")))
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert_eq!(open(&storage, phrase("one")).await.unwrap().id(), made.id());

    let plain = Memory::new();
    crate::support::init(&plain).await;
    assert_eq!(
        open(&plain, phrase("one")).await.unwrap_err().kind(),
        ErrorKind::Inconsistent
    );
    assert_eq!(
        KeySource::key_file(&[7; 31]).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn keys_are_added_removed_and_renewed() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let file = || KeySource::key_file(b"0123456789 0123456789 0123456789").unwrap();
    let added = repository.add_key(file()).await.unwrap();
    let kinds: Vec<_> = repository
        .keys()
        .await
        .unwrap()
        .iter()
        .map(|key| key.kind)
        .collect();
    assert!(kinds.contains(&KeyKind::Passphrase) && kinds.contains(&KeyKind::KeyFile));
    let opened = open(&storage, file()).await.unwrap();
    assert_eq!(opened.resolve("pg@1").await.unwrap(), id);
    opened.remove_key(added).await.unwrap();
    assert_eq!(
        open(&storage, file()).await.unwrap_err().kind(),
        ErrorKind::Locked
    );
    let last = repository.keys().await.unwrap()[0].id;
    assert_eq!(
        repository.remove_key(last).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );

    // Somebody who had the old key and went on working.
    let old = open(&storage, phrase("one")).await.unwrap();
    let renewed = repository.rekey(vec![phrase("new"), file()]).await.unwrap();
    assert_eq!(renewed.keys().await.unwrap().len(), 2);
    assert_eq!(
        open(&storage, phrase("one")).await.unwrap_err().kind(),
        ErrorKind::Locked
    );
    let second = write(&renewed, Some(id), &[("b", 2)], &["pg@2"]).await;
    assert_eq!(
        old.read_commit(second).await.unwrap_err().kind(),
        ErrorKind::Locked
    );
    let third = write(&old, Some(id), &[("c", 3)], &["pg@3"]).await;
    for key in [phrase("new"), file()] {
        let opened = open(&storage, key).await.unwrap();
        assert_eq!(opened.resolve("pg@1").await.unwrap(), id);
        assert_eq!(read(&opened, second).await.unwrap(), ["a", "b"]);
        assert_eq!(read(&opened, third).await.unwrap(), ["a", "c"]);
    }
    let again = renewed.rekey(vec![phrase("newer")]).await.unwrap();
    assert_eq!(read(&again, second).await.unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn nothing_that_is_stored_shows_names_paths_or_pages() {
    let storage = Clocked::new();
    let options = options().key(phrase("one"));
    let repository = Repository::init(Arc::new(storage.clone()), options)
        .await
        .unwrap();
    let name = "customers@before-migration";
    let path = "base/16384/telltale";
    let first = write(
        &repository,
        None,
        &[(path, 41), ("x", 42), ("y", 43)],
        &[name],
    )
    .await;
    let second = write(
        &repository,
        Some(first),
        &[("x", 44), ("y", 45)],
        &["customers@after"],
    )
    .await;
    repository.pin(second, "telltale owner").await.unwrap();
    repository.destroy(first).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    let telltales = [
        name.as_bytes().to_vec(),
        b"customers".to_vec(),
        b"migration".to_vec(),
        path.as_bytes().to_vec(),
        b"telltale".to_vec(),
        page(41)[100..116].to_vec(),
        page(44)[8000..8016].to_vec(),
        b"7710187071172605999".to_vec(),
    ];
    for object in storage.list_all("").await.unwrap() {
        let bytes = storage.read(&object.key).await.unwrap();
        for telltale in &telltales {
            let shows = |bytes: &[u8]| {
                bytes
                    .windows(telltale.len())
                    .any(|window| window == telltale)
            };
            assert!(
                !shows(&bytes) && !shows(object.key.as_str().as_bytes()),
                "{}",
                object.key
            );
        }
    }
    assert_eq!(read(&repository, second).await.unwrap(), [path, "x", "y"]);
}

#[tokio::test]
async fn an_object_that_is_not_sealed_or_lies_elsewhere_is_refused() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let second = write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    let key = |id| neon_storage::Key::new(format!("snapshots/{id}")).unwrap();
    let bytes = storage.read(&key(first)).await.unwrap();
    storage.overwrite(&key(second), bytes).await.unwrap();
    assert_eq!(
        repository.read_commit(second).await.unwrap_err().kind(),
        ErrorKind::Damaged
    );

    let plain = Memory::new();
    let open = crate::support::init(&plain).await;
    let forged = write(&open, None, &[("c", 3)], &["pg@3"]).await;
    let bytes = plain.read(&key(forged)).await.unwrap();
    storage.create(&key(forged), bytes).await.unwrap();
    assert_eq!(
        repository.read_commit(forged).await.unwrap_err().kind(),
        ErrorKind::Damaged
    );
}
