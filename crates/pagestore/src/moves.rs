//! Moves: where the frames of a pack are now that were copied into another one.
//!
//! A frame keeps its address for ever. When the pack it was written to is sparse and its live frames are copied out, or
//! only some of its frames are brought from another repository, an object under `moves/<that pack>/<new pack>` says
//! where they lie, and of those that came without some of their cells, which they came with. A cell is read from, and kept
//! in, the home that was stored last among those that have it and are there. The byte table stands in
//! `docs/formats/repository.md`.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::{Flags, PackId};
use neon_storage::{Key, ListOptions, StorageExt};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{WriterId, from_hex};
use crate::keys::{self, MOVES};
use crate::map::{Cells, MAX_STORED};
use crate::object::{MOVES_THINNED, Object, ObjectKind};
use crate::read::memory::Memory;
use crate::read::{Form, Moved, Part, Place, Thinned};
use crate::repository::Repository;

const ENTRY: usize = 24;
/// What follows of an entry that is thinned.
const DIGEST: usize = 16;
const SAME: u8 = 0;
const WRAPPED: u8 = 1;
const THINNED: u8 = 2;
const THINNED_SEALED: u8 = 3;

/// A frame of the old pack, in the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MovedFrame {
    /// Its number in the old pack.
    pub(crate) frame: u64,
    /// Where its bytes begin in the new pack.
    pub(crate) offset: u64,
    /// How many bytes there are in the new pack.
    pub(crate) length: u32,
    /// What those bytes are of the frame.
    pub(crate) form: Form,
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
        let (kind, thinned) = match &moved.form {
            Form::Same => (SAME, None),
            Form::Wrapped => (WRAPPED, None),
            Form::Thinned(thinned) if thinned.sealed => (THINNED_SEALED, Some(thinned)),
            Form::Thinned(thinned) => (THINNED, Some(thinned)),
        };
        let (codec, cells) =
            thinned.map_or((0, 0), |thinned| (thinned.codec, thinned.cells.bits()));
        out.extend_from_slice(&[kind, codec]);
        out.extend_from_slice(&cells.to_le_bytes());
        if let Some(thinned) = thinned {
            out.extend_from_slice(&thinned.digest);
        }
    }
    out
}

/// What who reads these has to know.
pub(crate) fn flags(frames: &[MovedFrame]) -> Flags {
    let mut forms = frames.iter().map(|moved| moved.form);
    let thinned = forms.any(|form| matches!(form, Form::Thinned(_)));
    Flags {
        refuse: if thinned { MOVES_THINNED } else { 0 },
        ..Flags::default()
    }
}

pub(crate) fn decode(key: &Key, body: &[u8]) -> Result<Arc<[MovedFrame]>> {
    let malformed = |reason| Error::malformed(key.as_str(), reason);
    let mut frames: Vec<MovedFrame> = Vec::with_capacity(body.len() / ENTRY);
    let mut rest = body;
    while !rest.is_empty() {
        let moved;
        (moved, rest) = entry(rest).map_err(malformed)?;
        if frames.last().is_some_and(|last| last.frame >= moved.frame) {
            return Err(malformed("is not in order"));
        }
        frames.push(moved);
    }
    Ok(frames.into())
}

