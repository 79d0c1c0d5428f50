//! Frames by their address: one ranged read each, verified, opened, decoded, and kept for a while.
//!
//! Frames that lie side by side in a pack are read in one request; a frame that somebody reads already is
//! waited for and not read twice. Who asks says which bytes of a frame are wanted: one that moved may be there without
//! those cells that nothing needs, and what is kept of a frame is used for no others than it has.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use neon_snapshot_format::pack::PackId;
use neon_storage::Storage;

use crate::bridge::blocking;
use crate::error::{Error, Result};
use crate::map::FrameRef;
use crate::read::disk_cache::DiskCache;
use crate::read::fetch::Fetch;
use crate::read::flights::{Flight, Flights, Landed, unload};
use crate::read::form::{Form, Stored};
use crate::read::memory::{Address, Memory};
use crate::read::plain::{Part, Plain, subject};

/// Says where the frames of packs that are gone live now.
pub trait Moved: Send + Sync + fmt::Debug {
    /// The places of parts of frames of one pack that is known to be gone, without asking anybody: of each as many as it takes
    /// to have all wanted cells. None when that is not known of all of them. What is said may have been true a moment ago
    /// only.
    fn known(&self, parts: &[Part]) -> Option<Vec<Vec<Place>>>;

    /// The places of parts of frames of one pack that is gone, as they are now; none for those of which nobody says where all
    /// wanted cells are.
    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>>;
}

/// Where stored bytes of a frame begin by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The pack that holds them.
    pub pack: PackId,
    /// Where in it.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u32,
    /// What they are of the frame.
    pub form: Form,
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
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length.into())
    }
}

/// Reads frames. Clones share caches and counters.
#[derive(Clone)]
pub struct FrameReader {
    inner: Arc<Inner>,
}

struct Inner {
    fetch: Fetch,
    state: Mutex<State>,
}

