//! One of the threads that write a snapshot: pages in, frames out.

use std::ops::Range;

use neon_snapshot_format::pack::FRAME_SIZE;
use neon_snapshot_format::{Chunk, ChunkData, Entry, ExtentSink};

use crate::error::{Error, ErrorKind, Result};
use crate::map::{At, PageDigest};
use crate::write::bundle::{Bundle, OpenPart, Place, Run};
use crate::write::gather::Buffer;
use crate::write::known::{KnownFile, KnownPages};
use crate::write::packs::Packs;
use crate::write::part::{PART, put_part};
use crate::write::snapshot::{Counted, SnapshotWriter, passed};

/// What comes at once and is no larger shares a frame with others.
const SHARES: usize = 32 << 10;
/// A part is listed, and another begun, when it has this many runs or pages.
const PART_RUNS: usize = 1024;
const PART_PAGES: usize = 64 << 10;

/// What a worker leaves for the next.
#[derive(Debug)]
pub(crate) struct State {
    packs: Packs,
    bundle: Bundle,
    buffer: Buffer,
    /// The pages of a chunk that are not zero.
    dense: Vec<u8>,
}

impl State {
    pub(crate) fn new(writer: &SnapshotWriter) -> Self {
        Self {
            packs: Packs::new(writer.target.clone(), writer.options.codec),
            bundle: Bundle::default(),
            buffer: Buffer::default(),
            dense: Vec::new(),
        }
    }

    /// Makes everything durable; returns how many bytes were stored.
    pub(crate) fn finish(mut self, writer: &SnapshotWriter) -> Result<u64> {
        self.write_bundle(writer, None)?;
        self.packs.finish()?;
        writer.gathering.put_aside(&mut self.buffer)?;
        Ok(self.packs.written().0)
    }

    fn write_bundle(
        &mut self,
        writer: &SnapshotWriter,
        current: Option<&mut OpenPart>,
    ) -> Result<()> {
        for part in self.bundle.write(&mut self.packs, current)? {
            self.list(writer, &part)?;
        }
        Ok(())
    }

    fn list(&mut self, writer: &SnapshotWriter, part: &OpenPart) -> Result<()> {
        if part.runs.is_empty() {
            return Ok(());
        }
        let mut content = Vec::new();
        put_part(&mut content, &part.part());
        let order = PART | u64::from(part.first);
        writer
            .gathering
            .add(&mut self.buffer, &part.path, order, &content)
    }

    fn complete(&mut self, writer: &SnapshotWriter, part: OpenPart) -> Result<()> {
        if let Some(part) = self.bundle.wait(part) {
            self.list(writer, &part)?;
        }
        if !self.bundle.has_room(1) {
            self.write_bundle(writer, None)?;
        }
        Ok(())
    }
}

/// Takes parts of files in one thread.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    writer: &'a SnapshotWriter,
    state: Option<State>,
    current: Option<Current>,
    /// What the parent has of the file that was begun last.
    known: Option<KnownFile>,
}

#[derive(Debug)]
struct Current {
    subject: String,
    part: OpenPart,
    next: u64,
    end: u64,
    size: u64,
    known: Option<KnownPages>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(writer: &'a SnapshotWriter, state: State) -> Self {
        Self {
            writer,
            state: Some(state),
            current: None,
            known: None,
        }
    }

    fn start(&mut self, entry: &Entry, range: &Range<u64>) -> Result<()> {
        self.writer.check_cancelled()?;
        let subject = entry.path.to_string();
        let wrong = |reason| Err(Error::new(ErrorKind::Inconsistent, subject.clone(), reason));
        if self.current.is_some() || !entry.is_file() {
            return wrong("not a file, or inside another one");
        }
        if range.start > range.end || range.end > entry.size() {
            return wrong("a part that lies outside of the file");
        }
        let part = OpenPart {
            path: entry.path.as_bytes().to_vec(),
            first: self.page(&subject, range.start)?,
            ..OpenPart::default()
        };
        let known = self.writer.known_pages(entry, range, &mut self.known)?;
        self.current = Some(Current {
            subject,
            known,
            part,
            next: range.start,
            end: range.end,
            size: entry.size(),
        });
        Ok(())
    }

