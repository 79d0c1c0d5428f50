//! What changed, from the summaries that a server of 17 or later keeps of its log.
//!
//! They come as files of `pg_wal/summaries` or as rows of `pg_wal_summary_contents`. They say which blocks
//! of relations were written and where forks were cut, no more: what the server's own incremental backup
//! copies in whole is read in whole here too, and visibility maps besides. The end of the log has no
//! summary yet, so the rest of it may be read from the log itself.

use std::fs::{self, File};
use std::io::{self, ErrorKind as IoKind, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;

use neon_pg_layout::{
    BlockNumber, BlockRefTable, Fork, Lsn, RelFileLocator, TimelineId, TimelineRange,
    WalSummaryName,
};

use crate::changes::log_files::LogFiles;
use crate::changes::logged::LogChanges;
use crate::changes::reason::CannotSay;
use crate::changes::set::{ChangeSet, Hints};
use crate::changes::source::{Answer, ChangeSource, Progress, SourceKind, Watch};
use crate::changes::validity::Span;
use crate::changes::wal::{LogWalk, cancelled};
use crate::error::Result;

const PIECE: usize = 64 << 10;

/// The content of one summary.
pub enum Summary<'a> {
    /// The bytes of its file.
    File(Box<dyn Read + Send + 'a>),
    /// What `pg_wal_summary_contents` says, in any order.
    Rows(Box<dyn Iterator<Item = io::Result<SummaryRow>> + 'a>),
}

impl std::fmt::Debug for Summary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File(..)",
            Self::Rows(_) => "Rows(..)",
        })
    }
}

/// One row of `pg_wal_summary_contents`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryRow {
    /// `reltablespace`, `reldatabase`, `relfilenode`
    pub relation: RelFileLocator,
    /// `relforknumber`
    pub fork: Fork,
    /// `relblocknumber`
    pub block: BlockNumber,
    /// `is_limit_block`: the block is the fork's lowest length, and was not written.
    pub is_limit: bool,
}

/// The summaries of a server.
pub trait Summaries: Send {
    /// Which there are: names of files, or rows of `pg_available_wal_summaries`. In any order.
    ///
    /// # Errors
    /// When that cannot be told.
    fn names(&mut self) -> io::Result<Vec<WalSummaryName>>;

    /// One of them; none when it is gone.
    ///
    /// # Errors
    /// When it cannot be read though it is there.
    fn open(&mut self, name: WalSummaryName) -> io::Result<Option<Summary<'_>>>;
}

/// The files of one directory, `pg_wal/summaries`.
#[derive(Debug, Clone)]
pub struct SummaryDirectory(PathBuf);

impl SummaryDirectory {
    /// That directory, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Summaries for SummaryDirectory {
    fn names(&mut self) -> io::Result<Vec<WalSummaryName>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.parse::<WalSummaryName>().ok()),
            );
        }
        Ok(names)
    }

    fn open(&mut self, name: WalSummaryName) -> io::Result<Option<Summary<'_>>> {
        match File::open(self.0.join(name.to_string())) {
            Ok(file) => Ok(Some(Summary::File(Box::new(file)))),
            Err(error) if error.kind() == IoKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Summaries as a source of changes.
pub struct SummarySource<'a> {
    kind: SourceKind,
    span: Span,
    summaries: &'a mut dyn Summaries,
    rest: Option<&'a mut dyn LogFiles>,
    watch: Watch<'a>,
    /// What was read so far, and from where the log is read.
    walk: Option<(BlockRefTable, LogWalk)>,
}

impl std::fmt::Debug for SummarySource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SummarySource")
            .field("kind", &self.kind)
            .field("span", &self.span)
            .finish_non_exhaustive()
    }
}

impl<'a> SummarySource<'a> {
    /// Summaries of this kind: the server's own, or such as stand beside archived log.
    pub fn new(kind: SourceKind, span: Span, summaries: &'a mut dyn Summaries) -> Self {
        Self {
            kind,
            span,
            summaries,
            rest: None,
            watch: Box::new(|_| ControlFlow::Continue(())),
            walk: None,
        }
    }

