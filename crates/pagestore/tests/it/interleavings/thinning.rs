//! Frames are thinned while what was dropped of them comes alive again.

use super::again::copier;
use super::*;

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
    for times in 0..4 {
        let scene = async || {
            let source_storage = Clocked::new();
            let (source, first, second) = thinning(&source_storage, 0).await;
            source.undo_destroy(first).await.unwrap();
            let storage = Clocked::new();
            let repository = init(&storage).await;
            for id in [first, second] {
                source.copy_to(&repository, id).await.unwrap();
            }
            repository.destroy(first).await.unwrap();
            for _ in 0..times {
                repository.collect().await.unwrap();
                storage.advance(GRACE * 2);
            }
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
