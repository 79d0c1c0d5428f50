//! A snapshot on its way into a repository, from several threads.
//!
//! Each worker owns a row of packs and writes the pages it is given into frames; what it learned of files goes into
//! one sorted list. When all pages are durable, the list and the parent's map are walked side by side, and what
//! differs becomes the newest run of the new map. The commit comes after that, and is not made here.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use neon_snapshot_format::pack::{Codec, FrameCipher};
use neon_snapshot_format::{Change, End, Entry, ExtentSink, ParallelSink, SnapshotPath, Wanted};

use crate::bridge::Bridge;
use crate::changes::{ChangeSet, Hints};
use crate::crypt::PackCipher;
use crate::error::{Error, ErrorKind, Result};
use crate::id::WriterId;
use crate::keys;
use crate::map::{Attributes, PackRef};
use crate::repository::Repository;
use crate::write::complete::Parent;
use crate::write::gather::{Buffer, Gathering};
use crate::write::part::{ANNOUNCED, Coming, GONE, put_announced};
use crate::write::upload::{PACK_SIZE, PackUpload};
use crate::write::worker::{State, Worker};

/// How a snapshot is written.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// How frames are compressed.
    pub codec: Codec,
    /// Bytes of a page of the cluster.
    pub page_size: u32,
    /// A pack ends when it has grown to this many bytes.
    pub pack_size: u64,
    /// Whether ranges of files are compared with the parent too, and not only files that come whole: for a source that
    /// reads everything because nobody knows what changed.
    pub compare: bool,
    /// Where a nameless temporary file may be made for the list of files. In memory if absent, which a million
    /// files want to be 200 MB.
    pub scratch: Option<PathBuf>,
    /// Set by somebody else to stop: what comes next, and [`complete`](SnapshotWriter::complete), end with
    /// [`Cancelled`](ErrorKind::Cancelled). What was stored by then is garbage, of which no snapshot knows.
    pub cancel: Arc<AtomicBool>,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            page_size: 8192,
            pack_size: PACK_SIZE,
            compare: false,
            scratch: None,
            cancel: Arc::default(),
        }
    }
}

/// Smaller files come in one part.
const SPLIT: u64 = 1 << 20;

/// Where packs go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    bridge: Bridge,
    repository: Repository,
    writer: WriterId,
    pack_size: u64,
}

impl Target {
    pub(crate) fn begin(&self, codec: Codec) -> Result<PackUpload> {
        let pack = PackRef {
            id: self.writer.new_pack()?,
            key: crate::crypt::DataKey::random()?,
        };
        let cipher = self.repository.is_encrypted().then(|| {
            let cipher: Arc<dyn FrameCipher> = Arc::new(PackCipher::new(&pack.key));
            cipher
        });
        let storage = Arc::clone(self.repository.storage());
        let key = keys::pack(pack.id)?;
        PackUpload::begin(&self.bridge, storage, key, pack, codec, cipher)
    }

    pub(crate) fn pack_size(&self) -> u64 {
        self.pack_size
    }
}

/// What writing pages came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WriteReport {
    /// Files that were announced.
    pub files: u64,
    /// Bytes that they have.
    pub bytes: u64,
    /// Bytes that came in.
    pub received: u64,
    /// Bytes of them that came because they changed: ranges, and files that the parent does not have. Known when the
    /// map is made.
    pub received_changed: u64,
    /// Pages that were stored.
    pub pages: u64,
    /// Pages that were zero and are nowhere.
    pub zero_pages: u64,
    /// Pages that came and that the parent has.
    pub same_pages: u64,
    /// Bytes of data packs stored.
    pub stored_data: u64,
    /// Bytes of metadata packs stored.
    pub stored_metadata: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) files: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) received_changed: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) zero_pages: AtomicU64,
    pub(crate) same_pages: AtomicU64,
}

impl Counted {
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    fn report(&self) -> WriteReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WriteReport {
            files: load(&self.files),
            bytes: load(&self.bytes),
            received: load(&self.received),
            received_changed: load(&self.received_changed),
            pages: load(&self.pages),
            zero_pages: load(&self.zero_pages),
            same_pages: load(&self.same_pages),
            ..WriteReport::default()
        }
    }
}

/// What is known of pages that do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) hints: Hints,
    /// They were read and compared, so that older hints of the parent do not matter.
    pub(crate) read: bool,
    /// Bytes of the cluster that were read to know it.
    pub(crate) scanned: u64,
}

