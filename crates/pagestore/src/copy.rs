//! Copies of snapshots between repositories.
//!
//! The commit is copied as it is, so the id stays. Packs that are mostly needed travel whole, under their ids; of others
//! the needed frames go into new packs, with a note where they are. Into an encrypted repository frames that are not
//! sealed are sealed on the way, with the key that the map has for their pack. What is there is not sent again, also
//! after a copy that did not come to its end.
//!
//! What is there, and what is needed, is counted in cells of frames: here and there frames may have been thinned to what the
//! snapshots of either side show. A frame that is there without a needed cell comes again, in the form that it has here, and
//! is a further home of its cells there. It takes nothing away from those that are there: each cell is looked for in all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_snapshot_format::pack::{FrameCipher, FrameRecord, PackId};

use crate::claim::NameOutcome;
use crate::crypt::PackCipher;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::{list_packs, run};
use crate::id::CommitId;
use crate::keys;
use crate::map::{Cells, FrameRef, MapFrame, View, Walk};
use crate::moves::MovedFrame;
use crate::name::SnapshotName;
use crate::pack_file::NewPack;
use crate::read::form::{Content, Stored, context, record, thin};
use crate::read::plain::subject;
use crate::read::{Form, FrameReader, Part, Thinned};
use crate::repository::{Repository, create_from};
use crate::writing::Writing;

/// How large new packs grow.
const PACK_SIZE: u64 = 64 << 20;
/// From so many packs on that are not there, moves are listed once.
const LIST_FROM: usize = 16;
/// Frames that are read together.
const BATCH: usize = 128;

/// What a copy did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Copied {
    /// The snapshot, here and there.
    pub id: CommitId,
    /// What came of its names.
    pub names: Vec<(SnapshotName, NameOutcome)>,
    /// Packs that were there already, or whose needed frames were.
    pub packs_there: u64,
    /// Packs that travelled whole.
    pub packs_whole: u64,
    /// Frames that travelled alone.
    pub frames: u64,
    /// Bytes stored in packs there.
    pub bytes: u64,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyProgress {
    /// Bytes of packs that were sent.
    pub done: u64,
    /// Bytes of packs that are sent in all; what was there already is not among them.
    pub total: u64,
}

/// Takes how far a copy is; an error ends it.
type Watch = Arc<dyn Fn(CopyProgress) -> Result<()> + Send + Sync>;

/// What of the frames of each pack a snapshot needs, by number.
type Needed = BTreeMap<PackId, BTreeMap<u64, Part>>;

impl Repository {
    /// Copies a snapshot to another repository; its parents need not be there. When this returns it exists there, as
    /// durable as that storage makes it.
    ///
    /// Dropped or failed: nothing exists there but what a collection finds, and a copy that is begun again soon goes on
    /// from it.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such snapshot; [`Busy`](ErrorKind::Busy) when the other
    /// repository is just getting rid of it; what reading and writing return.
    pub async fn copy_to(&self, other: &Self, id: CommitId) -> Result<Copied> {
        self.copy_to_watched(other, id, |_| Ok(())).await
    }

