//! The neutral model that every format is read into and written from.
//!
//! A snapshot is a stream: an [`Entry`] per directory, tablespace and file, the [`Chunk`]s of each file
//! right after its entry, and an [`End`]. Labels, tablespace maps and WAL segments are files like others.
//! Reading is driven by a source, which calls the sink; nothing is held that is larger than a chunk.

use std::ops::Range;

use neon_pg_layout::{Oid, PgMajor, SystemIdentifier, TimelineRange};

use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::path::SnapshotPath;

/// Chunks end where a multiple of this many bytes of the file does, or with the file: 16 pages of 8 KiB.
pub const CHUNK_SIZE: usize = 128 << 10;

/// One directory, tablespace or file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub path: SnapshotPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it, where the format knows.
    pub owner: Option<Owner>,
    /// When its content changed last, in seconds since 1970.
    pub modified: i64,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryKind {
    /// A file; chunks of exactly `size` bytes follow.
    File {
        /// Bytes in the file.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A tablespace that lies outside the data directory, at `pg_tblspc/<oid>`. One that lies inside
    /// it ("in place") is a directory.
    Tablespace {
        /// The tablespace.
        oid: Oid,
        /// Where it was, where the format knows before its files come.
        location: Option<Vec<u8>>,
    },
}

/// User and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Entry {
    /// The size of a file; 0 for everything else.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }

    /// Whether it is a file.
    #[must_use]
    pub const fn is_file(&self) -> bool {
        matches!(self.kind, EntryKind::File { .. })
    }
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where in the file it starts.
    pub offset: u64,
    /// Its bytes.
    pub data: ChunkData<'a>,
}

/// The bytes of a [`Chunk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkData<'a> {
    /// Bytes as they are; at most [`CHUNK_SIZE`].
    Bytes(&'a [u8]),
    /// This many zero bytes, of any length. Sources say so where whole chunks are zero; zero pages among
    /// others come as bytes.
    Zeros(u64),
}

impl Chunk<'_> {
    /// Bytes in it.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self.data {
            ChunkData::Bytes(bytes) => bytes.len() as u64,
            ChunkData::Zeros(count) => count,
        }
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is known once everything has been sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// In what state the cluster was, where the format says so.
    pub kind: Option<SnapshotKind>,
    /// The major version, by the control file.
    pub major: Option<PgMajor>,
    /// The cluster's identity, by the control file.
    pub system_identifier: Option<SystemIdentifier>,
    /// The log that must be replayed for the snapshot to be consistent, newest timeline first. Empty
    /// for a cold one.
    pub wal: Vec<TimelineRange>,
    /// What was there and is not in the snapshot, other than by the rules of its kind.
    pub skipped: Vec<Skipped>,
    /// Pages that are damaged and that nothing explains.
    pub bad_pages: Vec<BadPage>,
}

/// Something that cannot be part of a snapshot, such as a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it lies.
    pub path: SnapshotPath,
    /// Why it was left out.
    pub reason: &'static str,
}

/// A damaged page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPage {
    /// The file.
    pub path: SnapshotPath,
    /// The page, counted within this file.
    pub block: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Takes a snapshot in order: every entry after the directory that holds it, the chunks of a file right
/// after its entry, contiguous from its start to its size, then the end. After an error it is dropped.
pub trait Sink: Send {
    /// The next entry.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn entry(&mut self, entry: &Entry) -> Result<()>;

    /// The next piece of the file whose entry came last.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()>;

    /// Nothing more comes. When this returns the snapshot is complete in the sink's format, and durable
    /// if the sink says so.
    ///
    /// # Errors
    /// Whatever keeps the sink from completing it.
    fn end(&mut self, end: &End) -> Result<()>;
}

/// Something that can send a whole snapshot.
pub trait Source {
    /// Sends everything to the sink, the end included.
    ///
    /// # Errors
    /// When the source cannot be read or is damaged, and what the sink returns.
    fn send(&mut self, sink: &mut dyn Sink) -> Result<()>;
}

/// What of a file is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// Nothing. It is not opened.
    Nothing,
    /// These bytes: sorted, disjoint, none empty, each starting at a page of the cluster and ending at one
    /// or with the file. No range at all is as [`Nothing`](Self::Nothing).
    Ranges(Vec<Range<u64>>),
}

/// What became of a file after it was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// It is no part of the snapshot: removed before any part of it was begun, or found to belong to an
    /// unlogged relation that was just being made. No part of it comes.
    Gone,
    /// Some of its parts had been begun when it was removed. The others come as zeros, and it keeps its
    /// size; the log removes it.
    Removed,
    /// It has this size by now. What it has lost comes as zeros, what it has grown by does not come; the
    /// log knows both.
    Resized {
        /// Its size when it was read.
        size: u64,
    },
}

