//! Frames as they are read: once each, verified, wherever they lie.

use std::time::Duration;

use neon_snapshot_format::pack::{Codec, EncodedFrame};
use neon_storage::{Fault, Faulty, Memory as MemoryStorage, Meter, Operation};

use super::*;
use crate::bridge::Bridge;
use crate::crypt::DataKey;
use crate::id::WriterId;
use crate::map::PackRef;
use crate::write::PackUpload;

#[derive(Debug)]
struct Nowhere;

impl Moved for Nowhere {
    fn known(&self, _: &[FrameRef]) -> Option<Vec<Place>> {
        None
    }

    fn find<'a>(&'a self, frames: &'a [FrameRef]) -> BoxFuture<'a, Result<Vec<Option<Place>>>> {
        std::future::ready(Ok(vec![None; frames.len()])).boxed()
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
            wrapped: false,
        }
    }
}

impl Moved for Into {
    fn known(&self, frames: &[FrameRef]) -> Option<Vec<Place>> {
        let places = frames.iter().map(|frame| self.place(frame));
        self.known.then(|| places.collect())
    }

    fn find<'a>(&'a self, frames: &'a [FrameRef]) -> BoxFuture<'a, Result<Vec<Option<Place>>>> {
        let places = frames.iter().map(|frame| Some(self.place(frame)));
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
