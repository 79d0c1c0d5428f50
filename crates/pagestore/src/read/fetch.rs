//! Stored bytes of frames out of a storage, wherever they lie: in their own packs, where they moved to, on a local disk.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use neon_snapshot_format::pack::PackId;
use neon_storage::{GetOptions, Storage, StorageExt};
use tokio::sync::Semaphore;

use crate::bridge::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::map::FrameRef;
use crate::read::form::{Content, Form, Piece, Stored, not_from, record, unwrap};
use crate::read::frames::{FrameReaderOptions, Moved, Place};
use crate::read::plain::{Part, subject};
use crate::read::together::Together;

/// What sealing a frame once more adds to it at most.
const SEALED: u64 = 64;
/// Packs of which it is remembered that they are where they were written.
const HERE: usize = 1 << 16;

/// Reads frames as they are stored, several at once.
pub(crate) struct Fetch {
    pub(crate) storage: Arc<dyn Storage>,
    moved: Arc<dyn Moved>,
    pub(crate) options: FrameReaderOptions,
    pub(crate) requests: Semaphore,
    pub(crate) counted: Counted,
    /// Packs that were there when something was read of them last.
    here: Mutex<HashSet<PackId>>,
}

#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) frames: AtomicU64,
    pub(crate) in_memory: AtomicU64,
    pub(crate) on_disk: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Where wanted parts of one pack's frames are.
enum Located {
    /// In that pack, and these are they.
    Here(Vec<Bytes>),
    Moved(Vec<Vec<Place>>),
}

/// Where reading begins with a part, as far as is known.
type Location = (PackId, Range<u64>);

