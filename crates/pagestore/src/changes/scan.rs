//! What changed, by reading everything and comparing it with the digests of the parent's pages.
//!
//! Needs nothing of the log, so it works after anything that happened. That a file's size and time are what
//! they were proves nothing: the server writes pages in place, within the resolution of the clock. So every
//! page is read.

use std::collections::BTreeMap;
use std::io::{ErrorKind as IoKind, Read};
use std::ops::ControlFlow;

use neon_snapshot_format::SnapshotPath;

use crate::changes::set::{ChangeSet, FileChange, Ranges, ScannedFile, WholeReason};
use crate::changes::source::{Answer, ChangeSource, Progress, SourceKind, Watch};
use crate::changes::wal::cancelled;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;
use crate::map::PageDigest;

/// A page of the parent, as far as a comparison must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParentPage {
    /// All its bytes are zero.
    Zeros,
    /// The digest of its bytes.
    Digest(PageDigest),
}

impl ParentPage {
    /// The page with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if is_zero(bytes) {
            return Self::Zeros;
        }
        let mut digest = PageDigest::default();
        let hash = blake3::hash(bytes);
        digest
            .iter_mut()
            .zip(hash.as_bytes())
            .for_each(|(to, from)| *to = *from);
        Self::Digest(digest)
    }

    /// Whether it has these bytes. Of zeros it does not know how many there were.
    #[must_use]
    pub fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Zeros => is_zero(bytes),
            Self::Digest(_) => Self::of(bytes) == *self,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Without a test of each byte for itself.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// A file as the parent has it.
pub struct ParentFile<'a> {
    /// Bytes.
    pub size: u64,
    /// Its pages in order, from the first to the last.
    pub pages: Box<dyn Iterator<Item = Result<ParentPage>> + 'a>,
}

impl std::fmt::Debug for ParentFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParentFile")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The digests of a snapshot's pages. A snapshot in a repository [has them](crate::read::Snapshot::parent_pages).
pub trait ParentPages: Send {
    /// Which snapshot: what is found changed is so since that one, and no other.
    fn snapshot(&self) -> CommitId;

    /// A file, if it has it. Asked for in ascending order of paths.
    ///
    /// # Errors
    /// When the digests cannot be read.
    fn file(&mut self, path: &SnapshotPath) -> Result<Option<ParentFile<'_>>>;
}

/// A file of the cluster as it is now.
pub struct ScanFile<'a> {
    /// Its path.
    pub path: SnapshotPath,
    /// Its bytes.
    pub content: Box<dyn Read + Send + 'a>,
}

impl std::fmt::Debug for ScanFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScanFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The files of the cluster.
pub trait ScanFiles: Send {
    /// The next one, in ascending order of paths; none after the last.
    ///
    /// # Errors
    /// When it cannot be opened. One that is gone by now is passed over.
    fn next(&mut self) -> Result<Option<ScanFile<'_>>>;
}

/// Compares one file, page by page, with what the parent has.
///
/// For writers too, which read all of a file anyway and store the pages that differ.
pub struct FileScan<'a> {
    parent: Option<ParentFile<'a>>,
    page_size: u64,
    size: u64,
    page: u32,
    /// Pages that both have.
    shared: u32,
    changed: Ranges,
}

impl std::fmt::Debug for FileScan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileScan")
            .field("parent", &self.parent)
            .field("page", &self.page)
            .finish_non_exhaustive()
    }
}

impl<'a> FileScan<'a> {
    /// Begins a file that is this in the parent.
    #[must_use]
    pub const fn new(parent: Option<ParentFile<'a>>, page_size: u64) -> Self {
        Self {
            parent,
            page_size,
            size: 0,
            page: 0,
            shared: 0,
            changed: Ranges(Vec::new()),
        }
    }

