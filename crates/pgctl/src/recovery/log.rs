//! What a server in recovery says: its log lines as facts.
//!
//! The texts are those of `access/transam/{xlog,xlogrecovery,xlogarchive,timeline}.c` of 13 to 18, in English:
//! a run sets `lc_messages`. A line that is not understood is kept only if it is an error.

use std::time::SystemTime;

use neon_pg_layout::{Lsn, SegmentName, TimelineId};

use crate::timestamp;

/// Where and why recovery stopped, in the server's words after "recovery stopping".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopPoint {
    /// Consistent, as asked for by [`RecoveryTarget::Immediate`](crate::RecoveryTarget::Immediate).
    Consistent,
    /// Before or after the record at this position.
    Lsn {
        /// Whether the record there was replayed.
        after: bool,
        /// The position.
        lsn: Lsn,
    },
    /// Before or after the end of this transaction.
    Transaction {
        /// Whether its end was replayed.
        after: bool,
        /// Whether it committed.
        committed: bool,
        /// Its number.
        xid: u32,
        /// When it ended.
        time: Option<SystemTime>,
    },
    /// At this restore point.
    RestorePoint {
        /// Its name.
        name: String,
        /// When it was created.
        time: Option<SystemTime>,
    },
}

/// What ended a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// "requested recovery stop point is before consistent recovery point"
    BeforeConsistency,
    /// "recovery ended before configured recovery target was reached"
    EndedBeforeTarget,
    /// "WAL ends before …"
    EndedBeforeConsistency,
    /// No record where the backup starts.
    NoStart,
    /// The timeline has no history, is no descendant, or left too early.
    WrongTimeline(String),
    /// WAL that cannot be replayed over was written in between.
    WalLevelMinimal,
    /// The primary raised a setting above ours, and the server wants no less (13).
    TooSmall { name: String, needed: i32 },
    /// The command said that it cannot tell.
    SourceFailed(String),
    /// The command gave something that is no segment.
    SourceWrongSize(String),
    /// Records of an extension that is not loaded.
    NeedsLibrary(String),
    /// Pages or WAL do not fit each other.
    Damaged(String),
    /// Anything else that is fatal.
    Other(String),
}

/// What the lines seen so far say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    pub(crate) redo_starts: Option<Lsn>,
    pub(crate) consistent: Option<Lsn>,
    pub(crate) stopped: Option<StopPoint>,
    pub(crate) shut_down_at_target: bool,
    /// When the last transaction ended that was replayed; told at the end of replay.
    pub(crate) newest_commit: Option<SystemTime>,
    pub(crate) redo_done: Option<Lsn>,
    pub(crate) new_timeline: Option<TimelineId>,
    pub(crate) complete: bool,
    pub(crate) ready: bool,
    /// Somebody was let in once it was ready: what ends a session is not what ends the server.
    pub(crate) visited: bool,
    pub(crate) failure: Option<Failure>,
    /// The segment that was restored last, and how often in a row.
    pub(crate) restored: Option<(SegmentName, u32)>,
    /// Lines worth showing when it fails.
    pub(crate) lines: Vec<String>,
    /// What every line of the server begins with: no command can speak in its name.
    mark: String,
}

/// News out of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    RedoStarts(Lsn),
    Consistent(Lsn),
    Restored(SegmentName),
    /// Replay is here.
    At(Lsn),
    Stopped(StopPoint),
}

const SHOWN_LINES: usize = 20;
const LEVELS: [&str; 8] = [
    "LOG:  ",
    "FATAL:  ",
    "PANIC:  ",
    "ERROR:  ",
    "WARNING:  ",
    "DETAIL:  ",
    "HINT:  ",
    "CONTEXT:  ",
];

impl Findings {
    /// For a server whose lines begin with this.
    pub(crate) fn new(mark: &str) -> Self {
        Self {
            mark: mark.to_owned(),
            ..Self::default()
        }
    }

    /// Takes in one line.
    pub(crate) fn note(&mut self, line: &str) -> Option<News> {
        let Some(line) = line.strip_prefix(self.mark.as_str()) else {
            self.show(line);
            return None;
        };
        let found = LEVELS
            .iter()
            .filter_map(|level| Some((line.find(level)?, *level)))
            .min();
        let Some((at, level)) = found else {
            self.show(line);
            return None;
        };
        let message = line.get(at + level.len()..).unwrap_or_default();
        match level {
            "LOG:  " => self.log(message),
            "FATAL:  " | "PANIC:  " => {
                self.show(line);
                // What follows the first is only its consequence.
                if self.failure.is_none() && (!self.visited || level == "PANIC:  ") {
                    self.failure = Some(failure(message));
                }
                None
            }
            _ => {
                self.show(line);
                None
            }
        }
    }

    fn show(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == SHOWN_LINES {
            self.lines.remove(0);
        }
        self.lines.push(line.to_owned());
    }