/// Takes a snapshot in, from as many threads as it is given workers; through
/// [`Sequential`](neon_snapshot_format::Sequential) also from one, in order.
///
/// Its methods wait for the storage, so they must be called from threads outside of the runtime, such as
/// `spawn_blocking` gives; in a thread that polls futures they panic.
/// Each such thread is taken while it waits, and what it waits for (storages of local files, decoding) needs further blocking
/// threads of the same runtime. When writers, restores and the like have taken all of them (`max_blocking_threads`), they wait for
/// ever: leave some free, or use threads of the standard library that have entered the runtime.
///
/// When [`end`](ParallelSink::end) has returned, all pages are durable;
/// [`complete`](Self::complete) then makes the map. Dropped before, it leaves packs that no snapshot uses.
/// An error of it or of a worker that is passed over, a worker that is dropped before it has
/// [finished](ExtentSink::finish), and what comes after the end make `complete` fail: so the packs of a snapshot that it
/// completes were all acknowledged by the storage.
#[derive(Debug)]
pub struct SnapshotWriter {
    pub(crate) options: SnapshotOptions,
    pub(crate) target: Target,
    pub(crate) gathering: Gathering,
    pub(crate) counted: Counted,
    pub(crate) parent: Option<Parent>,
    /// What was said about pages that do not come.
    pub(crate) known: Option<Known>,
    /// Whether any file was announced of which not all comes.
    pub(crate) in_part: AtomicBool,
    announced: Mutex<Buffer>,
    /// Files that come whole and may do so in several parts.
    whole: Mutex<HashSet<SnapshotPath>>,
    idle: Mutex<Vec<State>>,
    /// Rows of packs that were begun and of which not all is known to be durable.
    open: AtomicUsize,
    ended: Mutex<Option<(End, u64)>>,
}

impl SnapshotWriter {
    /// Begins a snapshot of this writer. Must be called where the repository's runtime is known: in it, or in one
    /// of its blocking threads.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) outside of a runtime.
    pub fn new(
        repository: &Repository,
        writer: WriterId,
        options: SnapshotOptions,
    ) -> Result<Self> {
        let target = Target {
            bridge: Bridge::current()?,
            repository: repository.clone(),
            writer,
            pack_size: options.pack_size.max(1),
        };
        Ok(Self {
            gathering: Gathering::new(options.scratch.as_deref()),
            target,
            options,
            counted: Counted::default(),
            parent: None,
            known: None,
            in_part: AtomicBool::new(false),
            announced: Mutex::default(),
            whole: Mutex::default(),
            idle: Mutex::default(),
            open: AtomicUsize::new(0),
            ended: Mutex::default(),
        })
    }