    /// As [`copy_to`](Self::copy_to), and says how far it is: first, before anything is sent, how much that will be, then
    /// after every piece of some MiB. The copy fails with an error that `watch` returns.
    ///
    /// # Errors
    /// As [`copy_to`](Self::copy_to), and those of `watch`.
    pub async fn copy_to_watched(
        &self,
        other: &Self,
        id: CommitId,
        watch: impl Fn(CopyProgress) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Copied> {
        // Our side keeps it meanwhile, where we may say so.
        let lease = match self.may_write() {
            true => Some(self.lease(&[id]).await?),
            false => None,
        };
        let result = self.copy_protected(other, id, Arc::new(watch)).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        result
    }

    async fn copy_protected(&self, other: &Self, id: CommitId, watch: Watch) -> Result<Copied> {
        let standing = self.require_kept(id).await?;
        let commit = standing.commit;
        let (_, body) = self.commit_body(standing.object).await?;
        let reader = self.frames();
        let needed = needed(&reader, &commit.view()?).await?;
        let writing = other.begin_writing().await?;
        let mut copy = Copy {
            from: self,
            to: other,
            writing: &writing,
            reader,
            filling: None,
            moves: BTreeMap::new(),
            sent: Arc::new(Sent {
                watch,
                done: AtomicU64::new(0),
                total: AtomicU64::new(0),
            }),
            copied: Copied {
                id,
                names: Vec::new(),
                packs_there: 0,
                packs_whole: 0,
                frames: 0,
                bytes: 0,
            },
        };
        let copied = match copy.packs(needed).await {
            Ok(()) => copy.copied,
            Err(error) => {
                // The lease lapses by itself: until then what was brought is kept for who tries again.
                drop(writing);
                return Err(error);
            }
        };
        let committed = writing.commit_body(body, &commit.facts.names).await?;
        Ok(Copied {
            names: committed.names,
            ..copied
        })
    }
}

/// What a view needs of every frame, its own map included.
async fn needed(reader: &FrameReader, view: &View) -> Result<Needed> {
    let mut needed = Needed::new();
    let mut need = |frame: &FrameRef, cells: Cells| {
        let of_pack = needed.entry(frame.pack.id).or_default();
        let part = Part {
            frame: *frame,
            cells,
        };
        let known = of_pack.entry(frame.frame).or_insert(part);
        known.cells = known.cells.and(cells);
    };
    for frame in view
        .runs
        .iter()
        .flat_map(|run| run.index_frames())
        .map(|(_, frame)| frame)
    {
        need(frame, frame.whole());
        let index = MapFrame::decode(&reader.get(frame).await?)?.index()?;
        for block in &index.blocks {
            for frame in std::iter::once(&block.record).chain(&block.digests) {
                need(frame, frame.whole());
            }
        }
    }
    let mut walk = Walk::new(view, false);
    while let Some(file) = run(reader, &mut walk).await? {
        for extent in &file.extents {
            if let Some((frame, cells)) = extent.cells(view.page_size) {
                need(frame, cells);
            }
        }
    }
    Ok(needed)
}

struct Copy<'a> {
    from: &'a Repository,
    to: &'a Repository,
    writing: &'a Writing,
    reader: FrameReader,
    filling: Option<NewPack>,
    moves: BTreeMap<PackId, Vec<MovedFrame>>,
    sent: Arc<Sent>,
    copied: Copied,
}

/// What was sent.
struct Sent {
    watch: Watch,
    done: AtomicU64,
    total: AtomicU64,
}

impl Sent {
    /// So much more.
    fn add(&self, bytes: u64) -> Result<()> {
        self.tell(
            self.done
                .fetch_add(bytes, Ordering::Relaxed)
                .saturating_add(bytes),
        )
    }

