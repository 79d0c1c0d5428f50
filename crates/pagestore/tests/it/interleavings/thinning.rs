//! Frames are thinned while what was dropped of them comes alive again.

use super::again::copier;
use super::*;
use crate::gated::follow;

const ALL: [(&str, u64); 4] = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
const MOST: [(&str, u64); 3] = [("a", 11), ("b", 12), ("c", 13)];

/// Of a frame with four pages a destroyed snapshot shows all, and one that stays a single one.
async fn thinning(storage: &Clocked, times: usize) -> (Repository, CommitId, CommitId) {
    let repository = init(storage).await;
    let first = write(&repository, None, &ALL, &["pg@1"]).await;
    let second = write(&repository, Some(first), &MOST, &["pg@2"]).await;
    repository.destroy(first).await.unwrap();
    for _ in 0..times {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
    (repository, first, second)
}

#[tokio::test]
async fn a_destroyed_snapshot_is_brought_back_beside_collectors_that_thin_its_frames() {
    let scene = async || {
        let storage = Clocked::new();
        let (_, first, second) = thinning(&storage, 0).await;
        let gate = Gate::new(4);
        let actors = vec![
            undoer(gate.storage(&storage, 0), first),
            collector(gate.storage(&storage, 1), 3),
            collector(gate.storage(&storage, 2), 2),
            clock(&gate, 3, &storage, 5),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: vec![second],
        }
    };
    explore("undo beside thinning", scene, 3).await;
}

#[tokio::test]
async fn a_snapshot_is_written_on_one_whose_frames_are_being_thinned() {
    let scene = async || {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let first = write(&repository, None, &ALL, &["pg@1"]).await;
        let second = write(&repository, Some(first), &MOST, &["pg@2"]).await;
        let gate = Gate::new(5);
        let actors = vec![
            writer(gate.storage(&storage, 0), Some(first), "pg@3"),
            destroyer(gate.storage(&storage, 1), first),
            collector(gate.storage(&storage, 2), 3),
            collector(gate.storage(&storage, 3), 2),
            clock(&gate, 4, &storage, 5),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: vec![second],
        }
    };
    explore("writing beside thinning", scene, 3).await;
}

/// Before, while, and after what is brought again is dropped.
#[tokio::test]
async fn what_was_dropped_is_copied_here_again_beside_collectors() {
    let source_storage = Clocked::new();
    let (source, first, second) = thinning(&source_storage, 0).await;
    source.undo_destroy(first).await.unwrap();
    let here = Clocked::new();
    let repository = init(&here).await;
    for id in [first, second] {
        source.copy_to(&repository, id).await.unwrap();
    }
    repository.destroy(first).await.unwrap();
    for times in 0..4 {
        if times > 0 {
            repository.collect().await.unwrap();
            here.advance(GRACE * 2);
        }
        let scene = async || {
            let (storage, source) = (here.duplicate().await, source_storage.duplicate().await);
            let source = open(&source).await;
            let gate = Gate::new(4);
            let actors = vec![
                copier(gate.storage(&storage, 0), source, first),
                collector(gate.storage(&storage, 1), 3),
                collector(gate.storage(&storage, 2), 2),
                clock(&gate, 3, &storage, 4),
            ];
            Scene {
                storage,
                gate,
                actors,
                kept: vec![second],
            }
        };
        explore("copying beside thinning", scene, 3).await;
    }
}

/// Of a pack that three snapshots share, of which two are destroyed, and what was announced of it by two collections half a
/// grace apart: the first when most of it was needed still.
async fn announced_twice(storage: &Clocked) -> (Repository, CommitId, CommitId) {
    let repository = init(storage).await;
    let first = write(&repository, None, &ALL, &["pg@1"]).await;
    let second = write(&repository, Some(first), &[("d", 14)], &["pg@2"]).await;
    let newer = [("b", 22), ("c", 23)];
    let third = write(&repository, Some(second), &newer, &["pg@3"]).await;
    repository.destroy(first).await.unwrap();
    repository.collect().await.unwrap();
    assert!(
        repository
            .plan_collection()
            .await
            .unwrap()
            .sparse
            .is_empty()
    );
    storage.advance(GRACE / 2);
    repository.destroy(second).await.unwrap();
    let collected = repository.collect().await.unwrap();
    assert!(collected.moved > 0 && collected.announced > 0);
    storage.advance(GRACE / 2 + Duration::from_secs(1));
    (repository, first, third)
}

/// Who is refused keeps one collection from deleting, which takes back what was announced first; the other list stays.
#[tokio::test]
async fn what_was_announced_with_a_pack_cannot_be_brought_back_while_that_pack_is_deleted() {
    let storage = Clocked::new();
    let (repository, first, third) = announced_twice(&storage).await;
    let refused = repository.begin_writing().await.unwrap();
    refused.protect(first).await.unwrap_err();
    assert_eq!(repository.collect().await.unwrap().packs, 0);
    refused.abandon().await;
    storage.advance(GRACE / 2);
    let gate = Gate::new(2);
    let actors = vec![
        collector(gate.storage(&storage, 0), 1),
        undoer(gate.storage(&storage, 1), first),
    ];
    let script = [(0, "delete packs/"), (1, ""), (0, "")];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    let undone = outcomes[1].1.as_ref().map_err(neon_pagestore::Error::kind);
    assert_eq!(undone.map(drop), Err(ErrorKind::Busy), "{:#?}", trace.calls);
    check((storage, vec![third]), outcomes, &trace).await;
}

#[tokio::test]
async fn what_is_announced_twice_is_brought_back_by_two_beside_collectors() {
    let scene = async || {
        let storage = Clocked::new();
        let (_, first, third) = announced_twice(&storage).await;
        let gate = Gate::new(5);
        let actors = vec![
            undoer(gate.storage(&storage, 0), first),
            undoer(gate.storage(&storage, 1), first),
            collector(gate.storage(&storage, 2), 2),
            collector(gate.storage(&storage, 3), 2),
            clock(&gate, 4, &storage, 3),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: vec![third],
        }
    };
    explore("announced twice", scene, 4).await;
}

/// Asks for a destroyed snapshot, and takes down what names it only later.
fn refused(gate: &Arc<Gate>, actor: usize, storage: Gated, id: CommitId) -> Acting {
    let gate = Arc::clone(gate);
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            let writing = repository.begin_writing().await?;
            let protected = writing.protect(id).await;
            gate.pass(actor, "gives up".to_owned()).await;
            writing.abandon().await;
            protected.map(|_| None)
        };
        ("refused", work.await)
    }
    .boxed()
}

