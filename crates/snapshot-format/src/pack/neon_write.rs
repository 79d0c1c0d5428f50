//! Writing a `.neon` file: a pack that holds a whole snapshot, in one pass, to a pipe if need be.

use std::fmt;
use std::io::Write;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::entry::{Place, Root, put_entry};
use crate::pack::frame::FRAME_SIZE;
use crate::pack::line::FrameLine;
use crate::pack::neon_read::DESCRIPTION_FRAMES;
use crate::pack::write::{PackOptions, PackWriter, SnapshotRoot};
use crate::path::SnapshotPath;
use crate::start_up::StartUpRank;
use crate::stream::{Chunk, ChunkData, End, Entry, Progress, Sink};

/// Files up to this size share frames.
const SHARED_LIMIT: u64 = 32 << 10;

/// Writes a snapshot into one stream. Files keep the order they come in, so a source that sends what a
/// server needs to start first, as [`PgData`](crate::pgdata::PgData) does, gives a file whose first frames
/// are those.
///
/// Memory: a hundred bytes or so per file. Nothing is durable before the caller makes the stream so.
pub struct NeonWriter<W> {
    /// None once it was ended.
    pack: Option<FrameLine<W>>,
    entries: Vec<(Entry, Place)>,
    progress: Progress,
    current: Option<Current>,
    /// Bytes of the frame in the making: of small files, and of the present large one.
    shared: Vec<u8>,
    own: Vec<u8>,
    /// Entries in the shared frame, whose number is known when it is written.
    waiting: Vec<usize>,
    start_up_frames: Option<u64>,
    finished: Option<W>,
}

struct Current {
    small: bool,
}

impl<W> fmt::Debug for NeonWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NeonWriter")
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl<W: Write + Send> NeonWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn new(stream: W, options: PackOptions) -> Result<Self> {
        let pack = PackWriter::begin(stream, options, true)?;
        Ok(Self {
            pack: Some(FrameLine::new(pack)),
            entries: Vec::new(),
            progress: Progress::default(),
            current: None,
            shared: Vec::new(),
            own: Vec::new(),
            waiting: Vec::new(),
            start_up_frames: None,
            finished: None,
        })
    }

    /// Compresses, encrypts and digests in so many threads; with none, as without this call, in the
    /// caller's. The file is the same. To be called before anything is sent.
    #[must_use]
    pub fn threads(mut self, count: usize) -> Self {
        self.pack = self.pack.map(|pack| pack.threads(count));
        self
    }

    /// The stream, once the snapshot's end has been sent; none before.
    #[must_use]
    pub fn into_inner(self) -> Option<W> {
        self.finished
    }

    fn pack(&mut self) -> Result<&mut FrameLine<W>> {
        self.pack
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Inconsistent, "pack", "was ended before"))
    }

    fn flush_shared(&mut self) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let next = self.pack()?.buffer();
        let bytes = std::mem::replace(&mut self.shared, next);
        let number = self.pack()?.push(bytes)?;
        for index in self.waiting.drain(..) {
            if let Some((_, Place::Shared { frame, .. })) = self.entries.get_mut(index) {
                *frame = number;
            }
        }
        Ok(())
    }

    fn flush_own(&mut self) -> Result<()> {
        if !self.own.is_empty() {
            let next = self.pack()?.buffer();
            let bytes = std::mem::replace(&mut self.own, next);
            self.pack()?.push(bytes)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if self.current.take().is_some() {
            self.progress.commit()?;
            self.flush_own()?;
        }
        Ok(())
    }

    fn landmark(&mut self, path: &SnapshotPath) -> Result<()> {
        if self.start_up_frames.is_none() && StartUpRank::of(path) == StartUpRank::Later {
            self.flush_shared()?;
            self.start_up_frames = Some(self.pack()?.next_frame());
        }
        Ok(())
    }

    fn add_own(&mut self, mut data: ChunkData<'_>) -> Result<()> {
        loop {
            let room = FRAME_SIZE - self.own.len();
            match data {
                ChunkData::Bytes([]) | ChunkData::Zeros(0) => return Ok(()),
                ChunkData::Bytes(bytes) => {
                    let (now, later) = bytes.split_at(bytes.len().min(room));
                    self.own.extend_from_slice(now);
                    data = ChunkData::Bytes(later);
                }
                ChunkData::Zeros(count) if self.own.is_empty() && count >= FRAME_SIZE as u64 => {
                    self.pack()?.push_zeros(FRAME_SIZE as u64)?;
                    data = ChunkData::Zeros(count - FRAME_SIZE as u64);
                }
                ChunkData::Zeros(count) => {
                    let now = usize::try_from(count).unwrap_or(room).min(room);
                    self.own.resize(self.own.len() + now, 0);
                    data = ChunkData::Zeros(count - now as u64);
                }
            }
            if self.own.len() == FRAME_SIZE {
                self.flush_own()?;
            }
        }
    }
}

