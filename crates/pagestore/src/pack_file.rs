//! Packs in the storage as wholes: their directories, and making one from frames that are stored already.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_snapshot_format::pack::{
    Flags, FrameRecord, Opening, PackId, PackIndex, PackOptions, PackWriter, SealedFrame, Step,
};
use neon_storage::{Body, Storage, StorageExt};

use crate::error::{Error, Result};
use crate::keys;
use crate::repository::{Repository, create};

/// Frames that lie no further apart than this are read at once.
const GAP: u64 = 64 << 10;
/// The most bytes read at once.
const REQUEST: u64 = 8 << 20;

/// A pack in the storage, with its whole directory.
#[derive(Debug)]
pub(crate) struct PackFile {
    pub(crate) id: PackId,
    /// The record of every frame, in order.
    pub(crate) records: Vec<FrameRecord>,
}

impl Repository {
    /// Reads a pack's directory.
    pub(crate) async fn pack_file(&self, id: PackId, size: u64) -> Result<PackFile> {
        let subject = || format!("pack {id}");
        let format = |error| Error::format(subject(), error);
        let index = self.pack_index(id, size).await?;
        let mut records = Vec::new();
        let mut frame = 0;
        while frame < index.frame_count() {
            let table = index.table_of(frame).map_err(format)?;
            let bytes = self.pack_range(id, table.range.clone()).await?;
            let table = index.table(&table, &bytes).map_err(format)?;
            let before = frame;
            while let Some(record) = table.frame(frame) {
                records.push(*record);
                frame = frame.saturating_add(1);
            }
            if frame == before {
                return Err(Error::malformed(subject(), "has an empty table"));
            }
        }
        Ok(PackFile { id, records })
    }

    /// The additions that the writer of a pack used.
    pub(crate) async fn pack_flags(&self, id: PackId, size: u64) -> Result<Flags> {
        self.pack_index(id, size).await.map(|index| index.flags())
    }

    async fn pack_index(&self, id: PackId, size: u64) -> Result<PackIndex> {
        let format = |error| Error::format(format!("pack {id}"), error);
        let mut opening = Opening::new(size).map_err(format)?;
        let mut range = opening.range();
        loop {
            let bytes = self.pack_range(id, range).await?;
            match opening.feed(&bytes).map_err(format)? {
                Step::Read(next) => range = next,
                Step::Done(index) if index.id() == id => return Ok(index),
                Step::Done(_) => {
                    return Err(Error::damaged(format!("pack {id}"), "holds another pack"));
                }
            }
        }
    }

    /// A range of a pack.
    pub(crate) async fn pack_range(&self, id: PackId, range: Range<u64>) -> Result<Bytes> {
        let key = keys::pack(id)?;
        let bytes = self.shared.storage.read_range(&key, range).await;
        bytes.map_err(|error| Error::storage(format!("pack {id}"), error))
    }

    /// The stored bytes of frames of one pack, checked, given in ascending order. `take` gets each.
    pub(crate) async fn each_stored(
        &self,
        id: PackId,
        records: &[FrameRecord],
        mut take: impl FnMut(&FrameRecord, Bytes) -> Result<()>,
    ) -> Result<()> {
        let mut rest = records;
        while let Some(first) = rest.first() {
            let start = first.offset();
            let mut end = start;
            let near = |end: u64, record: &FrameRecord| {
                record.offset() <= end.saturating_add(GAP)
                    && record.range().end.saturating_sub(start) <= REQUEST
            };
            let mut count = 0_usize;
            for record in rest {
                if count > 0 && !near(end, record) {
                    break;
                }
                end = end.max(record.range().end);
                count = count.saturating_add(1);
            }
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let bytes = match end > start {
                true => self.pack_range(id, start..end).await?,
                false => Bytes::new(),
            };
            for record in now {
                let range = record.range();
                let from = usize::try_from(range.start.saturating_sub(start)).unwrap_or(usize::MAX);
                let to = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX);
                if to > bytes.len() || from > to {
                    return Err(Error::damaged(
                        format!("pack {id}"),
                        "is shorter than its frames",
                    ));
                }
                let stored = bytes.slice(from..to);
                record
                    .check(&stored)
                    .map_err(|error| Error::format(format!("pack {id}"), error))?;
                take(record, stored)?;
            }
            rest = later;
        }
        Ok(())
    }
}

/// Why a body could not be read to its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failed(Arc<Mutex<Option<Failure>>>);

/// Whose failure it was.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The pack could not be read.
    Read(Error),
    /// Who was told of each piece wants no more.
    Told(Error),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Read(error) | Self::Told(error) => error,
        }
    }
}

