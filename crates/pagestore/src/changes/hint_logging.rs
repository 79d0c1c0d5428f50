//! Whether every server that wrote a stretch of log also logged the hints that it set on pages.
//!
//! Going *back* by maps stands on this: of a page that no record names, the maps know nothing, and it may carry a hint
//! that is newer than the target. Hints are logged while page checksums or `wal_log_hints` are on. `wal_log_hints` is
//! in the log ([`ParametersChanged`](Change::ParametersChanged)), checksums are not: `pg_checksums` turns them off and on
//! again between two runs of a server, and the control files before and after agree. So the log is cut into runs, at each
//! shutdown checkpoint (`pg_checksums` refuses a cluster that was not shut down), and of every run something must show
//! that its server logged hints:
//! - `wal_log_hints`, as the log tells it;
//! - an image of a page that was logged for a hint (`XLOG_FPI_FOR_HINT`), which no other server writes (`XLogHintBitIsNeeded`);
//! - or somebody saw a control file that said so, while the server ran.
//!
//! What the log names is gathered on the way: those pages are not left to what summaries said of them, which are of another
//! log where somebody put back an older copy of the cluster and left the summaries in place.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use neon_pg_layout::wal::{Change, Record, ResourceManager, Step, WalReader};
use neon_pg_layout::{Lsn, TimelineHistory};

use neon_snapshot_format::SnapshotPath;

use crate::changes::log_files::{Fed, History, LogFiles, PIECE};
use crate::changes::logged::LogChanges;
use crate::changes::reason::CannotSay;
use crate::changes::set::{FileChange, FileFacts};
use crate::changes::validity::{ClusterFacts, Span};
use crate::changes::wal::{Gathered, cancelled, starts_at};
use crate::error::{Error, ErrorKind, Result};

/// `XLOG_FPI_FOR_HINT` (`pg_control.h`), the same in all majors.
const FPI_FOR_HINT: u8 = 0xA0;

/// Why hints may have been set that are in no log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotLogged {
    /// The log does not tell.
    Log(CannotSay),
    /// It goes over several timelines: whose servers wrote the pages is not known.
    Timelines,
    /// Nothing shows that the server of this run logged hints.
    Run {
        /// From which position.
        from: Lsn,
        /// To which.
        to: Lsn,
    },
}

impl NotLogged {
    /// A stable word for it, for scripts.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Log(reason) => reason.code(),
            Self::Timelines => "several-timelines",
            Self::Run { .. } => "hint-logging-not-shown",
        }
    }
}

impl fmt::Display for NotLogged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(reason) => reason.fmt(f),
            Self::Timelines => f.write_str("the log since goes over several timelines"),
            Self::Run { from, to } => write!(
                f,
                "nothing shows that the server that wrote the log from {from} to {to} logged hints: \
                 checksums may have been off"
            ),
        }
    }
}

/// The pages of relations that a stretch of log names.
#[derive(Debug, Clone)]
pub struct NamedPages(LogChanges);

impl NamedPages {
    /// What of a logged relation's file it names, where the file had this size and has it again.
    pub(crate) fn of(&self, path: &SnapshotPath, size: u64) -> FileChange {
        let facts = FileFacts {
            path,
            size,
            parent_size: Some(size),
            unlogged: false,
        };
        self.0.of(&facts, size)
    }
}

/// A stretch of log, from one record to a shutdown checkpoint.
#[derive(Debug, Clone)]
pub struct HintLogging {
    cluster: ClusterFacts,
    history: TimelineHistory,
    start: Lsn,
    end: Lsn,
    seen: BTreeSet<Lsn>,
}

impl HintLogging {
    /// From `start`, where a record begins and the cluster was as said, to `end`, where its shutdown checkpoint begins.
    #[must_use]
    pub fn new(cluster: ClusterFacts, history: TimelineHistory, start: Lsn, end: Lsn) -> Self {
        Self {
            cluster,
            history,
            start,
            end,
            seen: BTreeSet::new(),
        }
    }

    /// The log between two snapshots, the second of a clean stop.
    #[must_use]
    pub fn between(span: &Span) -> Self {
        Self::new(
            span.at_start().clone(),
            span.history().clone(),
            span.start(),
            span.end(),
        )
    }

    /// The same, knowing that the control file said that hints are logged, while the server ran whose log has this
    /// position.
    #[must_use]
    pub fn seen_at(mut self, position: Lsn) -> Self {
        self.seen.insert(position);
        self
    }

