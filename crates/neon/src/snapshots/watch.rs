//! Copying under watch: how far it is, and whether to go on.
//!
//! A thread that copies is not ended with the future that waits for it. It asks after every chunk whether somebody still
//! wants what it does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use neon_snapshot_format::pgdata::Select;
use neon_snapshot_format::{
    Change, Chunk, End, Entry, Error, ErrorKind, ExtentSink, ParallelSink, Result, Sink, Wanted,
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

    /// Of a copy of this many bytes.
    pub(crate) fn of(neon: &Neon, subject: &str, dropped: Arc<AtomicBool>, total: u64) -> Self {
        let meter = Self::new(neon, subject.to_owned(), GoOn::unless(neon, dropped));
        meter.expect(total);
        meter
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

/// A sink under watch, of whatever sends to it from several threads.
#[derive(Clone)]
pub(crate) struct Watched<'a> {
    sink: &'a dyn ParallelSink,
    pub(crate) meter: Arc<Meter>,
    /// What is announced is added to what is expected.
    expecting: bool,
}

impl<'a> Watched<'a> {
    /// Passes on to `sink`. How much will come, the meter knows, or nobody.
    pub(crate) fn new(sink: &'a dyn ParallelSink, meter: Arc<Meter>) -> Self {
        Self {
            sink,
            meter,
            expecting: false,
        }
    }

    /// The source announces every file before it sends any: that is what will come.
    pub(crate) fn expecting(mut self) -> Self {
        self.expecting = true;
        self
    }
}

impl fmt::Debug for Watched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("meter", &self.meter)
            .finish_non_exhaustive()
    }
}

impl ParallelSink for Watched<'_> {
    fn entry(&self, entry: &Entry) -> Result<()> {
        self.meter.go_on.check()?;
        self.sink.entry(entry)
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        if self.expecting {
            self.meter.expect(bytes_of(entry, wanted));
        }
        self.meter.go_on.check()?;
        self.sink.file(entry, wanted)
    }

    fn changed(&self, entry: &Entry, change: Change) -> Result<()> {
        self.sink.changed(entry, change)
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(WatchedWorker {
            worker: self.sink.worker()?,
            meter: &self.meter,
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

/// A sink under watch, of what is sent in order.
pub(crate) struct WatchedInOrder<'a> {
    sink: &'a mut dyn Sink,
    meter: Meter,
}

impl<'a> WatchedInOrder<'a> {
    pub(crate) fn new(sink: &'a mut dyn Sink, meter: Meter) -> Self {
        Self { sink, meter }
    }
}

impl Sink for WatchedInOrder<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.meter.go_on.check()?;
        self.sink.entry(entry)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.sink.chunk(chunk)?;
        self.meter.did(chunk.len())
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.meter.go_on.check()?;
        self.meter.tell_all();
        self.sink.end(end)
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
