//! What changed, from the log itself.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use neon_pg_layout::wal::{Change, Record, ResourceManager, Step, WalPageHeader, WalReader};
use neon_pg_layout::{BlockRefTable, Fork, Lsn, RelFileLocator, Slru, TimelineHistory, WalLevel};

use crate::changes::log_files::{Fed, History, LogFiles, PIECE};
use crate::changes::logged::LogChanges;
use crate::changes::reason::CannotSay;
use crate::changes::set::ChangeSet;
use crate::changes::source::{Answer, ChangeSource, Progress, SourceKind, Watch};
use crate::changes::validity::{ClusterFacts, Span};
use crate::error::{Error, ErrorKind, Result};

/// A walk along the log that gathers what its records changed.
///
/// It can be stopped and gone on with, also when the log has grown in the meantime: so a walk may follow
/// a server and be behind by little when the snapshot begins. It holds one piece of the log, the record
/// that is being put together, and the table of changes.
#[derive(Debug)]
pub struct LogWalk {
    reader: WalReader,
    timelines: TimelineHistory,
    start: Lsn,
    gathered: Gathered,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    begins: Lsn,
    end: Lsn,
    shutdown_with_redo: Option<Lsn>,
}

#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) blocks: BlockRefTable,
    states: BTreeSet<(Slru, u64)>,
    commit_times: bool,
    commit_times_switched: bool,
    checksums: bool,
    log_hints: bool,
}

impl LogWalk {
    /// A walk from a redo position of a cluster with these settings, along this history.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a size of the log's pages that no server has.
    pub fn new(cluster: &ClusterFacts, timelines: &TimelineHistory, start: Lsn) -> Result<Self> {
        let format = cluster.log_format().map_err(|error| {
            Error::new(ErrorKind::Invalid, "the format of the log", "is not known").caused_by(error)
        })?;
        Ok(Self {
            reader: WalReader::at_record(format.up_to_timeline(timelines.timeline()), start),
            timelines: timelines.clone(),
            start,
            gathered: Gathered::new(cluster),
            last: None,
        })
    }

