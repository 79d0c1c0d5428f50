//! Collections that rewrite packs whose directories this program would not have written: forged ones, and those of other
//! writers.

use std::collections::BTreeMap;

use neon_pagestore::gc::{LeftPack, LeftReason};
use neon_pagestore::{ErrorKind, Repository};
use neon_snapshot_format::pack::{Codec, FrameRecord, Opening, PackOptions, PackWriter, Step};
use neon_storage::{Key, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Selection, make_as, noise};
use crate::support::{ZEROS, init, read, try_write_as, write};
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
