//! An encrypted repository tells nothing to who has no key.

use std::sync::Arc;

use neon_pagestore::crypt::{KeyKind, KeySource};
use neon_pagestore::{ErrorKind, Object, ObjectKind, Repository, Result, WriterId};
use neon_storage::{ErrorKind as StorageError, Fault, Faulty, Key, Memory, Operation, StorageExt};

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
    assert!(kinds.contains(&Some(KeyKind::Passphrase)) && kinds.contains(&Some(KeyKind::KeyFile)));
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

/// The envelopes that are stored.
async fn envelopes(storage: &impl StorageExt) -> Vec<(Key, bytes::Bytes)> {
    let mut found = Vec::new();
    for object in storage.list_all("keys/").await.unwrap() {
        if !object.key.as_str().contains("epoch") {
            let bytes = storage.read(&object.key).await.unwrap();
            found.push((object.key, bytes));
        }
    }
    found
}

#[tokio::test]
async fn an_old_handle_destroys_no_newer_key() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let old = open(&storage, phrase("one")).await.unwrap();
    let renewed = repository.rekey(vec![phrase("two")]).await.unwrap();
    let second = write(&renewed, None, &[("a", 1)], &["pg@1"]).await;
    let before = envelopes(&storage).await;
    let refused = old.rekey(vec![phrase("three")]).await.map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::Inconsistent)
    );
    let refused = old.add_key(phrase("three")).await.map(drop);
    assert_eq!(
        refused.map_err(|error| error.kind()),
        Err(ErrorKind::Inconsistent)
    );
    assert_eq!(envelopes(&storage).await, before);
    // With a key that opens the newer epoch it goes on from there.
    let again = old.rekey(vec![phrase("two"), phrase("x")]).await.unwrap();
    assert_eq!(read(&again, second).await.unwrap(), ["a"]);
    let opened = open(&storage, phrase("x")).await.unwrap();
    assert_eq!(read(&opened, second).await.unwrap(), ["a"]);
    assert_eq!(envelopes(&storage).await.len(), 2);
}

#[tokio::test]
async fn of_two_who_renew_keys_at_once_one_wins() {
    let storage = Memory::new();
    let one = init(&storage).await;
    let first = write(&one, None, &[("a", 1)], &["pg@1"]).await;
    let two = open(&storage, phrase("one")).await.unwrap();
    let (a, b) = tokio::join!(one.rekey(vec![phrase("a")]), two.rekey(vec![phrase("b")]));
    let (won, lost, key) = match (a, b) {
        (Ok(won), Err(lost)) => (won, lost, "a"),
        (Err(lost), Ok(won)) => (won, lost, "b"),
        both => panic!("{both:?}"),
    };
    assert!(
        matches!(lost.kind(), ErrorKind::Busy | ErrorKind::Inconsistent),
        "{lost}"
    );
    let second = write(&won, Some(first), &[("b", 2)], &["pg@2"]).await;
    let opened = open(&storage, phrase(key)).await.unwrap();
    assert_eq!(read(&opened, second).await.unwrap(), ["a", "b"]);
    assert_eq!(envelopes(&storage).await.len(), 1);
}

