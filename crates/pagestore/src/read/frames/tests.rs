//! Frames as they are read: once each, verified, wherever they lie.

use std::time::Duration;

use neon_snapshot_format::pack::{Codec, EncodedFrame};
use neon_storage::{Fault, Faulty, Memory as MemoryStorage, Meter, Operation, StorageExt};

use super::*;
use crate::ErrorKind;
use crate::bridge::Bridge;
use crate::crypt::DataKey;
use crate::id::WriterId;
use crate::keys;
use crate::map::{Cells, PackRef};
use crate::pack_file::NewPack;
use crate::read::form::{Thinned, thin};
use crate::read::together::Together;
use crate::write::PackUpload;

#[derive(Debug)]
struct Nowhere;

impl Moved for Nowhere {
    fn known(&self, _: &[Part]) -> Option<Vec<Vec<Place>>> {
        None
    }

    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>> {
        std::future::ready(Ok(vec![None; parts.len()])).boxed()
    }
}

/// Frames moved to this pack, in the same order; whether that is known without asking.
#[derive(Debug)]
struct Into {
    pack: PackId,
    known: bool,
}

impl Into {
    fn place(&self, frame: &FrameRef) -> Place {
        Place {
            pack: self.pack,
            offset: frame.offset,
            length: frame.stored_length,
            form: Form::Same,
        }
    }
}

impl Moved for Into {
    fn known(&self, parts: &[Part]) -> Option<Vec<Vec<Place>>> {
        let places = parts.iter().map(|part| vec![self.place(&part.frame)]);
        self.known.then(|| places.collect())
    }

    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>> {
        let places = parts.iter().map(|part| Some(vec![self.place(&part.frame)]));
        std::future::ready(Ok(places.collect())).boxed()
    }
}

/// Frames of 128 KiB, each filled with its number, not compressed.
async fn pack_of(storage: &Arc<dyn Storage>, count: u8) -> Vec<FrameRef> {
    let storage = Arc::clone(storage);
    tokio::task::spawn_blocking(move || {
        let pack = PackRef {
            id: WriterId::random().unwrap().new_pack().unwrap(),
            key: DataKey::random().unwrap(),
        };
        let bridge = Bridge::current().unwrap();
        let key = keys::pack(pack.id).unwrap();
        let mut upload = PackUpload::begin(&bridge, storage, key, pack, Codec::None, None).unwrap();
        let frames = (0..count)
            .map(|number| {
                let plain = vec![number + 1; 128 << 10];
                let frame = EncodedFrame::new(&plain, Codec::None).unwrap();
                upload.append(&frame).unwrap()
            })
            .collect();
        upload.finish().unwrap().wait().unwrap();
        frames
    })
    .await
    .unwrap()
}

fn metered(storage: &Arc<dyn Storage>) -> (Arc<dyn Storage>, Arc<AtomicU64>) {
    let gets = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&gets);
    let meter = Meter::new(Arc::clone(storage), move |event| {
        if event.operation == Operation::Get {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (Arc::new(meter), gets)
}

fn reader(storage: Arc<dyn Storage>, options: FrameReaderOptions) -> FrameReader {
    FrameReader::new(storage, Arc::new(Nowhere), options)
}

#[tokio::test]
async fn a_frame_costs_one_request_however_many_ask_and_however_often() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 3).await;
    let slow: Arc<dyn Storage> = Arc::new(Faulty::slow(memory, Duration::from_millis(20)));
    let (storage, gets) = metered(&slow);
    let reader = reader(storage, FrameReaderOptions::default());
    let asked = (0..50).map(|_| reader.get(&frames[1]));
    for bytes in try_join_all(asked).await.unwrap() {
        assert!(bytes.len() == 128 << 10 && bytes.iter().all(|byte| *byte == 2));
    }
    reader.get(&frames[1]).await.unwrap();
    assert_eq!(gets.load(Ordering::SeqCst), 1);
    assert_eq!(reader.used().frames, 51);
}