/// The first entry, and what comes after it.
fn entry(bytes: &[u8]) -> std::result::Result<(MovedFrame, &[u8]), &'static str> {
    const CUT: &str = "ends within an entry";
    let (frame, rest) = bytes.split_first_chunk().ok_or(CUT)?;
    let (offset, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let (length, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let ([kind, codec, low, high], rest) = rest.split_first_chunk().ok_or(CUT)?;
    let cells = Cells::from_bits(u16::from_le_bytes([*low, *high]));
    let (form, rest) = match *kind {
        SAME | WRAPPED if *codec != 0 || !cells.is_empty() => {
            return Err("has an entry with what is not of its kind");
        }
        SAME => (Form::Same, rest),
        WRAPPED => (Form::Wrapped, rest),
        THINNED | THINNED_SEALED => {
            let (digest, rest) = rest.split_first_chunk::<DIGEST>().ok_or(CUT)?;
            let thinned = Thinned {
                cells,
                codec: *codec,
                sealed: *kind == THINNED_SEALED,
                digest: *digest,
            };
            // Whether they are in the frame is known to who knows its length.
            if cells.is_empty() {
                return Err("has a thinned frame without cells");
            }
            (Form::Thinned(thinned), rest)
        }
        _ => return Err("has an entry of an unknown kind"),
    };
    let moved = MovedFrame {
        frame: u64::from_le_bytes(*frame),
        offset: u64::from_le_bytes(*offset),
        length: u32::from_le_bytes(*length),
        form,
    };
    let end = moved.offset.checked_add(moved.length.into());
    if moved.length > MAX_STORED || end.is_none() {
        return Err("has an entry of more bytes than a frame has");
    }
    Ok((moved, rest))
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
        let object = Object {
            flags: flags(&frames),
            ..Object::new(ObjectKind::Moves, writer, encode(&frames))
        };
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

    /// The packs of which something was said.
    pub(crate) async fn moved_packs(&self) -> Result<HashSet<PackId>> {
        let listing = self.shared.storage.list(ListOptions::prefix(MOVES));
        listing
            .try_filter_map(|object| async move { Ok(ids(&object.key).map(|(old, _)| old)) })
            .try_collect()
            .await
            .map_err(|error| Error::storage(MOVES, error))
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

/// What a pack's moves are remembered in: those of some 100 GB of moved frames.
const REMEMBERED: u64 = 32 << 20;

/// Looks up where frames are, and remembers for a while, in bounded memory. Each cell is looked for where a collection keeps
/// it: in the home that was stored last of those that have it. That one goes no sooner than a grace after it was said where its
/// cells moved next, so what was true a moment ago still is.
pub(crate) struct MoveCache {
    repository: Repository,
    known: Mutex<Memory<Known>>,
    /// Who asks about a pack waits for those who ask about it already.
    asking: [tokio::sync::Mutex<()>; 16],
}

#[derive(Debug, Clone)]
struct Known {
    since: Instant,
    pieces: Arc<[MovePiece]>,
}

impl Known {
    fn places(&self, parts: &[Part]) -> Option<Vec<Vec<Place>>> {
        parts.iter().map(|part| self.place(part)).collect()
    }

    /// Where all wanted cells of a frame are: each in the home that was stored last of those that have it. An earlier one may
    /// have all of them, but a collection keeps it for none of them. None if some cell is nowhere.
    fn place(&self, part: &Part) -> Option<Vec<Place>> {
        let homes = self.pieces.iter().filter_map(|piece| {
            let moved = piece.find(part.frame.frame)?;
            let place = Place {
                pack: piece.new,
                offset: moved.offset,
                length: moved.length,
                form: moved.form,
            };
            Some((place, moved.form.cells(part.frame.whole())))
        });
        let (mut places, mut left) = (Vec::new(), part.cells);
        for (place, cells) in homes {
            if !left.common(cells).is_empty() {
                places.push(place);
                left = left.without(cells);
            }
        }
        (left.is_empty() && !places.is_empty()).then_some(places)
    }
}

impl fmt::Debug for MoveCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoveCache")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

impl MoveCache {
    pub(crate) fn new(repository: Repository) -> Self {
        Self {
            repository,
            known: Mutex::new(Memory::new(REMEMBERED)),
            asking: Default::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said about a pack; what was learnt since we began to ask will do.
    async fn ask(&self, old: PackId) -> Result<Known> {
        let began = Instant::now();
        let place = usize::from(old.0.first().copied().unwrap_or(0)) % self.asking.len();
        let _turn = match self.asking.get(place) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        if let Some(known) = self.lock().get((old, 0))
            && known.since >= began
        {
            return Ok(known);
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
        let bytes = pieces
            .iter()
            .map(|piece| size_of::<MovePiece>() + size_of_val(&*piece.frames))
            .sum();
        let pieces = pieces.into();
        let known = Known { since, pieces };
        let mut remembered = self.lock();
        remembered.remove((old, 0));
        remembered.put((old, 0), known.clone(), bytes);
        Ok(known)
    }
}

impl Moved for MoveCache {
    fn known(&self, parts: &[Part]) -> Option<Vec<Vec<Place>>> {
        let pack = parts.first()?.frame.pack.id;
        let known = self.lock().get((pack, 0))?;
        let fresh = self.repository.shared.options.grace / 4;
        if known.since.elapsed() >= fresh {
            return None;
        }
        known.places(parts)
    }

    fn find<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Vec<Option<Vec<Place>>>>> {
        Box::pin(async move {
            let Some(first) = parts.first() else {
                return Ok(Vec::new());
            };
            let known = self.ask(first.frame.pack.id).await?;
            Ok(parts.iter().map(|part| known.place(part)).collect())
        })
    }
}
