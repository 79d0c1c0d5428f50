//! Moves: where the frames of a pack are now that were copied into another one.
//!
//! A frame keeps its address for ever. When the pack it was written to is sparse and its live frames are copied out, or
//! only some of its frames are brought from another repository, an object under `moves/<that pack>/<new pack>` says
//! where they lie. The byte table stands in `docs/formats/repository.md`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;
use neon_storage::{Key, ListOptions, StorageExt};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{WriterId, from_hex};
use crate::keys::{self, MOVES};
use crate::map::FrameRef;
use crate::object::{Object, ObjectKind};
use crate::read::{Moved, Place};
use crate::repository::Repository;

const ENTRY: usize = 24;
const WRAPPED: u32 = 1;
/// Of so many moved frames it is remembered where they are: 24 MB.
const REMEMBERED: usize = 1 << 20;

/// A frame of the old pack, in the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MovedFrame {
    /// Its number in the old pack.
    pub(crate) frame: u64,
    /// Where its bytes begin in the new pack.
    pub(crate) offset: u64,
    /// How many bytes there are in the new pack.
    pub(crate) length: u32,
    /// The stored bytes were sealed once more on their way, with the old pack's key and this frame's address.
    pub(crate) wrapped: bool,
}

/// Some frames of one pack that lie in another one.
#[derive(Debug, Clone)]
pub(crate) struct MovePiece {
    pub(crate) key: Key,
    pub(crate) old: PackId,
    pub(crate) new: PackId,
    /// When it was said.
    pub(crate) stored: SystemTime,
    /// Sorted by frame.
    pub(crate) frames: Arc<[MovedFrame]>,
}

impl MovePiece {
    pub(crate) fn find(&self, frame: u64) -> Option<&MovedFrame> {
        let at = self
            .frames
            .binary_search_by_key(&frame, |moved| moved.frame)
            .ok()?;
        self.frames.get(at)
    }
}

pub(crate) fn encode(frames: &[MovedFrame]) -> Vec<u8> {
    let mut out = Vec::with_capacity(frames.len().saturating_mul(ENTRY));
    for moved in frames {
        out.extend_from_slice(&moved.frame.to_le_bytes());
        out.extend_from_slice(&moved.offset.to_le_bytes());
        out.extend_from_slice(&moved.length.to_le_bytes());
        out.extend_from_slice(&if moved.wrapped { WRAPPED } else { 0 }.to_le_bytes());
    }
    out
}

