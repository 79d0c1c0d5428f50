//! Copies of snapshots between repositories.
//!
//! The commit is copied as it is, so the id stays. Packs that are mostly needed travel whole, under their ids, some of them at
//! a time; of others the needed frames go into new packs, with a note where they are. Into an encrypted repository frames that are not
//! sealed are sealed on the way, with the key that the map has for their pack. What is there is not sent again, also
//! after a copy that did not come to its end.
//!
//! What is there, and what is needed, is counted in cells of frames: here and there frames may have been thinned to what the
//! snapshots of either side show. A frame that is there without a needed cell comes again, in the form that it has here, and
//! is a further home of its cells there. It takes nothing away from those that are there: each cell is looked for in all.
//!
//! Ten bytes are kept in mind of every needed frame, and the number of each that is missing there of a pack of which others
//! are there, alone. All that the map says is kept only of some of those that travel alone: for the next ones the map is
//! read again.

mod resealed;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;
use tokio::task::JoinSet;

use crate::claim::NameOutcome;
use crate::copy::resealed::{joined, thinned_as, whole};
use crate::error::{Error, ErrorKind, Result};
use crate::gc::{list_packs, run};
use crate::id::CommitId;
use crate::keys;
use crate::map::{Cells, FrameRef, LiveFrames, MapFrame, View, Walk};
use crate::moves::MovedFrame;
use crate::name::SnapshotName;
use crate::pack_file::{Failure, NewPack};
use crate::read::form::{Content, Stored};
use crate::read::{FrameReader, Part};
use crate::repository::{Repository, create_from};
use crate::writing::Writing;

/// How large new packs grow.
const PACK_SIZE: u64 = 64 << 20;
/// From so many packs on that are not there, moves are listed once.
const LIST_FROM: usize = 16;
/// Frames that are read together.
const BATCH: usize = 128;
/// Packs that travel at the same time, each in pieces of some MiB.
const PACKS_AT_ONCE: usize = 4;
/// New packs that are being stored while the next one is filled, each of some 64 MiB in memory.
const STORED_AT_ONCE: usize = 2;
/// Of so many frames that travel alone, and of those of a pack more, it is kept in mind at once what the map says: some 100 MB.
const FRAMES_AT_ONCE: u64 = 500_000;

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

