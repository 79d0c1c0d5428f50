//! Repositories are made once and opened by whoever may.

use std::sync::Arc;

use neon_pagestore::gc::LeftReason;
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{Commit, CommitId, ErrorKind, Object, ObjectKind, Repository, WriterId};
use neon_snapshot_format::pack::{Flags, PackId};
use neon_storage::{Key, Memory, StorageExt};

use crate::clocked::Clocked;
use crate::support::{GRACE, empty_commit, init, open, options, read, snapshot, write};

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

/// The three classes of additions.
fn classes() -> [Flags; 3] {
    let flags = |ignorable, read_only, refuse| Flags {
        ignorable,
        read_only,
        refuse,
    };
    [flags(4, 0, 0), flags(0, 4, 0), flags(0, 0, 4)]
}

#[tokio::test]
async fn additions_to_a_repository_are_honoured_by_class() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let key = Key::new("neon.json").unwrap();
    let whole = storage.read(&key).await.unwrap();
    let whole = std::str::from_utf8(&whole).unwrap();
    for class in ["ignorable", "read_only", "refuse"] {
        let (text, _) = whole.split_once(",\n  \"digest\"").unwrap();
        let text = text.replace(
            &format!("\"{class}\": []"),
            &format!("\"{class}\": [\"x\"]"),
        );
        let digest = blake3::hash(text.as_bytes()).to_hex();
        let text = format!("{text},\n  \"digest\": \"{digest}\"\n}}\n");
        assert_ne!(text.len(), whole.len());
        storage.overwrite(&key, text.into_bytes()).await.unwrap();
        let opened = Repository::open(Arc::new(storage.clone()), options()).await;
        if class == "refuse" {
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        let opened = opened.unwrap();
        assert_eq!(opened.resolve("pg@1").await.unwrap(), id);
        assert_eq!(read(&opened, id).await.unwrap(), ["a"]);
        assert_eq!(opened.list().await.unwrap().len(), 1);
        if class == "ignorable" {
            snapshot(&opened, "pg@2").await;
            opened
                .destroy(opened.resolve("pg@2").await.unwrap())
                .await
                .unwrap();
            continue;
        }
        let before = storage.list_all("").await.unwrap();
        let refused = [
            opened.begin_writing().await.map(drop),
            opened.destroy(id).await,
            opened.pin(id, "x").await.map(drop),
            opened.collect().await.map(drop),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
        }
        assert_eq!(storage.list_all("").await.unwrap(), before);
        // Its snapshots can be taken elsewhere.
        let other = init(&Memory::new()).await;
        opened.copy_to(&other, id).await.unwrap();
    }
}

