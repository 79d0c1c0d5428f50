//! Unpacking a `.neon` file: neighbouring frames fetched together, decoded by several threads.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::extents::{Cutter, DEFAULT_EXTENT, Piece};
use crate::pack::entry::Place;
use crate::pack::frame::{FRAME_SIZE, ZEROS};
use crate::pack::neon_read::{NeonFile, ReadRange, piece_of, short};
use crate::stream::{
    Chunk, ChunkData, Entry, ExtentSink, ParallelSink, Sink, Source, Wanted, is_zero,
};
use crate::threads::Queue;

/// How much is fetched at once where neighbouring frames are wanted.
const FETCH: u64 = 4 << 20;

type Placed = (Entry, Place);

impl<R: ReadRange> NeonFile<R> {
    /// Sends everything with several threads, in the order in which the frames lie in the file: what a
    /// server needs to start comes first. Each thread reads ranges of a few mebibytes for itself.
    ///
    /// Memory: the list of files, and some ten mebibytes per thread.
    ///
    /// # Errors
    /// As [`FrameRecord::decode`](crate::pack::FrameRecord::decode), and what the sink returns; the first
    /// error of any thread ends all.
    pub fn send_parallel(&self, sink: &dyn ParallelSink, threads: usize) -> Result<()> {
        let (others, mut files) = self.listed()?;
        for entry in &others {
            sink.entry(entry)?;
        }
        // Files without content have no place; they are made last.
        files.sort_by_key(|(_, place)| match *place {
            Place::Nothing => (u64::MAX, u32::MAX),
            Place::Shared { frame, offset } => (frame, offset),
            Place::Own { first } => (first, 0),
        });
        let mut cutter = Cutter::new(DEFAULT_EXTENT);
        for (index, (entry, _)) in files.iter().enumerate() {
            sink.file(entry, &Wanted::Whole)?;
            cutter.add(index, entry, Wanted::Whole);
        }
        let queue = Queue::new(cutter.finish());
        queue.run(threads, || {
            let mut worker = sink.worker()?;
            while let Some(pieces) = queue.next() {
                let mut frames = Frames::of(self, &files, pieces);
                for piece in pieces {
                    if let Some(placed) = files.get(piece.file) {
                        send_piece(&mut frames, placed, piece, &mut *worker)?;
                    }
                }
            }
            worker.finish()
        })?;
        sink.end(self.snapshot())
    }

    /// The whole list: directories and tablespaces, then files. What no writer lists is refused here, so
    /// that a size costs no more than the frames it claims.
    fn listed(&self) -> Result<(Vec<Entry>, Vec<Placed>)> {
        let (mut others, mut files): (Vec<Entry>, Vec<Placed>) = (Vec::new(), Vec::new());
        let mut last = None;
        for page in 0..self.entry_pages() {
            for (entry, place) in self.page(page)? {
                if last.as_ref().is_some_and(|last| *last >= entry.path) {
                    return Err(Error::malformed("file list of a pack", "is out of order"));
                }
                last = Some(entry.path.clone());
                if entry.is_file() {
                    self.check_place(&entry, place)?;
                    files.push((entry, place));
                } else {
                    others.push(entry);
                }
            }
        }
        Ok((others, files))
    }

    fn check_place(&self, entry: &Entry, place: Place) -> Result<()> {
        let end = match place {
            Place::Nothing => return Ok(()),
            Place::Shared { frame, offset } => {
                let fits = entry.size() + u64::from(offset) <= FRAME_SIZE as u64;
                fits.then_some(frame.saturating_add(1))
            }
            Place::Own { first } => first.checked_add(entry.size().div_ceil(FRAME_SIZE as u64)),
        };
        match end {
            Some(end) if end <= self.index().frame_count() => Ok(()),
            _ => Err(short(entry)),
        }
    }
}

impl<R: ReadRange> Source for NeonFile<R> {
    /// Directories first, then files in the order of their paths.
    fn send(&mut self, sink: &mut dyn Sink) -> Result<()> {
        for files in [false, true] {
            for page in 0..self.entry_pages() {
                for placed in self.page(page)? {
                    match (files, placed.0.is_file()) {
                        (true, true) => self.send_file(&placed, sink)?,
                        (false, false) => sink.entry(&placed.0)?,
                        _ => {}
                    }
                }
            }
        }
        sink.end(self.snapshot())
    }
}

impl<R: ReadRange> NeonFile<R> {
    fn send_file(&self, placed: &Placed, sink: &mut dyn Sink) -> Result<()> {
        let (entry, place) = placed;
        sink.entry(entry)?;
        if let Place::Shared { .. } = place {
            // By path, the neighbours in its frame come at other times: decoded frames are kept.
            let (frame, start, stop) = piece_of(entry, *place, 0, entry.size())?;
            let content = self.frame(frame)?;
            let part = content.get(start..stop).ok_or_else(|| short(entry))?;
            let data = data_of(part);
            return sink.chunk(&Chunk { offset: 0, data });
        }
        let whole = 0..entry.size();
        let piece = Piece::whole(0, whole.clone());
        let files = std::slice::from_ref(placed);
        let mut frames = Frames::of(self, files, std::slice::from_ref(&piece));
        frames.send(entry, *place, whole, &mut |chunk| sink.chunk(chunk))
    }
}