/// What the map says of frames of packs, by number.
type Parts = HashMap<PackId, BTreeMap<u64, Part>>;

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
        let view = commit.view()?;
        let mut needed = LiveFrames::default();
        each_needed(&reader, &view, |frame, cells| {
            needed.insert_cells(frame, cells);
        })
        .await?;
        let writing = other.begin_writing().await?;
        let mut copy = Copy {
            from: self,
            to: other,
            writing: &writing,
            reader,
            view,
            filling: None,
            moves: BTreeMap::new(),
            storing: JoinSet::new(),
            sent: Arc::new(Sent {
                watch,
                done: Mutex::new(0),
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
        let copied = match copy.packs(&needed).await {
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

/// Tells what a view needs of frames, its own map included; of the same frame perhaps several times.
async fn each_needed(
    reader: &FrameReader,
    view: &View,
    mut need: impl FnMut(&FrameRef, Cells),
) -> Result<()> {
    for (_, frame) in view.runs.iter().flat_map(|run| run.index_frames()) {
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
    Ok(())
}

struct Copy<'a> {
    from: &'a Repository,
    to: &'a Repository,
    writing: &'a Writing,
    reader: FrameReader,
    view: View,
    filling: Option<NewPack>,
    moves: BTreeMap<PackId, Vec<MovedFrame>>,
    /// New packs on their way.
    storing: JoinSet<Result<()>>,
    sent: Arc<Sent>,
    copied: Copied,
}

/// What was sent.
struct Sent {
    watch: Watch,
    done: Mutex<u64>,
    total: AtomicU64,
}

impl Sent {
    /// So much more. Told in order, however many packs are under way.
    fn add(&self, bytes: u64) -> Result<()> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = done.saturating_add(bytes);
        let total = self.total.load(Ordering::Relaxed);
        (self.watch)(CopyProgress {
            done: total.min(*done),
            total,
        })
    }
}

/// What of the needed frames of a pack is to be sent.
enum Sending {
    /// All of the pack; these, or all that are needed, are missing.
    Whole { missing: Option<BTreeSet<u64>> },
    /// All of them.
    Frames,
    /// Those of them.
    Some(BTreeSet<u64>),
}

impl Sending {
    /// Whether this frame is.
    fn has(&self, frame: u64) -> bool {
        match self {
            Self::Whole { missing: None } | Self::Frames => true,
            Self::Whole {
                missing: Some(frames),
            }
            | Self::Some(frames) => frames.contains(&frame),
        }
    }
}

/// What came of a pack that was to travel whole.
enum Whole {
    Sent,
    /// It is not at the source any more.
    Gone,
}

/// What is to be sent of packs, and how many frames and bytes that is.
struct Planned {
    id: PackId,
    sending: Sending,
    frames: u64,
    bytes: u64,
}

impl Planned {
    /// What the map says of its frames when it is read again: of each that was counted.
    fn all_of(&self, parts: &Parts) -> Result<Vec<Part>> {
        let found = parts.get(&self.id).map_or(0, BTreeMap::len);
        if found as u64 != self.frames {
            let reason = format!(
                "{} of its frames are to be sent, and the map that is read again has {found}",
                self.frames
            );
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("pack {}", self.id),
                reason,
            ));
        }
        let parts = parts.get(&self.id).into_iter().flat_map(BTreeMap::values);
        Ok(parts.copied().collect())
    }
}

impl Copy<'_> {
    async fn packs(&mut self, needed: &LiveFrames) -> Result<()> {
        let plan = self.plan(needed).await?;
        let total = plan.iter().map(|planned| planned.bytes);
        self.sent
            .total
            .store(total.fold(0, u64::saturating_add), Ordering::Relaxed);
        self.sent.add(0)?;
        let (whole, mut some): (Vec<_>, Vec<_>) = plan
            .into_iter()
            .partition(|planned| matches!(planned.sending, Sending::Whole { .. }));
        {
            let this = &*self;
            let mut whole = stream::iter(whole)
                .map(|planned| async move {
                    Ok::<_, Error>(match this.whole(planned.id, planned.bytes).await? {
                        Whole::Sent => (planned.bytes, None),
                        // A collection has rewritten it since packs were listed: it lies elsewhere by now.
                        Whole::Gone => (0, Some(planned)),
                    })
                })
                .buffer_unordered(PACKS_AT_ONCE);
            let (mut packs, mut bytes) = (0_u64, 0_u64);
            while let Some((sent, elsewhere)) = whole.try_next().await? {
                match elsewhere {
                    Some(planned) => some.push(planned),
                    None => packs = packs.saturating_add(1),
                }
                bytes = bytes.saturating_add(sent);
            }
            drop(whole);
            self.copied.packs_whole = packs;
            self.copied.bytes = bytes;
        }
        let mut rest = some.as_slice();
        while !rest.is_empty() {
            let mut sum = 0_u64;
            let fits = rest.iter().take_while(|planned| {
                let fits = sum < FRAMES_AT_ONCE;
                sum = sum.saturating_add(planned.frames);
                fits
            });
            let (now, later) = rest.split_at_checked(fits.count()).unwrap_or((rest, &[]));
            rest = later;
            let parts = self.parts(now).await?;
            for planned in now {
                self.frames(planned.id, &planned.all_of(&parts)?).await?;
            }
        }
        self.flush().await?;
        self.settle(0).await
    }

    /// What the map says of the frames of these packs that are to be sent.
    async fn parts(&self, packs: &[Planned]) -> Result<Parts> {
        let packs: HashMap<PackId, &Sending> = packs
            .iter()
            .map(|planned| (planned.id, &planned.sending))
            .collect();
        let mut parts = Parts::new();
        each_needed(&self.reader, &self.view, |frame, cells| {
            let id = frame.pack.id;
            if packs
                .get(&id)
                .is_some_and(|sending| sending.has(frame.frame))
            {
                let part = Part {
                    frame: *frame,
                    cells,
                };
                let of_pack = parts.entry(id).or_default();
                let known = of_pack.entry(frame.frame).or_insert(part);
                known.cells = known.cells.and(cells);
            }
        })
        .await?;
        Ok(parts)
    }

    /// What is to be sent, pack by pack.
    async fn plan(&mut self, needed: &LiveFrames) -> Result<Vec<Planned>> {
        let mut ids: Vec<PackId> = needed.packs().map(|(id, ..)| id).collect();
        ids.sort_unstable();
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
        for id in ids {
            if there.contains(&id) {
                continue;
            }
            let missing = match &moved {
                Some(moved) if !moved.contains(&id) => None,
                _ => self.not_moved_there(id, needed).await?,
            };
            let all = needed.frames(id);
            let is_missing = |frame: u64| match &missing {
                None => true,
                Some(missing) => missing.contains(&frame),
            };
            let (mut frames, mut bytes, mut open) = (0_u64, 0_u64, false);
            let mut some_there = false;
            for live in all {
                open |= !live.sealed && live.stored_length > 0;
                some_there |= !is_missing(live.frame);
                if is_missing(live.frame) {
                    frames = frames.saturating_add(1);
                    bytes = bytes.saturating_add(live.stored_length.into());
                }
            }
            if frames == 0 {
                self.copied.packs_there = self.copied.packs_there.saturating_add(1);
                continue;
            }
            let missing = missing.filter(|_| some_there);
            let wrap = self.to.is_encrypted() && open;
            let sending = match sizes.get(&id) {
                Some(size) if absent.contains(&id) && !wrap && bytes.saturating_mul(2) >= *size => {
                    bytes = *size;
                    Sending::Whole { missing }
                }
                _ => missing.map_or(Sending::Frames, Sending::Some),
            };
            plan.push(Planned {
                id,
                sending,
                frames,
                bytes,
            });
        }
        Ok(plan)
    }

    /// The frames of a pack of which not all that is needed is in other packs there, ones that stay; none said when it is all.
    async fn not_moved_there(
        &self,
        id: PackId,
        needed: &LiveFrames,
    ) -> Result<Option<BTreeSet<u64>>> {
        let pieces = self.to.moves_of(id).await?;
        if pieces.is_empty() {
            return Ok(None);
        }
        let new: Vec<PackId> = pieces.iter().map(|piece| piece.new).collect();
        let stay: HashSet<PackId> = self.writing.bring(&new).await?.there.into_iter().collect();
        let there = |frame: u64, whole: Cells| {
            let pieces = pieces.iter().filter(|piece| stay.contains(&piece.new));
            let moved = pieces.filter_map(|piece| piece.find(frame));
            let cells = moved.map(|moved| moved.form.cells(whole));
            cells.fold(Cells::NONE, Cells::and)
        };
        let missing = needed
            .frames(id)
            .filter(|live| !there(live.frame, live.whole).contains(live.cells));
        Ok(Some(missing.map(|live| live.frame).collect()))
    }

    /// A pack as it is, each of its frames checked on the way.
    async fn whole(&self, id: PackId, size: u64) -> Result<Whole> {
        let file = match self.from.pack_file(id, size).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Whole::Gone),
            file => file?,
        };
        let (sent, told) = (Arc::clone(&self.sent), Arc::new(AtomicU64::new(0)));
        // Read once more after a failure, it is told once.
        let passed = move |end: u64| {
            let before = told.fetch_max(end, Ordering::Relaxed);
            sent.add(end.saturating_sub(before))
        };
        let passed = Arc::new(passed);
        let (body, failed) = self.from.pack_body(file, size, Arc::clone(&passed) as _);
        match create_from(&**self.to.storage(), &keys::pack(id)?, body).await {
            Ok(_) => {}
            // Somebody else copies the same.
            Err(error) if error.kind() == ErrorKind::Exists => {}
            // What the other storage does not find, or who watches, says nothing of the pack.
            Err(error) => match failed.take() {
                Some(Failure::Read(error)) if error.kind() == ErrorKind::NotFound => {
                    return Ok(Whole::Gone);
                }
                failure => return Err(failure.map_or(error, Failure::into_error)),
            },
        }
        passed(size).map(|()| Whole::Sent)
    }

    /// Some frames of a pack, into a new one.
    async fn frames(&mut self, id: PackId, frames: &[Part]) -> Result<()> {
        // As many as a request takes many times over, and memory easily.
        for some in frames.chunks(BATCH) {
            for (frame, stored) in self.reader.stored(some).await? {
                self.frame(id, &frame, &stored)?;
            }
            let bytes = some.iter().map(|part| u64::from(part.frame.stored_length));
            self.sent.add(bytes.fold(0, u64::saturating_add))?;
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

    /// Sends the pack that is being filled on its way.
    async fn flush(&mut self) -> Result<()> {
        let Some(pack) = self.filling.take() else {
            return Ok(());
        };
        let moves = std::mem::take(&mut self.moves);
        self.settle(STORED_AT_ONCE - 1).await?;
        let (to, writer) = (self.to.clone(), self.writing.writer());
        self.storing.spawn(async move {
            let new = pack.id;
            pack.store(&**to.storage()).await?;
            for (old, frames) in moves {
                to.put_moves(writer, old, new, frames).await?;
            }
            Ok(())
        });
        Ok(())
    }

    /// Waits until no more than so many new packs are on their way.
    async fn settle(&mut self, most: usize) -> Result<()> {
        while self.storing.len() > most {
            match self.storing.join_next().await {
                None => break,
                Some(Ok(stored)) => stored?,
                Some(Err(error)) => {
                    let reason = "the task that stored it failed";
                    return Err(Error::new(ErrorKind::Storage, "pack", reason).caused_by(error));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::DataKey;
    use crate::map::PackRef;

    #[test]
    fn what_the_map_has_not_when_it_is_read_again_is_not_passed_over() {
        let id = PackId([1; 16]);
        let planned = |frames| Planned {
            id,
            sending: Sending::Frames,
            frames,
            bytes: 100,
        };
        let refused = |planned: &Planned, parts: &Parts| {
            let refused = planned.all_of(parts).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Inconsistent);
            assert!(refused.subject().contains(&id.to_string()), "{refused}");
        };
        refused(&planned(1), &Parts::new());
        let frame = FrameRef {
            pack: PackRef {
                id,
                key: DataKey([0; 32]),
            },
            frame: 3,
            offset: 64,
            stored_length: 100,
            plain_length: 8192,
            codec: 1,
            sealed: false,
            digest: [0; 16],
        };
        let part = Part {
            frame,
            cells: frame.whole(),
        };
        let parts = Parts::from([(id, BTreeMap::from([(3, part)]))]);
        refused(&planned(2), &parts);
        assert_eq!(planned(1).all_of(&parts).unwrap().len(), 1);
    }
}