    /// So much in all.
    fn tell(&self, done: u64) -> Result<()> {
        self.done.store(done, Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        (self.watch)(CopyProgress {
            done: done.min(total),
            total,
        })
    }
}

/// What of a pack is to be sent.
enum Sending {
    /// All of it; the frames are what is needed of it.
    Whole {
        size: u64,
        frames: Vec<Part>,
    },
    Frames(Vec<Part>),
}

impl Sending {
    fn bytes(&self) -> u64 {
        match self {
            Self::Whole { size, .. } => *size,
            Self::Frames(frames) => stored(frames),
        }
    }
}

fn stored(frames: &[Part]) -> u64 {
    let lengths = frames
        .iter()
        .map(|part| u64::from(part.frame.stored_length));
    lengths.fold(0, u64::saturating_add)
}

impl Copy<'_> {
    async fn packs(&mut self, needed: Needed) -> Result<()> {
        let plan = self.plan(needed).await?;
        let total = plan.iter().map(|(_, sending)| sending.bytes());
        self.sent
            .total
            .store(total.fold(0, u64::saturating_add), Ordering::Relaxed);
        self.sent.tell(0)?;
        for (id, sending) in plan {
            match sending {
                Sending::Whole { size, frames } => match self.whole(id, size).await {
                    // A collection has rewritten it since packs were listed: it lies elsewhere by now.
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.frames(id, &frames).await?;
                    }
                    sent => sent?,
                },
                Sending::Frames(frames) => self.frames(id, &frames).await?,
            }
        }
        self.flush().await
    }

    /// What is to be sent, pack by pack.
    async fn plan(&mut self, needed: Needed) -> Result<Vec<(PackId, Sending)>> {
        let ids: Vec<PackId> = needed.keys().copied().collect();
        let brought = self.writing.bring(&ids).await?;
        let there: HashSet<PackId> = brought.there.iter().copied().collect();
        let absent: HashSet<PackId> = brought.absent.iter().copied().collect();
        self.copied.packs_there = there.len() as u64;
        // Of packs that nobody lists it is not known how long they are: their frames travel alone.
        let sizes = match self.from.lists() {
            true => list_packs(self.from).await?,
            false => HashMap::new(),
        };
        // Of many packs, as in a first copy, is one look at where frames moved cheaper than one for each.
        let moved = match ids.len().saturating_sub(there.len()) > LIST_FROM {
            true => Some(self.to.moved_packs().await?),
            false => None,
        };
        let mut plan = Vec::new();
        for (id, frames) in needed {
            if there.contains(&id) {
                continue;
            }
            let missing = match &moved {
                Some(moved) if !moved.contains(&id) => frames.values().copied().collect(),
                _ => self.not_moved_there(id, &frames).await?,
            };
            if missing.is_empty() {
                self.copied.packs_there = self.copied.packs_there.saturating_add(1);
                continue;
            }
            let stored = stored(&missing);
            let wrap = self.to.is_encrypted() && frames.values().any(|part| !part.frame.sealed);
            let sending = match sizes.get(&id) {
                Some(size)
                    if absent.contains(&id) && !wrap && stored.saturating_mul(2) >= *size =>
                {
                    let (size, frames) = (*size, missing);
                    Sending::Whole { size, frames }
                }
                _ => Sending::Frames(missing),
            };
            plan.push((id, sending));
        }
        Ok(plan)
    }

    /// The frames of a pack of which not all that is needed is in other packs there, ones that stay.
    async fn not_moved_there(&self, id: PackId, frames: &BTreeMap<u64, Part>) -> Result<Vec<Part>> {
        let pieces = self.to.moves_of(id).await?;
        let new: Vec<PackId> = pieces.iter().map(|piece| piece.new).collect();
        let stay: HashSet<PackId> = match new.is_empty() {
            true => HashSet::new(),
            false => self.writing.bring(&new).await?.there.into_iter().collect(),
        };
        let there = |frame: &FrameRef| {
            let pieces = pieces.iter().filter(|piece| stay.contains(&piece.new));
            let moved = pieces.filter_map(|piece| piece.find(frame.frame));
            let cells = moved.map(|moved| moved.form.cells(frame.whole()));
            cells.fold(Cells::NONE, Cells::and)
        };
        Ok(frames
            .values()
            .filter(|part| !there(&part.frame).contains(part.cells))
            .copied()
            .collect())
    }

    /// A pack as it is, each of its frames checked on the way.
    async fn whole(&mut self, id: PackId, size: u64) -> Result<()> {
        let file = self.from.pack_file(id, size).await?;
        let before = self.sent.done.load(Ordering::Relaxed);
        let sent = Arc::clone(&self.sent);
        // Read once more after a failure, it is told once.
        let passed = move |end: u64| sent.tell(before.saturating_add(end));
        let (body, failed) = self.from.pack_body(file, size, Arc::new(passed));
        match create_from(&**self.to.storage(), &keys::pack(id)?, body).await {
            Ok(_) => {}
            // Somebody else copies the same.
            Err(error) if error.kind() == ErrorKind::Exists => {}
            Err(error) => return Err(failed.take().unwrap_or(error)),
        }
        self.sent.tell(before.saturating_add(size))?;
        self.copied.packs_whole = self.copied.packs_whole.saturating_add(1);
        self.copied.bytes = self.copied.bytes.saturating_add(size);
        Ok(())
    }

    /// Some frames of a pack, into a new one.
    async fn frames(&mut self, id: PackId, frames: &[Part]) -> Result<()> {
        // As many as a request takes many times over, and memory easily.
        for some in frames.chunks(BATCH) {
            for (frame, stored) in self.reader.stored(some).await? {
                self.frame(id, &frame, &stored)?;
            }
            self.sent.add(stored(some))?;
            if self
                .filling
                .as_ref()
                .is_some_and(|pack| pack.size() >= PACK_SIZE)
            {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, id: PackId, frame: &FrameRef, stored: &Stored) -> Result<()> {
        let encrypted = self.to.is_encrypted();
        if self.filling.is_none() {
            self.filling = Some(NewPack::new(self.writing.writer().new_pack()?)?);
        }
        let Some(pack) = &mut self.filling else {
            return Ok(());
        };
        let (new, form) = match stored.0.as_slice() {
            [piece] => {
                let sent = match &piece.content {
                    Content::Whole { .. } => whole(pack, frame, &piece.bytes, encrypted),
                    Content::Thinned(thinned) => {
                        thinned_as(pack, frame, thinned, &piece.bytes, encrypted)
                    }
                };
                sent.map_err(|error| piece.about(frame, error))?
            }
            _ => joined(pack, frame, stored, encrypted)?,
        };
        self.copied.frames = self.copied.frames.saturating_add(1);
        self.copied.bytes = self.copied.bytes.saturating_add(new.stored_length().into());
        self.moves.entry(id).or_default().push(MovedFrame {
            frame: frame.frame,
            offset: new.offset(),
            length: new.stored_length(),
            form,
        });
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let Some(pack) = self.filling.take() else {
            return Ok(());
        };
        let new = pack.id;
        pack.store(&**self.to.storage()).await?;
        for (old, frames) in std::mem::take(&mut self.moves) {
            self.to
                .put_moves(self.writing.writer(), old, new, frames)
                .await?;
        }
        Ok(())
    }
}

/// Appends a whole frame, sealed once more where it must not lie there open.
fn whole(
    pack: &mut NewPack,
    frame: &FrameRef,
    stored: &[u8],
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let known = record(frame)?;
    known.check(stored).map_err(|error| format(frame, error))?;
    if encrypted && !frame.sealed && !stored.is_empty() {
        let sealed = sealed(frame, stored)?;
        let record = resealed(frame, &known, &sealed, true)?;
        return Ok((pack.append(&record, &sealed)?, Form::Wrapped));
    }
    Ok((pack.append(&known, stored)?, Form::Same))
}

/// Appends a thinned frame, sealed or opened if that is how frames are stored there.
fn thinned_as(
    pack: &mut NewPack,
    frame: &FrameRef,
    thinned: &Thinned,
    stored: &[u8],
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
    let known = thinned.record(frame, length)?;
    let seal = !stored.is_empty() && (encrypted || frame.sealed);
    let new = if seal == thinned.sealed {
        known.check(stored).map_err(|error| format(frame, error))?;
        pack.append(&known, stored)?
    } else {
        let cipher = PackCipher::new(&frame.pack.key);
        let opened = known.unseal(
            stored,
            thinned.sealed.then_some(&cipher as &dyn FrameCipher),
        );
        let opened = opened.map_err(|error| format(frame, error))?;
        let bytes = match seal {
            true => sealed(frame, opened.bytes())?,
            false => opened.bytes().to_vec(),
        };
        pack.append(&resealed(frame, &known, &bytes, seal)?, &bytes)?
    };
    let form = Form::Thinned(Thinned {
        sealed: new.is_sealed(),
        digest: *new.digest(),
        ..*thinned
    });
    Ok((new, form))
}

/// Appends what comes in several pieces, as one: of a frame there is one in each pack.
fn joined(
    pack: &mut NewPack,
    frame: &FrameRef,
    stored: &Stored,
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let plain = stored.decode(frame)?;
    let (seal, codec) = (encrypted || frame.sealed, frame.codec);
    let thinned = thin(&frame.pack, frame.frame, codec, seal, plain.side_by_side())?;
    let new = pack.append_sealed(&thinned)?;
    let form = Form::Thinned(Thinned {
        cells: plain.cells(),
        codec: new.codec(),
        sealed: new.is_sealed(),
        digest: *new.digest(),
    });
    Ok((new, form))
}

fn sealed(frame: &FrameRef, bytes: &[u8]) -> Result<Vec<u8>> {
    let cipher = PackCipher::new(&frame.pack.key);
    let sealed = cipher.seal(context(frame), bytes);
    sealed.map_err(|error| format(frame, error))
}

/// The record of the same content in other stored bytes.
fn resealed(
    frame: &FrameRef,
    known: &FrameRecord,
    stored: &[u8],
    sealed: bool,
) -> Result<FrameRecord> {
    let digest = blake3::hash(stored);
    FrameRecord::from_parts(
        context(frame),
        0,
        u32::try_from(stored.len()).unwrap_or(u32::MAX),
        known.plain_length(),
        known.codec(),
        sealed,
        digest.as_bytes().first_chunk().copied().unwrap_or_default(),
    )
    .map_err(|error| format(frame, error))
}

fn format(frame: &FrameRef, error: neon_snapshot_format::Error) -> Error {
    Error::format(subject(frame), error)
}