#[tokio::test]
async fn neighbours_come_in_one_request_and_far_ones_do_not() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 100).await;
    let (storage, gets) = metered(&memory);
    let reader = reader(storage, FrameReaderOptions::default());
    let wanted: Vec<FrameRef> = [9, 7, 8, 7, 40].map(|index| frames[index]).to_vec();
    let plain = reader.get_many(&wanted).await.unwrap();
    let found: Vec<u8> = plain.iter().map(|bytes| bytes[0]).collect();
    assert_eq!(found, [10, 8, 9, 8, 41]);
    assert_eq!(gets.load(Ordering::SeqCst), 2);
    // No request is larger than was said: 4 MiB hold 31 frames and a bit.
    let all = reader.get_many(&frames).await.unwrap();
    assert!(
        all.iter()
            .zip(1..)
            .all(|(bytes, number)| bytes[0] == number)
    );
    assert!(reader.used().requests >= 5);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_does_not_stop_the_next() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 1).await;
    let faulty: Arc<dyn Storage> = Arc::new(Faulty::nth(memory, 0, Fault::Hang));
    let reader = reader(faulty, FrameReaderOptions::default());
    let given_up = tokio::time::timeout(Duration::from_millis(50), reader.get(&frames[0]));
    assert!(given_up.await.is_err());
    assert_eq!(reader.get(&frames[0]).await.unwrap()[0], 1);
}

#[tokio::test]
async fn bytes_that_are_not_those_written_are_refused_by_name() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 2).await;
    let key = keys::pack(frames[0].pack.id).unwrap();
    let mut bytes = memory.read(&key).await.unwrap().to_vec();
    let at = usize::try_from(frames[0].offset).unwrap();
    bytes[at + 77] ^= 1;
    memory.overwrite(&key, bytes.clone()).await.unwrap();
    let reader = reader(Arc::clone(&memory), FrameReaderOptions::default());
    let (one, two) = tokio::join!(reader.get(&frames[0]), reader.get(&frames[0]));
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.to_string().contains(&frames[0].pack.id.to_string()),
            "{error}"
        );
    }
    reader.get(&frames[1]).await.unwrap();
    memory.overwrite(&key, bytes[..at].to_vec()).await.unwrap();
    assert!(reader.get(&frames[0]).await.is_err());
    memory.delete(&key).await.unwrap();
    let error = reader.get(&frames[0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
}

#[tokio::test]
async fn frames_are_found_where_they_were_moved_to_in_as_few_requests() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 4).await;
    let (from, to) = (
        frames[0].pack.id,
        WriterId::random().unwrap().new_pack().unwrap(),
    );
    let bytes = memory.read(&keys::pack(from).unwrap()).await.unwrap();
    memory
        .create(&keys::pack(to).unwrap(), bytes)
        .await
        .unwrap();
    memory.delete(&keys::pack(from).unwrap()).await.unwrap();
    let (storage, gets) = metered(&memory);
    // The pack that is gone costs a request, the one with the frames another one; where it is known to be gone, one.
    for (known, requests) in [(false, 2), (true, 1)] {
        let moved = Arc::new(Into { pack: to, known });
        let options = FrameReaderOptions::default();
        let reader = FrameReader::new(Arc::clone(&storage), moved, options);
        let before = gets.load(Ordering::SeqCst);
        let plain = reader.get_many(&frames).await.unwrap();
        let found: Vec<u8> = plain.iter().map(|bytes| bytes[0]).collect();
        assert_eq!(found, [1, 2, 3, 4]);
        assert_eq!(gets.load(Ordering::SeqCst) - before, requests);
    }
}

#[tokio::test]
async fn what_is_on_the_local_disk_is_not_fetched_again() {
    let place = tempfile::tempdir().unwrap();
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let frames = pack_of(&memory, 3).await;
    for requests in [1, 0] {
        let options = FrameReaderOptions {
            disk: Some(DiskCache::open(place.path(), 1 << 30).unwrap()),
            ..FrameReaderOptions::default()
        };
        let reader = reader(Arc::clone(&memory), options);
        let plain = reader.get_many(&frames).await.unwrap();
        assert!(
            plain
                .iter()
                .zip(1..)
                .all(|(bytes, number)| bytes[0] == number)
        );
        assert_eq!(reader.used().requests, requests);
    }
}

