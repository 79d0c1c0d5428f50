//! What nothing needs goes, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::{ErrorKind, Repository};
use neon_storage::{Fault, Faulty, Operation, StorageExt};

use crate::clocked::Clocked;
use crate::support::{GRACE, init, open, options, page, read, try_write, write};

const LATER: Duration = Duration::from_secs(2 * 3600);

/// Runs until nothing more is to be done.
async fn collect_all(storage: &Clocked, repository: &Repository) -> u64 {
    let mut freed = 0;
    for _ in 0..10 {
        let collected = repository.collect().await.unwrap();
        freed += collected.freed;
        if collected.next.is_none() {
            return freed;
        }
        storage.advance(LATER);
    }
    panic!("no end");
}

async fn stored(storage: &Clocked, prefix: &str) -> u64 {
    let objects = storage.list_all(prefix).await.unwrap();
    objects.iter().map(|object| object.size).sum()
}

#[tokio::test]
async fn a_destroyed_snapshot_goes_after_the_grace_and_its_neighbours_stay() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1), ("b", 2)], &["pg@1"]).await;
    let second = write(&repository, Some(first), &[("b", 3)], &["pg@2"]).await;
    let other = write(&repository, None, &[("c", 4)], &["pg@3"]).await;
    assert!(repository.plan_collection().await.unwrap().is_empty());
    repository.destroy(other).await.unwrap();
    let plan = repository.plan_collection().await.unwrap();
    assert_eq!((plan.packs.len(), plan.commits.len()), (2, 1));

    let collected = repository.collect().await.unwrap();
    assert_eq!((collected.packs, collected.announced), (0, 2));
    assert_eq!(read(&repository, other).await.unwrap(), ["c"]);
    storage.advance(GRACE / 2);
    assert_eq!(repository.collect().await.unwrap().packs, 0);
    storage.advance(GRACE);
    let collected = repository.collect().await.unwrap();
    assert_eq!((collected.packs, collected.commits), (2, 1));
    assert_eq!(
        repository.read_commit(other).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(read(&repository, first).await.unwrap(), ["a", "b"]);
    assert_eq!(read(&repository, second).await.unwrap(), ["a", "b"]);
    assert_eq!(storage.list_all("packs/").await.unwrap().len(), 4);
    for nothing in ["doomed/", "tombstones/", "leases/"] {
        assert_eq!(storage.list_all(nothing).await.unwrap(), [], "{nothing}");
    }
}

#[tokio::test]
async fn a_sparse_pack_is_rewritten_and_its_frames_are_found_where_they_moved() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let names: Vec<String> = (0..40).map(|n| format!("f{n:02}")).collect();
    let all: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(100..).collect();
    let first = write(&repository, None, &all, &["pg@1"]).await;
    let most: Vec<(&str, u64)> = all
        .iter()
        .take(30)
        .map(|(name, seed)| (*name, seed + 1000))
        .collect();
    let second = write(&repository, Some(first), &most, &["pg@2"]).await;
    repository.destroy(first).await.unwrap();
    let before = stored(&storage, "packs/").await;
    let live = repository.plan_collection().await.unwrap().live;
    assert!(before > live * 3 / 2);
    let freed = collect_all(&storage, &repository).await;
    assert!(freed > 40 * 8192, "{freed}");
    assert_eq!(read(&repository, second).await.unwrap(), names);
    assert!(!storage.list_all("moves/").await.unwrap().is_empty());
    let after = stored(&storage, "").await;
    assert!(after <= live * 3 / 2, "{after} of {live}");

    // Moved frames become few as well, and move again.
    let rest: Vec<(&str, u64)> = all
        .iter()
        .skip(30)
        .take(8)
        .map(|(name, seed)| (*name, seed + 2000))
        .collect();
    let third = write(&repository, Some(second), &rest, &["pg@3"]).await;
    repository.destroy(second).await.unwrap();
    collect_all(&storage, &repository).await;
    assert_eq!(read(&repository, third).await.unwrap(), names);
    let live = repository.plan_collection().await.unwrap().live;
    let after = stored(&storage, "").await;
    assert!(after <= live * 3 / 2, "{after} of {live}");
    repository.destroy(third).await.unwrap();
    collect_all(&storage, &repository).await;
    let left: Vec<_> = storage
        .list_all("")
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.key.to_string())
        .collect();
    // What makes a name unique for ever, and the repository.
    assert!(
        left.iter()
            .all(|key| key == "neon.json" || key.starts_with("names/")),
        "{left:?}"
    );
}

