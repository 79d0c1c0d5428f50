//! Repositories are made once and opened by whoever may.

use std::sync::Arc;

use neon_pagestore::{Commit, ErrorKind, Repository};
use neon_storage::{Memory, StorageExt};

use crate::support::{empty_commit, init, open, options, snapshot};

#[tokio::test]
async fn a_repository_is_made_once() {
    let storage = Memory::new();
    let missing = Repository::open(Arc::new(storage.clone()), options())
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let made = init(&storage).await;
    let again = Repository::init(Arc::new(storage.clone()), options())
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert_eq!(open(&storage).await.id(), made.id());
}

#[tokio::test]
async fn a_commit_is_read_as_it_was_written() {
    let repository = init(&Memory::new()).await;
    let commit = Commit {
        runs: bytes::Bytes::from_static(b"runs"),
        ..empty_commit(&["pgdata@one"])
    };
    let writing = repository.begin_writing().await.unwrap();
    let writer = writing.writer();
    let id = writing.commit(&commit).await.unwrap().id;
    assert_eq!(repository.read_commit(id).await.unwrap(), (writer, commit));
}

#[tokio::test]
async fn a_changed_byte_of_any_small_object_is_found() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let id = snapshot(&repository, "pgdata@one").await;
    let pin = repository.pin(id, "a clone").await.unwrap();
    let objects = storage.list_all("").await.unwrap();
    assert!(objects.len() >= 4, "{objects:?}");
    for object in objects
        .iter()
        .filter(|object| object.key.as_str() != "neon.json")
    {
        let whole = storage.read(&object.key).await.unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 0x20;
            storage.overwrite(&object.key, changed).await.unwrap();
            let found = match object.key.segments().next().unwrap() {
                "snapshots" => repository.read_commit(id).await.map(drop),
                "names" => repository.resolve("pgdata@one").await.map(drop),
                "pins" => repository.pins().await.map(drop),
                other => panic!("{other}"),
            };
            let kind = found.unwrap_err().kind();
            assert!(
                matches!(
                    kind,
                    ErrorKind::Damaged | ErrorKind::Malformed | ErrorKind::Unsupported
                ),
                "{} byte {at}: {kind:?}",
                object.key
            );
        }
        storage.overwrite(&object.key, whole).await.unwrap();
    }
    repository.unpin(pin.id).await.unwrap();
    assert!(repository.pins().await.unwrap().is_empty());
}
