//! Collections that rewrite packs whose directories this program would not have written: forged ones, and those of other
//! writers.

use std::collections::BTreeMap;
use std::sync::Arc;

use neon_pagestore::gc::{LeftPack, LeftReason};
use neon_pagestore::{ErrorKind, Repository};
use neon_snapshot_format::pack::{Codec, FrameRecord, Opening, PackOptions, PackWriter, Step};
use neon_storage::{Fault, Faulty, Key, Operation, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Selection, make_as, noise};
use crate::support::{ZEROS, init, options, read, try_write_as, write};
use crate::thinned::{encrypted, files, is_whole, open, settle};

const PAGE: usize = 8192;

/// The same pack, with a directory that says something else of its frames.
fn forged(bytes: &[u8], says: impl Fn(&FrameRecord) -> FrameRecord) -> Vec<u8> {
    let at = |range: std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
    let mut opening = Opening::new(bytes.len() as u64).unwrap();
    let mut range = opening.range();
    let index = loop {
        match opening.feed(at(range)).unwrap() {
            Step::Read(next) => range = next,
            Step::Done(index) => break index,
        }
    };
    let mut writer = PackWriter::new(Vec::new(), PackOptions::new(index.id())).unwrap();
    for frame in 0..index.frame_count() {
        let table = index.table_of(frame).unwrap();
        let table = index.table(&table, at(table.range.clone())).unwrap();
        let record = table.frame(frame).unwrap();
        let stored = at(record.range());
        writer.append_stored(&says(record), stored).unwrap();
    }
    writer.finish(index.start_up_frames(), None).unwrap()
}

/// A record of the same stored bytes, if they are those of sixteen pages.
fn other(record: &FrameRecord, codec: u8, sealed: bool, plain_length: u32) -> FrameRecord {
    if record.stored_length() < 100_000 {
        return *record;
    }
    FrameRecord::from_parts(
        record.address(),
        record.offset(),
        record.stored_length(),
        plain_length,
        codec,
        sealed,
        *record.digest(),
    )
    .unwrap()
}

async fn packs(storage: &Clocked) -> Vec<Key> {
    let objects = storage.list_all("packs/").await.unwrap();
    objects.into_iter().map(|object| object.key).collect()
}

/// Who has no key may write directories, but what a thinned frame is made of is told by the map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_directories_say_of_sealing_and_compression_is_held_against_maps_before_frames_are_thinned()
 {
    // So little is saved by compression that the compressed bytes fill as many cells.
    let content = |seed| {
        let mut bytes = noise(PAGE, seed);
        bytes[8000..].fill(0);
        bytes
    };
    type Says = fn(&FrameRecord) -> FrameRecord;
    let compressed: Says = |record| other(record, 0, true, record.stored_length() - 40);
    let open_ciphertext: Says = |record| other(record, 0, false, record.stored_length());
    for says in [compressed, open_ciphertext] {
        let storage = Clocked::new();
        let repository = encrypted(&storage).await;
        let mut pages: Vec<u64> = (1..17).collect();
        let none = Selection::new;
        let (codec, all) = (Codec::default(), files(&pages, content));
        let first = make_as(&repository, all, none(), None, codec).await;
        let first = first.unwrap().id;
        let before = packs(&storage).await;
        pages[3..].iter_mut().for_each(|page| *page += 50);
        let some = files(&pages, content);
        let parent = open(&repository, first).await;
        let made = make_as(&repository, some.clone(), none(), Some(&parent), codec).await;
        let taken = BTreeMap::from([(made.unwrap().id, some)]);
        repository.destroy(first).await.unwrap();

        let mut genuine = Vec::new();
        for key in before {
            let bytes = storage.read(&key).await.unwrap();
            let changed = forged(&bytes, says);
            if changed != bytes {
                storage.overwrite(&key, changed).await.unwrap();
                genuine.push((key, bytes));
            }
        }
        let [(key, bytes)] = &genuine[..] else {
            panic!("{genuine:?}");
        };
        let before = packs(&storage).await;
        let refused = repository.collect().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged);
        let name = key.segments().last().unwrap();
        assert!(refused.to_string().contains(name), "{refused}");
        assert_eq!(packs(&storage).await, before);
        assert!(storage.list_all("moves/").await.unwrap().is_empty());

        storage.overwrite(key, bytes.clone()).await.unwrap();
        settle(&storage, &repository).await;
        is_whole(&repository, &taken, "genuine again").await;
        assert!(!packs(&storage).await.contains(key));
    }
}