#[test]
fn no_more_is_read_for_nothing_than_is_wanted() {
    let options = FrameReaderOptions::default();
    for gap in [0, 1000, 30_000, 60_000, 70_000_u64] {
        let (mut together, mut read, mut requests) = (Together::new(&options), 0, 0);
        let ranges = (0..1000_u64).map(|number| {
            let start = number * (10_000 + gap);
            start..start + 10_000
        });
        let mut whole = 0..0;
        for range in ranges {
            if requests > 0 && together.joins(&range) {
                whole.end = range.end;
            } else {
                together.begin(&range);
                read += whole.end - whole.start;
                (whole, requests) = (range, requests + 1);
            }
        }
        read += whole.end - whole.start;
        assert!(read <= 2 * 10_000_000, "{read} with gaps of {gap}");
        assert_eq!(requests < 100, gap <= 1000, "{requests} with gaps of {gap}");
    }
}

/// Some frame whose cells lie here and there, as moves have them.
#[derive(Debug)]
struct Scattered(Vec<(Cells, Place)>);

impl Moved for Scattered {
    fn known(&self, _: &[Part]) -> Option<Vec<Vec<Place>>> {
        None
    }

    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>> {
        let found = parts.iter().map(|part| {
            let (mut left, mut places) = (part.cells, Vec::new());
            for (cells, place) in &self.0 {
                if !cells.common(left).is_empty() {
                    places.push(*place);
                    left = left.without(*cells);
                }
            }
            left.is_empty().then_some(places)
        });
        std::future::ready(Ok(found.collect())).boxed()
    }
}

#[tokio::test]
async fn a_frame_in_pieces_shows_what_they_have_and_nothing_else_also_from_caches() {
    for sealed in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let mut frame = pack_of(&memory, 1).await.pop().unwrap();
        frame.plain_length = 100_000;
        memory
            .delete(&keys::pack(frame.pack.id).unwrap())
            .await
            .unwrap();
        let plain: Vec<u8> = (0..100_000_u32).map(|at| (at / 5 % 251) as u8).collect();
        let whole = Plain::new(&frame, frame.whole(), plain.clone().into()).unwrap();
        let mut homes = Vec::new();
        for bits in [0b1001_u16, 0b0001_0000_0110] {
            let cells = Cells::from_bits(bits);
            let part = Plain::joined(&frame, cells, std::slice::from_ref(&whole)).unwrap();
            let frame = thin(&frame.pack, frame.frame, 2, sealed, part.side_by_side()).unwrap();
            let mut pack = NewPack::new(WriterId::random().unwrap().new_pack().unwrap()).unwrap();
            let (id, record) = (pack.id, pack.append_sealed(&frame).unwrap());
            pack.store(&*memory).await.unwrap();
            let thinned = Thinned {
                cells,
                codec: record.codec(),
                sealed: record.is_sealed(),
                digest: *record.digest(),
            };
            let place = Place {
                pack: id,
                offset: record.offset(),
                length: record.stored_length(),
                form: Form::Thinned(thinned),
            };
            homes.push((cells, place));
        }
        let disk = DiskCache::open(place.path(), 1 << 20).unwrap();
        let reader = |gone: bool| {
            let options = FrameReaderOptions {
                disk: Some(disk.clone()),
                ..FrameReaderOptions::default()
            };
            let storage = match gone {
                true => Arc::new(MemoryStorage::new()),
                false => Arc::clone(&memory),
            };
            FrameReader::new(storage, Arc::new(Scattered(homes.clone())), options)
        };
        // The second one reads from the disk alone.
        for gone in [false, true] {
            let reader = reader(gone);
            for cell in [0_usize, 3, 1, 2, 8, 0, 9, 4, 12] {
                let range = cell * 8192 + 5..((cell + 1) * 8192).min(100_000);
                let asked = range.start as u64..range.end as u64;
                let found = reader.get_range(&frame, asked).await;
                match [0, 1, 2, 3, 8].contains(&cell) {
                    true => {
                        let expected = &plain[range];
                        assert_eq!(found.unwrap(), expected, "{cell}");
                    }
                    false => assert_eq!(found.unwrap_err().kind(), ErrorKind::Damaged, "{cell}"),
                }
            }
            // Out of both at once.
            let range = 8000..32_768;
            let found = reader.get_range(&frame, range).await.unwrap();
            assert_eq!(found, plain[8000..32_768]);
            assert_eq!(
                reader.get(&frame).await.unwrap_err().kind(),
                ErrorKind::Damaged
            );
            assert_eq!(reader.used().received == 0, gone);
        }
        // What is on the disk is not trusted either.
        for entry in fs_files(place.path()) {
            let mut bytes = std::fs::read(&entry).unwrap();
            bytes[7] ^= 1;
            std::fs::write(&entry, bytes).unwrap();
        }
        let fresh = reader(false);
        let found = fresh.get_range(&frame, 0..32_768).await.unwrap();
        assert_eq!(found, plain[..32_768]);
        assert!(fresh.used().received > 0);
    }
}