/// Takes a snapshot from several threads at once.
///
/// Directories and tablespaces come first, then every file is announced, all from one thread. Then each
/// thread sends disjoint parts of files to a worker of its own. Files that are made at the end (the control
/// file, labels, log) are announced right before they come. The end comes when all workers are done.
pub trait ParallelSink: Sync {
    /// A directory or tablespace.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn entry(&self, entry: &Entry) -> Result<()>;

    /// A file, once, before any part of it begins, and what of it will come. A sink that needs whole
    /// files refuses what is not [`Wanted::Whole`]: otherwise it would leave out of its snapshot, without
    /// a word, what nobody sends.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()>;

    /// A file of a running server changed between its announcement and its reading. From any thread; for
    /// a file in several parts perhaps several times. A sink that keeps no account of announced files has
    /// nothing to do: what comes makes up the announced size, or does not begin.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking that.
    fn changed(&self, entry: &Entry, change: Change) -> Result<()>;

    /// A worker for one thread.
    ///
    /// # Errors
    /// Whatever keeps the sink from making one.
    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>>;

    /// As [`Sink::end`]. All workers have been finished before.
    ///
    /// # Errors
    /// As [`Sink::end`].
    fn end(&self, end: &End) -> Result<()>;
}

/// Takes parts of files in one thread.
pub trait ExtentSink: Send {
    /// Begins a part of a file. All parts of one file come with the entry it was announced with, and
    /// together make up what is wanted of it. Neighbouring ranges of a file come to one worker in order.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()>;

    /// The next piece of the part, contiguous from its start.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()>;

    /// The part is complete.
    ///
    /// # Errors
    /// Whatever keeps the sink from completing it.
    fn commit(&mut self) -> Result<()>;

    /// No more parts come from this thread.
    ///
    /// # Errors
    /// Whatever keeps the sink from completing what it was given.
    fn finish(&mut self) -> Result<()>;
}

/// Feeds a [`ParallelSink`] from one thread, in the order of a [`Sink`].
pub struct Sequential<'a> {
    sink: &'a dyn ParallelSink,
    worker: Box<dyn ExtentSink + 'a>,
    open: bool,
}

impl<'a> Sequential<'a> {
    /// Takes one worker of the sink.
    ///
    /// # Errors
    /// When the sink makes no worker.
    pub fn new(sink: &'a dyn ParallelSink) -> Result<Self> {
        let worker = sink.worker()?;
        Ok(Self {
            sink,
            worker,
            open: false,
        })
    }

    fn close(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            self.worker.commit()?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Sequential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequential")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Sink for Sequential<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        if !entry.is_file() {
            return self.sink.entry(entry);
        }
        self.sink.file(entry, &Wanted::Whole)?;
        self.worker.begin(entry, 0..entry.size())?;
        self.open = true;
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if !self.open {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot stream",
                "data without a file",
            ));
        }
        self.worker.chunk(chunk)
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.close()?;
        self.worker.finish()?;
        self.sink.end(end)
    }
}

/// Counts the bytes of a file or a part of one, so that every sink refuses what does not add up.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    next: u64,
    end: u64,
    subject: String,
}

impl Progress {
    pub(crate) fn begin(&mut self, entry: &Entry, range: &Range<u64>) -> Result<()> {
        *self = Self {
            next: range.start,
            end: range.end,
            subject: entry.path.to_string(),
        };
        if range.start > range.end || range.end > entry.size() {
            return Err(self.error("a part that lies outside of the file"));
        }
        Ok(())
    }

    pub(crate) fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let end = chunk.offset.checked_add(chunk.len());
        match end {
            Some(end) if chunk.offset == self.next && end <= self.end => self.next = end,
            _ => return Err(self.error("data that does not fit the file")),
        }
        Ok(())
    }

    pub(crate) fn commit(&self) -> Result<()> {
        if self.next != self.end {
            return Err(self.error("less data than the file has"));
        }
        Ok(())
    }

    fn error(&self, reason: &'static str) -> Error {
        Error::new(ErrorKind::Inconsistent, self.subject.clone(), reason)
    }
}

/// Sends a small file that is in memory.
pub(crate) fn send_file(sink: &mut dyn Sink, entry: &Entry, content: &[u8]) -> Result<()> {
    sink.entry(entry)?;
    let mut offset = 0;
    for piece in content.chunks(CHUNK_SIZE) {
        sink.chunk(&Chunk {
            offset,
            data: ChunkData::Bytes(piece),
        })?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Blocks of 64 let the compiler use wide registers; the first byte that is set ends it.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
