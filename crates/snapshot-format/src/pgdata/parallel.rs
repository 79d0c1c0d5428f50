//! Copying a data directory, or what is wanted of it, with several threads.

use crate::error::Result;
use crate::extents::{Cutter, Piece};
use crate::pgdata::copied::{Copied, Tally};
use crate::pgdata::plan::Plan;
use crate::pgdata::read::PgData;
use crate::pgdata::select::{Everything, Select, check};
use crate::stream::{
    CHUNK_SIZE, Change, Chunk, ChunkData, Entry, ExtentSink, ParallelSink, Wanted,
};
use crate::threads::Queue;

impl PgData {
    /// As [`copy`](Self::copy), with several threads. Each takes parts of large files of the
    /// [extent size](Self::extent_size), or small neighbouring files that make up as much.
    ///
    /// # Errors
    /// As [`copy`](Self::copy); the first error of any thread ends all.
    pub fn copy_parallel(&self, sink: &dyn ParallelSink, threads: usize) -> Result<Copied> {
        self.copy_selected(&Everything, sink, threads)
    }

    /// Copies what is wanted, with several threads, for a snapshot that has the rest from elsewhere.
    ///
    /// The whole directory is listed, and every directory and file is announced to the sink, also those
    /// of which nothing is wanted. Only what is wanted is opened and read; its pages are judged as in a
    /// full copy. `global/pg_control` comes last and whole. What of a running server changes after it was
    /// listed is in its log: nothing depends on when which part is read.
    ///
    /// # Errors
    /// As [`copy_parallel`](Self::copy_parallel); what the selection returns, and
    /// [`Inconsistent`](crate::ErrorKind::Inconsistent) when it wants what is no sorted list of whole pages
    /// inside a file.
    pub fn copy_selected(
        &self,
        select: &dyn Select,
        sink: &dyn ParallelSink,
        threads: usize,
    ) -> Result<Copied> {
        let plan = self.plan()?;
        for entry in &plan.directories {
            sink.entry(entry)?;
        }
        let mut cutter = Cutter::new(self.extent);
        for (index, entry) in plan.files.iter().enumerate() {
            let wanted = select.wanted(entry)?;
            check(entry, &wanted, self.page_size())?;
            sink.file(entry, &wanted)?;
            cutter.add(index, entry, wanted);
        }
        let job = Job {
            source: self,
            sink,
            plan: &plan,
            work: Queue::new(cutter.finish()),
        };
        let tally = job.run(threads)?;
        let (entry, bytes) = self.control_last(&plan.roots)?;
        sink.file(&entry, &Wanted::Whole)?;
        let mut worker = sink.worker()?;
        worker.begin(&entry, 0..entry.size())?;
        worker.chunk(&Chunk {
            offset: 0,
            data: ChunkData::Bytes(&bytes),
        })?;
        worker.commit()?;
        worker.finish()?;
        self.copied(plan, tally)
    }
}

/// What the threads share.
struct Job<'a> {
    source: &'a PgData,
    sink: &'a dyn ParallelSink,
    plan: &'a Plan,
    work: Queue<Vec<Piece>>,
}

impl Job<'_> {
    fn run(&self, threads: usize) -> Result<Tally> {
        let mut total = Tally::default();
        for tally in self.work.run(threads, || self.work())? {
            total.add(tally);
        }
        Ok(total)
    }

    fn work(&self) -> Result<Tally> {
        let mut worker = self.sink.worker()?;
        let mut tally = Tally::default();
        let mut buffer = vec![0; CHUNK_SIZE];
        while let Some(pieces) = self.work.next() {
            for piece in pieces {
                if let Some(entry) = self.plan.files.get(piece.file) {
                    self.piece(entry, piece, &mut *worker, &mut buffer, &mut tally)?;
                }
            }
        }
        worker.finish()?;
        Ok(tally)
    }

    fn piece(
        &self,
        entry: &Entry,
        piece: &Piece,
        worker: &mut dyn ExtentSink,
        buffer: &mut [u8],
        tally: &mut Tally,
    ) -> Result<()> {
        let (source, roots) = (self.source, &self.plan.roots);
        if piece.only && source.became_unlogged(roots, entry) {
            return self.sink.changed(entry, Change::Gone);
        }
        let Some((file, stat)) = roots.open_file(&entry.path)? else {
            source.vanished(entry, tally)?;
            if piece.only {
                return self.sink.changed(entry, Change::Gone);
            }
            // Another thread may have sent its part: the file keeps its size, and the log says that it is
            // to be removed.
            self.sink.changed(entry, Change::Removed)?;
            for range in piece.ranges() {
                worker.begin(entry, range.clone())?;
                worker.chunk(&Chunk {
                    offset: range.start,
                    data: ChunkData::Zeros(range.end - range.start),
                })?;
                worker.commit()?;
            }
            return Ok(());
        };
        let mut size = u64::try_from(stat.st_size).unwrap_or(0);
        source.check_unchanged(entry, size)?;
        let mut shrunk = false;
        for range in piece.ranges() {
            worker.begin(entry, range.clone())?;
            let mut send = |chunk: &Chunk<'_>| worker.chunk(chunk);
            let ended = source.read(&file, entry, range.clone(), buffer, tally, &mut send)?;
            worker.commit()?;
            if let Some(end) = ended {
                size = size.min(end);
                shrunk = true;
            }
        }
        tally.files += u64::from(piece.first);
        tally.shrunk += u64::from(shrunk);
        if size != entry.size() {
            self.sink.changed(entry, Change::Resized { size })?;
        }
        Ok(())
    }
}
