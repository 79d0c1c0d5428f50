//! Sending a snapshot to whatever takes one from several threads: a new data directory, above all.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use neon_snapshot_format::{BadPage, ExtentSink, ParallelSink, Wanted};

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{FileKind, MappedFile, Walk};
use crate::page_checks::PageChecks;
use crate::read::feed::{Feed, Fetched, FilePart, Queue};
use crate::read::layout::Layout;
use crate::read::source::end_of;
use crate::read::{FrameUse, Snapshot};
use crate::restore::plan::RestorePlan;

/// How a snapshot is restored.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Threads that decode and write; at least one.
    pub threads: usize,
    /// Whether pages are judged as the server would judge them; what is wrong is reported and written all the same.
    pub check_pages: bool,
    /// Set by somebody else to stop: the restore ends with [`Cancelled`](ErrorKind::Cancelled).
    pub cancel: Arc<AtomicBool>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            threads: 2,
            check_pages: true,
            cancel: Arc::default(),
        }
    }
}

/// What a restore came to.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Restored {
    /// Files written.
    pub files: u64,
    /// Bytes that they have.
    pub bytes: u64,
    /// Bytes of pages that were not zero.
    pub live: u64,
    /// What was read from the storage for it, maps included.
    pub used: FrameUse,
    /// The most bytes of frames, as stored and decoded, that were held at once.
    pub held: u64,
    /// Pages that are damaged in the snapshot; those that its commit knows of included.
    pub bad_pages: Vec<BadPage>,
}

/// Writes a snapshot. Waits for the storage, so it must be called from a thread outside of the runtime, such as
/// `spawn_blocking` gives; in a thread that polls futures it panics. What is durable when it returns is as the sink says.
///
/// Each such thread is taken while it waits, and what it waits for (storages of local files, decoding) needs further blocking
/// threads of the same runtime. When writers, restores and the like have taken all of them (`max_blocking_threads`), they wait for
/// ever: leave some free, or use threads of the standard library that have entered the runtime.
///
/// # Errors
/// [`Damaged`](ErrorKind::Damaged) when a frame is not what was written; [`Cancelled`](ErrorKind::Cancelled); what the
/// storage and the sink return. The first error of any thread ends all, and the sink does not get its end.
pub fn restore(
    snapshot: &Snapshot,
    sink: &dyn ParallelSink,
    options: &RestoreOptions,
) -> Result<Restored> {
    run(snapshot, sink, options, None)
}

/// Writes what a plan says of a snapshot, or all of it.
pub(crate) fn run(
    snapshot: &Snapshot,
    sink: &dyn ParallelSink,
    options: &RestoreOptions,
    plan: Option<&RestorePlan>,
) -> Result<Restored> {
    let bridge = Bridge::current()?;
    let before = snapshot.maps().frames().used();
    let mut walk = Walk::new(snapshot.view(), false);
    while let Some(file) = snapshot.maps().wait(&bridge, &mut walk)? {
        if options.cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        if !matches!(file.attributes.kind, FileKind::File { .. }) {
            let path = file.path.to_string();
            sink.entry(&file.attributes.entry(file.path))
                .map_err(|error| Error::format(path, error))?;
        }
    }
    let files = AtomicU64::new(0);
    let announce = |file: &MappedFile, wanted: &Wanted| {
        files.fetch_add(1, Ordering::Relaxed);
        let entry = file.attributes.entry(file.path.clone());
        sink.file(&entry, wanted)
            .map_err(|error| Error::format(file.path.to_string(), error))
    };
    let choose = |file: &MappedFile| match plan {
        Some(plan) => plan.files.get(&file.path).cloned(),
        None => Some(Wanted::Whole),
    };
    let queue = Queue::new(snapshot, &bridge, None)
        .announcing(&announce)
        .choosing(&choose)
        .by_frame();
    let checks = options
        .check_pages
        .then(|| PageChecks::of(snapshot.facts()));
    let job = Job {
        snapshot,
        sink,
        options,
        checks,
        queue: &queue,
        failed: AtomicBool::new(false),
    };
    let total = Mutex::new(Restored::default());
    job.run(&total)?;
    let mut restored = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    restored.held = queue.gauge.most();
    restored.files = files.load(Ordering::Relaxed);
    restored
        .bad_pages
        .sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    let end = end_of(snapshot.facts())?;
    sink.end(&end)
        .map_err(|error| Error::format("restore", error))?;
    let after = snapshot.maps().frames().used();
    restored.used = FrameUse {
        frames: after.frames - before.frames,
        in_memory: after.in_memory - before.in_memory,
        on_disk: after.on_disk - before.on_disk,
        requests: after.requests - before.requests,
        received: after.received - before.received,
    };
    Ok(restored)
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "restore", "was told to stop")
}

/// What the threads share.
struct Job<'a> {
    snapshot: &'a Snapshot,
    sink: &'a dyn ParallelSink,
    options: &'a RestoreOptions,
    checks: Option<PageChecks>,
    queue: &'a Queue<'a>,
    failed: AtomicBool,
}

impl Job<'_> {
    fn run(&self, total: &Mutex<Restored>) -> Result<()> {
        let run = || {
            let outcome = self.work();
            if outcome.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            let mine = outcome?;
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.bytes += mine.bytes;
            total.live += mine.live;
            total.bad_pages.extend(mine.bad_pages);
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads = 1..self.options.threads.max(1);
            let others: Vec<_> = threads.map(|_| scope.spawn(run)).collect();
            let mut outcome = run();
            for other in others {
                let other = other.join().unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Io, "a restoring thread", "panicked"))
                });
                outcome = outcome.and(other);
            }
            outcome
        })
    }

    fn work(&self) -> Result<Restored> {
        let mut mine = Restored::default();
        let fail = |error| Error::format("restore", error);
        let mut worker = self.sink.worker().map_err(fail)?;
        let mut feed = Feed::new(self.queue);
        while !self.failed.load(Ordering::Relaxed) {
            if self.options.cancel.load(Ordering::Relaxed) {
                return Err(cancelled());
            }
            let Some((parts, mut frames)) = feed.next()? else {
                break;
            };
            mine.live += frames.live;
            for part in &parts {
                self.part(part, &mut frames, &mut *worker, &mut mine)?;
            }
        }
        worker.finish().map_err(fail)?;
        Ok(mine)
    }

    fn part(
        &self,
        part: &FilePart,
        frames: &mut Fetched,
        worker: &mut dyn ExtentSink,
        mine: &mut Restored,
    ) -> Result<()> {
        let path = &part.file.path;
        let fail = |error| Error::format(path.to_string(), error);
        let entry = part.file.attributes.entry(path.clone());
        let checks = self.checks.and_then(|checks| checks.file(path));
        worker.begin(&entry, part.range.clone()).map_err(fail)?;
        let bad = &mut mine.bad_pages;
        Layout::new(&part.file, self.snapshot.view().page_size).chunks(
            part.range.clone(),
            |frame, range| frames.get(frame, range),
            |chunk| {
                if let Some(checks) = &checks {
                    checks.judge_chunk(path, chunk, bad);
                }
                worker.chunk(chunk).map_err(fail)
            },
        )?;
        worker.commit().map_err(fail)?;
        mine.bytes += part.range.end - part.range.start;
        Ok(())
    }
}
