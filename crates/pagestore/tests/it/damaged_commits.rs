//! Several objects may hold the commit of one snapshot: one of them that is damaged hurts nobody while another stands.

use neon_pagestore::{Commit, CommitId, ErrorKind, NameOutcome, Repository};
use neon_storage::{Key, StorageExt};

use crate::clocked::Clocked;
use crate::support::{GRACE, empty_commit, init};

const NAME: &str = "pg@1";

async fn damage(storage: &Clocked, key: &Key) -> Vec<u8> {
    let sound = storage.read(key).await.unwrap().to_vec();
    let mut damaged = sound.clone();
    damaged[50] ^= 1;
    storage.overwrite(key, damaged).await.unwrap();
    sound
}

async fn commit(repository: &Repository, commit: &Commit) -> CommitId {
    let writing = repository.begin_writing().await.unwrap();
    let committed = writing.commit(commit).await.unwrap();
    assert!(
        committed
            .names
            .iter()
            .all(|(_, outcome)| matches!(outcome, NameOutcome::Given)),
        "{committed:?}"
    );
    committed.id
}

/// Everything that looks at a commit finds it.
async fn stands(repository: &Repository, id: CommitId) {
    assert_eq!(repository.resolve(NAME).await.unwrap(), id);
    assert_eq!(repository.resolve(&id.to_string()).await.unwrap(), id);
    assert!(repository.read_commit(id).await.is_ok());
    assert_eq!(repository.snapshot_ids().await.unwrap(), [id]);
    let pin = repository.pin(id, "a mount").await.unwrap();
    repository.unpin(pin.id).await.unwrap();
    let writing = repository.begin_writing().await.unwrap();
    writing.protect(id).await.unwrap();
    writing.abandon().await;
}

/// A snapshot that was stored, damaged, and brought again; its two objects, the damaged one first, and what it was.
async fn brought_again(
    storage: &Clocked,
    repository: &Repository,
) -> (CommitId, [Key; 2], Vec<u8>) {
    let content = empty_commit(&[NAME]);
    let id = commit(repository, &content).await;
    let first = Key::new(format!("snapshots/{id}")).unwrap();
    let sound = damage(storage, &first).await;
    for text in [NAME, &id.to_string()] {
        let error = repository.resolve(text).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
    // The same snapshot again, as who copies it brings it.
    assert_eq!(commit(repository, &content).await, id);
    let objects = storage.list_all("snapshots/").await.unwrap();
    assert_eq!(objects.len(), 2);
    (id, [first, objects[1].key.clone()], sound)
}

#[tokio::test]
async fn a_snapshot_stands_by_any_object_of_it_that_can_be_read() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let (id, [first, second], sound) = brought_again(&storage, &repository).await;
    stands(&repository, id).await;
    storage.overwrite(&first, sound).await.unwrap();
    damage(&storage, &second).await;
    stands(&repository, id).await;
    damage(&storage, &first).await;
    let error = repository.resolve(NAME).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn what_is_damaged_is_brought_again_however_often() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let content = empty_commit(&[NAME]);
    let id = commit(&repository, &content).await;
    for objects in 1..4 {
        let there = storage.list_all("snapshots/").await.unwrap();
        assert_eq!(there.len(), objects);
        // The others are damaged already.
        let newest = there.iter().max_by_key(|object| object.modified).unwrap();
        damage(&storage, &newest.key).await;
        storage.advance(std::time::Duration::from_secs(1));
        assert!(repository.resolve(NAME).await.is_err());
        commit(&repository, &content).await;
        stands(&repository, id).await;
    }
}

#[tokio::test]
async fn a_snapshot_with_a_damaged_object_is_destroyed_brought_back_and_collected() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let (id, [first, _], sound) = brought_again(&storage, &repository).await;
    repository.destroy(id).await.unwrap();
    for text in [NAME, &id.to_string()] {
        let error = repository.resolve(text).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
    // Also what cannot be read was destroyed.
    storage.overwrite(&first, sound).await.unwrap();
    assert!(repository.resolve(NAME).await.is_err());
    damage(&storage, &first).await;
    repository.undo_destroy(id).await.unwrap();
    stands(&repository, id).await;
    repository.destroy(id).await.unwrap();

    // A collection wants to read everything; the rest goes when the damaged object is taken away.
    assert!(repository.collect().await.is_err());
    storage.delete(&first).await.unwrap();
    for _ in 0..4 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    for gone in ["snapshots/", "tombstones/"] {
        assert_eq!(storage.list_all(gone).await.unwrap(), [], "{gone}");
    }
}