/// A collection that counts what was refused among what is needed says that another one took it, not that it is damaged: while
/// the other deletes, and after that.
#[tokio::test]
async fn a_collection_tells_damage_from_what_another_takes_from_who_is_refused() {
    for until in ["delete snapshots/", "delete doomed/", ""] {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let first = write(&repository, None, &ALL, &["pg@1"]).await;
        let other = write(&repository, None, &MOST, &["pg@2"]).await;
        repository.destroy(first).await.unwrap();
        assert!(repository.collect().await.unwrap().announced > 0);
        storage.advance(GRACE * 2);
        let gate = Gate::new(3);
        let actors = vec![
            collector(gate.storage(&storage, 0), 1),
            collector(gate.storage(&storage, 1), 1),
            refused(&gate, 2, gate.storage(&storage, 2), first),
        ];
        let script = [
            (0, "delete packs/"),
            (2, "gives up"),
            (1, "get packs/"),
            (0, until),
            (1, ""),
            (2, ""),
        ];
        let (outcomes, trace) = follow(&gate, actors, &script).await;
        let kind = outcomes[1].1.as_ref().map_err(neon_pagestore::Error::kind);
        assert_eq!(kind.map(drop), Err(ErrorKind::Busy), "{:#?}", trace.calls);
        assert!(outcomes[2].1.is_err());
        check((storage, vec![other]), outcomes, &trace).await;
    }
}