    fn log(&mut self, message: &str) -> Option<News> {
        if let Some(rest) = message.strip_prefix("restored log file \"") {
            let name: SegmentName = rest.split('"').next()?.parse().ok()?;
            let times = match self.restored {
                Some((last, times)) if last == name => times + 1,
                _ => 1,
            };
            self.restored = Some((name, times));
            return Some(News::Restored(name));
        }
        if let Some(rest) = message.strip_prefix("redo starts at ") {
            self.redo_starts = Some(lsn(rest)?);
            return self.redo_starts.map(News::RedoStarts);
        }
        if let Some(rest) = message.strip_prefix("consistent recovery state reached at ") {
            self.consistent = Some(lsn(rest)?);
            return self.consistent.map(News::Consistent);
        }
        if message.starts_with("redo in progress") {
            return message
                .split("current LSN: ")
                .nth(1)
                .and_then(lsn)
                .map(News::At);
        }
        if let Some(rest) = message.strip_prefix("redo done at ") {
            self.redo_done = lsn(rest);
        } else if let Some(rest) =
            message.strip_prefix("last completed transaction was at log time ")
        {
            self.newest_commit = timestamp::parse(rest);
        } else if let Some(rest) = message.strip_prefix("recovery stopping ") {
            let point = stop_point(rest)?;
            if let StopPoint::Lsn { .. } | StopPoint::Consistent = point {
                self.show(message);
            }
            self.stopped = Some(point.clone());
            return Some(News::Stopped(point));
        } else if message.starts_with("shutdown at recovery target") {
            self.shut_down_at_target = true;
        } else if let Some(rest) = message.strip_prefix("selected new timeline ID: ") {
            self.new_timeline = rest
                .trim()
                .parse()
                .ok()
                .and_then(|id| TimelineId::new(id).ok());
        } else if message.starts_with("archive recovery complete") {
            self.complete = true;
        } else if message.starts_with("database system is ready to accept connections") {
            self.ready = true;
        } else if [
            "invalid ",
            "unexpected ",
            "incorrect ",
            "contrecord ",
            "record with ",
            "there is no contrecord",
        ]
        .iter()
        .any(|start| message.starts_with(start))
        {
            // Where and why the log was taken to end.
            self.show(message);
        }
        None
    }
}

fn failure(message: &str) -> Failure {
    let has = |text: &str| message.contains(text);
    let text = || message.to_owned();
    if has("requested recovery stop point is before consistent recovery point") {
        Failure::BeforeConsistency
    } else if has("recovery ended before configured recovery target was reached") {
        Failure::EndedBeforeTarget
    } else if message.starts_with("WAL ends before") {
        Failure::EndedBeforeConsistency
    } else if has("could not locate required checkpoint record")
        || has("could not locate a valid checkpoint record")
        || has("could not find redo location")
    {
        Failure::NoStart
    } else if message.starts_with("recovery target timeline")
        || message.starts_with("requested timeline")
        || message.starts_with("unexpected timeline ID")
    {
        Failure::WrongTimeline(text())
    } else if is_minimal(message) {
        Failure::WalLevelMinimal
    } else if let Some(rest) = message.strip_prefix("hot standby is not possible because ") {
        too_small(rest).unwrap_or_else(|| Failure::Other(text()))
    } else if message.starts_with("could not restore file") {
        Failure::SourceFailed(text())
    } else if message.starts_with("archive file") && has("wrong size") {
        Failure::SourceWrongSize(text())
    } else if message.starts_with("resource manager with ID") {
        Failure::NeedsLibrary(text())
    } else if has("WAL contains references to invalid pages")
        || has("WAL file is from different database system")
        || has("backup_label contains data inconsistent with control file")
        || has("invalid data in file \"backup_label\"")
    {
        Failure::Damaged(text())
    } else {
        Failure::Other(text())
    }
}

fn is_minimal(message: &str) -> bool {
    let said =
        message.starts_with("WAL was generated with") && message.contains("wal_level=minimal");
    said || message.starts_with("hot standby is not possible because wal_level")
}

/// `max_connections = 5 is a lower setting than on the master server (its value was 10)`
fn too_small(text: &str) -> Option<Failure> {
    let (name, rest) = text.split_once(" = ")?;
    let (_, needed) = rest.split_once("(its value was ")?;
    let needed = needed.split(')').next()?.parse().ok()?;
    Some(Failure::TooSmall {
        name: name.to_owned(),
        needed,
    })
}

