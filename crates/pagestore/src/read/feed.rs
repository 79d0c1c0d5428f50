//! A whole snapshot in pieces of work: which part of which file comes next, and the frames it needs, fetched while
//! the piece before it is at work.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use neon_snapshot_format::{SnapshotPath, StartUpRank, Wanted};
use tokio::task::JoinHandle;

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{Cells, Extent, FileKind, FrameRef, MappedFile, Walk};
use crate::read::arrange::arrange;
use crate::read::form::Stored;
use crate::read::frames::FrameReader;
use crate::read::layout::Layout;
use crate::read::memory::Address;
use crate::read::pages::Snapshot;
use crate::read::plain::{Part, Plain, subject};
use crate::read::source::CONTROL;

/// Files, or what is wanted of them, are gathered up to so many bytes when they are told in order. Frames that
/// neighbouring pieces need both may be read for each: the larger, the fewer.
const PIECE: u64 = 32 << 20;
/// Frames of which not all is wanted that are decoded together.
const AT_ONCE: usize = 64;
/// What a file costs beside its bytes.
const FILE: u64 = 4096;
/// Bytes of memory that the map of those files takes that are sorted by frame together: of 2.7 GiB where every
/// page lies alone.
const WINDOW: usize = 96 << 20;
/// Files that are to come whole are brought whole up to this size: all their frames at once.
const HELD: u64 = 16 << 20;
/// Of them, what a wanted part of a file takes.
const PART_HELD: usize = 128;

/// Part of a file.
#[derive(Debug, Clone)]
pub(crate) struct FilePart {
    pub(crate) file: Arc<MappedFile>,
    pub(crate) range: Range<u64>,
}

/// Is told of each file, and what of it will be handed out, before that.
type Announce<'a> = &'a (dyn Fn(&MappedFile, &Wanted) -> Result<()> + Sync);
/// Says what of a file is to be handed out; nothing at all, not even its name, if none.
type Choose<'a> = &'a (dyn Fn(&MappedFile) -> Option<Wanted> + Sync);

/// Hands out a snapshot's files, in the order of their paths or of the frames that they lie in, cut into pieces.
pub(crate) struct Queue<'a> {
    snapshot: Snapshot,
    bridge: Bridge,
    rank: Option<StartUpRank>,
    announce: Option<Announce<'a>>,
    choose: Option<Choose<'a>>,
    by_frame: bool,
    pub(crate) gauge: Arc<Gauge>,
    state: Mutex<State>,
}

impl fmt::Debug for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("snapshot", &self.snapshot)
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    walk: Walk,
    cut: VecDeque<FilePart>,
    arranged: VecDeque<Vec<FilePart>>,
    over: bool,
}

impl<'a> Queue<'a> {
    /// Of all files, or of those of a rank.
    pub(crate) fn new(snapshot: &Snapshot, bridge: &Bridge, rank: Option<StartUpRank>) -> Self {
        let state = State {
            walk: Walk::new(snapshot.view(), false),
            cut: VecDeque::new(),
            arranged: VecDeque::new(),
            over: false,
        };
        Self {
            snapshot: snapshot.clone(),
            bridge: bridge.clone(),
            rank,
            announce: None,
            choose: None,
            by_frame: false,
            gauge: Arc::default(),
            state: Mutex::new(state),
        }
    }

    /// Tells of files before they are handed out.
    pub(crate) fn announcing(mut self, announce: Announce<'a>) -> Self {
        self.announce = Some(announce);
        self
    }

    /// Hands out only some files, or parts of them.
    pub(crate) fn choosing(mut self, choose: Choose<'a>) -> Self {
        self.choose = Some(choose);
        self
    }

    /// Hands out pages by the frames that they lie in, so that each frame is read once: for who takes parts of files in
    /// any order.
    pub(crate) fn by_frame(mut self) -> Self {
        self.by_frame = true;
        self
    }

