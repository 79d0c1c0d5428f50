//! Frames by their address: one ranged read each, verified, opened, decoded, and kept for a while.
//!
//! Frames that lie side by side in a pack are read in one request; a frame that somebody reads already is
//! waited for and not read twice. A pack that is gone was repacked: its frames are looked up under `moves/`.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use neon_snapshot_format::pack::{FrameCipher, FrameContext, FrameRecord, PackId};
use neon_storage::{GetOptions, Storage, StorageExt};
use tokio::sync::Semaphore;

use crate::bridge::blocking;
use crate::crypt::PackCipher;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::map::FrameRef;
use crate::read::disk_cache::DiskCache;
use crate::read::flights::{Flight, Flights, Landed, unload};
use crate::read::memory::{Address, Memory};
use crate::read::together::Together;

/// Says where the frames of packs that are gone live now.
pub trait Moved: Send + Sync + fmt::Debug {
    /// The places of frames of one pack that is known to be gone, without asking anybody; none when that is not known of
    /// all of them. What is said may have been true a moment ago only.
    fn known(&self, frames: &[FrameRef]) -> Option<Vec<Place>>;

    /// The places of frames of one pack that is gone, as they are now; none for those of which nobody says that they were
    /// moved.
    fn find<'a>(&'a self, frames: &'a [FrameRef]) -> BoxFuture<'a, Result<Vec<Option<Place>>>>;
}

/// Where the stored bytes of a frame begin by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The pack that holds them.
    pub pack: PackId,
    /// Where in it.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u32,
    /// They were sealed once more when they were brought into an encrypted repository: with the key of the frame's
    /// own pack, for the frame's address.
    pub wrapped: bool,
}

/// How frames are read.
#[derive(Debug, Clone)]
pub struct FrameReaderOptions {
    /// Bytes of decoded frames kept in memory.
    pub memory: u64,
    /// Frames kept on a local disk.
    pub disk: Option<DiskCache>,
    /// Two frames of a pack are read at once when no more bytes than this lie between them.
    pub gap: u64,
    /// The most bytes read in one request.
    pub request: u64,
    /// Requests under way at once.
    pub concurrency: usize,
}

impl Default for FrameReaderOptions {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            disk: None,
            gap: 64 << 10,
            request: 4 << 20,
            concurrency: 16,
        }
    }
}

/// What reading frames came to so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameUse {
    /// Frames asked for.
    pub frames: u64,
    /// Of them found in memory.
    pub in_memory: u64,
    /// Of them found on the local disk.
    pub on_disk: u64,
    /// Requests to the storage.
    pub requests: u64,
    /// Bytes that came from the storage.
    pub received: u64,
}

impl Place {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length.into())
    }
}

/// What sealing a frame once more adds to it at most.
const SEALED: u64 = 64;

/// Reads frames. Clones share caches and counters.
#[derive(Clone)]
pub struct FrameReader {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    moved: Arc<dyn Moved>,
    options: FrameReaderOptions,
    state: Mutex<State>,
    requests: Semaphore,
    counted: Counted,
}

/// A frame as the storage sent it.
struct Received {
    /// The bytes that the map knows.
    bytes: Bytes,
    /// Those, sealed once more, if that is how they are stored.
    sealed: Option<Bytes>,
}

struct State {
    memory: Memory<Bytes>,
    flights: Flights,
}

#[derive(Debug, Default)]
struct Counted {
    frames: AtomicU64,
    in_memory: AtomicU64,
    on_disk: AtomicU64,
    requests: AtomicU64,
    received: AtomicU64,
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReader")
            .field("storage", &self.inner.storage)
            .field("options", &self.inner.options)
            .finish_non_exhaustive()
    }
}

impl FrameReader {
    /// Reads frames of the packs in a repository's storage.
    pub fn new(
        storage: Arc<dyn Storage>,
        moved: Arc<dyn Moved>,
        options: FrameReaderOptions,
    ) -> Self {
        let state = State {
            memory: Memory::new(options.memory),
            flights: Flights::default(),
        };
        Self {
            inner: Arc::new(Inner {
                storage,
                moved,
                requests: Semaphore::new(options.concurrency.max(1)),
                options,
                state: Mutex::new(state),
                counted: Counted::default(),
            }),
        }
    }