    /// Shares the pages of a snapshot that the writer protects. Files come whole, unless it is said by
    /// [`with_changes`](Self::with_changes) or [`with_hints`](Self::with_hints) how it is known what may be left out.
    #[must_use]
    pub fn with_parent(mut self, parent: Parent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Says by what the pages that come are chosen. The snapshot records what it
    /// [may lack](crate::Facts::hints_may_be_older), and what was read to know it.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when the set is of changes since another snapshot than the parent, or
    /// there is none.
    pub fn with_changes(mut self, set: &ChangeSet) -> Result<Self> {
        match (&self.parent, set.parent()) {
            (Some(parent), _) => set.require_parent(parent.id)?,
            (None, None) => {}
            (None, Some(known)) => {
                return Err(Error::new(
                    ErrorKind::Inconsistent,
                    format!("changes since snapshot {known}"),
                    "are used without it",
                ));
            }
        }
        self.known = Some(Known {
            hints: set.hints(),
            read: !set.is_of_log(),
            scanned: set.scanned(),
        });
        Ok(self)
    }

    /// For who chooses by other knowledge than a [`ChangeSet`] which pages come: those that do not are the parent's,
    /// but for hints as said.
    #[must_use]
    pub fn with_hints(mut self, hints: Hints) -> Self {
        self.known = Some(Known {
            hints,
            read: false,
            scanned: 0,
        });
        self
    }

    /// Whether to go on.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "snapshot",
                "was told to stop",
            ));
        }
        Ok(())
    }

    /// What writing came to so far; stored bytes are known when it has ended.
    #[must_use]
    pub fn report(&self) -> WriteReport {
        let stored_data = lock(&self.ended).as_ref().map_or(0, |(_, stored)| *stored);
        WriteReport {
            stored_data,
            ..self.counted.report()
        }
    }

    pub(crate) fn page_size(&self) -> u64 {
        self.options.page_size.into()
    }

    /// What the source said at the end.
    pub(crate) fn end_of_source(&self) -> Result<End> {
        let ended = lock(&self.ended);
        ended.as_ref().map(|(end, _)| end.clone()).ok_or_else(|| {
            Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "is completed before all of it has come",
            )
        })
    }

    pub(crate) fn bridge(&self) -> &Bridge {
        &self.target.bridge
    }

    /// Whether all that workers took is durable. What one of them took that was dropped, came after the end or could
    /// not be stored may be in the list of files already, and its pack is nowhere.
    pub(crate) fn require_stored(&self) -> Result<()> {
        match self.open.load(Ordering::Acquire) {
            0 => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "is completed although a worker was given up, failed, or went on after the end",
            )),
        }
    }

    /// Whether all of a file comes, this part or others.
    pub(crate) fn comes_whole(&self, entry: &Entry, range: &Range<u64>) -> bool {
        *range == (0..entry.size()) || lock(&self.whole).contains(&entry.path)
    }

    /// Takes back what a worker used, for the next one.
    pub(crate) fn give_back(&self, state: State) {
        lock(&self.idle).push(state);
    }

    fn announce(&self, entry: &Entry, coming: &Coming) -> Result<()> {
        self.check_cancelled()?;
        if *coming != Coming::Whole && self.known.is_none() {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                entry.path.to_string(),
                "comes in part, and nobody said how it is known that the rest is the parent's",
            ));
        }
        let mut content = Vec::with_capacity(64);
        put_announced(&mut content, &Attributes::of(entry), coming);
        if *coming != Coming::Whole {
            self.in_part.store(true, Ordering::Relaxed);
        }
        if entry.is_file() {
            Counted::add(&self.counted.files, 1);
            Counted::add(&self.counted.bytes, entry.size());
        }
        if *coming == Coming::Whole && self.parent.is_some() && entry.size() > SPLIT {
            lock(&self.whole).insert(entry.path.clone());
        }
        let mut buffer = lock(&self.announced);
        let path = entry.path.as_bytes();
        self.gathering.add(&mut buffer, path, ANNOUNCED, &content)
    }

    fn flush(&self) -> Result<u64> {
        self.check_cancelled()?;
        self.gathering.put_aside(&mut lock(&self.announced))?;
        let states = std::mem::take(&mut *lock(&self.idle));
        let mut stored = 0;
        for state in states {
            stored += state.finish(self)?;
            self.open.fetch_sub(1, Ordering::Release);
        }
        Ok(stored)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error of ours where the stream of a snapshot passes it on.
pub(crate) fn passed(error: Error) -> neon_snapshot_format::Error {
    use neon_snapshot_format::ErrorKind as Format;
    let kind = match error.kind() {
        ErrorKind::NotFound => Format::NotFound,
        ErrorKind::Exists => Format::Exists,
        ErrorKind::Damaged => Format::Damaged,
        ErrorKind::Malformed => Format::Malformed,
        ErrorKind::Unsupported => Format::Unsupported,
        ErrorKind::Inconsistent => Format::Inconsistent,
        ErrorKind::Limit => Format::Limit,
        ErrorKind::Cancelled => Format::Cancelled,
        _ => Format::Io,
    };
    neon_snapshot_format::Error::new(kind, error.subject(), error.reason().to_owned())
        .caused_by(error)
}

impl ParallelSink for SnapshotWriter {
    fn entry(&self, entry: &Entry) -> neon_snapshot_format::Result<()> {
        self.announce(entry, &Coming::Whole).map_err(passed)
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> neon_snapshot_format::Result<()> {
        self.announce(entry, &Coming::of(wanted, self.page_size()))
            .map_err(passed)
    }

    fn changed(&self, entry: &Entry, change: Change) -> neon_snapshot_format::Result<()> {
        match change {
            Change::Gone => {
                let mut buffer = lock(&self.announced);
                self.gathering
                    .add(&mut buffer, entry.path.as_bytes(), GONE, &[])
                    .map_err(passed)
            }
            // What comes makes up the announced size.
            _ => Ok(()),
        }
    }

    fn worker(&self) -> neon_snapshot_format::Result<Box<dyn ExtentSink + '_>> {
        let idle = lock(&self.idle).pop();
        let state = idle.unwrap_or_else(|| {
            self.open.fetch_add(1, Ordering::Relaxed);
            State::new(self)
        });
        Ok(Box::new(Worker::new(self, state)))
    }

    fn end(&self, end: &End) -> neon_snapshot_format::Result<()> {
        let stored = self.flush().map_err(passed)?;
        *lock(&self.ended) = Some((end.clone(), stored));
        Ok(())
    }
}