    /// Takes the next page, whole but for the last of the file, and says whether the parent has it in the
    /// same place.
    ///
    /// # Errors
    /// What the parent's digests return; [`Limit`](ErrorKind::Limit) for more pages than a page number can
    /// count.
    pub fn page(&mut self, bytes: &[u8]) -> Result<bool> {
        let number = self.page;
        self.page = number.checked_add(1).ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                "a file",
                "has more pages than can be counted",
            )
        })?;
        self.size = self.size.saturating_add(bytes.len() as u64);
        let at = u64::from(number).saturating_mul(self.page_size);
        let same = match &mut self.parent {
            Some(parent) => match parent.pages.next().transpose()? {
                Some(page) => {
                    self.shared = self.page;
                    // The last page may have been shorter, or longer: also zeros are the same only where there are as many.
                    let length = parent.size.saturating_sub(at).min(self.page_size);
                    length == bytes.len() as u64 && page.is(bytes)
                }
                None => false,
            },
            None => false,
        };
        if !same {
            self.changed.add(number);
        }
        Ok(same)
    }

    /// The file is at its end: what differs.
    #[must_use]
    pub fn finish(self) -> FileChange {
        let Some(parent) = self.parent else {
            return FileChange::Whole(WholeReason::New);
        };
        if self.changed.0.is_empty() && parent.size == self.size {
            return FileChange::Unchanged;
        }
        FileChange::Pages {
            limit: self.shared,
            pages: self.changed.0,
        }
    }

    /// Reads a whole file.
    fn read(
        mut self,
        path: &SnapshotPath,
        content: &mut dyn Read,
        buffer: &mut [u8],
        mut pages: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ScannedFile> {
        let size = usize::try_from(self.page_size).unwrap_or(usize::MAX);
        loop {
            let filled = fill(content, buffer).map_err(|error| {
                Error::new(ErrorKind::Io, path.to_string(), "cannot be read").caused_by(error)
            })?;
            let bytes = buffer.get(..filled).unwrap_or_default();
            for page in bytes.chunks(size.max(1)) {
                self.page(page)?;
            }
            if pages((filled as u64).div_ceil(self.page_size.max(1))).is_break() {
                return Err(cancelled());
            }
            if filled < buffer.len() {
                return Ok(ScannedFile {
                    size: self.size,
                    change: self.finish(),
                });
            }
        }
    }
}

/// Fills the buffer, unless the end comes first.
fn fill(content: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match content.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reading everything, as a source of changes. It always has an answer.
///
/// A running cluster may be scanned too: what changes behind the scan is in the log that the snapshot
/// carries.
pub struct ScanSource<'a> {
    parent: &'a mut dyn ParentPages,
    files: &'a mut dyn ScanFiles,
    page_size: u64,
    watch: Watch<'a>,
    scanned: BTreeMap<SnapshotPath, ScannedFile>,
    read: u64,
}

impl std::fmt::Debug for ScanSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScanSource")
            .field("page_size", &self.page_size)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// Pages that are read at once.
const PAGES: usize = 16;

impl<'a> ScanSource<'a> {
    /// These files, compared with these digests; both of pages of `page_size` bytes.
    pub fn new(
        page_size: u64,
        files: &'a mut dyn ScanFiles,
        parent: &'a mut dyn ParentPages,
    ) -> Self {
        Self {
            parent,
            files,
            page_size,
            watch: Box::new(|_| ControlFlow::Continue(())),
            scanned: BTreeMap::new(),
            read: 0,
        }
    }

    /// The same, telling how far it is and asking whether to go on, many times for each file.
    #[must_use]
    pub fn watched(mut self, watch: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.watch = Box::new(watch);
        self
    }
}

impl ChangeSource for ScanSource<'_> {
    fn kind(&self) -> SourceKind {
        SourceKind::Scan
    }

    /// # Errors
    /// As the trait says, and when files or digests cannot be read: no other source would help. A scan
    /// that was stopped goes on with the next file; the one it was in is read in whole by the snapshot.
    fn changes(&mut self) -> Result<Answer> {
        let page_size = usize::try_from(self.page_size).unwrap_or(usize::MAX);
        let mut buffer = vec![0; page_size.saturating_mul(PAGES).clamp(1, 1 << 20)];
        while let Some(mut file) = self.files.next()? {
            let scan = FileScan::new(self.parent.file(&file.path)?, self.page_size);
            let (read, watch) = (&mut self.read, &mut self.watch);
            let scanned = scan.read(&file.path, &mut file.content, &mut buffer, |pages| {
                *read = read.saturating_add(pages);
                watch(Progress::Pages { read: *read })
            })?;
            self.scanned.insert(file.path, scanned);
        }
        let files = std::mem::take(&mut self.scanned);
        Ok(Answer::Exact(ChangeSet::of_scan(
            self.parent.snapshot(),
            self.page_size,
            files,
        )))
    }
}