    /// The same; what the summaries do not reach is read from the log.
    #[must_use]
    pub fn with_rest(mut self, log: &'a mut dyn LogFiles) -> Self {
        self.rest = Some(log);
        self
    }

    /// The same, telling how far it is and asking whether to go on: after every summary, and as
    /// [`LogSource`](super::LogSource).
    #[must_use]
    pub fn watched(mut self, watch: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.watch = Box::new(watch);
        self
    }

    /// Reads the summaries, and the rest of the log if there is one.
    fn gather(&mut self) -> Result<Gathered, CannotSayOr> {
        let (mut table, mut walk) = match self.walk.take() {
            Some(begun) => begun,
            None => {
                let (table, reached) = self.summarized()?;
                if reached == self.span.end() {
                    return Ok(Gathered::Table(table));
                }
                let walk = LogWalk::new(self.span.at_start(), self.span.history(), reached)?;
                (table, walk)
            }
        };
        let Some(log) = self.rest.as_deref_mut() else {
            return Err(CannotSay::NoSummaries.into());
        };
        match walk.complete(&self.span, log, &mut self.watch) {
            Ok(ControlFlow::Continue(())) => {
                table.append(&walk.finish(&self.span).blocks);
                Ok(Gathered::Table(table))
            }
            Ok(ControlFlow::Break(())) => {
                self.walk = Some((table, walk));
                Ok(Gathered::Stopped)
            }
            Err(reason) => {
                self.walk = Some((table, walk));
                Err(reason.into())
            }
        }
    }

    /// What the summaries say, and how far they reach without a gap.
    fn summarized(&mut self) -> Result<(BlockRefTable, Lsn), CannotSayOr> {
        let mut names = self
            .summaries
            .names()
            .map_err(|error| CannotSay::Unreadable {
                what: "the list of summaries".into(),
                why: error.to_string(),
            })?;
        // Each ends where the next redo position is (`SummarizeWAL`, walsummarizer.c), and the child's is one. What goes over it
        // is of another log: somebody put an older copy of the cluster back and left the summaries in place.
        if let Some(last) = self.span.path().last() {
            names.retain(|name| name.timeline != last.timeline || name.end <= last.end);
        }
        let (chain, gap) = chain(self.span.path(), names);
        if let Some(gap) = gap
            && self.rest.is_none()
        {
            return Err(if chain.is_empty() && gap.none_at_all {
                CannotSay::NoSummaries
            } else {
                gap.reason()
            }
            .into());
        }
        let end = self.span.end();
        let mut table = BlockRefTable::new();
        let mut reached = self.span.start();
        for name in chain {
            if (self.watch)(Progress::Log { at: reached, end }).is_break() {
                return Err(cancelled().into());
            }
            self.read(name, &mut table)?;
            reached = name.end.min(end);
        }
        let reached = gap.map_or(end, |gap| gap.from);
        Ok((table, reached))
    }

