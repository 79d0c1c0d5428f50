//! Who has a name.

use neon_pagestore::{ErrorKind, NameOutcome};
use neon_storage::{Memory, StorageExt};

use crate::support::{empty_commit, init, open, snapshot, take};

#[tokio::test]
async fn a_snapshot_is_found_by_name_id_and_the_beginning_of_its_id() {
    let repository = init(&Memory::new()).await;
    let id = snapshot(&repository, "pgdata@one").await;
    let bare = snapshot(&repository, "oldpg").await;
    assert_eq!(repository.resolve("pgdata@one").await.unwrap(), id);
    assert_eq!(repository.resolve("oldpg").await.unwrap(), bare);
    assert_eq!(repository.resolve(&id.to_string()).await.unwrap(), id);
    assert_eq!(repository.resolve(&id.to_string()[..12]).await.unwrap(), id);
    for (text, kind) in [
        ("pgdata@two", ErrorKind::NotFound),
        ("0123456789abcdef", ErrorKind::NotFound),
        (&"0".repeat(64), ErrorKind::Invalid),
        ("pgdata@CURRENT", ErrorKind::Invalid),
        ("no such name", ErrorKind::Invalid),
    ] {
        let error = repository.resolve(text).await.unwrap_err();
        assert!(
            error.kind() == kind || text.len() == 64 && error.kind() == ErrorKind::NotFound,
            "{text}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_name_that_is_taken_stays_and_the_new_snapshot_is_there_by_its_id() {
    let repository = init(&Memory::new()).await;
    let first = snapshot(&repository, "pgdata@one").await;
    let second = take(&repository, &["pgdata@one"]).await;
    assert!(matches!(second.names[0].1, NameOutcome::Taken { by } if by == first));
    assert_eq!(repository.resolve("pgdata@one").await.unwrap(), first);
    assert_eq!(
        repository.resolve(&second.id.to_string()).await.unwrap(),
        second.id
    );
}

#[tokio::test]
async fn the_name_of_a_destroyed_snapshot_is_free_again() {
    let repository = init(&Memory::new()).await;
    for _ in 0..3 {
        let id = snapshot(&repository, "pgdata@one").await;
        assert_eq!(repository.resolve("pgdata@one").await.unwrap(), id);
        repository.destroy(id).await.unwrap();
        let gone = repository.resolve("pgdata@one").await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        assert_eq!(
            repository.destroy(id).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}

#[tokio::test]
async fn a_snapshot_brought_back_has_its_name_unless_that_was_given_away() {
    let repository = init(&Memory::new()).await;
    let first = snapshot(&repository, "pgdata@one").await;
    assert_eq!(
        repository.undo_destroy(first).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    repository.destroy(first).await.unwrap();
    repository.undo_destroy(first).await.unwrap();
    assert_eq!(repository.resolve("pgdata@one").await.unwrap(), first);
    repository.destroy(first).await.unwrap();
    let second = snapshot(&repository, "pgdata@one").await;
    repository.undo_destroy(first).await.unwrap();
    assert_eq!(repository.resolve("pgdata@one").await.unwrap(), second);
    assert_eq!(repository.resolve(&first.to_string()).await.unwrap(), first);
}

#[tokio::test]
async fn numbers_of_head_are_never_used_again_and_current_is_never_given() {
    let repository = init(&Memory::new()).await;
    let head = snapshot(&repository, "pgdata@HEAD{0}").await;
    assert_eq!(repository.resolve("pgdata@HEAD{0}").await.unwrap(), head);
    repository.destroy(head).await.unwrap();
    let again = take(&repository, &["pgdata@HEAD{0}"]).await;
    assert!(matches!(again.names[0].1, NameOutcome::Taken { .. }));
    let writing = repository.begin_writing().await.unwrap();
    let refused = writing
        .commit(&empty_commit(&["pgdata@CURRENT"]))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_creators_of_one_name_exactly_one_wins_and_all_snapshots_live() {
    let storage = Memory::new();
    init(&storage).await;
    for round in 0..10 {
        let name = format!("pgdata@round{round}");
        let creators: Vec<_> = (0..8)
            .map(|_| {
                let (storage, name) = (storage.clone(), name.clone());
                tokio::spawn(async move { take(&open(&storage).await, &[&name]).await })
            })
            .collect();
        let (mut winners, mut losers) = (Vec::new(), Vec::new());
        for creator in creators {
            let committed = creator.await.unwrap();
            match &committed.names[0].1 {
                NameOutcome::Given => winners.push(committed.id),
                NameOutcome::Taken { by } => losers.push((committed.id, *by)),
                other => panic!("{other}"),
            }
        }
        let repository = open(&storage).await;
        assert_eq!(winners.len(), 1);
        assert_eq!(repository.resolve(&name).await.unwrap(), winners[0]);
        for (id, by) in losers {
            assert_eq!(by, winners[0]);
            assert_eq!(repository.resolve(&id.to_string()).await.unwrap(), id);
        }
    }
}

#[tokio::test]
async fn nothing_of_a_finished_writer_remains_but_its_snapshot() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    snapshot(&repository, "pgdata@one").await;
    repository.begin_writing().await.unwrap().abandon().await;
    assert!(storage.list_all("leases/").await.unwrap().is_empty());
    assert_eq!(storage.list_all("").await.unwrap().len(), 3);
}