#[tokio::test]
async fn additions_to_objects_and_commits_are_honoured_by_class() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let base = write(&repository, None, &[("a", 1)], &[]).await;
    let (_, commit) = repository.read_commit(base).await.unwrap();
    let writer = WriterId::random().unwrap();
    for (number, flags) in classes().into_iter().enumerate() {
        let mut commit = commit.clone();
        commit.flags = flags;
        commit.facts.taken += i64::try_from(number).unwrap() + 1;
        let body = commit.encode().unwrap();
        let id = CommitId::of(&body);
        let key = Key::new(format!("snapshots/{id}")).unwrap();
        let object = Object::new(ObjectKind::Commit, writer, body);
        let bytes = object.encode(&key, None).unwrap();
        storage.create(&key, bytes).await.unwrap();
        if flags.refuse != 0 {
            let refused = repository.read_commit(id).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            continue;
        }
        assert_eq!(read(&repository, id).await.unwrap(), ["a"]);
        let maps = MapReader::new(repository.frames(), 32 << 20);
        let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
        let to = repository.clone();
        let built = tokio::task::spawn_blocking(move || {
            let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
            sink.with_parent(Parent::of(&snapshot)).complete()
        });
        let built = built.await.unwrap().map_err(|error| error.kind());
        let refused = matches!(built, Err(ErrorKind::Unsupported));
        assert_eq!(refused, !flags.writable());
        // Nor is it protected for that, which comes before anything is written.
        let writing = repository.begin_writing().await.unwrap();
        let protected = writing.protect(id).await.map_err(|error| error.kind());
        let refused = matches!(protected, Err(ErrorKind::Unsupported));
        assert_eq!(refused, !flags.writable());
        writing.abandon().await;
        // The envelope has flags of its own.
        for flags in classes() {
            let object = Object {
                flags,
                ..Object::new(ObjectKind::Commit, writer, commit.encode().unwrap())
            };
            let bytes = object.encode(&key, None).unwrap();
            storage.overwrite(&key, bytes).await.unwrap();
            let found = repository.read_commit(id).await;
            assert_eq!(found.is_ok(), flags.refuse == 0);
        }
        storage.delete(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_catalogue_with_additions_is_not_written_anew() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    for number in 0..4 {
        snapshot(&repository, &format!("pg@{number}")).await;
    }
    repository.list().await.unwrap();
    let key = storage.list_all("catalog/").await.unwrap().remove(0).key;
    let bytes = storage.read(&key).await.unwrap();
    let object = Object::decode(&key, ObjectKind::Catalog, &bytes, None).unwrap();
    for flags in [classes()[1], classes()[0]] {
        let bytes = Object {
            flags,
            ..object.clone()
        };
        let bytes = bytes.encode(&key, None).unwrap();
        storage.overwrite(&key, bytes).await.unwrap();
        for _ in 0..4 {
            crate::support::take(&repository, &[]).await;
        }
        open(&storage).await.list().await.unwrap();
        let there = storage.exists(&key).await.unwrap();
        assert_eq!(there, !flags.writable());
    }
}

#[tokio::test]
async fn packs_with_additions_are_rewritten_by_class() {
    for flags in classes().into_iter().take(2) {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let names: Vec<String> = (0..20).map(|n| format!("f{n:02}")).collect();
        let all: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(100..).collect();
        let first = write(&repository, None, &all, &[]).await;
        let most: Vec<_> = all
            .iter()
            .take(15)
            .map(|(n, seed)| (*n, seed + 50))
            .collect();
        let second = write(&repository, Some(first), &most, &[]).await;
        repository.destroy(first).await.unwrap();
        for object in storage.list_all("packs/").await.unwrap() {
            let mut bytes = storage.read(&object.key).await.unwrap().to_vec();
            let start = bytes.len() - 144;
            let footer = &mut bytes[start..];
            footer[72..76].copy_from_slice(&flags.ignorable.to_le_bytes());
            footer[76..80].copy_from_slice(&flags.read_only.to_le_bytes());
            let digest = blake3::hash(&footer[..120]);
            footer[120..136].copy_from_slice(&digest.as_bytes()[..16]);
            storage.overwrite(&object.key, bytes).await.unwrap();
        }
        let reopened = open(&storage).await;
        let sparse: Vec<PackId> = {
            let plan = reopened.plan_collection().await.unwrap();
            let sparse = plan.sparse.iter().map(|(id, ..)| *id);
            let left = plan.left.iter().map(|left| {
                assert_eq!(left.reason, LeftReason::Newer);
                assert!(left.live * 3 < left.size * 2, "{left:?}");
                left.id
            });
            assert_eq!(plan.sparse.is_empty(), !flags.writable());
            assert_eq!(plan.left.is_empty(), flags.writable());
            sparse.chain(left).collect()
        };
        for _ in 0..4 {
            let collected = reopened.collect().await.unwrap();
            let left: Vec<PackId> = collected.left.iter().map(|left| left.id).collect();
            assert_eq!(
                left,
                if flags.writable() {
                    vec![]
                } else {
                    sparse.clone()
                }
            );
            // Only what was rewritten, or what nothing needs, is announced; and there is an end to it.
            assert!(flags.writable() || collected.announced == 0);
            storage.advance(GRACE * 2);
        }
        assert_eq!(reopened.collect().await.unwrap().next, None);
        // And nothing is planned that cannot be done.
        let plan = reopened.plan_collection().await.unwrap();
        assert!(plan.is_empty() && plan.freed() == 0, "{plan:?}");
        let moves = storage.list_all("moves/").await.unwrap();
        assert_eq!(moves.is_empty(), !flags.writable());
        assert_eq!(read(&open(&storage).await, second).await.unwrap(), names);
        // What only a snapshot needs goes no sooner than a grace after that was announced with it.
        reopened.destroy(second).await.unwrap();
        assert_eq!(reopened.collect().await.unwrap().packs, 0);
        storage.advance(GRACE * 2);
        assert!(reopened.collect().await.unwrap().packs > 0);
        assert_eq!(storage.list_all("packs/").await.unwrap(), []);
    }
}

#[tokio::test]
async fn an_object_larger_than_its_kind_may_be_is_not_read() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let id = snapshot(&repository, "pg@1").await;
    let key = storage.list_all("names/").await.unwrap().remove(0).key;
    storage
        .overwrite(&key, vec![0; (1 << 20) + 1])
        .await
        .unwrap();
    let error = repository.resolve("pg@1").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.subject()),
        (ErrorKind::Limit, key.as_str())
    );
    assert!(repository.read_commit(id).await.is_ok());
}

#[tokio::test]
async fn what_is_printed_of_commits_and_objects_holds_no_keys() {
    let commit = Commit {
        runs: bytes::Bytes::from_static(&[211, 212, 213]),
        ..empty_commit(&["pgdata@one"])
    };
    let text = format!("{commit:?}");
    assert!(
        text.contains("3 bytes") && text.contains("pgdata"),
        "{text}"
    );
    assert!(!text.contains("211") && !text.contains("xd3"), "{text}");
    let writer = WriterId([0; 8]);
    let object = Object::new(ObjectKind::Commit, writer, vec![211, 212, 213]);
    let text = format!("{object:?}");
    assert!(text.contains("3 bytes") && !text.contains("211"), "{text}");
}