    /// From where the log is wanted next. Segments before it are no longer needed, but for the one that
    /// holds the start of a record that is not complete.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.reader.pending().unwrap_or(self.reader.position())
    }

    /// The blocks of relations that were named so far.
    #[must_use]
    pub const fn blocks(&self) -> &BlockRefTable {
        &self.gathered.blocks
    }

    /// Reads on until the record that begins at `to` has been read. `Break` when `progress` asked to stop;
    /// calling it again goes on.
    ///
    /// # Errors
    /// Why the log cannot be followed to there. That may be different later, when the log has grown: calling
    /// it again goes on behind the last whole record.
    pub fn advance(
        &mut self,
        to: Lsn,
        files: &mut dyn LogFiles,
        progress: &mut dyn FnMut(Lsn) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, CannotSay> {
        let outcome = self.follow(to, files, progress);
        if outcome.is_err() {
            // What was read of a record may not have been there yet.
            let format = self.reader.format().clone();
            self.reader = match self.last {
                Some(last) => WalReader::resume(format, last.end, Some(last.begins)),
                None => WalReader::at_record(format, self.start),
            };
        }
        outcome
    }

    fn follow(
        &mut self,
        to: Lsn,
        files: &mut dyn LogFiles,
        progress: &mut dyn FnMut(Lsn) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, CannotSay> {
        let mut buffer = vec![0; PIECE];
        let timelines = self.timelines.clone();
        let history = History {
            timelines: &timelines,
            segment_size: self.reader.format().segment_size(),
        };
        while self.last.is_none_or(|last| last.begins < to) {
            let position = self.reader.position();
            let mut stopped = false;
            let fed = history.feed(files, position, &mut buffer, |piece| {
                if self.take(piece, to)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                stopped = progress(self.reader.position()).is_break();
                Ok(if stopped {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            })?;
            if stopped {
                return Ok(ControlFlow::Break(()));
            }
            if let Fed::Missing(segment) = fed {
                let at = self.position();
                return Err(CannotSay::LogMissing { segment, at });
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a piece; `Break` once the record at `to` was read.
    fn take(&mut self, mut piece: &[u8], to: Lsn) -> Result<ControlFlow<()>, CannotSay> {
        loop {
            let position = self.reader.position();
            let page_size = self.reader.format().page_size().into();
            match self.reader.read(&mut piece) {
                Ok(Step::NeedMore) => return Ok(ControlFlow::Continue(())),
                Ok(Step::End(end)) => {
                    return Err(CannotSay::LogEnds {
                        at: end.lsn,
                        wanted: to,
                    });
                }
                Ok(Step::Record(record)) => {
                    let (begins, record_end) = (record.lsn(), record.end());
                    if self.last.is_none() && !starts_at(self.start, begins, page_size) {
                        return Err(CannotSay::NoRecordAt { at: self.start });
                    }
                    let shutdown_with_redo = self.gathered.record(&record)?;
                    self.last = Some(Last {
                        begins,
                        end: record_end,
                        shutdown_with_redo,
                    });
                    if begins >= to {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Err(error) => {
                    return Err(CannotSay::LogDamaged {
                        at: error.lsn().unwrap_or(position),
                        what: error.reason().to_owned(),
                    });
                }
            }
        }
    }

    /// Whether it has read further than to the record at `end`. What it gathered then is still all that
    /// changed before, and more.
    fn is_beyond(&self, end: Lsn) -> bool {
        self.last.is_some_and(|last| last.begins > end)
    }

    /// Reads to the end of the span.
    pub(crate) fn complete(
        &mut self,
        span: &Span,
        files: &mut dyn LogFiles,
        watch: &mut Watch<'_>,
    ) -> Result<ControlFlow<()>, CannotSay> {
        let end = span.end();
        if self.is_beyond(end) && !span.ends_in_shutdown() {
            return Ok(ControlFlow::Continue(()));
        }
        let walked = self.advance(end, files, &mut |at| watch(Progress::Log { at, end }))?;
        if walked.is_break() {
            return Ok(walked);
        }
        let Some(last) = self.last.filter(|last| last.begins == end) else {
            return Err(CannotSay::NoRecordAt { at: end });
        };
        if span.ends_in_shutdown() && last.shutdown_with_redo != Some(end) {
            return Err(CannotSay::NoShutdownAt { at: end });
        }
        Ok(walked)
    }

    /// What was gathered.
    pub(crate) fn finish(self, span: &Span) -> LogChanges {
        let mut changes = LogChanges::new(span.cluster(), self.gathered.blocks);
        changes.states = Some(self.gathered.states);
        changes.commit_times_switched = self.gathered.commit_times_switched
            || span.cluster().track_commit_timestamp != span.at_start().track_commit_timestamp;
        changes
    }
}

impl Gathered {
    fn new(cluster: &ClusterFacts) -> Self {
        Self {
            blocks: BlockRefTable::new(),
            states: BTreeSet::new(),
            commit_times: cluster.track_commit_timestamp,
            commit_times_switched: false,
            checksums: cluster.checksums,
            log_hints: cluster.wal_log_hints,
        }
    }

    /// For who judges by themselves whether hints are logged.
    pub(super) fn whatever_hints(cluster: &ClusterFacts) -> Self {
        Self {
            checksums: true,
            ..Self::new(cluster)
        }
    }

    /// Takes what a record changed. Of a shutdown checkpoint, says its redo position.
    pub(super) fn record(&mut self, record: &Record<'_>) -> Result<Option<Lsn>, CannotSay> {
        let at = record.lsn();
        if record.header().rmgr == ResourceManager::SPGIST {
            // The metapage's cache of recently used pages is written back with such work, and not logged.
            for block in record.blocks() {
                self.blocks.mark(block.relation, Fork::Main, 0);
            }
        }
        let (mut shutdown, mut refused) = (None, None);
        let decoded = record.changes(|change| {
            if let Change::Checkpoint {
                shutdown: true,
                checkpoint,
            } = &change
            {
                shutdown = Some(checkpoint.redo);
            }
            if let Err(reason) = self.change(at, &change) {
                refused.get_or_insert(reason);
            }
        });
        if let Err(error) = decoded {
            let what = error.reason().to_owned();
            return Err(CannotSay::LogDamaged { at, what });
        }
        match refused {
            Some(reason) => Err(reason),
            None => Ok(shutdown),
        }
    }

    fn change(&mut self, at: Lsn, change: &Change<'_>) -> Result<(), CannotSay> {
        match change {
            Change::Block(block) => self.blocks.mark(block.relation, block.fork, block.block),
            Change::VisibilityMapCleared { relation, block } => {
                self.blocks.mark(*relation, Fork::VisibilityMap, *block);
            }
            Change::ForkCreated { relation, fork } => self.blocks.limit(*relation, *fork, 0),
            Change::Truncated {
                relation,
                fork,
                blocks,
            } => self.blocks.limit(*relation, *fork, *blocks),
            Change::RelationDropped { relation } => {
                for fork in Fork::ALL {
                    self.blocks.limit(*relation, fork, 0);
                }
            }
            Change::DatabaseCopied {
                database,
                tablespace,
                ..
            }
            | Change::DatabaseCreated {
                database,
                tablespace,
            }
            | Change::DatabaseDropped {
                database,
                tablespace,
            } => {
                let whole = RelFileLocator {
                    tablespace: *tablespace,
                    database: *database,
                    number: 0,
                };
                self.blocks.limit(whole, Fork::Main, 0);
            }
            Change::SlruPages { slru, first, last } if slru.outlives_a_start() => {
                let segments = first / Slru::PAGES_PER_FILE..=last / Slru::PAGES_PER_FILE;
                self.states.extend(segments.map(|segment| (*slru, segment)));
            }
            Change::Checkpoint { checkpoint, .. } => return level(at, checkpoint.wal_level),
            Change::CheckpointRedo { wal_level } | Change::EndOfRecovery { wal_level, .. } => {
                return level(at, *wal_level);
            }
            Change::ParametersChanged(now) => {
                level(at, Some(now.wal_level))?;
                if !self.checksums && now.wal_log_hints != self.log_hints {
                    return Err(CannotSay::HintLogging { at });
                }
                if now.track_commit_timestamp != self.commit_times {
                    self.commit_times = now.track_commit_timestamp;
                    self.commit_times_switched = true;
                }
            }
            Change::Unknown { rmgr, code, .. } => {
                let what = format!("{rmgr} {code:02X}");
                return Err(CannotSay::UnknownRecord { at, what });
            }
            // Files that are no relation's are read in whole; ends of transactions come with the pages
            // of states they changed.
            _ => {}
        }
        Ok(())
    }
}

/// Whether a record that begins here is the first from `start` on: it begins there, or behind the header of
/// the page that begins there.
pub(super) fn starts_at(start: Lsn, begins: Lsn, page_size: u64) -> bool {
    let header = begins.bytes_since(start);
    let at_page = start.offset_in(page_size) == 0;
    begins == start || at_page && header.is_some_and(|bytes| bytes <= WalPageHeader::LONG as u64)
}

fn level(at: Lsn, level: Option<WalLevel>) -> Result<(), CannotSay> {
    match level {
        Some(WalLevel::Minimal) => Err(CannotSay::WalLevelMinimal { at }),
        _ => Ok(()),
    }
}

/// The log as a source of changes.
pub struct LogSource<'a> {
    span: Span,
    files: &'a mut dyn LogFiles,
    watch: Watch<'a>,
    walk: Option<LogWalk>,
}

impl std::fmt::Debug for LogSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogSource")
            .field("span", &self.span)
            .field("walk", &self.walk)
            .finish_non_exhaustive()
    }
}

impl<'a> LogSource<'a> {
    /// The log in these files.
    pub fn new(span: Span, files: &'a mut dyn LogFiles) -> Self {
        Self {
            span,
            files,
            watch: Box::new(|_| ControlFlow::Continue(())),
            walk: None,
        }
    }

    /// The same, telling how far it is and asking whether to go on after every 256 KiB.
    #[must_use]
    pub fn watched(mut self, watch: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.watch = Box::new(watch);
        self
    }

    /// The same, going on from a walk that was begun at the start of the span.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when it began elsewhere or follows another history.
    pub fn going_on(mut self, walk: LogWalk) -> Result<Self> {
        if walk.start != self.span.start() || walk.timelines != *self.span.history() {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("a walk of the log from {}", walk.start),
                "is not of the log that is asked for",
            ));
        }
        self.walk = Some(walk);
        Ok(self)
    }
}

impl ChangeSource for LogSource<'_> {
    fn kind(&self) -> SourceKind {
        SourceKind::Log
    }

    fn changes(&mut self) -> Result<Answer> {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => LogWalk::new(self.span.at_start(), self.span.history(), self.span.start())?,
        };
        match walk.complete(&self.span, self.files, &mut self.watch) {
            Ok(ControlFlow::Continue(())) => {
                let changes = walk.finish(&self.span);
                Ok(Answer::Exact(ChangeSet::of_log(
                    self.span.parent(),
                    changes,
                )))
            }
            Ok(ControlFlow::Break(())) => {
                self.walk = Some(walk);
                Err(cancelled())
            }
            Err(reason) => {
                self.walk = Some(walk);
                Ok(Answer::CannotSay(reason))
            }
        }
    }
}

pub(crate) fn cancelled() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "reading what changed",
        "was stopped by the caller",
    )
}