struct State {
    memory: Memory<Plain>,
    flights: Flights,
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReader")
            .field("storage", &self.inner.fetch.storage)
            .field("options", &self.inner.fetch.options)
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
                fetch: Fetch::new(storage, moved, options),
                state: Mutex::new(state),
            }),
        }
    }

    /// What reading came to so far.
    #[must_use]
    pub fn used(&self) -> FrameUse {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counted = &self.inner.fetch.counted;
        FrameUse {
            frames: load(&counted.frames),
            in_memory: load(&counted.in_memory),
            on_disk: load(&counted.on_disk),
            requests: load(&counted.requests),
            received: load(&counted.received),
        }
    }

    /// A part that is in memory.
    fn cached(&self, part: &Part) -> Option<Plain> {
        let plain = self.inner.lock().memory.get(part.frame.id())?;
        if !plain.cells().contains(part.cells) {
            return None;
        }
        let counted = &self.inner.fetch.counted;
        counted.frames.fetch_add(1, Ordering::Relaxed);
        counted.in_memory.fetch_add(1, Ordering::Relaxed);
        Some(plain)
    }

    /// The plain bytes of a whole frame. Of a frame with pages only who made it, and who knows that nothing was left out
    /// since, asks for all: see [`get_range`](Self::get_range).
    ///
    /// # Errors
    /// - [`Damaged`](crate::ErrorKind::Damaged) when they are not what was written, the pack is missing and
    ///   was not moved, or no snapshot needed some of it when it was;
    /// - what the storage returns.
    ///
    /// Dropped: nothing remains.
    pub async fn get(&self, frame: &FrameRef) -> Result<Bytes> {
        self.part(&Part::whole(frame)).await?.all(frame)
    }

    /// Some plain bytes of a frame: what a snapshot that is there shows of it.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Malformed`](crate::ErrorKind::Malformed) beyond the end of the frame.
    ///
    /// Dropped: nothing remains.
    pub async fn get_range(&self, frame: &FrameRef, range: Range<u64>) -> Result<Bytes> {
        self.part(&Part::of(frame, &range))
            .await?
            .range(frame, &range)
    }

    /// The plain bytes of several whole frames, in the order in which they are asked for; neighbours in one request.
    ///
    /// # Errors
    /// As [`get`](Self::get); the first error ends all.
    ///
    /// Dropped: nothing remains.
    pub async fn get_many(&self, frames: &[FrameRef]) -> Result<Vec<Bytes>> {
        let parts: Vec<Part> = frames.iter().map(Part::whole).collect();
        let plain = self.parts(&parts).await?;
        frames
            .iter()
            .zip(&plain)
            .map(|(frame, plain)| plain.all(frame))
            .collect()
    }

    /// A part of a frame, with perhaps more of it.
    pub(crate) async fn part(&self, part: &Part) -> Result<Plain> {
        if let Some(plain) = self.cached(part) {
            return Ok(plain);
        }
        let mut plain = self.parts(std::slice::from_ref(part)).await?;
        plain
            .pop()
            .ok_or_else(|| Error::damaged(subject(&part.frame), "was not brought"))
    }

    /// Parts of several frames, each with perhaps more of it, in the order in which they are asked for; neighbours in one
    /// request.
    pub(crate) async fn parts(&self, parts: &[Part]) -> Result<Vec<Plain>> {
        let counted = &self.inner.fetch.counted;
        counted
            .frames
            .fetch_add(parts.len() as u64, Ordering::Relaxed);
        let mut found: Vec<Option<Plain>> = vec![None; parts.len()];
        let mut waiting: Vec<(usize, Flight)> = Vec::new();
        {
            let mut state = self.inner.lock();
            // Who asks for a frame twice, for this and that of it, gets both at once.
            let mut missing: BTreeMap<Address, Part> = BTreeMap::new();
            let mut later = Vec::new();
            for (index, (part, found)) in parts.iter().zip(&mut found).enumerate() {
                let address = part.frame.id();
                if let Some(plain) = state.memory.get(address)
                    && plain.cells().contains(part.cells)
                {
                    counted.in_memory.fetch_add(1, Ordering::Relaxed);
                    *found = Some(plain);
                } else if let Some(flight) = state.flights.join(address, part.cells) {
                    waiting.push((index, flight));
                } else {
                    let wanted = missing.entry(address).or_insert(*part);
                    wanted.cells = wanted.cells.and(part.cells);
                    later.push((index, address));
                }
            }
            let mut departed: HashMap<Address, Flight> = HashMap::new();
            for run in self.inner.fetch.runs(missing.into_values().collect()) {
                let wanted = run.clone();
                let request = bring(Arc::clone(&self.inner), run).boxed();
                let flight = state.flights.depart(&wanted, request);
                let addresses = wanted.iter().map(|part| part.frame.id());
                departed.extend(addresses.map(|address| (address, flight.clone())));
            }
            let flights = later
                .into_iter()
                .filter_map(|(index, address)| Some((index, departed.get(&address)?.clone())));
            waiting.extend(flights);
        }
        let landed = try_join_all(waiting.into_iter().map(|(index, flight)| async move {
            let landed = flight.await;
            match parts.get(index) {
                Some(part) => unload(&landed, part).map(|plain| (index, plain)),
                None => Err(Error::damaged("frame", "was not asked for")),
            }
        }))
        .await?;
        for (index, plain) in landed {
            if let Some(found) = found.get_mut(index) {
                *found = Some(plain);
            }
        }
        found
            .into_iter()
            .zip(parts)
            .map(|(found, part)| {
                found.ok_or_else(|| Error::damaged(subject(&part.frame), "was not brought"))
            })
            .collect()
    }

    /// Begins to read what will be asked for soon, unless requests are queueing already. What goes wrong
    /// is told to who asks for them.
    pub(crate) fn prefetch(&self, parts: Vec<Part>) {
        if self.inner.fetch.requests.available_permits() == 0 || parts.is_empty() {
            return;
        }
        let reader = self.clone();
        drop(tokio::spawn(async move {
            drop(reader.parts(&parts).await);
        }));
    }

    /// The stored bytes of parts, each frame once, past the memory: for who reads everything once and decodes in a thread of
    /// its own. In no order.
    pub(crate) async fn stored(&self, parts: &[Part]) -> Result<Vec<(FrameRef, Stored)>> {
        let fetch = &self.inner.fetch;
        fetch
            .counted
            .frames
            .fetch_add(parts.len() as u64, Ordering::Relaxed);
        let mut wanted: BTreeMap<Address, Part> = BTreeMap::new();
        for part in parts {
            let known = wanted.entry(part.frame.id()).or_insert(*part);
            known.cells = known.cells.and(part.cells);
        }
        let read = async |runs: Vec<Vec<Part>>| {
            let runs = runs.into_iter().map(|run| async move {
                let stored = fetch.stored(&run).await?;
                let frames = run.into_iter().map(|part| part.frame);
                Ok::<_, Error>(frames.zip(stored).collect::<Vec<_>>())
            });
            let read = try_join_all(runs).await?.into_iter().flatten();
            Ok::<_, Error>(read.collect::<Vec<_>>())
        };
        let runs = fetch.runs(wanted.values().copied().collect());
        let probes = fetch.probes(&runs);
        if probes.is_empty() {
            return read(runs).await;
        }
        let mut found = read(probes).await?;
        for (frame, _) in &found {
            wanted.remove(&frame.id());
        }
        found.extend(read(fetch.runs(wanted.into_values().collect())).await?);
        Ok(found)
    }
}

/// One request on its way. Ends in memory, whoever still waits for it.
async fn bring(inner: Arc<Inner>, parts: Vec<Part>) -> Landed {
    let outcome = inner.plain(&parts).await;
    let mut state = inner.lock();
    for part in &parts {
        state.flights.arrive(part.frame.id());
    }
    let plain = outcome.map_err(Arc::new)?;
    let addresses = parts.iter().map(|part| part.frame.id());
    let landed: Arc<[(Address, Plain)]> = addresses.zip(plain).collect();
    for (address, plain) in landed.iter() {
        let kept = state.memory.get(*address);
        // What is there and has less goes.
        if kept.is_some_and(|kept| !kept.cells().contains(plain.cells())) {
            state.memory.remove(*address);
        }
        state.memory.put(*address, plain.clone(), plain.memory());
    }
    Ok(landed)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn plain(&self, parts: &[Part]) -> Result<Vec<Plain>> {
        let stored = self.fetch.stored(parts).await?;
        if let ([part], [stored]) = (parts, stored.as_slice()) {
            return Ok(vec![stored.decode(&part.frame)?]);
        }
        let parts = parts.to_vec();
        blocking("decoding of frames", move || {
            parts
                .iter()
                .zip(&stored)
                .map(|(part, stored)| stored.decode(&part.frame))
                .collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests;