pub(crate) fn decode(key: &Key, body: &[u8]) -> Result<Arc<[MovedFrame]>> {
    let malformed = |reason| Error::malformed(key.as_str(), reason);
    let (entries, rest) = body.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return Err(malformed("ends within an entry"));
    }
    let mut frames = Vec::with_capacity(entries.len());
    for entry in entries {
        let u64_at = |at: usize| {
            let bytes = entry.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let u32_at = |at: usize| {
            let bytes = entry.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        if u32_at(20) > WRAPPED {
            return Err(malformed("has an entry of an unknown kind"));
        }
        let moved = MovedFrame {
            frame: u64_at(0),
            offset: u64_at(8),
            length: u32_at(16),
            wrapped: u32_at(20) == WRAPPED,
        };
        if frames
            .last()
            .is_some_and(|last: &MovedFrame| last.frame >= moved.frame)
        {
            return Err(malformed("is not in order"));
        }
        frames.push(moved);
    }
    Ok(frames.into())
}

impl Repository {
    /// Says where frames of a pack are now. The new pack must be stored.
    pub(crate) async fn put_moves(
        &self,
        writer: WriterId,
        old: PackId,
        new: PackId,
        mut frames: Vec<MovedFrame>,
    ) -> Result<()> {
        frames.sort_unstable();
        let object = Object::new(ObjectKind::Moves, writer, encode(&frames));
        self.put_object(&keys::moves(old, new)?, &object)
            .await
            .map(drop)
    }

    /// What was said about one pack, latest first.
    pub(crate) async fn moves_of(&self, old: PackId) -> Result<Vec<MovePiece>> {
        self.moves_below(&keys::moves_of(old)).await
    }

    /// What was said about all packs, latest first.
    pub(crate) async fn all_moves(&self) -> Result<Vec<MovePiece>> {
        self.moves_below(MOVES).await
    }

    async fn moves_below(&self, prefix: &str) -> Result<Vec<MovePiece>> {
        let objects: Vec<_> = self
            .shared
            .storage
            .list(ListOptions::prefix(prefix))
            .try_collect()
            .await
            .map_err(|error| Error::storage(prefix, error))?;
        let mut pieces: Vec<_> = stream::iter(objects)
            .map(|object| async move {
                let (old, new) = ids(&object.key).ok_or_else(|| {
                    Error::malformed(object.key.as_str(), "is not where moves are")
                })?;
                match self.get_object(&object.key, ObjectKind::Moves).await {
                    Ok(found) => Ok(Some(MovePiece {
                        old,
                        new,
                        stored: object.modified,
                        frames: decode(&object.key, &found.body)?,
                        key: object.key,
                    })),
                    // Taken away because nothing needs it any more.
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(16)
            .try_filter_map(|piece| async move { Ok::<_, Error>(piece) })
            .try_collect()
            .await?;
        pieces.sort_by_key(|piece| std::cmp::Reverse((piece.stored, piece.new)));
        Ok(pieces)
    }
}

fn ids(key: &Key) -> Option<(PackId, PackId)> {
    let (old, new) = key.as_str().strip_prefix(MOVES)?.split_once('/')?;
    Some((PackId(from_hex(old)?), PackId(from_hex(new)?)))
}

/// Looks up where frames are, and remembers for a while. A pack that frames moved to goes no sooner than a
/// grace after it was said where they moved next, so what was true a moment ago still is.
#[derive(Debug)]
pub(crate) struct MoveCache {
    repository: Repository,
    known: Mutex<HashMap<PackId, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    since: Instant,
    pieces: Arc<[MovePiece]>,
}

impl MoveCache {
    pub(crate) fn new(repository: Repository) -> Self {
        Self {
            repository,
            known: Mutex::default(),
        }
    }

    async fn pieces(&self, old: PackId) -> Result<Arc<[MovePiece]>> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.repository.shared.options.grace / 4;
        if let Some(known) = lock().get(&old)
            && known.since.elapsed() < fresh
        {
            return Ok(Arc::clone(&known.pieces));
        }
        let since = Instant::now();
        let mut pieces = Vec::new();
        for piece in self.repository.moves_of(old).await? {
            let key = keys::pack(piece.new)?;
            let there = self.repository.shared.storage.exists(&key).await;
            if there.map_err(|error| Error::storage(key.as_str(), error))? {
                pieces.push(piece);
            }
        }
        let pieces: Arc<[MovePiece]> = pieces.into();
        let known = Known {
            since,
            pieces: Arc::clone(&pieces),
        };
        let mut all = lock();
        let held: usize = all.values().map(Known::frames).sum();
        if held.saturating_add(known.frames()) > REMEMBERED {
            all.clear();
        }
        all.insert(old, known);
        Ok(pieces)
    }
}

impl Known {
    /// How many moved frames it holds; one for what is nowhere.
    fn frames(&self) -> usize {
        let frames = self.pieces.iter().map(|piece| piece.frames.len());
        frames.sum::<usize>().saturating_add(1)
    }
}

impl Moved for MoveCache {
    fn is_known(&self, pack: PackId) -> bool {
        let fresh = self.repository.shared.options.grace / 4;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&pack);
        known.is_some_and(|known| !known.pieces.is_empty() && known.since.elapsed() < fresh)
    }

    fn forget(&self, pack: PackId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&pack);
    }

    fn find<'a>(&'a self, frame: &'a FrameRef) -> BoxFuture<'a, Result<Option<Place>>> {
        Box::pin(async move {
            let pieces = self.pieces(frame.pack.id).await?;
            Ok(pieces.iter().find_map(|piece| {
                let moved = piece.find(frame.frame)?;
                Some(Place {
                    pack: piece.new,
                    offset: moved.offset,
                    length: moved.length,
                    wrapped: moved.wrapped,
                })
            }))
        })
    }
}