/// A good envelope that did not come back as it was stored is no bad one: it would stay, and open what comes later.
#[tokio::test]
async fn an_envelope_that_comes_back_damaged_once_keeps_keys_from_being_renewed() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let other = repository.add_key(phrase("other")).await.unwrap();
    let before = envelopes(&storage).await;
    let name: String = other.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let damaging = Faulty::planned(Arc::new(storage.clone()), move |_, operation, key| {
        let other = key.is_some_and(|key| key.as_str() == format!("keys/{name}"));
        (other && operation == Operation::Get).then_some(Fault::Fail(StorageError::Corrupt))
    });
    let options = options().key(phrase("one"));
    let damaged = Repository::open(Arc::new(damaging), options).await.unwrap();
    let refused = damaged.rekey(vec![phrase("two")]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged);
    let refused = damaged.add_key(phrase("two")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged);
    assert_eq!(envelopes(&storage).await, before);
    // Where it stays so, it is removed by itself.
    damaged.remove_key(other).await.unwrap();
    let renewed = damaged.rekey(vec![phrase("two")]).await.unwrap();
    assert_eq!(renewed.keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_epoch_that_somebody_else_begins_is_waited_for() {
    let storage = Clocked::new();
    let repository = Repository::init(Arc::new(storage.clone()), options().key(phrase("one")))
        .await
        .unwrap();
    let first = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
    let marker = Key::new("keys/epoch-00000002").unwrap();
    storage.create(&marker, Vec::new()).await.unwrap();
    let before = envelopes(&storage).await;
    let busy = repository.rekey(vec![phrase("two")]).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    let busy = repository.add_key(phrase("two")).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert_eq!(envelopes(&storage).await, before);
    // Whoever it was never came to an end; nobody is locked out for it.
    storage.advance(GRACE * 2);
    let options = || options().key(phrase("one"));
    let opened = Repository::open(Arc::new(storage.clone()), options())
        .await
        .unwrap();
    let renewed = opened.rekey(vec![phrase("two")]).await.unwrap();
    assert_eq!(read(&renewed, first).await.unwrap(), ["a"]);
    assert_eq!(envelopes(&storage).await.len(), 1);
}

#[tokio::test]
async fn the_newest_epoch_that_a_key_opens_is_taken() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let (_, old) = envelopes(&storage).await.remove(0);
    let renewed = repository.rekey(vec![phrase("one")]).await.unwrap();
    let second = write(&renewed, None, &[("a", 1)], &["pg@1"]).await;
    // As if who renewed the keys was stopped before the old one was removed.
    for id in ["00", "ff"] {
        let key = Key::new(format!("keys/{}", id.repeat(16))).unwrap();
        storage.create(&key, old.clone()).await.unwrap();
    }
    let opened = open(&storage, phrase("one")).await.unwrap();
    assert_eq!(read(&opened, second).await.unwrap(), ["a"]);
    // What opens the old epoch alone opens nothing.
    opened.rekey(vec![phrase("two")]).await.unwrap();
    let key = Key::new(format!("keys/{}", "00".repeat(16))).unwrap();
    storage.create(&key, old).await.unwrap();
    let locked = open(&storage, phrase("one")).await.unwrap_err();
    assert_eq!(locked.kind(), ErrorKind::Locked);
    assert!(locked.reason().contains("renewed"), "{locked}");
}

#[tokio::test]
async fn a_bad_envelope_keeps_nobody_out() {
    let storage = Memory::new();
    let repository = init(&storage).await;
    let (_, good) = envelopes(&storage).await.remove(0);
    let good_key = repository.keys().await.unwrap()[0].id;
    let writer = WriterId::random().unwrap();
    let forged = |kind: u8, memory: u32, passes: u32| {
        let mut body = vec![0; 200];
        body[0] = kind;
        body[4..8].copy_from_slice(&7_u32.to_le_bytes());
        body[8..12].copy_from_slice(&7_u32.to_le_bytes());
        body[16..20].copy_from_slice(&memory.to_le_bytes());
        body[20..24].copy_from_slice(&passes.to_le_bytes());
        Object::new(ObjectKind::Key, writer, body)
    };
    let key = |number: u8| Key::new(format!("keys/{number:032x}")).unwrap();
    let mut flipped = good.to_vec();
    flipped[50] ^= 1;
    let encode = |number: u8, object: Object| object.encode(&key(number), None).unwrap();
    let bad = [
        b"no object".to_vec(),
        flipped,
        // Of a sort that is not known, and one that nobody with the keys made.
        encode(2, forged(9, 64, 1)),
        encode(3, forged(1, 64, 1)),
        // A gigabyte, sixty-four times.
        encode(4, forged(1, 1 << 20, 64)),
    ];
    let count = bad.len();
    for (number, bytes) in (0_u8..).zip(bad) {
        storage.create(&key(number), bytes).await.unwrap();
    }
    let opened = open(&storage, phrase("one")).await.unwrap();
    let wrong = open(&storage, phrase("wrong")).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Locked);
    let keys = opened.keys().await.unwrap();
    assert_eq!(keys.len(), count + 1);
    let bad: Vec<_> = keys.iter().filter(|key| key.problem.is_some()).collect();
    assert_eq!(bad.len(), count, "{keys:?}");
    let checked = opened.check(false).await.unwrap();
    assert_eq!(checked.findings.len(), count, "{:?}", checked.findings);
    // None of them counts as a key that is left.
    let last = opened.remove_key(good_key).await.unwrap_err();
    assert_eq!(last.kind(), ErrorKind::Invalid);
    // Nor do they keep anybody from renewing keys, which leaves them.
    let renewed = opened.rekey(vec![phrase("two")]).await.unwrap();
    for key in bad {
        // Vouched for by nobody or not readable: to be removed one by one.
        renewed.remove_key(key.id).await.unwrap();
    }
    assert_eq!(renewed.keys().await.unwrap().len(), 1);
    assert!(renewed.check(true).await.unwrap().is_sound());
}