    /// What reading came to so far.
    #[must_use]
    pub fn used(&self) -> FrameUse {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = &self.inner.counted;
        FrameUse {
            frames: load(&counted.frames),
            in_memory: load(&counted.in_memory),
            on_disk: load(&counted.on_disk),
            requests: load(&counted.requests),
            received: load(&counted.received),
        }
    }

    /// The plain bytes of a frame that is in memory.
    #[must_use]
    pub fn cached(&self, frame: &FrameRef) -> Option<Bytes> {
        let bytes = self.inner.lock().memory.get(address(frame))?;
        self.inner.counted.frames.fetch_add(1, Ordering::Relaxed);
        self.inner.counted.in_memory.fetch_add(1, Ordering::Relaxed);
        Some(bytes)
    }

    /// The plain bytes of a frame.
    ///
    /// # Errors
    /// - [`Damaged`](ErrorKind::Damaged) when they are not what was written, or the pack is missing and
    ///   was not moved;
    /// - what the storage returns.
    ///
    /// Dropped: nothing remains.
    pub async fn get(&self, frame: &FrameRef) -> Result<Bytes> {
        if let Some(bytes) = self.cached(frame) {
            return Ok(bytes);
        }
        let mut frames = self.get_many(std::slice::from_ref(frame)).await?;
        frames
            .pop()
            .ok_or_else(|| Error::damaged(subject(frame), "was not brought"))
    }

    /// The plain bytes of several frames, in the order in which they are asked for; neighbours in one request.
    ///
    /// # Errors
    /// As [`get`](Self::get); the first error ends all.
    ///
    /// Dropped: nothing remains.
    pub async fn get_many(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let counted = &self.inner.counted;
        counted
            .frames
            .fetch_add(frames.len() as u64, Ordering::Relaxed);
        let mut found: Vec<Option<Bytes>> = vec![None; frames.len()];
        let mut waiting: Vec<(usize, Flight)> = Vec::new();
        {
            let mut state = self.inner.lock();
            let mut missing = Vec::new();
            for (index, (frame, found)) in frames.iter().zip(&mut found).enumerate() {
                if frame.stored_length == 0 {
                    *found = Some(Bytes::from(
                        record(frame)?
                            .decode(&[], None)
                            .map_err(|error| Error::format(subject(frame), error))?,
                    ));
                } else if let Some(bytes) = state.memory.get(address(frame)) {
                    counted.in_memory.fetch_add(1, Ordering::Relaxed);
                    *found = Some(bytes);
                } else if let Some(flight) = state.flights.join(address(frame)) {
                    waiting.push((index, flight));
                } else {
                    missing.push((index, *frame));
                }
            }
            missing.sort_by_key(|(_, frame)| (frame.pack.id, frame.offset));
            for run in self.inner.runs(&missing) {
                let mut wanted: Vec<FrameRef> = run.iter().map(|(_, frame)| *frame).collect();
                wanted.dedup_by_key(|frame| frame.frame);
                let addresses: Vec<Address> = wanted.iter().map(address).collect();
                let request = bring(Arc::clone(&self.inner), wanted).boxed();
                let flight = state.flights.depart(addresses.into_iter(), request);
                waiting.extend(run.iter().map(|(index, _)| (*index, flight.clone())));
            }
        }
        let landed = try_join_all(waiting.into_iter().map(|(index, flight)| async move {
            let landed = flight.await;
            match frames.get(index) {
                Some(frame) => unload(&landed, address(frame)).map(|bytes| (index, bytes)),
                None => Err(Error::damaged("frame", "was not asked for")),
            }
        }))
        .await?;
        for (index, bytes) in landed {
            if let Some(found) = found.get_mut(index) {
                *found = Some(bytes);
            }
        }
        found
            .into_iter()
            .zip(frames)
            .map(|(found, frame)| {
                found.ok_or_else(|| Error::damaged(subject(frame), "was not brought"))
            })
            .collect()
    }

