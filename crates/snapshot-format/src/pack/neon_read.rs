//! Reading a `.neon` file in place: any byte of any file by a few ranged reads.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::pack::directory::{HEADER_SIZE, PackHeader};
use crate::pack::entry::{Place, Root, parse_entries};
use crate::pack::frame::{FRAME_SIZE, FrameCipher, FrameRecord};
use crate::pack::index::{FrameTable, Opening, PackIndex, Step};
use crate::path::SnapshotPath;
use crate::stream::{End, Entry};

/// Decoded frames that are kept.
const KEPT_FRAMES: usize = 32;
/// Tables of frames that are kept: 60 KiB each.
const KEPT_TABLES: usize = 64;

/// Frames that describe a snapshot: 64 MiB.
pub(crate) const DESCRIPTION_FRAMES: u32 = 512;

/// Something of known length that ranges can be read from: a file, or a bridge to a storage.
pub trait ReadRange: Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// When it cannot be had.
    fn length(&self) -> Result<u64>;

    /// Exactly the bytes of this range.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) when it is not all there, or why it cannot be read.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>>;
}

impl ReadRange for File {
    fn length(&self) -> Result<u64> {
        let facts = self
            .metadata()
            .map_err(|error| Error::io("pack", "cannot be examined", error))?;
        Ok(facts.len())
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length_of(&range)?];
        self.read_exact_at(&mut bytes, range.start)
            .map_err(|error| Error::io("pack", "cannot be read", error))?;
        Ok(bytes)
    }
}

impl ReadRange for [u8] {
    fn length(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let bounds = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok());
        let bytes = bounds.and_then(|(start, end)| self.get(start..end));
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::malformed("pack", "is cut off"))
    }
}

impl ReadRange for Vec<u8> {
    fn length(&self) -> Result<u64> {
        self.as_slice().length()
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        self.as_slice().read(range)
    }
}

impl<R: ReadRange + ?Sized> ReadRange for &R {
    fn length(&self) -> Result<u64> {
        (**self).length()
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        (**self).read(range)
    }
}

fn length_of(range: &Range<u64>) -> Result<usize> {
    usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| {
        Error::new(
            ErrorKind::Limit,
            "pack",
            "a range that does not fit into memory",
        )
    })
}

/// An open `.neon` file.
///
/// Opening reads its end and, for large ones, its directory and the frames that describe the snapshot: some
/// hundred kilobytes for a terabyte. Every byte that is returned was checked against the digest of its
/// frame.
pub struct NeonFile<R> {
    reader: R,
    cipher: Option<Arc<dyn FrameCipher>>,
    index: PackIndex,
    root: Root,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    tables: BTreeMap<u64, Arc<FrameTable>>,
    frames: VecDeque<(u64, Arc<Vec<u8>>)>,
}

impl<R> fmt::Debug for NeonFile<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NeonFile")
            .field("id", &self.index.id())
            .finish_non_exhaustive()
    }
}