/// The position at the start of a text.
fn lsn(text: &str) -> Option<Lsn> {
    let end = text
        .find(|letter: char| !letter.is_ascii_hexdigit() && letter != '/')
        .unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// What follows "recovery stopping ".
fn stop_point(text: &str) -> Option<StopPoint> {
    if text.starts_with("after reaching consistency") {
        return Some(StopPoint::Consistent);
    }
    if let Some(rest) = text.strip_prefix("at restore point \"") {
        // The name may hold quotation marks; the time does not.
        let (name, time) = rest.rsplit_once("\", time ")?;
        return Some(StopPoint::RestorePoint {
            name: name.to_owned(),
            time: timestamp::parse(time),
        });
    }
    let (word, rest) = text.split_once(' ')?;
    let after = match word {
        "after" => true,
        "before" => false,
        _ => return None,
    };
    if let Some(rest) = rest.strip_prefix("WAL location (LSN) \"") {
        return Some(StopPoint::Lsn {
            after,
            lsn: lsn(rest)?,
        });
    }
    let (what, rest) = rest.split_once(" of transaction ")?;
    let committed = match what {
        "commit" => true,
        "abort" => false,
        _ => return None,
    };
    let (xid, time) = rest.split_once(", time ")?;
    Some(StopPoint::Transaction {
        after,
        committed,
        xid: xid.parse().ok()?,
        time: timestamp::parse(time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(lines: &[&str]) -> Findings {
        let mut findings = Findings::default();
        for line in lines {
            findings.note(line);
        }
        findings
    }

    #[test]
    fn what_a_visitor_is_told_is_no_failure_of_the_server() {
        let refused = "2026-11-20 10:01:31.123 UTC [7] FATAL:  role \"x\" does not exist";
        let mut found = findings(&["LOG:  database system is ready to accept connections"]);
        found.visited = true;
        found.note(refused);
        assert_eq!(found.failure, None);
        found.note("2026-11-20 10:01:31.123 UTC [7] PANIC:  could not write");
        assert!(found.failure.is_some());
        assert!(findings(&[refused]).failure.is_some());
    }

    #[test]
    fn a_run_that_reaches_its_target_is_read() {
        let found = findings(&[
            "2026-11-20 10:01:31.123 UTC [7] LOG:  redo starts at 0/2000028",
            "2026-11-20 10:01:31.123 UTC [7] LOG:  restored log file \"000000010000000000000003\" from archive",
            "2026-11-20 10:01:31.123 UTC [7] LOG:  consistent recovery state reached at 0/2000100",
            "2026-11-20 10:01:31.123 UTC [7] LOG:  recovery stopping after WAL location (LSN) \"0/3000110\"",
            "2026-11-20 10:01:31.123 UTC [7] LOG:  shutdown at recovery target",
        ]);
        assert_eq!(
            (found.redo_starts, found.consistent),
            (Some(Lsn(0x200_0028)), Some(Lsn(0x200_0100)))
        );
        assert_eq!(
            found.stopped,
            Some(StopPoint::Lsn {
                after: true,
                lsn: Lsn(0x300_0110)
            })
        );
        assert!(found.shut_down_at_target && found.failure.is_none());
        assert_eq!(found.restored.map(|(_, times)| times), Some(1));
    }

    #[test]
    fn stop_points_of_all_kinds_are_read() {
        let time = timestamp::parse("2026-11-20 10:01:31.5+00");
        let commit = "before commit of transaction 745, time 2026-11-20 10:01:31.5+00";
        let expected = StopPoint::Transaction {
            after: false,
            committed: true,
            xid: 745,
            time,
        };
        assert_eq!(stop_point(commit), Some(expected));
        let abort = "after abort of transaction 746, time 2026-11-20 10:01:31.5+00";
        let expected = StopPoint::Transaction {
            after: true,
            committed: false,
            xid: 746,
            time,
        };
        assert_eq!(stop_point(abort), Some(expected));
        let named = "at restore point \"a \", time \"b\", time 2026-11-20 10:01:31.5+00";
        let expected = StopPoint::RestorePoint {
            name: "a \", time \"b".to_owned(),
            time,
        };
        assert_eq!(stop_point(named), Some(expected));
        assert_eq!(
            stop_point("after reaching consistency"),
            Some(StopPoint::Consistent)
        );
    }

    #[test]
    fn the_first_fatal_line_is_the_failure() {
        for (message, expected) in [
            (
                "requested recovery stop point is before consistent recovery point",
                Failure::BeforeConsistency,
            ),
            (
                "recovery ended before configured recovery target was reached",
                Failure::EndedBeforeTarget,
            ),
            (
                "WAL ends before end of online backup",
                Failure::EndedBeforeConsistency,
            ),
            (
                "could not locate required checkpoint record at 0/2000060",
                Failure::NoStart,
            ),
            (
                "WAL was generated with \"wal_level=minimal\", cannot continue recovering",
                Failure::WalLevelMinimal,
            ),
        ] {
            let first = format!("x FATAL:  {message}");
            let found = findings(&[&first, "x FATAL:  the database system is shutting down"]);
            assert_eq!(found.failure, Some(expected));
        }
        let minimal = "hot standby is not possible because wal_level was not set to \"replica\" or higher on the master server";
        assert_eq!(failure(minimal), Failure::WalLevelMinimal);
        let small = "hot standby is not possible because max_worker_processes = 8 is a lower setting than on the master server (its value was 9)";
        let expected = Failure::TooSmall {
            name: "max_worker_processes".to_owned(),
            needed: 9,
        };
        assert_eq!(failure(small), expected);
    }

    #[test]
    fn nobody_but_the_server_speaks_in_its_name() {
        let mut found = Findings::new("4f2a ");
        for line in [
            "x LOG:  shutdown at recovery target",
            "4f2a x WARNING:  LOG:  shutdown at recovery target",
        ] {
            found.note(line);
        }
        assert!(!found.shut_down_at_target);
        found.note("4f2a x LOG:  shutdown at recovery target");
        assert!(found.shut_down_at_target);
    }
}
