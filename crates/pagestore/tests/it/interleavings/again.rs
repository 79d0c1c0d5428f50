//! The same snapshot is brought by several, or again after it was destroyed: it keeps its id, so whoever is slow acts on
//! what another reported.

use std::sync::atomic::{AtomicUsize, Ordering};

use neon_storage::{Fault, Faulty, Memory, Operation, StorageExt};

use super::*;
use crate::gated::{follow, run_some};

/// Copies a snapshot here.
pub(super) fn copier(storage: Gated, source: Repository, id: CommitId) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            Ok(Some(source.copy_to(&repository, id).await?.id))
        };
        ("copier", work.await)
    }
    .boxed()
}

/// Lists snapshots, and says whether this is one.
fn lister(storage: Gated, id: CommitId) -> Acting {
    async move {
        let work = async {
            let ids = reopen(storage).await?.snapshot_ids().await?;
            Ok(ids.contains(&id).then_some(id))
        };
        ("lister", work.await)
    }
    .boxed()
}

fn id_of(commit: &Commit) -> CommitId {
    CommitId::of(&commit.encode().unwrap())
}

fn pushing(gate: &Arc<Gate>, actor: usize, storage: &Clocked, commit: &Commit) -> Acting {
    pusher(gate.storage(storage, actor), commit.clone(), Vec::new())
}

fn is_busy(outcome: &Outcome) -> bool {
    matches!(&outcome.1, Err(error) if error.kind() == ErrorKind::Busy)
}

/// A snapshot that is destroyed, and whose deletion was announced a grace ago.
async fn going(storage: &Clocked) -> Commit {
    let repository = init(storage).await;
    let commit = empty_commit(&["pg@1"]);
    let writing = repository.begin_writing().await.unwrap();
    let id = writing.commit(&commit).await.unwrap().id;
    repository.destroy(id).await.unwrap();
    announce(storage, &repository, true).await;
    commit
}

/// The same commit is pushed by two, the first of whom takes it back; beside a collection, in this order.
async fn one_of_two_pushes_fails(script: &[(usize, &str)]) -> (Clocked, Commit) {
    let storage = Clocked::new();
    init(&storage).await;
    let commit = empty_commit(&["pg@1"]);
    let gate = Gate::new(4);
    let actors = vec![
        pushing(&gate, 0, &storage, &commit),
        collector(gate.storage(&storage, 1), 1),
        pushing(&gate, 2, &storage, &commit),
        clock(&gate, 3, &storage, 2),
    ];
    let (outcomes, trace) = follow(&gate, actors, script).await;
    assert!(is_busy(&outcomes[0]) && outcomes[2].1.is_ok());
    check((storage.clone(), Vec::new()), outcomes, &trace).await;
    (storage, commit)
}

#[tokio::test]
async fn a_writer_that_takes_back_its_commit_leaves_it_to_who_reported_the_same() {
    one_of_two_pushes_fails(&[
        (0, "head tombstones/writer-"),
        (3, ""),
        (1, ""),
        (2, ""),
        (0, ""),
    ])
    .await;
}