#[tokio::test]
async fn pins_and_leases_keep_what_is_destroyed() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let pin = repository.pin(first, "a clone").await.unwrap();
    let writing = repository.begin_writing().await.unwrap();
    writing.protect(first).await.unwrap();
    repository.destroy(first).await.unwrap();
    assert_eq!(
        repository.pin(first, "late").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        writing.protect(first).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(collect_all(&storage, &repository).await, 0);
    assert_eq!(read(&repository, first).await.unwrap(), ["a"]);
    repository.unpin(pin.id).await.unwrap();
    assert_eq!(collect_all(&storage, &repository).await, 0);
    writing.abandon().await;
    assert!(collect_all(&storage, &repository).await > 8192);
}

#[tokio::test]
async fn a_writer_that_slept_past_the_grace_commits_nothing() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let writing = repository.begin_writing().await.unwrap();
    storage.advance(GRACE);
    let error = writing
        .commit(&crate::support::empty_commit(&["pg@1"]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(storage.list_all("snapshots/").await.unwrap(), []);
    assert_eq!(
        repository.resolve("pg@1").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn the_lease_of_a_dead_writer_lapses_and_its_packs_go() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let writing = repository.begin_writing().await.unwrap();
    let pack = writing.new_pack().unwrap();
    let key = Repository::pack_key(pack.id).unwrap();
    storage.create(&key, page(1)).await.unwrap();
    drop(writing);
    assert_eq!(collect_all(&storage, &repository).await, 0);
    storage.advance(LATER);
    assert_eq!(collect_all(&storage, &repository).await, 8192);
    assert_eq!(storage.list_all("leases/").await.unwrap(), []);
    // What it commits when it wakes up is no snapshot, for ever; all else is forgotten.
    collect_all(&storage, &repository).await;
    let left = storage.list_all("tombstones/").await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].key.as_str().starts_with("tombstones/condemned-"));
}

#[tokio::test]
async fn what_cannot_be_read_ends_a_collection_before_it_deletes() {
    let base = Clocked::new();
    let repository = init(&base).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let second = write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    repository.pin(second, "a mount").await.unwrap();
    repository.destroy(first).await.unwrap();
    repository.collect().await.unwrap();
    let objects = base.list_all("").await.unwrap();
    let mut ended = BTreeMap::<String, usize>::new();
    for number in 0..=objects.len() {
        // The same again, a grace later, with a writer at work: its lease comes last.
        let storage = Clocked::new();
        for object in &objects {
            let bytes = base.read(&object.key).await.unwrap();
            storage.create(&object.key, bytes).await.unwrap();
        }
        storage.advance(LATER);
        let repository = open(&storage).await;
        let working = repository.begin_writing().await.unwrap();
        let leases = storage.list_all("leases/").await.unwrap();
        let object = objects.iter().chain(&leases).nth(number).unwrap();
        let folder = object.key.segments().next().unwrap().to_owned();
        let whole = storage.read(&object.key).await.unwrap();
        let mut changed = whole.to_vec();
        // The middle of a pack is a frame; small objects are summed as a whole.
        let some = changed.iter_mut().skip(64).take(100);
        some.for_each(|byte| *byte ^= 0x55);
        storage.overwrite(&object.key, changed).await.unwrap();
        let before = storage.list_all("packs/").await.unwrap().len();
        let result = repository.collect().await;
        let after = storage.list_all("packs/").await.unwrap().len();
        if result.is_err() {
            assert_eq!(before, after, "{}", object.key);
            *ended.entry(folder).or_default() += 1;
        } else {
            // Only page content, which a mark does not read, or what nothing needs; of tombstones the keys say all.
            let unread = ["neon.json", "names", "packs", "tombstones"];
            assert!(unread.contains(&folder.as_str()), "{}", object.key);
        }
        storage.overwrite(&object.key, whole).await.ok();
        assert_eq!(read(&repository, second).await.unwrap(), ["b"]);
        let shown = repository.snapshot_ids().await.unwrap();
        assert_eq!(shown, [second], "{}", object.key);
        working.abandon().await;
    }
    // The map of the snapshot that stays, both commits, the list, the pin, the lease, and who had the name that goes.
    let expected = [
        ("doomed", 1),
        ("leases", 1),
        ("names", 1),
        ("packs", 1),
        ("pins", 1),
        ("snapshots", 2),
    ];
    let expected = expected.map(|(folder, count)| (folder.to_owned(), count));
    assert_eq!(ended, expected.into());
}

#[tokio::test]
async fn a_missing_pack_of_pages_ends_a_collection_before_it_deletes() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    repository.destroy(first).await.unwrap();
    repository.collect().await.unwrap();
    storage.advance(LATER);
    let doomed: Vec<_> = repository.plan_collection().await.unwrap().packs;
    for object in storage.list_all("packs/").await.unwrap() {
        if doomed
            .iter()
            .any(|(id, _)| Repository::pack_key(*id).unwrap() == object.key)
        {
            continue;
        }
        let whole = storage.read(&object.key).await.unwrap();
        storage.delete(&object.key).await.unwrap();
        let error = repository.collect().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Damaged), "{error:?}");
        assert_eq!(storage.list_all("packs/").await.unwrap().len(), 3);
        storage.create(&object.key, whole).await.unwrap();
    }
    assert_eq!(repository.collect().await.unwrap().packs, 2);
}