    fn read(&mut self, name: WalSummaryName, table: &mut BlockRefTable) -> Result<(), CannotSay> {
        let unreadable = |error: io::Error| CannotSay::Unreadable {
            what: format!("summary {name}"),
            why: error.to_string(),
        };
        let damaged = |what: String| CannotSay::SummaryDamaged {
            name: name.to_string(),
            what,
        };
        match self.summaries.open(name).map_err(unreadable)? {
            // Removed since it was listed.
            None => Err(CannotSay::SummaryGap {
                timeline: name.timeline,
                from: name.start,
                to: name.end,
            }),
            Some(Summary::File(mut file)) => {
                let mut read = BlockRefTable::new();
                read.append_summary(|reader, item| {
                    let mut buffer = vec![0; PIECE];
                    loop {
                        let count = match file.read(&mut buffer) {
                            Ok(0) => return Ok::<_, Failed>(()),
                            Ok(count) => count,
                            Err(error) if error.kind() == IoKind::Interrupted => continue,
                            Err(error) => return Err(Failed::Read(error)),
                        };
                        reader.push(buffer.get(..count).unwrap_or_default(), &mut *item)?;
                    }
                })
                .map_err(|failed| match failed {
                    Failed::Read(error) => unreadable(error),
                    Failed::Format(error) => damaged(error.to_string()),
                })?;
                table.append(&read);
                Ok(())
            }
            Some(Summary::Rows(rows)) => {
                // Blocks behind a limit were written after it, in whatever order the rows come.
                let (mut limits, mut marks) = (BlockRefTable::new(), BlockRefTable::new());
                for row in rows {
                    let row = row.map_err(unreadable)?;
                    if row.is_limit {
                        limits.limit(row.relation, row.fork, row.block);
                    } else if row.block == BlockNumber::MAX {
                        return Err(damaged(format!("block {}", row.block)));
                    } else {
                        marks.mark(row.relation, row.fork, row.block);
                    }
                }
                table.append(&limits);
                table.append(&marks);
                Ok(())
            }
        }
    }
}

impl ChangeSource for SummarySource<'_> {
    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn changes(&mut self) -> Result<Answer> {
        match self.gather() {
            Ok(Gathered::Stopped) => Err(cancelled()),
            Ok(Gathered::Table(table)) => {
                let cluster = self.span.cluster();
                let mut changes = LogChanges::new(cluster, table);
                // Summaries do not tell whether wal_log_hints was off for a while.
                if !cluster.checksums {
                    changes.hints = Hints::MayBeOlder;
                }
                Ok(Answer::Exact(ChangeSet::of_log(
                    self.span.parent(),
                    changes,
                )))
            }
            Err(CannotSayOr::CannotSay(reason)) => Ok(Answer::CannotSay(reason)),
            Err(CannotSayOr::Error(error)) => Err(error),
        }
    }
}

enum Gathered {
    Table(BlockRefTable),
    Stopped,
}

enum CannotSayOr {
    CannotSay(CannotSay),
    Error(crate::Error),
}

impl From<CannotSay> for CannotSayOr {
    fn from(reason: CannotSay) -> Self {
        Self::CannotSay(reason)
    }
}

impl From<crate::Error> for CannotSayOr {
    fn from(error: crate::Error) -> Self {
        Self::Error(error)
    }
}

enum Failed {
    Read(io::Error),
    Format(neon_pg_layout::Error),
}

impl From<neon_pg_layout::Error> for Failed {
    fn from(error: neon_pg_layout::Error) -> Self {
        Self::Format(error)
    }
}

/// Where summaries are missing first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
    none_at_all: bool,
}

impl Gap {
    const fn reason(self) -> CannotSay {
        CannotSay::SummaryGap {
            timeline: self.timeline,
            from: self.from,
            to: self.to,
        }
    }
}

/// The fewest summaries that cover the path, in order, up to the first gap.
fn chain(
    path: &[TimelineRange],
    mut names: Vec<WalSummaryName>,
) -> (Vec<WalSummaryName>, Option<Gap>) {
    let none_at_all = names.is_empty();
    names.sort_unstable();
    let mut chain = Vec::new();
    for range in path {
        let mut at = range.start;
        while at < range.end {
            let next = names
                .iter()
                .filter(|name| name.timeline == range.timeline)
                .filter(|name| name.start <= at && at < name.end)
                .max_by_key(|name| name.end);
            let Some(next) = next else {
                let after = names
                    .iter()
                    .filter(|name| name.timeline == range.timeline && name.start > at)
                    .map(|name| name.start)
                    .min();
                let gap = Gap {
                    timeline: range.timeline,
                    from: at,
                    to: after.map_or(range.end, |after| after.min(range.end)),
                    none_at_all,
                };
                return (chain, Some(gap));
            };
            chain.push(*next);
            at = next.end.min(range.end);
        }
    }
    (chain, None)
}