#[tokio::test]
async fn a_writer_that_is_condemned_late_leaves_its_commit_to_who_reported_the_same() {
    let (storage, commit) = one_of_two_pushes_fails(&[
        (0, "put snapshots/"),
        (3, ""),
        (1, "put tombstones/condemned-"),
        (0, "head tombstones/writer-"),
        (2, ""),
        (1, ""),
        (0, ""),
    ])
    .await;
    // The commit that the other one stored beside it goes with it.
    let commits = async || storage.list_all("snapshots/").await.unwrap().len();
    assert_eq!(commits().await, 1);
    let repository = open(&storage).await;
    repository.destroy(id_of(&commit)).await.unwrap();
    for _ in 0..3 {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    assert_eq!(commits().await, 0);
}

#[tokio::test]
async fn a_writer_whose_look_fails_takes_nothing_back() {
    let storage = Clocked::new();
    let sound = init(&storage).await;
    let commit = empty_commit(&["pg@1"]);
    let faulty = Faulty::planned(Arc::new(storage.clone()), |_, operation, key| {
        let look = key.is_some_and(|key| key.as_str().starts_with("tombstones/writer-"));
        (operation == Operation::Head && look)
            .then_some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
    });
    let repository = Repository::open(Arc::new(faulty), options()).await.unwrap();
    let writing = repository.begin_writing().await.unwrap();
    let error = writing.commit(&commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    // Whether it is there is not known; so it is brought again, and stays.
    let writing = sound.begin_writing().await.unwrap();
    writing.commit(&commit).await.unwrap();
    for _ in 0..4 {
        storage.advance(GRACE * 2);
        sound.collect().await.unwrap();
    }
    assert_eq!(sound.resolve("pg@1").await.unwrap(), id_of(&commit));
}

#[tokio::test]
async fn a_pin_is_not_given_for_what_a_collection_is_through_with() {
    let storage = Clocked::new();
    let commit = going(&storage).await;
    let gate = Gate::new(2);
    let actors = vec![
        pinner(gate.storage(&storage, 0), id_of(&commit)),
        collector(gate.storage(&storage, 1), 1),
    ];
    let script = [
        (1, "delete snapshots/"),
        (0, "list tombstones/"),
        (1, ""),
        (0, ""),
    ];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    assert!(outcomes[0].1.is_err(), "{:#?}", trace.calls);
    check((storage, Vec::new()), outcomes, &trace).await;
}

#[tokio::test]
async fn a_slow_collection_deletes_nothing_that_was_brought_again() {
    // Soon, and after many graces.
    for ticks in [0, 20] {
        let storage = Clocked::new();
        let commit = going(&storage).await;
        let gate = Gate::new(4);
        let actors = vec![
            collector(gate.storage(&storage, 0), 1),
            collector(gate.storage(&storage, 1), 1),
            pushing(&gate, 2, &storage, &commit),
            clock(&gate, 3, &storage, ticks),
        ];
        let script = [(0, "delete snapshots/"), (3, ""), (1, ""), (2, ""), (0, "")];
        let (outcomes, trace) = follow(&gate, actors, &script).await;
        assert!(outcomes[2].1.is_ok(), "{:#?}", trace.calls);
        assert_eq!(is_busy(&outcomes[0]), ticks > 0, "who slept goes on");
        check((storage, Vec::new()), outcomes, &trace).await;
    }
}

#[tokio::test]
async fn a_commit_is_not_reported_that_a_collection_deleted_meanwhile() {
    let storage = Clocked::new();
    let commit = going(&storage).await;
    let gate = Gate::new(3);
    let actors = vec![
        collector(gate.storage(&storage, 0), 1),
        collector(gate.storage(&storage, 1), 1),
        pushing(&gate, 2, &storage, &commit),
    ];
    let script = [
        (0, "delete snapshots/"),
        (1, ""),
        (2, "head tombstones/"),
        (0, ""),
        (2, ""),
    ];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    check((storage, Vec::new()), outcomes, &trace).await;
}

#[tokio::test]
async fn what_is_destroyed_and_brought_again_stays_when_the_rest_of_it_is_collected() {
    let storage = Clocked::new();
    let commit = going(&storage).await;
    let gate = Gate::new(2);
    let actors = vec![
        pushing(&gate, 0, &storage, &commit),
        collector(gate.storage(&storage, 1), 1),
    ];
    let script = [(1, "delete tombstones/"), (0, ""), (1, "")];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    assert!(outcomes[0].1.is_ok(), "{:#?}", trace.calls);
    let repository = open(&storage).await;
    assert_eq!(repository.resolve("pg@1").await.unwrap(), id_of(&commit));
    check((storage, Vec::new()), outcomes, &trace).await;
}

/// A collection that is killed at any of its steps leaves nothing that keeps a snapshot from being brought again, pinned
/// and kept; nor is anything left to be collected.
#[tokio::test]
async fn what_a_killed_collection_was_deleting_can_be_brought_again() {
    for kill in 0.. {
        let storage = Clocked::new();
        let source = init(&Memory::new()).await;
        let repository = init(&storage).await;
        let id = write(&source, None, &[("a", 1)], &["pg@1"]).await;
        source.copy_to(&repository, id).await.unwrap();
        repository.destroy(id).await.unwrap();
        announce(&storage, &repository, true).await;
        let gate = Gate::new(1);
        let actors = vec![collector(gate.storage(&storage, 0), 1)];
        let killed = run_some(&gate, actors, kill).await;
        // Soon, and later.
        if kill % 2 == 1 {
            storage.advance(GRACE * 2);
            open(&storage).await.collect().await.unwrap();
        }
        let repository = open(&storage).await;
        source.copy_to(&repository, id).await.unwrap();
        let pin = repository.pin(id, "a mount").await.unwrap();
        for _ in 0..3 {
            storage.advance(GRACE * 2);
            repository.collect().await.unwrap();
            assert_eq!(read(&open(&storage).await, id).await.unwrap(), ["a"]);
        }
        assert_eq!(repository.resolve("pg@1").await.unwrap(), id);
        repository.unpin(pin.id).await.unwrap();
        // And destroyed, brought back, destroyed again.
        repository.destroy(id).await.unwrap();
        repository.undo_destroy(id).await.unwrap();
        assert_eq!(read(&repository, id).await.unwrap(), ["a"]);
        repository.destroy(id).await.unwrap();
        for _ in 0..3 {
            storage.advance(GRACE * 2);
            repository.collect().await.unwrap();
        }
        for gone in ["packs/", "snapshots/", "moves/", "leases/"] {
            assert_eq!(storage.list_all(gone).await.unwrap(), [], "{kill}: {gone}");
        }
        assert!(repository.check(true).await.unwrap().is_sound());
        if !killed {
            break;
        }
    }
}

/// Of the first pack of the source less than half is needed, so its frames come into packs of the copy's own.
#[tokio::test]
async fn frames_that_were_brought_again_stay_when_those_brought_before_are_deleted() {
    let source = init(&Memory::new()).await;
    let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
    let first = write(&source, None, &files, &["pg@1"]).await;
    let changed = files.map(|(name, seed)| (name, seed * 10));
    let id = write(&source, Some(first), &changed[..3], &["pg@2"]).await;
    let storage = Clocked::new();
    let repository = init(&storage).await;
    source.copy_to(&repository, id).await.unwrap();
    assert_ne!(storage.list_all("moves/").await.unwrap(), []);
    repository.destroy(id).await.unwrap();
    announce(&storage, &repository, true).await;
    source.copy_to(&repository, id).await.unwrap();
    repository.destroy(id).await.unwrap();
    // A collection deletes what was announced, and ends before it announces the rest.
    let announcing = AtomicUsize::new(0);
    let faulty = Faulty::planned(Arc::new(storage.clone()), move |_, operation, key| {
        let list = key.is_some_and(|key| key.as_str().starts_with("doomed/"));
        (operation == Operation::Put && list && announcing.fetch_add(1, Ordering::Relaxed) > 0)
            .then_some(Fault::Fail(neon_storage::ErrorKind::Denied))
    });
    let collecting = Repository::open(Arc::new(faulty), options()).await.unwrap();
    collecting.collect().await.unwrap_err();

    repository.undo_destroy(id).await.unwrap();
    assert_eq!(read(&repository, id).await.unwrap(), ["a", "b", "c", "d"]);
    repository.destroy(id).await.unwrap();
    for _ in 0..4 {
        storage.advance(GRACE * 2);
        repository.collect().await.unwrap();
    }
    for gone in ["packs/", "snapshots/", "moves/"] {
        assert_eq!(storage.list_all(gone).await.unwrap(), [], "{gone}");
    }
}

#[tokio::test]
async fn who_undoes_and_sleeps_before_the_last_step_reports_nothing_that_is_collected() {
    for last in ["put snapshots/", "head tombstones/writer-", "list doomed/"] {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        repository.destroy(id).await.unwrap();
        let gate = Gate::new(4);
        let actors = vec![
            undoer(gate.storage(&storage, 0), id),
            collector(gate.storage(&storage, 1), 1),
            collector(gate.storage(&storage, 2), 1),
            clock(&gate, 3, &storage, 4),
        ];
        let script = [(0, last), (3, ""), (1, ""), (2, ""), (0, "")];
        let (outcomes, trace) = follow(&gate, actors, &script).await;
        check((storage, Vec::new()), outcomes, &trace).await;
    }
}

#[tokio::test]
async fn a_listing_shows_no_commit_of_a_writer_condemned_meanwhile() {
    let storage = Clocked::new();
    init(&storage).await;
    let commit = empty_commit(&["pg@1"]);
    let gate = Gate::new(4);
    let actors = vec![
        pushing(&gate, 0, &storage, &commit),
        collector(gate.storage(&storage, 1), 1),
        lister(gate.storage(&storage, 2), id_of(&commit)),
        clock(&gate, 3, &storage, 2),
    ];
    let script = [
        (0, "put snapshots/"),
        (3, ""),
        (1, "put tombstones/condemned-"),
        (2, "list snapshots/"),
        (1, ""),
        (0, "head tombstones/writer-"),
        (2, ""),
        (0, ""),
    ];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    assert!(is_busy(&outcomes[0]), "{:#?}", trace.calls);
    assert!(matches!(outcomes[2].1, Ok(None)), "{:#?}", trace.calls);
    check((storage, Vec::new()), outcomes, &trace).await;
}

/// Between its two looks at the snapshot that had the name, a collection takes away commit and tombstone.
#[tokio::test]
async fn a_name_that_is_free_is_given_beside_the_collection_of_who_had_it() {
    let storage = Clocked::new();
    let before = id_of(&going(&storage).await);
    let gate = Gate::new(2);
    let commit = empty_commit(&["pg@1"]);
    let actors = vec![
        pushing(&gate, 0, &storage, &commit),
        collector(gate.storage(&storage, 1), 1),
    ];
    let holder = format!("get snapshots/{before}");
    let script = [
        (0, holder.as_str()),
        (0, "list tombstones/"),
        (1, ""),
        (0, ""),
    ];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    assert!(outcomes[0].1.is_ok(), "{:#?}", trace.calls);
    let repository = open(&storage).await;
    assert_eq!(repository.resolve("pg@1").await.unwrap(), id_of(&commit));
    check((storage, Vec::new()), outcomes, &trace).await;
}

#[tokio::test]
async fn a_tombstone_without_a_commit_stays_for_the_grace() {
    let storage = Clocked::new();
    let id = id_of(&going(&storage).await);
    let key = neon_storage::Key::new(format!("tombstones/{id}")).unwrap();
    let tombstone = storage.read(&key).await.unwrap();
    let repository = open(&storage).await;
    assert_eq!(repository.collect().await.unwrap().commits, 1);
    storage.create(&key, tombstone).await.unwrap();
    repository.collect().await.unwrap();
    assert!(storage.exists(&key).await.unwrap());
    storage.advance(GRACE * 2);
    repository.collect().await.unwrap();
    assert!(!storage.exists(&key).await.unwrap());
}

#[tokio::test]
async fn a_commit_that_is_sent_once_more_after_it_was_collected_is_no_snapshot() {
    // Right after the collection that deleted it, and later.
    for later in 0..3 {
        sent_once_more(later).await;
    }
}

async fn sent_once_more(later: usize) {
    let storage = Clocked::new();
    init(&storage).await;
    let commit = empty_commit(&["pg@1"]);
    let id = id_of(&commit);
    let repository = open(&storage).await;
    let key = neon_storage::Key::new(format!("snapshots/{id}")).unwrap();
    // Killed with its lease, when the commit is there.
    for calls in 0.. {
        if storage.exists(&key).await.unwrap() {
            break;
        }
        let gate = Gate::new(1);
        let actors = vec![pushing(&gate, 0, &storage, &commit)];
        assert!(run_some(&gate, actors, calls).await);
    }
    let sent = storage.read(&key).await.unwrap();
    storage.advance(GRACE * 2);
    repository.collect().await.unwrap();
    assert_eq!(repository.snapshot_ids().await.unwrap(), [id]);
    repository.destroy(id).await.unwrap();
    while storage.exists(&key).await.unwrap() {
        storage.advance(GRACE * 2);
        repository.collect().await.unwrap();
    }
    for _ in 0..later {
        storage.advance(GRACE * 2);
        repository.collect().await.unwrap();
    }
    storage.create(&key, sent).await.unwrap();
    for _ in 0..4 {
        assert_eq!(open(&storage).await.snapshot_ids().await.unwrap(), []);
        storage.advance(GRACE * 2);
        repository.collect().await.unwrap();
    }
    assert!(!storage.exists(&key).await.unwrap());
}

#[tokio::test]
async fn two_copies_of_one_snapshot_beside_collectors() {
    for destroyed in [false, true] {
        let scene = async || {
            let source = init(&Memory::new()).await;
            let id = write(&source, None, &[("a", 1)], &["pg@1"]).await;
            let storage = Clocked::new();
            let repository = init(&storage).await;
            if destroyed {
                source.copy_to(&repository, id).await.unwrap();
                repository.destroy(id).await.unwrap();
                announce(&storage, &repository, true).await;
            }
            let gate = Gate::new(5);
            let actors = vec![
                copier(gate.storage(&storage, 0), source.clone(), id),
                copier(gate.storage(&storage, 1), source, id),
                collector(gate.storage(&storage, 2), 2),
                collector(gate.storage(&storage, 3), 1),
                clock(&gate, 4, &storage, 5),
            ];
            Scene {
                storage,
                gate,
                actors,
                kept: Vec::new(),
            }
        };
        explore("again", scene, 3).await;
    }
}

#[tokio::test]
async fn a_copy_undoing_and_destroying_of_one_snapshot_beside_collectors() {
    for announced in [false, true] {
        let scene = async || {
            let source = init(&Memory::new()).await;
            let id = write(&source, None, &[("a", 1)], &["pg@1"]).await;
            let storage = Clocked::new();
            let repository = init(&storage).await;
            source.copy_to(&repository, id).await.unwrap();
            repository.destroy(id).await.unwrap();
            announce(&storage, &repository, announced).await;
            let gate = Gate::new(6);
            let actors = vec![
                copier(gate.storage(&storage, 0), source, id),
                undoer(gate.storage(&storage, 1), id),
                destroyer(gate.storage(&storage, 2), id),
                collector(gate.storage(&storage, 3), 2),
                collector(gate.storage(&storage, 4), 2),
                clock(&gate, 5, &storage, 6),
            ];
            Scene {
                storage,
                gate,
                actors,
                kept: Vec::new(),
            }
        };
        explore("copy, undo, destroy", scene, 3).await;
    }
}

/// Checks everything, with data; what it finds is an error of the test.
fn checker(storage: Gated) -> Acting {
    async move {
        let work = async {
            let checked = reopen(storage).await?.check(true).await?;
            assert_eq!(checked.findings, []);
            Ok(None)
        };
        ("checker", work.await)
    }
    .boxed()
}

#[tokio::test]
async fn a_check_says_nothing_of_what_was_collected_while_it_looked() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    // Before it reads the map, and before it reads pages.
    for reads in 1..4 {
        let id = match reads {
            1 => id,
            _ => write(&repository, None, &[("c", reads)], &["pg@3"]).await,
        };
        let gate = Gate::new(5);
        let actors = vec![
            checker(gate.storage(&storage, 0)),
            destroyer(gate.storage(&storage, 1), id),
            collector(gate.storage(&storage, 2), 1),
            collector(gate.storage(&storage, 3), 1),
            clock(&gate, 4, &storage, 3),
        ];
        let commit = format!("get snapshots/{id}");
        let mut script = vec![(0, "list snapshots/"), (0, commit.as_str())];
        script.extend((1..=reads).map(|_| (0, "get packs/")));
        script.extend([(1, ""), (2, ""), (4, ""), (3, ""), (0, "")]);
        let (outcomes, trace) = follow(&gate, actors, &script).await;
        let sound = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        assert!(sound, "{outcomes:?} {:#?}", trace.calls);
        let left = storage.list_all("snapshots/").await.unwrap();
        assert!(
            !left
                .iter()
                .any(|object| object.key.as_str().contains(&id.to_string()))
        );
    }
}

#[tokio::test]
async fn a_check_finds_nothing_wrong_with_what_was_stored_while_it_looked() {
    for listed in ["get packs/", "list tombstones/", "list snapshots/"] {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        let gate = Gate::new(2);
        let actors = vec![
            checker(gate.storage(&storage, 0)),
            writer(gate.storage(&storage, 1), Some(id), "pg@2"),
        ];
        let script = [(0, listed), (1, ""), (0, "")];
        let (outcomes, trace) = follow(&gate, actors, &script).await;
        let sound = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        assert!(sound, "{listed}: {outcomes:?} {:#?}", trace.calls);
    }
}
