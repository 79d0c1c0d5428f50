//! Between what sends a snapshot from outside and the repository: keeps what says which snapshot it is, sums files for
//! their manifest, and judges pages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use neon_pg_layout::{
    ChecksumAlgorithm, FileChecksum, FileHasher, ManifestFile, SegmentName, WalFileName,
};
use neon_snapshot_format::{
    Change, Chunk, ChunkData, End, Entry, Error, ErrorKind, ExtentSink, ParallelSink, Result,
    SnapshotPath, Wanted,
};

use crate::snapshots::judge::{BadPages, Judge, Known, Pages, Shape};
use crate::snapshots::watch::Watched;

/// Small files that say what a snapshot is. No such file is larger.
const KEPT: [&[u8]; 2] = [b"global/pg_control", b"backup_label"];
const KEPT_LIMIT: u64 = 1 << 20;
/// It speaks of a copy, and is no part of what was copied; one that is to start gets its own.
const MANIFEST: &[u8] = b"backup_manifest";
/// That of some million files.
const MANIFEST_LIMIT: u64 = 1 << 30;
/// As many histories of timelines as anybody has, and more.
const MOST_KEPT: usize = 4096;

/// Sums of files by the digests of their paths.
type Sums = HashMap<[u8; 16], (u64, [u8; 4])>;

/// See the module.
pub(crate) struct Inspection<'a> {
    sink: Watched<'a>,
    kept: Mutex<BTreeMap<SnapshotPath, Vec<u8>>>,
    segments: Mutex<BTreeSet<SegmentName>>,
    sums: Option<Mutex<Sums>>,
    judge: Option<Judge>,
}

impl<'a> Inspection<'a> {
    /// Passes on to `sink`.
    pub(crate) fn new(sink: Watched<'a>) -> Self {
        Self {
            sink,
            kept: Mutex::default(),
            segments: Mutex::default(),
            sums: None,
            judge: None,
        }
    }

    /// Judges every page. For sources that do not do so themselves.
    pub(crate) fn judging(mut self, shape: Shape) -> Self {
        self.judge = Some(Judge::new(shape));
        self
    }

    /// What was taken for known of the pages that are judged.
    pub(crate) fn shape(&self) -> Option<Shape> {
        self.judge.as_ref().map(Judge::shape)
    }

    /// What is wrong with the pages that came.
    pub(crate) fn bad_pages(&self, known: &Known) -> BadPages {
        self.judge
            .as_ref()
            .map_or_else(BadPages::default, |judge| judge.bad_pages(known))
    }

    /// Sums every file, for a manifest that comes at the end.
    pub(crate) fn summing(mut self) -> Self {
        self.sums = Some(Mutex::default());
        self
    }

    /// A small file that came.
    pub(crate) fn kept(&self, path: &[u8]) -> Option<Vec<u8>> {
        let path = SnapshotPath::new(path).ok()?;
        lock(&self.kept).get(&path).cloned()
    }

    /// Segments of the log that came.
    pub(crate) fn segments(&self) -> BTreeSet<SegmentName> {
        lock(&self.segments).clone()
    }

    /// Holds one file of a manifest against what came.
    pub(crate) fn matches(&self, file: &ManifestFile) -> bool {
        let Some(sums) = &self.sums else { return false };
        let mut sums = lock(sums);
        let Some((size, sum)) = sums.remove(&digest(&file.path)) else {
            return false;
        };
        let same = file.checksum.as_ref().is_none_or(|wanted| {
            // Sums of other kinds were not made on the way.
            if wanted.algorithm() != ChecksumAlgorithm::Crc32c {
                return true;
            }
            FileChecksum::new(ChecksumAlgorithm::Crc32c, &sum).is_ok_and(|sum| sum == *wanted)
        });
        size == file.size && same
    }
}

