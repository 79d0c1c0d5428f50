//! Copying under watch: how far it is, and whether to go on.
//!
//! A thread that copies is not ended with the future that waits for it. It asks after every chunk whether somebody still
//! wants what it does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use neon_pagestore::write::SnapshotWriter;
use neon_snapshot_format::pgdata::Select;
use neon_snapshot_format::{
    Change, Chunk, End, Entry, Error, ErrorKind, ExtentSink, ParallelSink, Result, Wanted,
};

use crate::events::{Event, EventSink};
use crate::neon::Neon;

/// Bytes between two events.
const STEP: u64 = 4 << 20;

/// Whether the work is still wanted. Clones ask the same.
#[derive(Debug, Clone)]
pub(crate) struct GoOn {
    cancelled: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
}

impl GoOn {
    /// While nobody asks to stop and this is not set.
    pub(crate) fn unless(neon: &Neon, dropped: Arc<AtomicBool>) -> Self {
        Self {
            cancelled: Arc::clone(&neon.options().cancel),
            dropped,
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.dropped.load(Ordering::Relaxed)
    }

    /// For loops that copy.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stopped() {
            return Err(Error::new(ErrorKind::Io, "the copy", "was stopped"));
        }
        Ok(())
    }
}

/// Held by the future that waits for threads: dropped, it tells them to stop.
#[derive(Debug, Default)]
pub(crate) struct Wanting(Arc<AtomicBool>);

impl Wanting {
    pub(crate) fn new(neon: &Neon) -> (Self, GoOn) {
        let wanting = Self::default();
        let go_on = GoOn::unless(neon, wanting.flag());
        (wanting, go_on)
    }

    /// Set when nobody wants it any more.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells how many bytes are done.
#[derive(Debug)]
pub(crate) struct Meter {
    subject: String,
    events: EventSink,
    pub(crate) go_on: GoOn,
    done: AtomicU64,
    total: AtomicU64,
    told: AtomicU64,
}

impl Meter {
    pub(crate) fn new(neon: &Neon, subject: String, go_on: GoOn) -> Self {
        Self {
            subject,
            events: neon.options().events.clone(),
            go_on,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }

    /// As many bytes more will come.
    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes are done; may more be?
    pub(crate) fn did(&self, bytes: u64) -> Result<()> {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told.load(Ordering::Relaxed);
        let due = done.saturating_sub(told) >= STEP;
        if due
            && self
                .told
                .compare_exchange(told, done, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.tell(done);
        }
        self.go_on.check()
    }

    /// Says how far it is, whatever was said before.
    pub(crate) fn tell_all(&self) {
        self.tell(self.done.load(Ordering::Relaxed));
    }

    fn tell(&self, done: u64) {
        self.events.tell(Event::Progress {
            subject: self.subject.clone(),
            done,
            total: self.total.load(Ordering::Relaxed),
        });
    }
}

/// A writer of a snapshot under watch.
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    pub(crate) sink: &'a SnapshotWriter,
    pub(crate) meter: &'a Meter,
}

impl ParallelSink for Watched<'_> {
    fn entry(&self, entry: &Entry) -> Result<()> {
        self.sink.entry(entry)
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        self.meter.expect(bytes_of(entry, wanted));
        self.meter.go_on.check()?;
        self.sink.file(entry, wanted)
    }

    fn changed(&self, entry: &Entry, change: Change) -> Result<()> {
        self.sink.changed(entry, change)
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(WatchedWorker {
            worker: self.sink.worker()?,
            meter: self.meter,
        }))
    }

    fn end(&self, end: &End) -> Result<()> {
        self.meter.go_on.check()?;
        self.meter.tell_all();
        self.sink.end(end)
    }
}

struct WatchedWorker<'a> {
    worker: Box<dyn ExtentSink + 'a>,
    meter: &'a Meter,
}

impl ExtentSink for WatchedWorker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        self.worker.begin(entry, range)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.worker.chunk(chunk)?;
        self.meter.did(chunk.len())
    }

    fn commit(&mut self) -> Result<()> {
        self.worker.commit()
    }

    fn finish(&mut self) -> Result<()> {
        self.worker.finish()
    }
}

/// Counts the bytes of pages that a selection names; what else it wants is read for other reasons.
pub(crate) struct Counted<'a> {
    select: &'a dyn Select,
    changed: AtomicU64,
}

impl<'a> Counted<'a> {
    pub(crate) fn of(select: &'a dyn Select) -> Self {
        Self {
            select,
            changed: AtomicU64::new(0),
        }
    }

    pub(crate) fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }
}

impl Select for Counted<'_> {
    fn wanted(&self, entry: &Entry) -> Result<Wanted> {
        let wanted = self.select.wanted(entry)?;
        if matches!(wanted, Wanted::Ranges(_)) {
            self.changed
                .fetch_add(bytes_of(entry, &wanted), Ordering::Relaxed);
        }
        Ok(wanted)
    }
}

fn bytes_of(entry: &Entry, wanted: &Wanted) -> u64 {
    match wanted {
        Wanted::Whole => entry.size(),
        Wanted::Nothing => 0,
        Wanted::Ranges(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
    }
}