    /// Bytes of log that [`check`](Self::check) reads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Reads the log and says which pages it names, or why it does not show that all hints are in it. Asks whether to go
    /// on after every 256 KiB.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled); [`Invalid`](ErrorKind::Invalid) for a size of the log's pages that no server
    /// has.
    pub fn check(
        &self,
        files: &mut dyn LogFiles,
        go_on: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Result<NamedPages, NotLogged>> {
        if self.history.timeline_of(self.start) != self.history.timeline() {
            return Ok(Err(NotLogged::Timelines));
        }
        let format = self.cluster.log_format().map_err(|error| {
            Error::new(ErrorKind::Invalid, "the format of the log", "is not known").caused_by(error)
        })?;
        let mut walk = Walk {
            reader: WalReader::at_record(
                format.up_to_timeline(self.history.timeline()),
                self.start,
            ),
            wanted: self,
            run: self.start,
            log_hints: self.cluster.wal_log_hints,
            shown: false,
            first: true,
            gathered: Gathered::whatever_hints(&self.cluster),
            over: None,
        };
        Ok(match walk.follow(files, go_on) {
            Ok(ControlFlow::Break(())) => return Err(cancelled()),
            Ok(ControlFlow::Continue(())) => match walk.over.flatten() {
                None => {
                    let blocks = walk.gathered.blocks;
                    Ok(NamedPages(LogChanges::new(&self.cluster, blocks)))
                }
                Some(silent) => Err(silent),
            },
            Err(reason) => Err(NotLogged::Log(reason)),
        })
    }
}

struct Walk<'a> {
    reader: WalReader,
    wanted: &'a HintLogging,
    /// Where the present run began.
    run: Lsn,
    log_hints: bool,
    /// Whether an image shows that this run logs hints.
    shown: bool,
    first: bool,
    gathered: Gathered,
    /// The answer, once there is one.
    over: Option<Option<NotLogged>>,
}

impl Walk<'_> {
    /// `Break` when it was asked to stop.
    fn follow(
        &mut self,
        files: &mut dyn LogFiles,
        mut go_on: impl FnMut() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, CannotSay> {
        let mut buffer = vec![0; PIECE];
        let history = History {
            timelines: &self.wanted.history,
            segment_size: self.reader.format().segment_size(),
        };
        while self.over.is_none() {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let at = self.reader.position();
            let fed = history.feed(files, at, &mut buffer, |piece| {
                self.take(piece)?;
                Ok(match self.over.is_some() || go_on().is_break() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })?;
            if let Fed::Missing(segment) = fed {
                return Err(CannotSay::LogMissing { segment, at });
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn take(&mut self, mut piece: &[u8]) -> Result<(), CannotSay> {
        while self.over.is_none() {
            let position = self.reader.position();
            let page_size = self.reader.format().page_size().into();
            match self.reader.read(&mut piece) {
                Ok(Step::NeedMore) => return Ok(()),
                Ok(Step::End(end)) => {
                    return Err(CannotSay::LogEnds {
                        at: end.lsn,
                        wanted: self.wanted.end,
                    });
                }
                Ok(Step::Record(record)) => {
                    let told = look_at(&record)?;
                    self.gathered.record(&record)?;
                    let begins = record.lsn();
                    self.record(begins, told, page_size)?;
                }
                Err(error) => {
                    return Err(CannotSay::LogDamaged {
                        at: error.lsn().unwrap_or(position),
                        what: error.reason().to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, at: Lsn, told: Told, page_size: u64) -> Result<(), CannotSay> {
        let (start, end) = (self.wanted.start, self.wanted.end);
        let first = std::mem::take(&mut self.first);
        if first && !starts_at(start, at, page_size) {
            return Err(CannotSay::NoRecordAt { at: start });
        }
        if at > end {
            return Err(CannotSay::NoRecordAt { at: end });
        }
        if at == end && told != Told::Stop {
            return Err(CannotSay::NoShutdownAt { at: end });
        }
        match told {
            Told::Nothing => {}
            Told::HintImage => self.shown = true,
            Told::LogHints(on) => self.log_hints = on,
            // That of a cold snapshot itself.
            Told::Stop if first && at != end => {}
            Told::Stop => {
                let seen = self.wanted.seen.range(self.run..at).next().is_some();
                // Where nothing lies between, nobody set a hint either.
                let empty = at == end && start == end;
                if !(self.log_hints || self.shown || seen || empty) {
                    let (from, to) = (self.run, at);
                    self.over = Some(Some(NotLogged::Run { from, to }));
                } else if at == end {
                    self.over = Some(None);
                }
                self.run = at;
                self.shown = false;
            }
        }
        Ok(())
    }
}

/// What a record tells of hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// Hints are logged.
    HintImage,
    /// `wal_log_hints` is this now.
    LogHints(bool),
    /// A server ended here, or its recovery did.
    Stop,
}

fn look_at(record: &Record<'_>) -> Result<Told, CannotSay> {
    let header = record.header();
    if header.rmgr != ResourceManager::XLOG {
        return Ok(Told::Nothing);
    }
    if header.code() == FPI_FOR_HINT {
        return Ok(Told::HintImage);
    }
    let mut told = Told::Nothing;
    let decoded = record.changes(|change| match change {
        Change::Checkpoint { shutdown: true, .. } | Change::EndOfRecovery { .. } => {
            told = Told::Stop;
        }
        Change::ParametersChanged(now) => told = Told::LogHints(now.wal_log_hints),
        _ => {}
    });
    decoded.map_err(|error| CannotSay::LogDamaged {
        at: record.lsn(),
        what: error.reason().to_owned(),
    })?;
    Ok(told)
}