/// Frames of zeros lie where the frame after them begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_zeros_that_another_writer_made_move_as_often_as_others() {
    for sealed in [false, true] {
        let storage = Clocked::new();
        let repository = match sealed {
            true => encrypted(&storage).await,
            false => init(&storage).await,
        };
        let names: Vec<String> = (0..96).map(|number| format!("a{number:02}")).collect();
        // Sixteen files share a frame: noise, four times zeros, noise.
        let seeds = |number: u64| match number {
            16..80 => ZEROS,
            _ => number,
        };
        let all: Vec<(&str, u64)> = names
            .iter()
            .zip(0..)
            .map(|(name, number)| (name.as_str(), seeds(number)))
            .collect();
        let anew = |range: std::ops::Range<usize>, by: u64| -> Vec<(&str, u64)> {
            all[range]
                .iter()
                .map(|(name, seed)| (*name, seed + by))
                .collect()
        };
        let mut last = write(&repository, None, &all, &[]).await;
        for (turn, range) in [(1, 0..16), (2, 80..88), (3, 88..92)] {
            let next = write(&repository, Some(last), &anew(range, 1000 * turn), &[]).await;
            repository.destroy(last).await.unwrap();
            last = next;
            let about = format!("sealed {sealed}, turn {turn}");
            let collected = repository.collect().await.unwrap();
            assert!(collected.moved > 0, "{about}: {collected:?}");
            settle(&storage, &repository).await;
            let checked = repository.check(true).await.unwrap();
            assert!(checked.is_sound(), "{about}: {:?}", checked.findings);
            assert_eq!(read(&repository, last).await.unwrap(), names, "{about}");
        }
    }
}

/// The same pack, with a footer that was changed and fits.
fn with_footer(bytes: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let (frames, footer) = bytes.split_at(bytes.len() - 144);
    let mut footer = footer.to_vec();
    change(&mut footer[..120]);
    let digest = blake3::hash(&footer[..120]);
    footer[120..136].copy_from_slice(&digest.as_bytes()[..16]);
    [frames, &footer].concat()
}

/// Damaged where it says what it is, of a newer writer, or another pack: it is named, and in no other's way.
#[tokio::test]
async fn a_sparse_pack_that_may_not_be_rewritten_is_left_and_named_and_the_rest_is_rewritten() {
    type Changed = fn(&[u8]) -> Vec<u8>;
    let cut: Changed = |bytes| [&bytes[..bytes.len() - 1], b"?"].concat();
    let refused: Changed = |bytes| with_footer(bytes, |footer| footer[80] = 1);
    let read_only: Changed = |bytes| with_footer(bytes, |footer| footer[76] = 1);
    let another: Changed = |bytes| with_footer(bytes, |footer| footer[0] ^= 1);
    for (changed, reason) in [
        (cut, LeftReason::Unreadable),
        (refused, LeftReason::Unreadable),
        (another, LeftReason::Unreadable),
        (read_only, LeftReason::Newer),
    ] {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let names: Vec<String> = (0..32).map(|number| format!("a{number:02}")).collect();
        let seeded = |range: std::ops::Range<usize>, by: u64| -> Vec<(&str, u64)> {
            let some = names[range.clone()].iter().map(String::as_str);
            some.zip(range.start as u64 + by..).collect()
        };
        let first = write(&repository, None, &seeded(0..16, 0), &[]).await;
        // Of the two packs, that with the map is small.
        let there = storage.list_all("packs/").await.unwrap().into_iter();
        let bad = there.max_by_key(|object| object.size).unwrap().key;
        let second = write(&repository, Some(first), &seeded(16..32, 0), &[]).await;
        let mut newer = seeded(0..12, 100);
        newer.extend(seeded(16..28, 100));
        let last = write(&repository, Some(second), &newer, &[]).await;
        for id in [first, second] {
            repository.destroy(id).await.unwrap();
        }
        let bytes = storage.read(&bad).await.unwrap();
        storage.overwrite(&bad, changed(&bytes)).await.unwrap();

        let named = |left: &[LeftPack]| {
            let [left] = left else {
                panic!("{left:?}");
            };
            assert_eq!(Repository::pack_key(left.id).unwrap(), bad);
            assert_eq!(left.reason, reason);
        };
        let plan = repository.plan_collection().await.unwrap();
        named(&plan.left);
        assert_eq!(plan.sparse.len(), 1, "{plan:?}");
        let roughly = repository.estimate_collection().await.unwrap();
        assert!(roughly.left.is_empty() && roughly.sparse.len() == 2);
        assert!(roughly.freed() > plan.freed());
        // Nothing is known of it when the storage fails.
        let (fails, of) = (Arc::new(storage.clone()), bad.clone());
        let failing = Faulty::planned(fails, move |_, operation, key| {
            let read = operation == Operation::Get && key == Some(&of);
            read.then_some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
        });
        let failing = Repository::open(Arc::new(failing), options()).await;
        let error = failing.unwrap().plan_collection().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{error:?}");

        let collected = repository.collect().await.unwrap();
        named(&collected.left);
        assert!(
            collected.moved > 0 && collected.announced > 0,
            "{collected:?}"
        );
        settle(&storage, &repository).await;
        assert!(packs(&storage).await.contains(&bad));
        assert_eq!(read(&repository, last).await.unwrap(), names);
    }
}