    /// The page that begins here.
    fn page(&self, subject: &str, offset: u64) -> Result<u32> {
        let page_size = self.writer.page_size();
        if !offset.is_multiple_of(page_size) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                subject,
                "a part that does not begin with a page",
            ));
        }
        u32::try_from(offset / page_size)
            .map_err(|_| Error::new(ErrorKind::Limit, subject, "has more pages than a map holds"))
    }

    fn take(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.writer.check_cancelled()?;
        let (Some(current), Some(state)) = (&mut self.current, &mut self.state) else {
            return Err(no_file());
        };
        let end = chunk.offset.saturating_add(chunk.len());
        let whole_pages = end.is_multiple_of(self.writer.page_size()) || end == current.size;
        if chunk.offset != current.next || end > current.end || !whole_pages {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                current.subject.clone(),
                "data that does not fit the file",
            ));
        }
        current.next = end;
        Counted::add(&self.writer.counted.received, chunk.len());
        let page_size = self.writer.page_size();
        let limit = |_| {
            Error::new(
                ErrorKind::Limit,
                current.subject.clone(),
                "has more pages than a map holds",
            )
        };
        let first = u32::try_from(chunk.offset / page_size).map_err(limit)?;
        u32::try_from(end.div_ceil(page_size)).map_err(limit)?;
        match chunk.data {
            ChunkData::Zeros(0) => {}
            ChunkData::Zeros(length) => {
                let count = u32::try_from(length.div_ceil(page_size)).unwrap_or(u32::MAX);
                let known = current.known.as_ref();
                let page_size = self.writer.options.page_size;
                if known.is_none_or(|known| known.has_none_in(first, count)) {
                    Counted::add(&self.writer.counted.zero_pages, count.into());
                    let place = Place::Known(At::Zeros);
                    let page = first;
                    current.part.push(Run { page, count, place }, page_size);
                } else {
                    for page in first..first.saturating_add(count) {
                        let same = known.is_some_and(|known| known.is(page, None));
                        Counted::add(&self.writer.counted.zero_pages, (!same).into());
                        let place = if same {
                            Place::Parent
                        } else {
                            Place::Known(At::Zeros)
                        };
                        let count = 1;
                        current.part.push(Run { page, count, place }, page_size);
                    }
                }
            }
            ChunkData::Bytes(bytes) => {
                for (piece, bytes) in (0..).zip(bytes.chunks(FRAME_SIZE)) {
                    let pages = u32::try_from(FRAME_SIZE as u64 / page_size).unwrap_or(1);
                    let page = first.saturating_add(pages.saturating_mul(piece));
                    let known = current.known.as_ref();
                    pages_of(self.writer, state, &mut current.part, known, page, bytes)?;
                }
            }
        }
        let part = &current.part;
        if part.runs.len() >= PART_RUNS || part.digests.len() >= PART_PAGES {
            let next = OpenPart {
                path: part.path.clone(),
                first: u32::try_from(end.div_ceil(page_size)).unwrap_or(u32::MAX),
                ..OpenPart::default()
            };
            let full = std::mem::replace(&mut current.part, next);
            state.complete(self.writer, full)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let (Some(current), Some(state)) = (self.current.take(), &mut self.state) else {
            return Err(no_file());
        };
        if current.next != current.end {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                current.subject,
                "less data than the file has",
            ));
        }
        state.complete(self.writer, current.part)
    }
}

fn no_file() -> Error {
    Error::new(
        ErrorKind::Inconsistent,
        "snapshot stream",
        "data without a file",
    )
}

/// What a page is.
#[derive(Debug, Clone, Copy)]
enum Content {
    Zero,
    /// What the parent has.
    Same,
    New(PageDigest),
}

/// Stores up to a frame's worth of neighbouring pages.
fn pages_of(
    writer: &SnapshotWriter,
    state: &mut State,
    part: &mut OpenPart,
    known: Option<&KnownPages>,
    first: u32,
    bytes: &[u8],
) -> Result<()> {
    let page_size = writer.options.page_size;
    let size = page_size as usize;
    let contents: Vec<Content> = (first..)
        .zip(bytes.chunks(size))
        .map(|(page, bytes)| {
            let digest = digest(bytes);
            match digest {
                _ if known.is_some_and(|known| known.is(page, digest)) => Content::Same,
                None => Content::Zero,
                Some(digest) => Content::New(digest),
            }
        })
        .collect();
    let mut new = 0;
    for content in &contents {
        match content {
            Content::Zero => Counted::add(&writer.counted.zero_pages, 1),
            Content::Same => Counted::add(&writer.counted.same_pages, 1),
            Content::New(digest) => {
                part.digests.push(*digest);
                new += 1;
            }
        }
    }
    Counted::add(&writer.counted.pages, new as u64);
    let frame = if bytes.len() > SHARES && new * size > SHARES {
        let plain = if new == contents.len() {
            bytes
        } else {
            state.dense.clear();
            for (content, page) in contents.iter().zip(bytes.chunks(size)) {
                if matches!(content, Content::New(_)) {
                    state.dense.extend_from_slice(page);
                }
            }
            &state.dense
        };
        Some(state.packs.append(plain)?)
    } else {
        None
    };
    let mut offset = 0;
    for ((page, content), bytes) in (first..).zip(&contents).zip(bytes.chunks(size)) {
        let place = match (content, frame) {
            (Content::Zero, _) => Place::Known(At::Zeros),
            (Content::Same, _) => Place::Parent,
            (Content::New(_), Some(frame)) => {
                let at = At::Frame { frame, offset };
                offset = offset.saturating_add(page_size);
                Place::Known(at)
            }
            (Content::New(_), None) => {
                if !state.bundle.has_room(bytes.len()) {
                    state.write_bundle(writer, Some(part))?;
                }
                state.bundle.add(bytes)
            }
        };
        let run = Run {
            page,
            count: 1,
            place,
        };
        part.push(run, page_size);
    }
    Ok(())
}

/// The digest of a page; none for one that is zero.
pub(crate) fn digest(page: &[u8]) -> Option<PageDigest> {
    let (blocks, rest) = page.as_chunks::<64>();
    let zero = blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0);
    if zero {
        return None;
    }
    blake3::hash(page).as_bytes().first_chunk().copied()
}

impl ExtentSink for Worker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> neon_snapshot_format::Result<()> {
        self.start(entry, &range).map_err(passed)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> neon_snapshot_format::Result<()> {
        self.take(chunk).map_err(passed)
    }

    fn commit(&mut self) -> neon_snapshot_format::Result<()> {
        self.stop().map_err(passed)
    }

    fn finish(&mut self) -> neon_snapshot_format::Result<()> {
        if let Some(state) = self.state.take() {
            self.writer.give_back(state);
        }
        Ok(())
    }
}