    /// Begins to read frames that will be asked for soon, unless requests are queueing already. What goes wrong
    /// is told to who asks for them.
    pub(crate) fn prefetch(&self, frames: Vec<FrameRef>) {
        if self.inner.requests.available_permits() == 0 || frames.is_empty() {
            return;
        }
        let reader = self.clone();
        drop(tokio::spawn(async move {
            drop(reader.get_many(&frames).await);
        }));
    }

    /// The stored bytes of frames, past the memory: for who reads everything once and decodes in a thread of its own
    /// with [`decode`]. They come back in the order of packs.
    pub(crate) async fn stored(&self, frames: &[FrameRef]) -> Result<Vec<(FrameRef, Bytes)>> {
        let counted = &self.inner.counted;
        counted
            .frames
            .fetch_add(frames.len() as u64, Ordering::Relaxed);
        let mut sorted: Vec<((), FrameRef)> = frames.iter().map(|frame| ((), *frame)).collect();
        sorted.sort_by_key(|(_, frame)| (frame.pack.id, frame.offset));
        sorted.dedup_by_key(|(_, frame)| frame.id());
        let runs = self.inner.runs(&sorted).map(|run| async move {
            let frames: Vec<FrameRef> = run.iter().map(|(_, frame)| *frame).collect();
            let stored = self.inner.stored(&frames).await?;
            Ok::<_, Error>(frames.into_iter().zip(stored).collect::<Vec<_>>())
        });
        Ok(try_join_all(runs).await?.into_iter().flatten().collect())
    }
}