    /// The next piece of work; none after the last.
    pub(crate) fn next(&self) -> Result<Option<Vec<FilePart>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.by_frame {
            if state.arranged.is_empty() {
                state.arranged = self.window(&mut state)?;
            }
            Ok(state.arranged.pop_front())
        } else {
            self.in_order(&mut state)
        }
    }

    /// The wanted parts of the next file that has any; none after the last.
    fn file(&self, state: &mut State) -> Result<Option<Vec<FilePart>>> {
        while !state.over {
            let next = self
                .snapshot
                .maps()
                .wait(&self.bridge, &mut state.walk)
                .inspect_err(|_| state.over = true)?;
            let Some(file) = next else {
                state.over = true;
                break;
            };
            let FileKind::File { size } = file.attributes.kind else {
                continue;
            };
            if self
                .rank
                .is_some_and(|rank| rank != StartUpRank::of(&file.path))
            {
                continue;
            }
            let wanted = match self.choose {
                Some(choose) => choose(&file),
                None => Some(Wanted::Whole),
            };
            let Some(wanted) = wanted else { continue };
            if let Some(announce) = self.announce {
                announce(&file, &wanted)?;
            }
            let ranges = match wanted {
                Wanted::Whole => std::iter::once(0..size).collect(),
                Wanted::Ranges(ranges) => ranges,
                Wanted::Nothing => Vec::new(),
            };
            if ranges.is_empty() {
                continue;
            }
            // Most files have one extent, and room for four.
            let mut file = file;
            file.extents.shrink_to_fit();
            let file = Arc::new(file);
            let part = |range| FilePart {
                file: Arc::clone(&file),
                range,
            };
            return Ok(Some(ranges.into_iter().map(part).collect()));
        }
        Ok(None)
    }

    /// So many files as may be held, cut by frames.
    fn window(&self, state: &mut State) -> Result<VecDeque<Vec<FilePart>>> {
        let (mut parts, mut held) = (Vec::new(), 0);
        while held < WINDOW {
            let Some(file) = self.file(state)? else { break };
            held += file.len() * PART_HELD;
            held += file.first().map_or(0, |part| held_by(&part.file));
            parts.extend(file);
        }
        arrange(&parts, self.snapshot.view().page_size, |part| {
            is_held_whole(&part.file.path) && part.range.end <= HELD
        })
    }

    fn in_order(&self, state: &mut State) -> Result<Option<Vec<FilePart>>> {
        let mut parts = Vec::new();
        let mut weight = 0;
        while weight < PIECE {
            let part = match state.cut.pop_front() {
                Some(part) => part,
                None => match self.file(state)? {
                    Some(file) => {
                        state.cut.extend(file);
                        continue;
                    }
                    None => break,
                },
            };
            let length = part.range.end - part.range.start;
            if length < 2 * PIECE {
                weight += length + FILE;
                parts.push(part);
                continue;
            }
            // A large file is cut, and makes up pieces of its own.
            let at = part.range.start + PIECE;
            let file = Arc::clone(&part.file);
            let rest = at..part.range.end;
            state.cut.push_front(FilePart {
                file: part.file,
                range: rest,
            });
            let range = part.range.start..at;
            parts.push(FilePart { file, range });
            break;
        }
        Ok((!parts.is_empty()).then_some(parts))
    }
}

/// Bytes of memory that the map of a file takes, with what is made of it to sort it.
fn held_by(file: &MappedFile) -> usize {
    let sorted = 176;
    let itself = 64 + size_of::<MappedFile>() + file.path.as_bytes().len();
    itself + file.extents.capacity() * size_of::<Extent>() + file.extents.len().max(1) * sorted
}

/// Files that those who write data directories hold until the end, and take in one part only. What is larger than they hold
/// ([`HELD`]) comes in parts all the same: they refuse it whatever comes of it.
pub(crate) fn is_held_whole(path: &SnapshotPath) -> bool {
    [CONTROL, b"tablespace_map"].contains(&path.as_bytes())
}

/// Most bytes of frames that were held at once.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    now: AtomicU64,
    most: AtomicU64,
}