fn data_of(part: &[u8]) -> ChunkData<'_> {
    if is_zero(part) {
        ChunkData::Zeros(part.len() as u64)
    } else {
        ChunkData::Bytes(part)
    }
}

fn send_piece<R: ReadRange>(
    frames: &mut Frames<'_, R>,
    (entry, place): &Placed,
    piece: &Piece,
    worker: &mut dyn ExtentSink,
) -> Result<()> {
    for range in piece.ranges() {
        worker.begin(entry, range.clone())?;
        let mut send = |chunk: &Chunk<'_>| worker.chunk(chunk);
        frames.send(entry, *place, range.clone(), &mut send)?;
        worker.commit()?;
    }
    Ok(())
}

/// The frames that one piece of work needs, fetched ahead.
struct Frames<'a, R> {
    file: &'a NeonFile<R>,
    /// Runs of neighbours, in the order they are needed.
    runs: Vec<Range<u64>>,
    /// Stored bytes, and where in the pack they begin.
    fetched: (u64, Vec<u8>),
    /// The frame decoded last: small files share one. None for zeros.
    decoded: Option<(u64, Vec<u8>)>,
}

impl<'a, R: ReadRange> Frames<'a, R> {
    fn of(file: &'a NeonFile<R>, files: &[Placed], pieces: &[Piece]) -> Self {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for piece in pieces {
            let place = files.get(piece.file).map(|(_, place)| *place);
            for range in piece.ranges() {
                let needed = match place {
                    Some(Place::Shared { frame, .. }) => frame..frame.saturating_add(1),
                    Some(Place::Own { first }) => {
                        let size = FRAME_SIZE as u64;
                        let at = |offset: u64| first.saturating_add(offset);
                        at(range.start / size)..at(range.end.div_ceil(size))
                    }
                    _ => continue,
                };
                match runs.last_mut() {
                    Some(last) if (last.start..=last.end).contains(&needed.start) => {
                        last.end = last.end.max(needed.end);
                    }
                    _ => runs.push(needed),
                }
            }
        }
        Self {
            file,
            runs,
            fetched: (0, Vec::new()),
            decoded: None,
        }
    }

    /// Sends a part of a file, frame by frame.
    fn send(
        &mut self,
        entry: &Entry,
        place: Place,
        range: Range<u64>,
        send: &mut dyn FnMut(&Chunk<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let (frame, start, stop) = piece_of(entry, place, offset, range.end)?;
            let length = (stop - start) as u64;
            let data = match self.plain(frame, stop)? {
                None => ChunkData::Zeros(length),
                Some(content) => data_of(content.get(start..stop).ok_or_else(|| short(entry))?),
            };
            send(&Chunk { offset, data })?;
            offset += length;
        }
        Ok(())
    }

    /// The plain bytes of a frame of at least this many; none when it is all zero.
    fn plain(&mut self, frame: u64, length: usize) -> Result<Option<&[u8]>> {
        if self
            .decoded
            .as_ref()
            .is_none_or(|(known, _)| *known != frame)
        {
            let record = self.file.record(frame)?;
            if record.codec() == ZEROS {
                if (record.plain_length() as usize) < length {
                    return Err(Error::malformed(
                        format!("frame {frame} of a pack"),
                        "is shorter than the file in it",
                    ));
                }
                return Ok(None);
            }
            let wanted = record.range();
            if !self.holds(&wanted) {
                let range = self.ahead(frame, &wanted)?;
                self.fetched = (range.start, self.file.reader().read(range)?);
            }
            let stored = self.slice(&wanted)?;
            self.decoded = Some((frame, record.decode(stored, self.file.cipher())?));
        }
        Ok(self.decoded.as_ref().map(|(_, bytes)| bytes.as_slice()))
    }

    fn holds(&self, range: &Range<u64>) -> bool {
        let (start, bytes) = &self.fetched;
        *start <= range.start && range.end <= start.saturating_add(bytes.len() as u64)
    }

    fn slice(&self, range: &Range<u64>) -> Result<&[u8]> {
        let (start, bytes) = &self.fetched;
        let at = |offset: u64| usize::try_from(offset.checked_sub(*start)?).ok();
        at(range.start)
            .zip(at(range.end))
            .and_then(|(from, to)| bytes.get(from..to))
            .ok_or_else(|| Error::malformed("pack", "gave fewer bytes than it has"))
    }

    /// The range to fetch for a frame: with neighbours that are needed next and lie behind it.
    fn ahead(&self, frame: u64, wanted: &Range<u64>) -> Result<Range<u64>> {
        let until = self
            .runs
            .iter()
            .find(|run| run.contains(&frame))
            .map_or(0, |run| run.end);
        let mut end = wanted.end;
        for next in frame.saturating_add(1)..until {
            let range = self.file.record(next)?.range();
            let far = range.end.saturating_sub(wanted.start) > FETCH;
            if far || range.start < end {
                break;
            }
            end = range.end;
        }
        Ok(wanted.start..end)
    }
}
