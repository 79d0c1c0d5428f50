//! Writes one run: cuts it into record blocks with their digests, and indexes.

use std::fmt;

use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, ErrorKind, Result};
use crate::map::block::{
    BlockBuilder, MAX_EXTENT, MAX_PAGES, check_page_size, extent_fits, pages_of,
};
use crate::map::index::{BlockRef, IndexBuilder};
use crate::map::map_frame::encode_digests;
use crate::map::overlay::Reuse;
use crate::map::run::IndexRef;
use crate::map::{
    At, Extent, FileKind, FileState, FrameRef, Group, KEEP_ALL, PageDigest, PageKey, RunRef,
    RunSize,
};

/// Where the frames of a map go.
pub trait BlockSink {
    /// Stores plain bytes, 1 byte to 128 KiB, as a frame of their own and tells where it is.
    ///
    /// # Errors
    /// When they cannot be stored; the run is then not written further.
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef>;
}

impl<S: BlockSink + ?Sized> BlockSink for &mut S {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        (**self).put(plain)
    }
}

/// Writes a run from what is known about files, in the order of their paths' bytes.
///
/// Every page of a file must be in an extent of this run or be visible in an older one. The limit of a file is
/// cut to its size, so that what was cut off stays hidden when the file grows again.
pub struct RunWriter<S> {
    sink: S,
    page_size: u32,
    limits: Limits,
    run: RunRef,
    index: IndexBuilder,
    block: BlockBuilder,
    /// The key that the block begins with.
    first: Option<PageKey>,
    digests: Vec<PageDigest>,
    file: Option<OpenFile>,
}

/// How large the frames of a run become. Readers accept any up to a frame of 128 KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Plain bytes of a record block.
    pub(crate) block: usize,
    /// Pages with digests in a record block.
    pub(crate) pages: u32,
    /// Plain bytes of an index frame.
    pub(crate) index: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            block: 64 << 10,
            pages: MAX_PAGES,
            index: 64 << 10,
        }
    }
}

/// The file that extents are taken for.
#[derive(Debug)]
struct OpenFile {
    path: SnapshotPath,
    limit: u32,
    /// No page from here on is part of it.
    end: u32,
    /// The page after the last extent.
    page: u32,
    /// An extent that the next one may continue.
    pending: Option<(Extent, Vec<PageDigest>)>,
}

impl<S> fmt::Debug for RunWriter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunWriter")
            .field("file", &self.file.as_ref().map(|file| &file.path))
            .finish_non_exhaustive()
    }
}

impl<S: BlockSink> RunWriter<S> {
    /// Begins a run over files of pages of this size.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) for a page size that PostgreSQL does not have.
    pub fn new(sink: S, page_size: u32) -> Result<Self> {
        Self::with_limits(sink, page_size, Limits::default())
    }

    pub(crate) fn with_limits(sink: S, page_size: u32, limits: Limits) -> Result<Self> {
        check_page_size(page_size)?;
        Ok(Self {
            sink,
            page_size,
            limits,
            run: RunRef::default(),
            index: IndexBuilder::default(),
            block: BlockBuilder::new(page_size),
            first: None,
            digests: Vec::new(),
            file: None,
        })
    }

    /// Takes a file as a whole. `digests` are those of its pages that are not zero, in the order of the extents.
    ///
    /// # Errors
    /// As [`begin`](Self::begin) and [`pages`](Self::pages).
    pub fn push(&mut self, group: &Group, mut digests: &[PageDigest]) -> Result<()> {
        self.begin(&group.path, &group.state)?;
        for extent in &group.extents {
            let count = match &extent.at {
                At::Zeros => 0,
                At::Frame { .. } => extent.count as usize,
            };
            let (own, rest) = digests.split_at_checked(count).unwrap_or((&[], digests));
            self.pages(extent, own)?;
            digests = rest;
        }
        if digests.is_empty() {
            return Ok(());
        }
        Err(self.wrong("has more digests than pages"))
    }