impl Gauge {
    fn add(&self, bytes: usize) {
        let before = self.now.fetch_add(bytes as u64, Ordering::Relaxed);
        self.most
            .fetch_max(before + bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// Frames of one piece of work.
#[derive(Debug)]
pub(crate) struct Fetched {
    frames: HashMap<Address, Frame>,
    /// Plain bytes that were asked for.
    pub(crate) live: u64,
    held: usize,
    gauge: Arc<Gauge>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.gauge
            .now
            .fetch_sub(self.held as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Frame {
    Plain(Plain),
    Stored(Stored),
    /// Only what is wanted of it, by where that begins.
    Parts(BTreeMap<u64, Bytes>),
}

impl Fetched {
    /// Some bytes of a frame, which is decoded when first asked for.
    pub(crate) fn get(&mut self, frame: &FrameRef, range: Range<u64>) -> Result<Bytes> {
        let entry = self.frames.get_mut(&frame.id());
        let entry = entry.ok_or_else(|| Error::damaged(subject(frame), "was not brought"))?;
        if let Frame::Stored(stored) = entry {
            let plain = stored.decode_shared(frame)?;
            // The stored bytes remain as long as others of their request do.
            let length = plain.memory();
            *entry = Frame::Plain(plain);
            self.held += length;
            self.gauge.add(length);
        }
        let found = match entry {
            Frame::Plain(plain) => return plain.range(frame, &range),
            Frame::Stored(_) => None,
            Frame::Parts(parts) => {
                let before = parts.range(..=range.start).next_back();
                before.and_then(|(start, bytes)| {
                    cut(
                        bytes,
                        &(range.start - start..range.end.checked_sub(*start)?),
                    )
                })
            }
        };
        let beyond = "the map leads beyond the end of a frame";
        found.ok_or_else(|| Error::malformed(subject(frame), beyond))
    }
}

fn cut(bytes: &Bytes, range: &Range<u64>) -> Option<Bytes> {
    let from = usize::try_from(range.start).ok()?;
    let to = usize::try_from(range.end).ok()?;
    (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
}

/// Fetches what parts need. Frames of which these parts use all, or that are needed `once`, go past the memory. The
/// others will be asked for again by neighbours; of them only what is wanted is held, so that it does not matter how many
/// they are.
async fn fetch(
    frames: FrameReader,
    wanted: Vec<(FrameRef, Range<u64>)>,
    once: bool,
    gauge: Arc<Gauge>,
) -> Result<Fetched> {
    let mut used: HashMap<Address, (FrameRef, Vec<Range<u64>>)> = HashMap::new();
    for (frame, range) in wanted {
        let of = used.entry(frame.id());
        of.or_insert((frame, Vec::new())).1.push(range);
    }
    let length = |range: &Range<u64>| range.end - range.start;
    let live = used.values().flat_map(|(_, used)| used).map(length).sum();
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for (frame, used) in used.into_values() {
        let bytes: u64 = used.iter().map(length).sum();
        let cells = used.iter().map(|range| Part::of(&frame, range).cells);
        let cells = cells.fold(Cells::NONE, Cells::and);
        let part = Part { frame, cells };
        if once || bytes >= u64::from(frame.plain_length) {
            all.push(part);
        } else {
            some.push((part, used));
        }
    }
    some.sort_by_key(|(part, _)| (part.frame.pack.id, part.frame.offset));
    let mut fetched = Fetched {
        frames: HashMap::new(),
        live,
        held: 0,
        gauge,
    };
    for (frame, stored) in frames.stored(&all).await? {
        fetched.hold(stored.bytes());
        fetched.frames.insert(frame.id(), Frame::Stored(stored));
    }
    for together in some.chunks(AT_ONCE) {
        let wanted: Vec<Part> = together.iter().map(|(part, _)| *part).collect();
        let plain = frames.parts(&wanted).await?;
        for ((Part { frame, .. }, used), plain) in together.iter().zip(plain) {
            let mut parts = BTreeMap::new();
            for range in used {
                // What lies beyond the end is missed when it is asked for.
                let Ok(bytes) = plain.range(frame, range) else {
                    continue;
                };
                let bytes = Bytes::copy_from_slice(&bytes);
                fetched.hold(bytes.len());
                parts.insert(range.start, bytes);
            }
            fetched.frames.insert(frame.id(), Frame::Parts(parts));
        }
    }
    Ok(fetched)
}

impl Fetched {
    fn hold(&mut self, bytes: usize) {
        self.held += bytes;
        self.gauge.add(bytes);
    }
}

/// Pieces of work with their frames, one of them fetched ahead.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    queue: &'a Queue<'a>,
    ahead: Option<(Vec<FilePart>, Fetching)>,
}

/// Stops fetching when nobody waits for it.
#[derive(Debug)]
struct Fetching(JoinHandle<Result<Fetched>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<'a> Feed<'a> {
    pub(crate) fn new(queue: &'a Queue<'a>) -> Self {
        Self { queue, ahead: None }
    }

    fn begin(&self) -> Result<Option<(Vec<FilePart>, Fetching)>> {
        let Some(parts) = self.queue.next()? else {
            return Ok(None);
        };
        let page_size = self.queue.snapshot.view().page_size;
        let mut wanted = Vec::new();
        for part in &parts {
            wanted.extend(Layout::new(&part.file, page_size).frames(&part.range)?);
        }
        let frames = self.queue.snapshot.maps().frames().clone();
        let gauge = Arc::clone(&self.queue.gauge);
        let fetch = fetch(frames, wanted, self.queue.by_frame, gauge);
        let task = self.queue.bridge.spawn(fetch);
        Ok(Some((parts, Fetching(task))))
    }

    /// The next piece of work; none after the last.
    pub(crate) fn next(&mut self) -> Result<Option<(Vec<FilePart>, Fetched)>> {
        let now = match self.ahead.take() {
            Some(begun) => Some(begun),
            None => self.begin()?,
        };
        let Some((parts, mut fetching)) = now else {
            return Ok(None);
        };
        self.ahead = self.begin()?;
        let fetched = self.queue.bridge.wait(&mut fetching.0).map_err(|error| {
            Error::new(ErrorKind::Storage, "reading of frames", "was stopped").caused_by(error)
        })??;
        Ok(Some((parts, fetched)))
    }
}
