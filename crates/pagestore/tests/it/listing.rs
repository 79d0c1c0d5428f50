//! What a listing shows, and what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::{CommitId, ErrorKind, Listed, Object, ObjectKind, Repository, WriterId};
use neon_storage::{Key, Memory, Meter, Operation, StorageExt};

use crate::clocked::Clocked;
use crate::support::{GRACE, empty_commit, init, open, options, snapshot, take};

/// A commit as a writer leaves it that is stopped before it claims names.
async fn bare_commit(storage: &Memory, names: &[&str]) -> CommitId {
    let body = empty_commit(names).encode().unwrap();
    let id = CommitId::of(&body);
    let key = Key::new(format!("snapshots/{id}")).unwrap();
    let object = Object::new(ObjectKind::Commit, WriterId::random().unwrap(), body);
    storage
        .create(&key, object.encode(&key, None).unwrap())
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_listing_shows_every_snapshot_with_the_names_it_has() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let first = snapshot(&repository, "pg@1").await;
    let second = take(&repository, &["pg@1"]).await.id;
    let third = snapshot(&repository, "pg@3").await;
    for repository in [&repository, &open(&storage).await] {
        let listed = repository.list().await.unwrap();
        let shown: Vec<_> = listed
            .iter()
            .map(|listed| {
                (
                    listed.id,
                    listed
                        .names
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (first, vec!["pg@1".to_owned()]),
                (second, vec![]),
                (third, vec!["pg@3".to_owned()])
            ]
        );
    }
    repository.destroy(first).await.unwrap();
    let again = snapshot(&repository, "pg@1").await;
    for repository in [&repository, &open(&storage).await] {
        let listed = repository.list().await.unwrap();
        let ids: Vec<_> = listed
            .iter()
            .map(|listed| (listed.id, listed.names.len()))
            .collect();
        assert_eq!(ids, [(second, 0), (third, 1), (again, 1)]);
    }
}

#[tokio::test]
async fn a_name_that_a_dead_writer_did_not_come_to_claim_is_claimed_by_who_lists() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let id = bare_commit(&storage, &["pg@1"]).await;
    assert!(repository.resolve("pg@1").await.is_err());
    assert_eq!(repository.list().await.unwrap()[0].names.len(), 1);
    assert_eq!(repository.resolve("pg@1").await.unwrap(), id);
    // One that lost its name before does not get it when it is free again.
    let second = take(&repository, &["pg@1"]).await.id;
    repository.destroy(id).await.unwrap();
    let listed = open(&storage).await.list().await.unwrap();
    assert_eq!((listed[0].id, listed[0].names.len()), (second, 0));
}

#[tokio::test]
async fn a_damaged_catalogue_is_read_past() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    for number in 0..10 {
        snapshot(&repository, &format!("pg@{number}")).await;
    }
    let whole = repository.list().await.unwrap();
    let catalogues = storage.list_all("catalog/").await.unwrap();
    assert_eq!(catalogues.len(), 1);
    storage
        .overwrite(&catalogues[0].key, "no catalogue".as_bytes().to_vec())
        .await
        .unwrap();
    assert_eq!(open(&storage).await.list().await.unwrap(), whole);
}

#[tokio::test]
async fn an_unreadable_commit_is_listed_beside_the_others() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(snapshot(&repository, &format!("pg@{number}")).await);
    }
    let key = Key::new(format!("snapshots/{}", ids[2])).unwrap();
    let whole = storage.read(&key).await.unwrap();
    storage
        .overwrite(&key, b"no commit".to_vec())
        .await
        .unwrap();
    for _ in 0..2 {
        let opened = open(&storage).await;
        let listed = opened.list().await.unwrap();
        assert_eq!(listed.len(), 5);
        let (bad, good) = listed.split_last().unwrap();
        assert_eq!((bad.id, bad.names.len()), (ids[2], 0));
        assert_eq!(bad.summary.as_ref().unwrap_err().kind, ErrorKind::Damaged);
        for listed in good {
            assert_eq!(listed.names.len(), 1);
            let name = listed.names[0].to_string();
            assert_eq!(opened.resolve(&name).await.unwrap(), listed.id);
        }
        assert_eq!(opened.snapshot_ids().await.unwrap().len(), 5);
        let refused = opened.collect().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged);
    }
    storage.overwrite(&key, whole).await.unwrap();
    let listed = open(&storage).await.list().await.unwrap();
    assert!(listed.iter().all(|listed| listed.names.len() == 1));
}

#[tokio::test]
async fn a_snapshot_brought_again_is_shown_with_the_names_it_has_now() {
    let source = init(&Memory::new()).await;
    let id = snapshot(&source, "pg@1").await;
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let holder = snapshot(&repository, "pg@1").await;
    for number in 2..5 {
        snapshot(&repository, &format!("pg@{number}")).await;
    }
    source.copy_to(&repository, id).await.unwrap();
    let shown = |listed: Vec<Listed>| {
        let found = listed.into_iter().find(|listed| listed.id == id);
        found.map(|listed| listed.names.len())
    };
    // The name is another's; a catalogue says so.
    assert_eq!(shown(repository.list().await.unwrap()), Some(0));
    assert!(!storage.list_all("catalog/").await.unwrap().is_empty());
    repository.destroy(id).await.unwrap();
    repository.destroy(holder).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    source.copy_to(&repository, id).await.unwrap();
    assert_eq!(repository.resolve("pg@1").await.unwrap(), id);
    assert_eq!(shown(repository.list().await.unwrap()), Some(1));
    for _ in 0..2 {
        let opened = open(&storage).await;
        assert_eq!(shown(opened.list().await.unwrap()), Some(1));
    }
}

#[tokio::test]
async fn ten_thousand_snapshots_are_listed_in_twenty_requests() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    for number in 0..10_000 {
        let name = format!("pg@{number}");
        bare_commit(&storage, &[&name]).await;
        // As if somebody had listed now and then.
        if number % 2500 == 1 {
            repository.list().await.unwrap();
        }
    }
    repository.list().await.unwrap();
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let metered = Meter::new(Arc::new(storage.clone()), move |event| {
        let count = match event.operation {
            // A thousand keys come in one answer.
            Operation::List => event.objects.div_ceil(1000).max(1),
            _ => 1,
        };
        counter.fetch_add(count, Ordering::SeqCst);
    });
    let cold = Repository::open(Arc::new(metered), options())
        .await
        .unwrap();
    assert_eq!(cold.list().await.unwrap().len(), 10_000);
    let spent = requests.swap(0, Ordering::SeqCst);
    assert!(spent <= 20, "{spent} requests");
    let begun = std::time::Instant::now();
    assert_eq!(cold.list().await.unwrap().len(), 10_000);
    let warm = begun.elapsed();
    let again = requests.load(Ordering::SeqCst);
    assert!(again <= 11, "{again} requests");
    report(spent, again, warm);
}

#[expect(clippy::print_stdout, reason = "a measured number")]
fn report(cold: u64, warm: u64, took: std::time::Duration) {
    println!("cold {cold} requests; warm {warm} requests, {took:?}");
}