    /// Begins a file; its extents follow through [`pages`](Self::pages).
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) for a path that does not come after the last one;
    /// [`Limit`](ErrorKind::Limit) for a tablespace whose place is longer than 4095 bytes; those of the sink.
    pub fn begin(&mut self, path: &SnapshotPath, state: &FileState) -> Result<()> {
        self.flush_extent()?;
        if self.file.as_ref().is_some_and(|file| file.path >= *path) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                path.to_string(),
                "does not come after the file before it",
            ));
        }
        let mut state = state.clone();
        let end = match &mut state {
            FileState::Same => KEEP_ALL,
            FileState::Removed => 0,
            FileState::Present { attributes, limit } => {
                let end = match &attributes.kind {
                    FileKind::File { size } => pages_of(*size, self.page_size),
                    FileKind::Directory | FileKind::Tablespace { .. } => 0,
                };
                *limit = end.min(*limit);
                end
            }
        };
        let limit = match &state {
            FileState::Same => KEEP_ALL,
            FileState::Removed => 0,
            FileState::Present { limit, .. } => *limit,
        };
        let fits = self.block.size_with_part(path, &state) <= self.limits.block
            && self.block.pages() + MAX_EXTENT <= self.limits.pages;
        if !self.block.is_empty() && !fits {
            self.cut()?;
        }
        if self.block.is_empty() {
            self.first = Some(PageKey::of(path.clone()));
        }
        self.block.begin(path, Ok(&state))?;
        self.file = Some(OpenFile {
            path: path.clone(),
            limit,
            end,
            page: 0,
            pending: None,
        });
        Ok(())
    }

    /// Goes on with a file that the blocks taken over last have begun.
    pub(crate) fn begin_rest(&mut self, path: &SnapshotPath, limit: u32) -> Result<()> {
        self.flush_extent()?;
        self.cut()?;
        self.file = Some(OpenFile {
            path: path.clone(),
            limit,
            end: KEEP_ALL,
            page: 0,
            pending: None,
        });
        Ok(())
    }

    /// Takes over a block that is stored already and follows what was written. The file that was begun last may
    /// go on in it and after it.
    pub(crate) fn take_block(&mut self, block: BlockRef) -> Result<()> {
        self.flush_extent()?;
        self.cut()?;
        self.refer(block)
    }

    /// Takes over an index as [`take_block`](Self::take_block) does a block.
    pub(crate) fn take_index(&mut self, index: IndexRef) -> Result<()> {
        self.flush_extent()?;
        self.cut()?;
        self.cut_index()?;
        self.run.indexes.push(index);
        Ok(())
    }

    /// What may be taken over now without leaving small blocks behind for ever: anything after another such
    /// piece; otherwise what is small is better written together with what was before it.
    pub(crate) fn reuse(&self, bottom: bool) -> Reuse {
        let part = |limit: usize| u32::try_from(limit / 4).unwrap_or(u32::MAX);
        let (block, index) = (self.first.is_none(), self.index.blocks().is_empty());
        Reuse {
            block: if block { 0 } else { part(self.limits.block) },
            pages: if block { 0 } else { self.limits.pages / 4 },
            index: if block && index {
                0
            } else {
                part(self.limits.index)
            },
            bottom,
        }
    }

    /// Takes pages of the file begun last, with a digest each unless they are zero.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) for pages that do not follow the last ones, lie beyond the end of
    /// the file or of the frame, or have too many or too few digests; those of the sink.
    pub fn pages(&mut self, extent: &Extent, digests: &[PageDigest]) -> Result<()> {
        let page_size = self.page_size;
        let expected = match &extent.at {
            At::Zeros => 0,
            At::Frame { .. } => extent.count as usize,
        };
        if digests.len() != expected {
            return Err(self.wrong("has other digests than pages"));
        }
        let fits = extent_fits(extent, page_size);
        let Some(file) = &mut self.file else {
            return Err(self.wrong("pages without a file"));
        };
        if !fits || extent.page < file.page || extent.end() > file.end {
            return Err(self.wrong("has pages that cannot be"));
        }
        file.page = extent.end();
        if let Some((pending, its)) = &mut file.pending
            && continues(pending, extent, page_size)
        {
            pending.count += extent.count;
            its.extend_from_slice(digests);
            return Ok(());
        }
        self.flush_extent()?;
        if let Some(file) = &mut self.file {
            file.pending = Some((*extent, digests.to_vec()));
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(mut self) -> Result<(RunRef, S)> {
        self.flush_extent()?;
        self.cut()?;
        self.cut_index()?;
        Ok((self.run, self.sink))
    }

    fn flush_extent(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let Some((extent, digests)) = file.pending.take() else {
            return Ok(());
        };
        let pages = u32::try_from(digests.len()).unwrap_or(u32::MAX);
        let fits = self.block.size_with_extent() <= self.limits.block
            && self.block.pages().saturating_add(pages) <= self.limits.pages;
        if self.block.is_empty() || !fits && self.block.has_pages() {
            let (path, limit) = (file.path.clone(), file.limit);
            self.cut()?;
            self.block.begin(&path, Err(limit))?;
            self.first = Some(PageKey {
                path,
                page: extent.page,
            });
        }
        self.block.extent(&extent);
        self.digests.extend_from_slice(&digests);
        Ok(())
    }

    /// Writes the block, if there is one.
    fn cut(&mut self) -> Result<()> {
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        let block = std::mem::replace(&mut self.block, BlockBuilder::new(self.page_size));
        let pages = block.pages();
        let (bytes, parts) = block.finish();
        let record = self.sink.put(&bytes)?;
        let digests = if self.digests.is_empty() {
            None
        } else {
            let frame = self.sink.put(&encode_digests(&self.digests))?;
            self.digests.clear();
            Some(frame)
        };
        self.refer(BlockRef {
            first,
            record,
            digests,
            parts,
            pages,
        })
    }

    /// Puts a block that is stored into the index.
    fn refer(&mut self, block: BlockRef) -> Result<()> {
        if self.index.size_with(&block) > self.limits.index {
            self.cut_index()?;
        }
        self.index.push(block);
        Ok(())
    }

    fn cut_index(&mut self) -> Result<()> {
        let (bytes, blocks) = std::mem::take(&mut self.index).finish();
        let Some(block) = blocks.first() else {
            return Ok(());
        };
        let first = block.first.clone();
        let frame = self.sink.put(&bytes)?;
        let mut size = RunSize {
            bytes: frame.stored_length.into(),
            ..RunSize::default()
        };
        for block in &blocks {
            size.add(RunSize {
                files: block.parts.into(),
                pages: block.pages.into(),
                bytes: block.bytes(),
            });
        }
        self.run.indexes.push(IndexRef { first, frame, size });
        Ok(())
    }

    fn wrong(&self, reason: &'static str) -> Error {
        let path = self.file.as_ref().map(|file| file.path.to_string());
        Error::new(ErrorKind::Inconsistent, path.unwrap_or_default(), reason)
    }
}

/// Whether an extent is the continuation of another, in the file and in its frame.
pub(crate) fn continues(before: &Extent, after: &Extent, page_size: u32) -> bool {
    before.end() == after.page
        && match (&before.at, &after.at) {
            (At::Zeros, At::Zeros) => true,
            (
                At::Frame { frame, offset },
                At::Frame {
                    frame: next,
                    offset: at,
                },
            ) => {
                frame == next
                    && u64::from(*offset) + u64::from(before.count) * u64::from(page_size)
                        == u64::from(*at)
            }
            _ => false,
        }
}
