//! What a clone is to be like, and what is told while it is made.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::method::{Method, NotUsed, Wanted};
use crate::scan::Part;

/// Symbolic links in the tree, other than `pg_wal` and those of tablespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Links {
    /// Are an error that names one.
    #[default]
    Refuse,
    /// Are made again with the same text; nothing they lead to is read.
    Keep,
}

/// What happens while a clone is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The source was listed. Bytes as the sizes of its files say.
    Listed {
        /// Files to be cloned.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A part is being cloned in this way.
    Using {
        /// The part.
        part: Part,
        /// The method.
        method: Method,
    },
    /// A method that should have worked did not; the next is tried.
    Refused {
        /// The part.
        part: Part,
        /// The method, and what the operating system said.
        not_used: NotUsed,
    },
    /// This much of all that was listed has been cloned.
    Done {
        /// Files so far.
        files: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// Everything is there and is being made durable.
    Flushing,
}

type Exclude = Arc<dyn Fn(&Path) -> bool + Send + Sync>;
type Listen = Arc<dyn Fn(&Event) + Send + Sync>;

/// How to clone a tree.
#[derive(Clone, Default)]
#[must_use]
pub struct CloneOptions {
    pub(crate) wanted: Wanted,
    pub(crate) links: Links,
    pub(crate) wal_directory: Option<PathBuf>,
    pub(crate) tablespaces: BTreeMap<u32, PathBuf>,
    pub(crate) tablespaces_below: Option<PathBuf>,
    pub(crate) exclude: Option<Exclude>,
    pub(crate) listen: Option<Listen>,
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    pub(crate) threads: Option<usize>,
    pub(crate) read_only: bool,
}

impl CloneOptions {
    /// The best method, no other links, tablespaces refused until they are given a place.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which method, or which kind.
    pub fn wanted(mut self, wanted: Wanted) -> Self {
        self.wanted = wanted;
        self
    }

    /// What becomes of symbolic links other than the known ones.
    pub fn links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// The log goes to this absolute path, and `pg_wal` of the clone is a link to it. Otherwise it lies in the
    /// clone, also when the source's is a link.
    pub fn wal_directory(mut self, place: impl Into<PathBuf>) -> Self {
        self.wal_directory = Some(place.into());
        self
    }

    /// The tablespace of this oid goes to this absolute path. Tablespaces in place need none.
    pub fn tablespace(mut self, oid: u32, place: impl Into<PathBuf>) -> Self {
        self.tablespaces.insert(oid, place.into());
        self
    }

    /// Tablespaces that were given no place of their own go below this absolute path, which must be there, each
    /// into a folder named by its oid.
    pub fn tablespaces_below(mut self, folder: impl Into<PathBuf>) -> Self {
        self.tablespaces_below = Some(folder.into());
        self
    }

    /// Leaves out every path for which this says true: a file, a link, or a directory with all in it. Paths are
    /// relative to the data directory, also of what lies behind a known link: `pg_wal/archive_status`,
    /// `pg_tblspc/16400/PG_16_202307071/5/16401`. Called by one thread, in no stated order, and
    /// once more for the same path when a snapshot is used.
    pub fn exclude(mut self, rule: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Self {
        self.exclude = Some(Arc::new(rule));
        self
    }

    /// Is told what happens, from several threads.
    pub fn on_event(mut self, listen: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listen = Some(Arc::new(listen));
        self
    }

    /// Once this is true, cloning ends soon with [`Cancelled`](ErrorKind::Cancelled).
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Threads that clone files; as many as there are processors, at most 8, when not said.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// For a tree that is kept as a snapshot: every part that is a subvolume becomes read-only. Elsewhere there is
    /// no such mark; the caller keeps the tree where no server reaches it.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub(crate) fn thread_count(&self) -> usize {
        let own = || std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        self.threads.unwrap_or_else(own).max(1)
    }

    pub(crate) fn excludes(&self, path: &Path) -> bool {
        self.exclude.as_ref().is_some_and(|rule| rule(path))
    }

    pub(crate) fn place_of(&self, oid: u32) -> Option<PathBuf> {
        let below = || Some(self.tablespaces_below.as_ref()?.join(oid.to_string()));
        self.tablespaces.get(&oid).cloned().or_else(below)
    }
}

impl fmt::Debug for CloneOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloneOptions")
            .field("wanted", &self.wanted)
            .field("links", &self.links)
            .field("wal_directory", &self.wal_directory)
            .field("tablespaces", &self.tablespaces)
            .field("tablespaces_below", &self.tablespaces_below)
            .field("threads", &self.threads)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// What all threads of one clone tell and ask.
pub(crate) struct Watch<'a> {
    options: &'a CloneOptions,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(options: &'a CloneOptions) -> Self {
        Self {
            options,
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(listen) = &self.options.listen {
            listen(event);
        }
    }

    /// Counts what was cloned.
    pub(crate) fn count(&self, files: u64, bytes: u64) {
        let files = self.files.fetch_add(files, Ordering::Relaxed) + files;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tell(&Event::Done { files, bytes });
    }

    /// Where the count stands, to go back to when a method fails after some files.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (
            self.files.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn back_to(&self, (files, bytes): (u64, u64)) {
        self.files.store(files, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// # Errors
    /// `Cancelled`, once the caller wants to stop.
    pub(crate) fn check(&self) -> Result<()> {
        let cancelled = self.options.cancel.as_ref();
        if cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            let reason = "was cancelled; nothing of it is left";
            return Err(Error::new(ErrorKind::Cancelled, "the clone", reason));
        }
        Ok(())
    }
}