/// One request on its way. Ends in memory, whoever still waits for it.
async fn bring(inner: Arc<Inner>, frames: Vec<FrameRef>) -> Landed {
    let outcome = inner.plain(&frames).await;
    let mut state = inner.lock();
    for frame in &frames {
        state.flights.arrive(address(frame));
    }
    let plain = outcome.map_err(Arc::new)?;
    let landed: Arc<[(Address, Bytes)]> = frames.iter().map(address).zip(plain).collect();
    for (address, bytes) in landed.iter() {
        state.memory.put(*address, bytes.clone(), bytes.len());
    }
    Ok(landed)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts sorted frames into what is read at once.
    fn runs<'f, T>(
        &self,
        frames: &'f [(T, FrameRef)],
    ) -> impl Iterator<Item = &'f [(T, FrameRef)]> {
        let mut together = Together::new(&self.options);
        frames.chunk_by(move |(_, a), (_, b)| {
            // The first comparison of a run begins with its first frame.
            if together.wanted == 0 {
                together.begin(&range(a));
            }
            let near = a.pack.id == b.pack.id && together.joins(&range(b));
            if !near {
                together.begin(&range(b));
            }
            near
        })
    }

    async fn plain(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let stored = self.stored(frames).await?;
        if let ([frame], [stored]) = (frames, stored.as_slice()) {
            return decode(frame, stored).map(|plain| vec![Bytes::from(plain)]);
        }
        let frames = frames.to_vec();
        blocking("decoding of frames", move || {
            frames
                .iter()
                .zip(&stored)
                .map(|(frame, stored)| decode(frame, stored).map(Bytes::from))
                .collect()
        })
        .await
    }

    /// The stored bytes of frames of one pack, from the disk or the storage. What the storage sent is verified
    /// before the disk keeps it; what the disk has is verified when it is read.
    async fn stored(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let Some(disk) = self.options.disk.clone() else {
            let received = self.received(frames).await?;
            return Ok(received
                .into_iter()
                .map(|received| received.bytes)
                .collect());
        };
        let wanted = frames.to_vec();
        let cache = disk.clone();
        let mut found = blocking("local cache", move || {
            Ok(wanted
                .iter()
                .map(|frame| {
                    let sealed = || cache.get_sealed(frame, |sealed| unwrap(frame, sealed).ok());
                    cache.get(frame).or_else(sealed)
                })
                .collect::<Vec<_>>())
        })
        .await?;
        let missing: Vec<FrameRef> = frames
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(frame, _)| *frame)
            .collect();
        self.counted
            .on_disk
            .fetch_add((frames.len() - missing.len()) as u64, Ordering::Relaxed);
        if !missing.is_empty() {
            let received = self.received(&missing).await?;
            let kept: Vec<(FrameRef, Bytes, Option<Bytes>)> = missing
                .iter()
                .zip(&received)
                .map(|(frame, received)| (*frame, received.bytes.clone(), received.sealed.clone()))
                .collect();
            blocking("local cache", move || {
                for (frame, stored, sealed) in &kept {
                    if record(frame)?.check(stored).is_ok() {
                        // The disk shows no more than the storage does.
                        match sealed {
                            Some(sealed) => disk.put_sealed(frame, sealed),
                            None => disk.put(frame, stored),
                        }
                    }
                }
                Ok(())
            })
            .await?;
            let mut received = received.into_iter();
            for found in found.iter_mut().filter(|found| found.is_none()) {
                *found = received.next().map(|received| received.bytes);
            }
        }
        found
            .into_iter()
            .zip(frames)
            .map(|(found, frame)| {
                found.ok_or_else(|| Error::damaged(subject(frame), "was not brought"))
            })
            .collect()
    }

    /// The stored bytes of frames of one pack, in ascending order, from the storage: of a pack that is known to be gone from
    /// where they moved to, else from the pack, and if it is gone by now from where they are said to be.
    async fn received(&self, frames: &[FrameRef]) -> Result<Vec<Received>> {
        let Some(first) = frames.first() else {
            return Ok(Vec::new());
        };
        if let Some(places) = self.moved.known(frames) {
            match self.moved_to(frames, &places).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => return other,
            }
        }
        let places: Vec<Range<u64>> = frames.iter().map(range).collect();
        let most = self.options.request;
        match self.request(first.pack.id, &places, most).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => {
                let received = |bytes| Received {
                    bytes,
                    sealed: None,
                };
                return Ok(other?.into_iter().map(received).collect());
            }
        }
        let found = self.moved.find(frames).await?;
        let places = found.into_iter().zip(frames).map(|(place, frame)| {
            place.ok_or_else(|| Error::damaged(subject(frame), "its pack is not in the storage"))
        });
        let places = places.collect::<Result<Vec<Place>>>()?;
        self.moved_to(frames, &places).await
    }

    /// Frames from where they moved to; what lies together there in one request.
    async fn moved_to(&self, frames: &[FrameRef], places: &[Place]) -> Result<Vec<Received>> {
        let mut sorted: Vec<(usize, &Place)> = places.iter().enumerate().collect();
        sorted.sort_by_key(|(_, place)| (place.pack, place.offset));
        // Sealing made each a little longer.
        let most = self.options.request + SEALED * frames.len() as u64;
        let packs = sorted.chunk_by(|(_, a), (_, b)| a.pack == b.pack);
        let requests = packs.map(|places| async move {
            let ranges: Vec<Range<u64>> = places.iter().map(|(_, place)| place.range()).collect();
            let pack = places.first().map(|(_, place)| place.pack);
            let stored = match pack {
                Some(pack) => self.request(pack, &ranges, most).await?,
                None => Vec::new(),
            };
            let order = places.iter().map(|(at, _)| *at);
            Ok::<_, Error>(order.zip(stored).collect::<Vec<_>>())
        });
        let mut stored: Vec<(usize, Bytes)> = try_join_all(requests)
            .await?
            .into_iter()
            .flatten()
            .collect();
        stored.sort_by_key(|(at, _)| *at);
        let all = frames.iter().zip(places).zip(stored);
        all.map(|((frame, place), (_, stored))| match place.wrapped {
            true => Ok(Received {
                bytes: unwrap(frame, &stored)?,
                sealed: Some(stored),
            }),
            false => Ok(Received {
                bytes: stored,
                sealed: None,
            }),
        })
        .collect()
    }

    /// Reads ranges of one pack, in ascending order: near ones in one piece of so many bytes at most.
    async fn request(&self, pack: PackId, ranges: &[Range<u64>], most: u64) -> Result<Vec<Bytes>> {
        let key = keys::pack(pack)?;
        // It is never closed.
        let _permit = self.requests.acquire().await.ok();
        let mut together = Together::of(self.options.gap, most);
        let mut whole: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match whole.last_mut() {
                Some(last) if together.joins(range) => {
                    last.end = last.end.max(range.end);
                }
                _ => {
                    together.begin(range);
                    whole.push(range.clone());
                }
            }
        }
        self.counted
            .requests
            .fetch_add(whole.len() as u64, Ordering::Relaxed);
        let fail = |error| Error::storage(key.as_str(), error);
        let pieces = match whole.as_slice() {
            [only] => vec![
                self.storage
                    .read_range(&key, only.clone())
                    .await
                    .map_err(fail)?,
            ],
            many => self
                .storage
                .get_ranges(&key, many, GetOptions::new())
                .await
                .map_err(fail)?,
        };
        let received = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.counted.received.fetch_add(received, Ordering::Relaxed);
        ranges
            .iter()
            .map(|range| {
                let piece = whole
                    .iter()
                    .zip(&pieces)
                    .find(|(whole, _)| whole.start <= range.start && range.end <= whole.end);
                piece
                    .and_then(|(whole, piece)| {
                        let from = usize::try_from(range.start - whole.start).ok()?;
                        let to = usize::try_from(range.end - whole.start).ok()?;
                        (to <= piece.len()).then(|| piece.slice(from..to))
                    })
                    .ok_or_else(|| Error::damaged(key.as_str(), "is shorter than its frames"))
            })
            .collect()
    }
}

