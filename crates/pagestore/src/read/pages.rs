//! A snapshot as files of pages that are read one by one.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use neon_snapshot_format::SnapshotPath;

use neon_snapshot_format::pack::Flags;

use crate::commit::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::facts::Facts;
use crate::id::CommitId;
use crate::map::{Attributes, FileKind, List, Lookup, PageKey, PagePlace, Stat, View, decode_runs};
use crate::read::maps::MapReader;
use crate::read::plain::Part;
use crate::read::read_ahead::ReadAhead;
use crate::repository::Repository;

/// An open snapshot. Clones are cheap and share caches.
#[derive(Debug, Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: CommitId,
    flags: Flags,
    facts: Facts,
    view: View,
    maps: MapReader,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    ahead: ReadAhead,
    /// The size of the file read last.
    size: Option<(SnapshotPath, u64)>,
}

impl Snapshot {
    /// Opens a snapshot: one request.
    ///
    /// Dropped: nothing remains.
    ///
    /// # Errors
    /// As [`Repository::read_commit`].
    pub async fn open(repository: &Repository, id: CommitId, maps: &MapReader) -> Result<Self> {
        let (_, commit) = repository.read_commit(id).await?;
        Self::of(id, commit, maps)
    }

    /// A snapshot whose commit was read before.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed), [`Unsupported`](ErrorKind::Unsupported) when its runs cannot be read.
    pub fn of(id: CommitId, commit: Commit, maps: &MapReader) -> Result<Self> {
        let view = View {
            runs: decode_runs(&commit.runs)?,
            page_size: commit.facts.cluster.block_size,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                flags: commit.flags,
                facts: commit.facts,
                view,
                maps: maps.clone(),
                recent: Mutex::default(),
            }),
        })
    }

    /// Additions that its writer used.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.inner.flags
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CommitId {
        self.inner.id
    }

    /// What is known about it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.inner.facts
    }

    /// Its map.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.inner.view
    }

    /// What its map is read with.
    #[must_use]
    pub fn maps(&self) -> &MapReader {
        &self.inner.maps
    }

    /// The attributes of a file, directory or tablespace; none when there is no such.
    ///
    /// # Errors
    /// As [`MapReader::run`].
    pub async fn stat(&self, path: &SnapshotPath) -> Result<Option<Attributes>> {
        let mut stat = Stat::new(&self.inner.view, path.clone());
        match self.inner.maps.run_kept(&mut stat)? {
            Some(known) => Ok(known),
            None => {
                let mut stat = Stat::new(&self.inner.view, path.clone());
                self.inner.maps.run(&mut stat).await
            }
        }
    }

    /// What lies right in a directory, sorted by the bytes of the paths.
    ///
    /// # Errors
    /// As [`MapReader::run`].
    pub async fn list(&self, directory: &SnapshotPath) -> Result<Vec<(SnapshotPath, Attributes)>> {
        let mut list = List::new(&self.inner.view, directory);
        let mut found = Vec::new();
        while let Some(entry) = self.inner.maps.run(&mut list).await? {
            found.push(entry);
        }
        Ok(found)
    }

    /// One page of a file, counted within that file; the last may be shorter than a page. None behind it.
    ///
    /// Costs one ranged read once the map of the file is known. Pages read in order are read ahead.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such file; as [`MapReader::run`] and
    /// [`FrameReader::get_range`](crate::read::FrameReader::get_range).
    pub async fn read_page(&self, path: &SnapshotPath, page: u32) -> Result<Option<Bytes>> {
        let Some(length) = self.page_length(path, page).await? else {
            return Ok(None);
        };
        let place = self.place(path, page).await?;
        self.read_ahead(path, page)?;
        match place {
            PagePlace::Zeros => Ok(Some(Bytes::from(vec![0; length]))),
            PagePlace::Frame { frame, offset, .. } => {
                let frames = self.inner.maps.frames();
                let range = bytes_at(offset, length);
                frames.get_range(&frame, range).await.map(Some)
            }
            PagePlace::NotThere => Err(unmapped(path, page)),
        }
    }

    /// Bytes of a file; fewer where it ends.
    ///
    /// # Errors
    /// As [`read_page`](Self::read_page), and [`Limit`](ErrorKind::Limit) for more than 1 GiB at once.
    pub async fn read_range(&self, path: &SnapshotPath, range: Range<u64>) -> Result<Bytes> {
        let size = self.size(path).await?;
        let (start, end) = (range.start.min(size), range.end.min(size));
        let limit = |reason| Error::new(ErrorKind::Limit, path.to_string(), reason);
        if end.saturating_sub(start) > 1 << 30 {
            return Err(limit("more than 1 GiB is asked for at once"));
        }
        let page_size = u64::from(self.inner.view.page_size);
        let pages = start / page_size..end.div_ceil(page_size);
        let mut places = Vec::new();
        for page in pages {
            let page = u32::try_from(page).map_err(|_| limit("has more pages than a map holds"))?;
            places.push((page, self.place(path, page).await?));
        }
        let length = |page: u32| {
            let from = u64::from(page) * page_size;
            usize::try_from(page_size.min(size - from)).unwrap_or(0)
        };
        let mut parts: Vec<Part> = Vec::new();
        for (page, place) in &places {
            let PagePlace::Frame { frame, offset, .. } = place else {
                continue;
            };
            let part = Part::of(frame, &bytes_at(*offset, length(*page)));
            match parts.last_mut() {
                Some(last) if last.frame.id() == frame.id() => {
                    last.cells = last.cells.and(part.cells);
                }
                _ => parts.push(part),
            }
        }
        let plain = self.inner.maps.frames().parts(&parts).await?;
        let mut plain = parts.iter().map(|part| part.frame).zip(plain).peekable();
        let mut out = BytesMut::new();
        for (page, place) in places {
            let length = length(page);
            match place {
                PagePlace::NotThere => return Err(unmapped(path, page)),
                PagePlace::Zeros => out.resize(out.len() + length, 0),
                PagePlace::Frame { frame, offset, .. } => {
                    while plain.next_if(|(at, _)| at.id() != frame.id()).is_some() {}
                    let plain = plain.peek().map(|(_, plain)| plain);
                    let plain = plain.ok_or_else(|| unmapped(path, page))?;
                    out.extend_from_slice(&plain.range(&frame, &bytes_at(offset, length))?);
                }
            }
        }
        let skipped = usize::try_from(start % page_size).unwrap_or(0);
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        let out = out.freeze();
        Ok(out.slice(skipped.min(out.len())..(skipped + length).min(out.len())))
    }

    async fn size(&self, path: &SnapshotPath) -> Result<u64> {
        {
            let recent = self.recent();
            if let Some((known, size)) = &recent.size
                && known == path
            {
                return Ok(*size);
            }
        }
        let size = match self.stat(path).await?.map(|attributes| attributes.kind) {
            Some(FileKind::File { size }) => size,
            Some(_) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    path.to_string(),
                    "is not a file",
                ));
            }
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    path.to_string(),
                    format!("is not in snapshot {}", self.inner.id),
                ));
            }
        };
        self.recent().size = Some((path.clone(), size));
        Ok(size)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.inner
            .recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn page_length(&self, path: &SnapshotPath, page: u32) -> Result<Option<usize>> {
        let page_size = u64::from(self.inner.view.page_size);
        let start = u64::from(page) * page_size;
        let rest = self.size(path).await?.saturating_sub(start);
        Ok((rest > 0).then(|| usize::try_from(rest.min(page_size)).unwrap_or(0)))
    }

    fn kept_place(&self, path: &SnapshotPath, page: u32) -> Result<Option<PagePlace>> {
        let path = path.clone();
        let mut lookup = Lookup::new(&self.inner.view, PageKey { path, page }, false);
        self.inner.maps.run_kept(&mut lookup)
    }

    async fn place(&self, path: &SnapshotPath, page: u32) -> Result<PagePlace> {
        if let Some(place) = self.kept_place(path, page)? {
            return Ok(place);
        }
        let path = path.clone();
        let mut lookup = Lookup::new(&self.inner.view, PageKey { path, page }, false);
        self.inner.maps.run(&mut lookup).await
    }

    /// Begins to read what is likely to be asked for next, as far as the map is at hand.
    fn read_ahead(&self, path: &SnapshotPath, page: u32) -> Result<()> {
        let Some(pages) = self.recent().ahead.note(path, page) else {
            return Ok(());
        };
        let page_size = self.inner.view.page_size;
        let mut parts: Vec<Part> = Vec::new();
        for page in pages {
            match self.kept_place(path, page)? {
                Some(PagePlace::Frame { frame, offset, .. }) => {
                    let cells = frame.cells_of(offset, 1, page_size);
                    match parts.last_mut() {
                        Some(last) if last.frame.id() == frame.id() => {
                            last.cells = last.cells.and(cells);
                        }
                        _ => parts.push(Part { frame, cells }),
                    }
                }
                Some(PagePlace::Zeros) => {}
                Some(PagePlace::NotThere) | None => break,
            }
        }
        self.inner.maps.frames().prefetch(parts);
        Ok(())
    }
}

/// A page of so many bytes in a frame.
fn bytes_at(offset: u32, length: usize) -> Range<u64> {
    let from = u64::from(offset);
    from..from.saturating_add(length as u64)
}

fn unmapped(path: &SnapshotPath, page: u32) -> Error {
    Error::malformed(
        path.to_string(),
        format!("the map says nothing of page {page}"),
    )
}