impl Fetch {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        moved: Arc<dyn Moved>,
        options: FrameReaderOptions,
    ) -> Self {
        Self {
            storage,
            moved,
            requests: Semaphore::new(options.concurrency.max(1)),
            options,
            counted: Counted::default(),
            here: Mutex::default(),
        }
    }

    fn here(&self) -> MutexGuard<'_, HashSet<PackId>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts parts into what is read at once: those that lie side by side where they are by now, as far as that is known.
    pub(crate) fn runs(&self, parts: Vec<Part>) -> Vec<Vec<Part>> {
        let mut by_pack: BTreeMap<PackId, Vec<Part>> = BTreeMap::new();
        for part in parts {
            by_pack.entry(part.frame.pack.id).or_default().push(part);
        }
        let mut located: Vec<(Location, Part)> = Vec::new();
        for parts in by_pack.into_values() {
            let known = self.moved.known(&parts);
            for (at, part) in parts.into_iter().enumerate() {
                let place = known
                    .as_ref()
                    .and_then(|known| known.get(at)?.first().copied());
                let location = match place {
                    Some(place) => (place.pack, place.range()),
                    None => (part.frame.pack.id, range(&part.frame)),
                };
                located.push((location, part));
            }
        }
        located.sort_by_key(|((pack, range), part)| (*pack, range.start, part.frame.id()));
        let mut together = Together::new(&self.options);
        let runs = located.chunk_by(move |((pack_a, a), _), ((pack_b, b), _)| {
            // The first comparison of a run begins with its first frame.
            if together.wanted == 0 {
                together.begin(a);
            }
            let near = pack_a == pack_b && together.joins(b);
            if !near {
                together.begin(b);
            }
            near
        });
        runs.map(|run| run.iter().map(|(_, part)| *part).collect())
            .collect()
    }

    /// Of parts that lie far apart in packs of which it is not known whether they are there, one of each pack: who reads these
    /// first knows how the others lie together.
    pub(crate) fn probes(&self, runs: &[Vec<Part>]) -> Vec<Vec<Part>> {
        let here = self.here();
        let mut unknown: BTreeMap<PackId, (usize, &Vec<Part>)> = BTreeMap::new();
        for run in runs {
            let Some(first) = run.first() else { continue };
            let pack = first.frame.pack.id;
            if !here.contains(&pack) && self.moved.known(std::slice::from_ref(first)).is_none() {
                unknown.entry(pack).or_insert((0, run)).0 += 1;
            }
        }
        let several = unknown.into_values().filter(|(count, _)| *count > 1);
        several.map(|(_, run)| run.clone()).collect()
    }

    /// The stored bytes of parts, from the disk or the storage. What the storage sent is verified before the disk keeps it;
    /// what the disk has is verified when it is read.
    pub(crate) async fn stored(&self, parts: &[Part]) -> Result<Vec<Stored>> {
        let Some(disk) = self.options.disk.clone() else {
            return self.received(parts).await;
        };
        let wanted = parts.to_vec();
        let cache = disk.clone();
        let mut found = blocking("local cache", move || {
            Ok(wanted
                .iter()
                .map(|part| {
                    let frame = &part.frame;
                    let sealed = || cache.get_sealed(frame, |sealed| unwrap(frame, sealed).ok());
                    let bytes = cache.get(frame).or_else(sealed)?;
                    Some(Stored(vec![whole(bytes)]))
                })
                .collect::<Vec<_>>())
        })
        .await?;
        let missing: Vec<Part> = parts
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(part, _)| *part)
            .collect();
        self.counted
            .on_disk
            .fetch_add((parts.len() - missing.len()) as u64, Ordering::Relaxed);
        if !missing.is_empty() {
            let received = self.received(&missing).await?;
            let kept: Vec<(FrameRef, Stored)> = missing
                .iter()
                .zip(&received)
                .map(|(part, stored)| (part.frame, stored.clone()))
                .collect();
            blocking("local cache", move || {
                for (frame, piece) in kept
                    .iter()
                    .flat_map(|(frame, stored)| stored.0.iter().map(move |piece| (frame, piece)))
                {
                    // The disk shows no more than the storage does.
                    match &piece.content {
                        Content::Thinned(thinned) => disk.put_thinned(frame, thinned, &piece.bytes),
                        Content::Whole { .. } if record(frame)?.check(&piece.bytes).is_err() => {}
                        Content::Whole {
                            sealed: Some(sealed),
                        } => disk.put_sealed(frame, sealed),
                        Content::Whole { sealed: None } => disk.put(frame, &piece.bytes),
                    }
                }
                Ok(())
            })
            .await?;
            let mut received = received.into_iter();
            for found in found.iter_mut().filter(|found| found.is_none()) {
                *found = received.next();
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

    /// The stored bytes of parts from the storage. Where what was known of moved frames is not true any more, it is asked
    /// for once again; and again, as packs are deleted one after the other.
    async fn received(&self, parts: &[Part]) -> Result<Vec<Stored>> {
        let mut received = self.received_by(parts, true).await;
        for _ in 0..3 {
            match received {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    received = self.received_by(parts, false).await;
                }
                other => return other,
            }
        }
        received
    }

    /// Of packs that are known to be gone from where their frames moved to, if that is to be relied on; else from the packs,
    /// and if these are gone by now from where their frames are said to be.
    async fn received_by(&self, parts: &[Part], known: bool) -> Result<Vec<Stored>> {
        let mut by_pack: BTreeMap<PackId, Vec<(usize, Part)>> = BTreeMap::new();
        for (at, part) in parts.iter().enumerate() {
            let of_pack = by_pack.entry(part.frame.pack.id).or_default();
            of_pack.push((at, *part));
        }
        let located = by_pack.into_values().map(|mut parts| async move {
            parts.sort_by_key(|(_, part)| part.frame.offset);
            let wanted: Vec<Part> = parts.iter().map(|(_, part)| *part).collect();
            let located = self.locate(&wanted, known).await?;
            Ok::<_, Error>((parts, located))
        });
        let mut out: Vec<Stored> = parts.iter().map(|_| Stored(Vec::new())).collect();
        let mut keep = |at: usize, piece: Piece| {
            if let Some(stored) = out.get_mut(at) {
                stored.0.push(piece);
            }
        };
        let mut places: Vec<(usize, FrameRef, Place)> = Vec::new();
        for (parts, located) in try_join_all(located).await? {
            match located {
                Located::Here(bytes) => {
                    for ((at, _), bytes) in parts.into_iter().zip(bytes) {
                        keep(at, whole(bytes));
                    }
                }
                Located::Moved(moved) => {
                    for ((at, part), moved) in parts.into_iter().zip(moved) {
                        places.extend(moved.into_iter().map(|place| (at, part.frame, place)));
                    }
                }
            }
        }
        for (at, piece) in self.moved_to(places).await? {
            keep(at, piece);
        }
        Ok(out)
    }

    /// Finds parts of one pack's frames, in ascending order; reads them if they are in that pack.
    async fn locate(&self, parts: &[Part], known: bool) -> Result<Located> {
        let Some(first) = parts.first() else {
            return Ok(Located::Here(Vec::new()));
        };
        let pack = first.frame.pack.id;
        if known && let Some(places) = self.moved.known(parts) {
            return Ok(Located::Moved(places));
        }
        let ranges: Vec<Range<u64>> = parts.iter().map(|part| range(&part.frame)).collect();
        match self.request(pack, &ranges, self.options.request).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.here().remove(&pack);
            }
            other => {
                let mut here = self.here();
                if here.len() >= HERE {
                    here.clear();
                }
                here.insert(pack);
                return Ok(Located::Here(other?));
            }
        }
        let found = self.moved.find(parts).await?;
        let places = found.into_iter().zip(parts).map(|(places, part)| {
            places.ok_or_else(|| {
                let reason =
                    "its pack is not in the storage, and no other has what is needed of it";
                Error::damaged(subject(&part.frame), reason)
            })
        });
        Ok(Located::Moved(places.collect::<Result<_>>()?))
    }

    /// Frames from where they moved to; what lies together there in one request.
    async fn moved_to(&self, places: Vec<(usize, FrameRef, Place)>) -> Result<Vec<(usize, Piece)>> {
        let (mut found, mut missing) = self.thinned_on_disk(places).await?;
        missing.sort_by_key(|(_, _, place)| (place.pack, place.offset));
        let packs = missing.chunk_by(|(_, _, a), (_, _, b)| a.pack == b.pack);
        let requests = packs.map(|places| async move {
            let ranges: Vec<Range<u64>> =
                places.iter().map(|(_, _, place)| place.range()).collect();
            // Sealing made each a little longer.
            let most = self.options.request + SEALED * places.len() as u64;
            let stored = match places.first() {
                Some((_, _, place)) => self.request(place.pack, &ranges, most).await?,
                None => Vec::new(),
            };
            let pieces = places.iter().zip(stored);
            pieces
                .map(|((at, frame, place), bytes)| Ok((*at, piece(frame, place, bytes)?)))
                .collect::<Result<Vec<_>>>()
        });
        found.extend(try_join_all(requests).await?.into_iter().flatten());
        Ok(found)
    }

    /// What of thinned frames is on the local disk, and what is not. It is looked for only here: that it is what is meant is
    /// known only to who knows where it is.
    async fn thinned_on_disk(
        &self,
        places: Vec<(usize, FrameRef, Place)>,
    ) -> Result<(Vec<(usize, Piece)>, Vec<(usize, FrameRef, Place)>)> {
        let Some(disk) = self.options.disk.clone() else {
            return Ok((Vec::new(), places));
        };
        blocking("local cache", move || {
            let (mut found, mut missing) = (Vec::new(), Vec::new());
            for (at, frame, place) in places {
                let kept = match &place.form {
                    Form::Thinned(thinned) => disk.get_thinned(&frame, thinned),
                    Form::Same | Form::Wrapped => None,
                };
                match kept {
                    Some(bytes) => found.push((at, piece(&frame, &place, bytes)?)),
                    None => missing.push((at, frame, place)),
                }
            }
            Ok((found, missing))
        })
        .await
    }

    /// Reads ranges of one pack, in ascending order: near ones in one piece of so many bytes at most.
    async fn request(&self, pack: PackId, ranges: &[Range<u64>], most: u64) -> Result<Vec<Bytes>> {
        let key = keys::pack(pack)?;
        // It is never closed.
        let _permit = self.requests.acquire().await.ok();
        let mut together = Together::of(self.options.gap, most);
        let mut whole: Vec<Range<u64>> = Vec::new();
        // Of frames of zeros nothing is stored.
        for range in ranges.iter().filter(|range| !range.is_empty()) {
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
            [] => Vec::new(),
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
                if range.is_empty() {
                    return Ok(Bytes::new());
                }
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

/// A frame from its own pack, or from a disk that keeps it so.
fn whole(bytes: Bytes) -> Piece {
    Piece {
        from: None,
        bytes,
        content: Content::Whole { sealed: None },
    }
}

/// What was read at a place.
fn piece(frame: &FrameRef, place: &Place, stored: Bytes) -> Result<Piece> {
    let (bytes, content) = match place.form {
        Form::Same => (stored, Content::Whole { sealed: None }),
        Form::Wrapped => {
            let bytes = unwrap(frame, &stored);
            let bytes = bytes.map_err(|error| not_from(frame, place.pack, error))?;
            let sealed = Some(stored);
            (bytes, Content::Whole { sealed })
        }
        Form::Thinned(thinned) => (stored, Content::Thinned(thinned)),
    };
    Ok(Piece {
        from: Some(place.pack),
        bytes,
        content,
    })
}

fn range(frame: &FrameRef) -> Range<u64> {
    frame.offset..frame.offset.saturating_add(frame.stored_length.into())
}