impl Failed {
    /// The reason, if it was not who takes the body that failed.
    pub(crate) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, failure: Failure) -> io::Error {
        let (Failure::Read(error) | Failure::Told(error)) = &failure;
        let text = error.to_string();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        io::Error::other(text)
    }
}

/// Where a pack is cut to be read piece by piece, each with the frames that lie in it.
fn pieces(records: &[FrameRecord], size: u64) -> Vec<(Range<u64>, Range<usize>)> {
    let mut pieces = Vec::new();
    let (mut start, mut first) = (0, 0);
    for (number, record) in records.iter().enumerate() {
        let range = record.range();
        if range.end.saturating_sub(start) > REQUEST && range.start > start {
            pieces.push((start..range.start, first..number));
            (start, first) = (range.start, number);
        }
    }
    let end = records.last().map_or(start, |last| last.range().end);
    if end > start {
        pieces.push((start..end, first..records.len()));
        start = end;
    }
    while start < size {
        let end = size.min(start.saturating_add(REQUEST));
        pieces.push((start..end, records.len()..records.len()));
        start = end;
    }
    pieces
}

impl Repository {
    /// The whole of a pack, read in pieces of some MiB; every frame is checked before it passes. `passed` is told where
    /// each piece ends.
    pub(crate) fn pack_body(
        &self,
        file: PackFile,
        size: u64,
        passed: Arc<dyn Fn(u64) -> Result<()> + Send + Sync>,
    ) -> (Body, Failed) {
        let (failed, file) = (Failed::default(), Arc::new(file));
        let (repository, note) = (self.clone(), failed.clone());
        let make = move || {
            let (repository, file, note) = (repository.clone(), Arc::clone(&file), note.clone());
            let passed = Arc::clone(&passed);
            let pieces = stream::iter(pieces(&file.records, size));
            pieces
                .then(move |(range, frames)| {
                    let (repository, file) = (repository.clone(), Arc::clone(&file));
                    let (note, passed, end) = (note.clone(), Arc::clone(&passed), range.end);
                    async move {
                        let piece = repository.checked_piece(&file, range, frames).await;
                        let piece = piece.map_err(Failure::Read);
                        let piece = piece
                            .and_then(|piece| passed(end).map_err(Failure::Told).map(|()| piece));
                        piece.map_err(|failure| note.note(failure))
                    }
                })
                .boxed()
        };
        (Body::replayable(make).with_length(size), failed)
    }

    async fn checked_piece(
        &self,
        file: &PackFile,
        range: Range<u64>,
        frames: Range<usize>,
    ) -> Result<Bytes> {
        let start = range.start;
        let bytes = self.pack_range(file.id, range).await?;
        for record in file.records.get(frames).unwrap_or_default() {
            let range = record.range();
            let stored = range
                .start
                .checked_sub(start)
                .zip(range.end.checked_sub(start))
                .and_then(|(from, to)| usize::try_from(from).ok().zip(usize::try_from(to).ok()))
                .and_then(|(from, to)| bytes.get(from..to))
                .ok_or_else(|| {
                    Error::damaged(format!("pack {}", file.id), "is shorter than its frames")
                })?;
            record
                .check(stored)
                .map_err(|error| Error::format(format!("pack {}", file.id), error))?;
        }
        Ok(bytes)
    }
}

/// A pack that is being made from frames that are stored already: in memory, of at most 64 MiB and a batch
/// of some more.
#[derive(Debug)]
pub(crate) struct NewPack {
    pub(crate) id: PackId,
    writer: PackWriter<Vec<u8>>,
}

impl NewPack {
    pub(crate) fn new(id: PackId) -> Result<Self> {
        let writer = PackWriter::new(Vec::new(), PackOptions::new(id))
            .map_err(|error| Error::format(format!("pack {id}"), error))?;
        Ok(Self { id, writer })
    }

    pub(crate) fn size(&self) -> u64 {
        self.writer.position()
    }

    /// Appends a frame as it is stored; returns its place.
    pub(crate) fn append(&mut self, record: &FrameRecord, stored: &[u8]) -> Result<FrameRecord> {
        self.writer
            .append_stored(record, stored)
            .map_err(|error| Error::format(format!("pack {}", self.id), error))
    }

    /// Appends a frame that was sealed for its own address; returns its place.
    pub(crate) fn append_sealed(&mut self, frame: &SealedFrame<'_>) -> Result<FrameRecord> {
        self.writer
            .append_sealed(frame)
            .map_err(|error| Error::format(format!("pack {}", self.id), error))
    }

    /// Stores it.
    pub(crate) async fn store(self, storage: &dyn Storage) -> Result<()> {
        let bytes = self
            .writer
            .finish(0, None)
            .map_err(|error| Error::format(format!("pack {}", self.id), error))?;
        create(storage, &keys::pack(self.id)?, bytes)
            .await
            .map(drop)
    }
}