impl<R: ReadRange> NeonFile<R> {
    /// Opens a file; with a cipher if its frames are encrypted.
    ///
    /// # Errors
    /// As [`Opening::feed`] and [`FrameRecord::decode`]; [`Unsupported`](ErrorKind::Unsupported) for a pack
    /// that holds no snapshot.
    pub fn open(reader: R, cipher: Option<Arc<dyn FrameCipher>>) -> Result<Self> {
        let mut opening = Opening::new(reader.length()?)?;
        let mut range = opening.range();
        let index = loop {
            match opening.feed(&reader.read(range)?)? {
                Step::Read(next) => range = next,
                Step::Done(index) => break index,
            }
        };
        let Some(snapshot) = index.snapshot() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "pack",
                "holds no snapshot of its own",
            ));
        };
        let mut file = Self {
            reader,
            cipher,
            index,
            root: Root::default(),
            kept: Mutex::default(),
        };
        // Frames of zeros cost a forger nothing.
        if snapshot.count > DESCRIPTION_FRAMES {
            return Err(Error::new(
                ErrorKind::Limit,
                "snapshot in a pack",
                "its description is larger than that of ten million files",
            ));
        }
        let mut bytes = Vec::new();
        for frame in snapshot.frame..snapshot.frame + u64::from(snapshot.count) {
            bytes.extend_from_slice(&file.frame(frame)?);
        }
        file.root = Root::parse(&bytes)?;
        Ok(file)
    }

    /// The pack's directory.
    #[must_use]
    pub fn index(&self) -> &PackIndex {
        &self.index
    }

    /// What is known about the snapshot as a whole.
    #[must_use]
    pub fn snapshot(&self) -> &End {
        &self.root.end
    }

    /// How many pages the list of files has; see [`entries`](Self::entries).
    #[must_use]
    pub fn entry_pages(&self) -> usize {
        self.root.pages.len()
    }

    /// One page of the list of files, which is sorted by path.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) beyond the last page; as [`FrameRecord::decode`].
    pub fn entries(&self, page: usize) -> Result<Vec<Entry>> {
        Ok(self
            .page(page)?
            .into_iter()
            .map(|(entry, _)| entry)
            .collect())
    }

    /// The entry of a path.
    ///
    /// # Errors
    /// As [`FrameRecord::decode`].
    pub fn entry(&self, path: &SnapshotPath) -> Result<Option<Entry>> {
        Ok(self.find(path)?.map(|(entry, _)| entry))
    }

    /// Bytes of a file from `offset` on; fewer than `length` only at its end.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the snapshot has no such file; as [`FrameRecord::decode`].
    pub fn read(&self, path: &SnapshotPath, offset: u64, length: usize) -> Result<Vec<u8>> {
        let Some((entry, place)) = self.find(path)?.filter(|(entry, _)| entry.is_file()) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                path.to_string(),
                "is no file of the snapshot",
            ));
        };
        let end = entry.size().min(offset.saturating_add(length as u64));
        let mut bytes = Vec::new();
        let mut at = offset;
        while at < end {
            let (frame, start, stop) = piece_of(&entry, place, at, end)?;
            let content = self.frame(frame)?;
            let part = content.get(start..stop).ok_or_else(|| short(&entry))?;
            bytes.extend_from_slice(part);
            at += part.len() as u64;
        }
        Ok(bytes)
    }

    /// Fetches every stored byte and checks it, without a key.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) for the first frame that is not as it was written.
    pub fn check(&self) -> Result<()> {
        let header = PackHeader::parse(&self.reader.read(0..HEADER_SIZE as u64)?)?;
        if header.id != self.index.id() || !header.is_snapshot {
            return Err(Error::new(
                ErrorKind::Damaged,
                "header of a pack",
                "is not that of this pack",
            ));
        }
        for frame in 0..self.index.frame_count() {
            let record = self.record(frame)?;
            record.check(&self.reader.read(record.range())?)?;
        }
        Ok(())
    }

    pub(crate) fn page(&self, page: usize) -> Result<Vec<(Entry, Place)>> {
        let Some((frame, first)) = self.root.pages.get(page) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "file list of a pack",
                "has no such page",
            ));
        };
        let entries = parse_entries(&self.frame(*frame)?)?;
        if entries
            .first()
            .is_none_or(|(entry, _)| entry.path != *first)
        {
            return Err(Error::malformed(
                "file list of a pack",
                "a page is not the one that was meant",
            ));
        }
        Ok(entries)
    }

    fn find(&self, path: &SnapshotPath) -> Result<Option<(Entry, Place)>> {
        let page = self.root.pages.partition_point(|(_, first)| first <= path);
        let Some(page) = page.checked_sub(1) else {
            return Ok(None);
        };
        let mut entries = self.page(page)?;
        let found = entries.binary_search_by(|(entry, _)| entry.path.cmp(path));
        Ok(found.ok().map(|index| entries.swap_remove(index)))
    }

    pub(crate) fn record(&self, frame: u64) -> Result<FrameRecord> {
        let which = self.index.table_of(frame)?;
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tables
            .get(&which.number)
            .cloned();
        let table = match kept {
            Some(table) => table,
            None => {
                let bytes = self.reader.read(which.range.clone())?;
                let table = Arc::new(self.index.table(&which, &bytes)?);
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.tables.len() >= KEPT_TABLES {
                    kept.tables.pop_first();
                }
                kept.tables.insert(which.number, Arc::clone(&table));
                table
            }
        };
        table
            .frame(frame)
            .copied()
            .ok_or_else(|| Error::malformed("table of a pack", "lacks a frame"))
    }

    pub(crate) fn frame(&self, frame: u64) -> Result<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.frames.iter().position(|(number, _)| *number == frame)
            && let Some((_, bytes)) = kept.frames.remove(at)
        {
            kept.frames.push_back((frame, Arc::clone(&bytes)));
            return Ok(bytes);
        }
        drop(kept);
        let record = self.record(frame)?;
        let range = record.range();
        let stored = if range.is_empty() {
            Vec::new()
        } else {
            self.reader.read(range)?
        };
        let bytes = Arc::new(record.decode(&stored, self.cipher.as_deref())?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.frames.len() >= KEPT_FRAMES {
            kept.frames.pop_front();
        }
        kept.frames.push_back((frame, Arc::clone(&bytes)));
        Ok(bytes)
    }

    pub(crate) fn reader(&self) -> &R {
        &self.reader
    }

    pub(crate) fn cipher(&self) -> Option<&dyn FrameCipher> {
        self.cipher.as_deref()
    }
}

/// The frame that holds a byte of a file, and the part of it up to `end`.
pub(crate) fn piece_of(
    entry: &Entry,
    place: Place,
    at: u64,
    end: u64,
) -> Result<(u64, usize, usize)> {
    let to_usize = |value: u64| usize::try_from(value).map_err(|_| short(entry));
    match place {
        Place::Nothing => Err(short(entry)),
        Place::Shared { frame, offset } => {
            let offset = u64::from(offset);
            Ok((
                frame,
                to_usize(offset.saturating_add(at))?,
                to_usize(offset.saturating_add(end))?,
            ))
        }
        Place::Own { first } => {
            let number = at / FRAME_SIZE as u64;
            let start = number * FRAME_SIZE as u64;
            let stop = end.min(start.saturating_add(FRAME_SIZE as u64));
            let frame = first.checked_add(number).ok_or_else(|| short(entry))?;
            Ok((frame, to_usize(at - start)?, to_usize(stop - start)?))
        }
    }
}

pub(crate) fn short(entry: &Entry) -> Error {
    Error::malformed(entry.path.to_string(), "its frames hold less than its size")
}