impl<W: Write + Send> Sink for NeonWriter<W> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        if !entry.is_file() {
            self.entries.push((entry.clone(), Place::Nothing));
            return Ok(());
        }
        let size = entry.size();
        self.progress.begin(entry, &(0..size))?;
        self.landmark(&entry.path)?;
        let small = size <= SHARED_LIMIT;
        let place = if size == 0 {
            Place::Nothing
        } else if small {
            if self.shared.len() as u64 + size > FRAME_SIZE as u64 {
                self.flush_shared()?;
            }
            self.waiting.push(self.entries.len());
            Place::Shared {
                frame: 0,
                offset: u32::try_from(self.shared.len()).unwrap_or(0),
            }
        } else {
            Place::Own {
                first: self.pack()?.next_frame(),
            }
        };
        self.entries.push((entry.clone(), place));
        self.current = Some(Current { small });
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.progress.chunk(chunk)?;
        let Some(current) = &self.current else {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot stream",
                "data without a file",
            ));
        };
        match (current.small, chunk.data) {
            (false, data) => self.add_own(data)?,
            (true, ChunkData::Bytes(bytes)) => self.shared.extend_from_slice(bytes),
            // Bounded by the size of a small file, which progress holds it to.
            (true, ChunkData::Zeros(count)) => {
                let length = self.shared.len() + usize::try_from(count).unwrap_or(0);
                self.shared.resize(length, 0);
            }
        }
        Ok(())
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.close()?;
        self.flush_shared()?;
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        if let Some([(twice, _), _]) = entries
            .array_windows()
            .find(|[(a, _), (b, _)]| a.path == b.path)
        {
            return Err(Error::new(
                ErrorKind::Exists,
                twice.path.to_string(),
                "comes twice",
            ));
        }
        let start_up_frames = match self.start_up_frames {
            Some(frames) => frames,
            None => self.pack()?.next_frame(),
        };
        let mut root = Root {
            end: end.clone(),
            pages: Vec::new(),
        };
        let (mut page, mut first) = (Vec::new(), None);
        for (entry, place) in &entries {
            let mut bytes = Vec::new();
            put_entry(&mut bytes, entry, *place)?;
            if page.len() + bytes.len() > FRAME_SIZE
                && let Some(first) = first.take()
            {
                let full = std::mem::take(&mut page);
                root.pages.push((self.pack()?.push(full)?, first));
            }
            first.get_or_insert_with(|| entry.path.clone());
            page.append(&mut bytes);
        }
        if let Some(first) = first {
            root.pages.push((self.pack()?.push(page)?, first));
        }
        let frame = self.pack()?.next_frame();
        let bytes = root.to_bytes()?;
        // Nobody would open it.
        if bytes.len().div_ceil(FRAME_SIZE) > DESCRIPTION_FRAMES as usize {
            return Err(Error::new(
                ErrorKind::Limit,
                "snapshot in a pack",
                "its description is too large: too many files, damaged pages or files left out",
            ));
        }
        let mut count = 0;
        for piece in bytes.chunks(FRAME_SIZE) {
            // Not all zero by its version, so each piece but the last is a full frame.
            self.pack()?.push(piece.to_vec())?;
            count += 1;
        }
        let Some(pack) = self.pack.take() else {
            return Ok(());
        };
        self.finished = Some(pack.finish(start_up_frames, Some(SnapshotRoot { frame, count }))?);
        Ok(())
    }
}