/// A collection that comes to no deletion of a pack, of which its list tells.
async fn killed_while_it_deletes(storage: &Clocked) {
    let killed = Faulty::planned(Arc::new(storage.clone()), |_, operation, key| {
        let deletes = operation == Operation::Delete
            && key.is_none_or(|key| key.as_str().starts_with("packs/"));
        deletes.then_some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
    });
    let killed = Repository::open(Arc::new(killed), options()).await;
    let error = killed.unwrap().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
}

/// What was destroyed, pinned before, and is damaged is not what another collection takes away, though one that was killed left a
/// list of what it was before it was brought again.
#[tokio::test]
async fn a_list_that_was_left_behind_hides_no_damage() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let source = init(&Clocked::new()).await;
    let first = write(&source, None, &[("a", 1)], &["pg@1"]).await;
    source.copy_to(&repository, first).await.unwrap();
    repository.destroy(first).await.unwrap();
    assert!(repository.collect().await.unwrap().announced > 0);
    storage.advance(LATER);
    killed_while_it_deletes(&storage).await;
    storage.advance(LATER);
    collect_all(&storage, &repository).await;
    assert_eq!(storage.list_all("snapshots/").await.unwrap(), []);
    assert_eq!(storage.list_all("doomed/").await.unwrap().len(), 1);

    source.copy_to(&repository, first).await.unwrap();
    repository.pin(first, "a mount").await.unwrap();
    repository.destroy(first).await.unwrap();
    assert_eq!(collect_all(&storage, &repository).await, 0);
    for object in storage.list_all("packs/").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        storage.delete(&object.key).await.unwrap();
        let error = repository.collect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        storage.create(&object.key, whole).await.unwrap();
    }
}

/// While one snapshot is taken away from somebody who is refused, what is damaged of another is told.
#[tokio::test]
async fn what_another_collection_takes_away_hides_no_damage_of_what_stays() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let stays = write(&repository, None, &[("b", 2)], &["pg@2"]).await;
    let packs_of_it = storage.list_all("packs/").await.unwrap();
    let goes = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    repository.destroy(goes).await.unwrap();
    assert!(repository.collect().await.unwrap().announced > 0);
    storage.advance(LATER);
    killed_while_it_deletes(&storage).await;
    let refused = repository.begin_writing().await.unwrap();
    refused.protect(goes).await.unwrap_err();
    for object in storage.list_all("packs/").await.unwrap() {
        let whole = storage.read(&object.key).await.unwrap();
        storage.delete(&object.key).await.unwrap();
        let error = repository.collect().await.unwrap_err();
        let of_what_stays = packs_of_it.iter().any(|pack| pack.key == object.key);
        let expected = match of_what_stays {
            true => ErrorKind::Damaged,
            false => ErrorKind::Busy,
        };
        assert_eq!(error.kind(), expected, "{error:?}");
        storage.create(&object.key, whole).await.unwrap();
    }
    refused.abandon().await;
    read(&repository, stays).await.unwrap();
}

#[tokio::test]
async fn an_announced_snapshot_is_not_brought_back_and_its_packs_are_not_relied_on() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    repository.destroy(first).await.unwrap();
    repository.undo_destroy(first).await.unwrap();
    repository.destroy(first).await.unwrap();
    let packs: Vec<_> = repository
        .plan_collection()
        .await
        .unwrap()
        .packs
        .iter()
        .map(|(id, _)| *id)
        .collect();
    repository.collect().await.unwrap();
    assert_eq!(
        repository.undo_destroy(first).await.unwrap_err().kind(),
        ErrorKind::Busy
    );
    let writing = repository.begin_writing().await.unwrap();
    let brought = writing.bring(&packs).await.unwrap();
    assert_eq!((brought.there.len(), brought.doomed.len()), (0, 2));
    writing.abandon().await;
    collect_all(&storage, &repository).await;
    let writing = open(&storage).await.begin_writing().await.unwrap();
    assert_eq!(writing.bring(&packs).await.unwrap().absent.len(), 2);
    assert!(
        try_write(&repository, Some(first), &[("b", 2)], &[])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn retained_is_what_destroying_would_free() {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let first = write(
        &repository,
        None,
        &[("a", 1), ("b", 2), ("c", 3)],
        &["pg@1"],
    )
    .await;
    let second = write(&repository, Some(first), &[("b", 4)], &["pg@2"]).await;
    let retained = repository.retained().await.unwrap();
    assert_eq!(
        (retained[&first].own, retained[&first].all),
        (8192, 3 * 8192)
    );
    assert_eq!(
        (retained[&second].own, retained[&second].all),
        (8192, 3 * 8192)
    );
}