/// Opens what was sealed for an encrypted repository around the bytes that the map knows.
pub(crate) fn unwrap(frame: &FrameRef, stored: &[u8]) -> Result<Bytes> {
    let context = FrameContext {
        pack: frame.pack.id,
        frame: frame.frame,
    };
    let opened = PackCipher::new(&frame.pack.key).open(context, stored);
    opened
        .map(Bytes::from)
        .map_err(|error| Error::format(subject(frame), error))
}

pub(crate) fn address(frame: &FrameRef) -> Address {
    (frame.pack.id, frame.frame)
}

fn range(frame: &FrameRef) -> Range<u64> {
    frame.offset..frame.offset.saturating_add(frame.stored_length.into())
}

pub(crate) fn subject(frame: &FrameRef) -> String {
    format!("frame {} of pack {}", frame.frame, frame.pack.id)
}

fn record(frame: &FrameRef) -> Result<FrameRecord> {
    let context = FrameContext {
        pack: frame.pack.id,
        frame: frame.frame,
    };
    FrameRecord::from_parts(
        context,
        frame.offset,
        frame.stored_length,
        frame.plain_length,
        frame.codec,
        frame.sealed,
        frame.digest,
    )
    .map_err(|error| Error::format(subject(frame), error))
}

/// As [`decode`], without a copy where the stored bytes are the plain ones. The result may then keep all of its request
/// in memory: not for caches.
pub(crate) fn decode_shared(frame: &FrameRef, stored: &Bytes) -> Result<Bytes> {
    let record = record(frame)?;
    if record.is_stored_plain() {
        let checked = record.check(stored);
        checked.map_err(|error| Error::format(subject(frame), error))?;
        return Ok(stored.clone());
    }
    decode(frame, stored).map(Bytes::from)
}

/// Verifies, opens and decodes the stored bytes of a frame.
pub(crate) fn decode(frame: &FrameRef, stored: &[u8]) -> Result<Vec<u8>> {
    let cipher = frame.sealed.then(|| PackCipher::new(&frame.pack.key));
    let cipher = cipher.as_ref().map(|cipher| cipher as &dyn FrameCipher);
    record(frame)?
        .decode(stored, cipher)
        .map_err(|error| Error::format(subject(frame), error))
}

#[cfg(test)]
mod tests;