/// A frame that could move as it is would make the pack that it moves to one that stays.
#[tokio::test]
async fn a_frame_that_is_not_encrypted_where_it_should_be_stays_also_if_most_of_it_is_needed() {
    let storage = Clocked::new();
    let repository = encrypted(&storage).await;
    let names: Vec<String> = (0..32).map(|number| format!("a{number:02}")).collect();
    let all: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(1..).collect();
    let open = try_write_as(&repository, None, &all, &[], false).await;
    let open = open.unwrap().id;
    let before = packs(&storage).await;
    // Of the first sixteen files, which share a frame, fourteen stay, of the others none.
    let newer = all[..2].iter().chain(&all[16..]);
    let newer: Vec<_> = newer.map(|(name, seed)| (*name, seed + 100)).collect();
    let last = write(&repository, Some(open), &newer, &[]).await;
    repository.destroy(open).await.unwrap();
    let collected = repository.collect().await.unwrap();
    assert_eq!(collected.moved, 0, "{collected:?}");
    let [left] = &collected.left[..] else {
        panic!("{collected:?}");
    };
    assert_eq!(left.reason, LeftReason::NotEncrypted);
    let key = Repository::pack_key(left.id).unwrap();
    assert!(before.contains(&key));
    settle(&storage, &repository).await;
    assert!(packs(&storage).await.contains(&key));
    assert!(storage.list_all("moves/").await.unwrap().is_empty());
    assert_eq!(read(&repository, last).await.unwrap(), names);
}

/// Who forgot to encrypt makes no collection fail: its packs stay as they are, are named, and all others are rewritten.
#[tokio::test]
async fn frames_that_are_not_encrypted_where_they_should_be_are_left_and_named_and_the_rest_is_rewritten()
 {
    let storage = Clocked::new();
    let repository = encrypted(&storage).await;
    let names: Vec<String> = (0..32).map(|number| format!("a{number:02}")).collect();
    let seeded = |range: std::ops::Range<usize>, by: u64| -> Vec<(&str, u64)> {
        let some = names[range.clone()].iter().map(String::as_str);
        some.zip(range.start as u64 + by..).collect()
    };
    // Sixteen files share a frame: the first ones in one that is not encrypted, the others as they should be.
    let open = try_write_as(&repository, None, &seeded(0..16, 0), &[], false).await;
    let open = open.unwrap().id;
    let not_encrypted = packs(&storage).await;
    let all = write(&repository, Some(open), &seeded(16..32, 0), &[]).await;
    let mut newer = seeded(0..12, 100);
    newer.extend(seeded(16..28, 100));
    let last = write(&repository, Some(all), &newer, &[]).await;
    for id in [open, all] {
        repository.destroy(id).await.unwrap();
    }

    let plan = repository.plan_collection().await.unwrap();
    let named = |left: &[LeftPack]| -> Vec<String> {
        let of = |left: &LeftPack| {
            assert_eq!(left.reason, LeftReason::NotEncrypted);
            Repository::pack_key(left.id).unwrap().to_string()
        };
        left.iter().map(of).collect()
    };
    let left = named(&plan.left);
    assert_eq!(left.len(), 1, "{plan:?}");
    assert!(not_encrypted.iter().any(|key| key.as_str() == left[0]));
    assert!(!plan.sparse.is_empty(), "{plan:?}");

    let collected = repository.collect().await.unwrap();
    assert_eq!(named(&collected.left), left);
    assert!(
        collected.moved > 0 && collected.announced > 0,
        "{collected:?}"
    );
    settle(&storage, &repository).await;
    let there: Vec<String> = packs(&storage).await.iter().map(Key::to_string).collect();
    assert!(there.contains(&left[0]), "{there:?}");
    assert_eq!(read(&repository, last).await.unwrap(), names);
    let checked = repository.check(true).await.unwrap();
    let open = |finding: &neon_pagestore::Finding| {
        let encrypted = finding.problem.contains("not encrypted");
        assert!(encrypted && finding.snapshots.is_empty(), "{finding:?}");
        finding.object.clone()
    };
    let open: Vec<String> = checked.findings.iter().map(open).collect();
    let id = left[0].rsplit('/').next().unwrap();
    assert!(open.contains(&format!("pack {id}")), "{open:?}");
    // What is left is named again, and is nothing that could be done.
    let plan = repository.plan_collection().await.unwrap();
    assert_eq!(named(&plan.left), left);
    assert!(plan.is_empty() && plan.freed() == 0, "{plan:?}");

    // With the last snapshot that needs it, it goes.
    let rest = write(&repository, Some(last), &seeded(12..16, 100), &[]).await;
    repository.destroy(last).await.unwrap();
    settle(&storage, &repository).await;
    assert_eq!(read(&repository, rest).await.unwrap(), names);
    let there: Vec<String> = packs(&storage).await.iter().map(Key::to_string).collect();
    assert!(!there.contains(&left[0]), "{there:?}");
    assert!(repository.collect().await.unwrap().left.is_empty());
}