fn fs_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let shards = std::fs::read_dir(directory).unwrap();
    let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Frames of two packs that moved into one lie side by side there, however far apart they were.
#[tokio::test]
async fn frames_that_lie_together_by_now_are_read_together() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let (first, second) = (pack_of(&memory, 40).await, pack_of(&memory, 40).await);
    let wanted: Vec<FrameRef> = [&first, &second]
        .into_iter()
        .flat_map(|frames| frames.iter().step_by(8).copied())
        .collect();
    let mut pack = NewPack::new(WriterId::random().unwrap().new_pack().unwrap()).unwrap();
    let mut homes = std::collections::HashMap::new();
    for frame in &wanted {
        let key = keys::pack(frame.pack.id).unwrap();
        let end = frame.offset + u64::from(frame.stored_length);
        let bytes = memory.read_range(&key, frame.offset..end).await.unwrap();
        let new = pack.append(&crate::read::form::record(frame).unwrap(), &bytes);
        homes.insert(frame.id(), (pack.id, new.unwrap().offset()));
    }
    pack.store(&*memory).await.unwrap();
    for frame in [first[0], second[0]] {
        let key = keys::pack(frame.pack.id).unwrap();
        memory.delete(&key).await.unwrap();
    }
    let moved = Arc::new(Homes {
        homes,
        asked: Mutex::default(),
    });
    let (storage, gets) = metered(&memory);
    let reader = FrameReader::new(storage, moved, FrameReaderOptions::default());
    let parts: Vec<Part> = wanted.iter().map(Part::whole).collect();
    let found = reader.stored(&parts).await.unwrap();
    assert_eq!(found.len(), 10);
    for (frame, stored) in found {
        let plain = stored.decode(&frame).unwrap().all(&frame).unwrap();
        assert!(plain.iter().all(|byte| u64::from(*byte) == frame.frame + 1));
    }
    // Two for packs that are gone, two for the frames that were asked for first, and two for the others, on either side of one
    // of those.
    assert_eq!(gets.load(Ordering::SeqCst), 6);
}

#[derive(Debug)]
struct Homes {
    homes: std::collections::HashMap<Address, (PackId, u64)>,
    asked: Mutex<std::collections::HashSet<PackId>>,
}

impl Homes {
    fn places(&self, parts: &[Part]) -> Vec<Vec<Place>> {
        let place = |part: &Part| {
            let (pack, offset) = self.homes[&part.frame.id()];
            Place {
                pack,
                offset,
                length: part.frame.stored_length,
                form: Form::Same,
            }
        };
        parts.iter().map(|part| vec![place(part)]).collect()
    }
}

impl Moved for Homes {
    fn known(&self, parts: &[Part]) -> Option<Vec<Vec<Place>>> {
        let asked = self.asked.lock().unwrap();
        asked
            .contains(&parts[0].frame.pack.id)
            .then(|| self.places(parts))
    }

    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>> {
        self.asked.lock().unwrap().insert(parts[0].frame.pack.id);
        let places = self.places(parts).into_iter().map(Some).collect();
        std::future::ready(Ok(places)).boxed()
    }
}