impl std::fmt::Debug for Inspection<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(path: &[u8]) -> [u8; 16] {
    let hash = blake3::hash(path);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The file of the log that a path names.
fn log_file(path: &SnapshotPath) -> Option<WalFileName> {
    path.as_str()?.strip_prefix("pg_wal/")?.parse().ok()
}

impl ParallelSink for Inspection<'_> {
    fn entry(&self, entry: &Entry) -> Result<()> {
        self.sink.entry(entry)
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        if let Some(WalFileName::Segment(segment)) = log_file(&entry.path) {
            lock(&self.segments).insert(segment);
        }
        if entry.path.as_bytes() == MANIFEST {
            return Ok(());
        }
        self.sink.file(entry, wanted)
    }

    fn changed(&self, entry: &Entry, change: Change) -> Result<()> {
        self.sink.changed(entry, change)
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Worker {
            inspection: self,
            worker: self.sink.worker()?,
            kept: None,
            sum: None,
            pages: None,
            aside: false,
        }))
    }

    fn end(&self, end: &End) -> Result<()> {
        self.sink.end(end)
    }
}

struct Worker<'a> {
    inspection: &'a Inspection<'a>,
    worker: Box<dyn ExtentSink + 'a>,
    kept: Option<(SnapshotPath, Vec<u8>)>,
    sum: Option<(Entry, FileHasher)>,
    pages: Option<Pages>,
    /// What comes is not passed on.
    aside: bool,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn each_piece(data: ChunkData<'_>, mut take: impl FnMut(&[u8])) {
    match data {
        ChunkData::Bytes(bytes) => take(bytes),
        ChunkData::Zeros(mut count) => {
            while count > 0 {
                let length = usize::try_from(count)
                    .unwrap_or(ZEROS.len())
                    .min(ZEROS.len());
                take(ZEROS.get(..length).unwrap_or(&ZEROS));
                count = count.saturating_sub(length as u64);
            }
        }
    }
}

impl ExtentSink for Worker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        let path = entry.path.as_bytes();
        self.aside = path == MANIFEST;
        let history = matches!(log_file(&entry.path), Some(WalFileName::History(_)));
        let wanted = self.aside || history || KEPT.contains(&path);
        let limit = if self.aside {
            MANIFEST_LIMIT
        } else {
            KEPT_LIMIT
        };
        if wanted && entry.size() > limit {
            return Err(Error::new(
                ErrorKind::Unsafe,
                entry.path.to_string(),
                "is larger than any such file",
            ));
        }
        let whole = range == (0..entry.size());
        self.kept = (wanted && whole).then(|| (entry.path.clone(), Vec::new()));
        self.sum = (whole && self.inspection.sums.is_some())
            .then(|| (entry.clone(), FileHasher::new(ChecksumAlgorithm::Crc32c)));
        if self.aside {
            return Ok(());
        }
        let judge = self.inspection.judge.as_ref();
        self.pages = judge.and_then(|judge| judge.file(entry));
        self.worker.begin(entry, range)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if let Some((_, content)) = &mut self.kept {
            each_piece(chunk.data, |bytes| content.extend_from_slice(bytes));
        }
        if let Some((_, hasher)) = &mut self.sum {
            each_piece(chunk.data, |bytes| hasher.update(bytes));
        }
        if let Some(pages) = &mut self.pages {
            pages.look_at(chunk);
        }
        if self.aside {
            return self.inspection.sink.meter.did(chunk.len());
        }
        self.worker.chunk(chunk)
    }

    fn commit(&mut self) -> Result<()> {
        if let Some((path, content)) = self.kept.take() {
            let mut kept = lock(&self.inspection.kept);
            if kept.len() < MOST_KEPT {
                kept.insert(path, content);
            }
        }
        if let (Some(pages), Some(judge)) = (self.pages.take(), &self.inspection.judge) {
            judge.keep(pages);
        }
        if let (Some((entry, hasher)), Some(sums)) = (self.sum.take(), &self.inspection.sums) {
            let sum = hasher.finish();
            let bytes = sum.as_ref().and_then(|sum| sum.bytes().first_chunk());
            let sum = (entry.size(), bytes.copied().unwrap_or_default());
            lock(sums).insert(digest(entry.path.as_bytes()), sum);
        }
        if std::mem::take(&mut self.aside) {
            return Ok(());
        }
        self.worker.commit()
    }

    fn finish(&mut self) -> Result<()> {
        self.worker.finish()
    }
}
