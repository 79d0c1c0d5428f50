//! What a snapshot records so that a later one can be built on it by the log, and the way back.

use neon_pg_layout::{BlockSize, ControlFile, Lsn, TimelineHistory, WalLevel, WalSegmentSize};

use crate::changes::reason::CannotSay;
use crate::changes::{ClusterFacts, Invalid, LogTail, Parent};
use crate::error::{Error, ErrorKind, Result};
use crate::facts::{Facts, TimelineStep};
use crate::id::{CommitId, LineageId};

/// Where the log of a snapshot stands.
#[derive(Debug, Clone, Copy)]
pub struct LogEnd<'a> {
    /// Where replay begins; of a cold snapshot, its shutdown checkpoint.
    pub redo: Lsn,
    /// Where the log ends.
    pub stop: Lsn,
    /// The history of the timeline that it ends on.
    pub history: &'a TimelineHistory,
    /// The bytes before the end, if they could be read.
    pub tail: Option<LogTail>,
}

impl Facts {
    /// Records what a later snapshot must know to be built on this one by the log.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) for a tail that does not end where the log does.
    pub fn record_log(
        &mut self,
        lineage: LineageId,
        control: &ControlFile,
        log: &LogEnd<'_>,
    ) -> Result<()> {
        if let Some(tail) = log.tail.filter(|tail| tail.end() != log.stop) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("log before {}", tail.end()),
                format!("is recorded for a snapshot whose log ends at {}", log.stop),
            ));
        }
        let cluster = ClusterFacts::of(control);
        self.lineage = Some(lineage);
        self.cluster.catalog_version = cluster.catalog_version;
        self.cluster.wal_block_size = cluster.wal_page_size;
        self.cluster.wal_level = Some(cluster.wal_level.to_string());
        self.cluster.wal_log_hints = cluster.wal_log_hints;
        self.cluster.track_commit_timestamp = cluster.track_commit_timestamp;
        self.log.redo = Some(log.redo);
        self.log.stop = Some(log.stop);
        let last = TimelineStep {
            timeline: log.history.timeline(),
            end: None,
        };
        self.log.timelines = log
            .history
            .ancestors()
            .iter()
            .map(|switch| TimelineStep {
                timeline: switch.timeline,
                end: Some(switch.at),
            })
            .chain([last])
            .collect();
        self.log.end_digest = log.tail.map(|tail| tail.to_string());
        Ok(())
    }
}

impl Parent {
    /// A snapshot as a parent for what the log tells.
    ///
    /// # Errors
    /// That it did not record what is needed, or recorded what cannot be.
    pub fn recorded(id: CommitId, facts: &Facts) -> Result<Self, CannotSay> {
        let missing = || CannotSay::Parent(Invalid::TailNotRecorded);
        let unreadable = |what: &str, why: String| CannotSay::Unreadable {
            what: format!("{what} of snapshot {id}"),
            why,
        };
        let log = &facts.log;
        let lineage = facts.lineage.ok_or_else(missing)?;
        let (redo, stop) = (log.redo.ok_or_else(missing)?, log.stop.ok_or_else(missing)?);
        let tail = log
            .end_digest
            .as_deref()
            .map(str::parse::<LogTail>)
            .transpose()
            .map_err(|error| unreadable("end of the log", error.to_string()))?;
        let wal_level = match facts.cluster.wal_level.as_deref() {
            Some("minimal") => WalLevel::Minimal,
            Some("replica") => WalLevel::Replica,
            Some("logical") => WalLevel::Logical,
            _ => return Err(missing()),
        };
        let cluster = ClusterFacts {
            system: facts.cluster.system,
            major: facts.cluster.major,
            catalog_version: facts.cluster.catalog_version,
            block_size: BlockSize::new(facts.cluster.block_size.into())
                .map_err(|error| unreadable("block size", error.to_string()))?,
            segment_blocks: facts.cluster.segment_blocks,
            wal_segment_size: WalSegmentSize::new(facts.cluster.wal_segment_size.into())
                .map_err(|error| unreadable("size of log segments", error.to_string()))?,
            wal_page_size: facts.cluster.wal_block_size,
            checksums: facts.cluster.checksum_version != 0,
            wal_level,
            wal_log_hints: facts.cluster.wal_log_hints,
            track_commit_timestamp: facts.cluster.track_commit_timestamp,
        };
        let history = history(&log.timelines)
            .map_err(|why| unreadable("timelines", why))?
            .ok_or_else(missing)?;
        Ok(Self {
            id,
            lineage,
            cluster,
            history,
            redo,
            stop,
            tail,
        })
    }
}

/// The history that these steps make; none if there are no steps.
fn history(steps: &[TimelineStep]) -> Result<Option<TimelineHistory>, String> {
    let Some((first, rest)) = steps.split_first() else {
        return Ok(None);
    };
    let mut history = TimelineHistory::root(first.timeline);
    let mut left = first.end;
    for step in rest {
        let at = left.ok_or("a timeline goes on that was not left")?;
        history = history
            .branch(step.timeline, at, "")
            .map_err(|error| error.to_string())?;
        left = step.end;
    }
    match left {
        None => Ok(Some(history)),
        Some(at) => Err(format!("the last timeline was left at {at}")),
    }
}

#[cfg(test)]
mod tests {
    use neon_pg_layout::{PgMajor, SystemIdentifier, TimelineId};
    use neon_snapshot_format::SnapshotKind;

    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn facts() -> Facts {
        let cluster = crate::facts::ClusterFacts::new(
            "7300000000000000001".parse::<SystemIdentifier>().unwrap(),
            PgMajor::V17,
            8192,
            131_072,
        );
        let mut facts = Facts::new(SnapshotKind::Online, 0, cluster);
        facts.cluster.wal_level = Some("replica".into());
        facts.cluster.checksum_version = 1;
        facts.lineage = Some(LineageId([7; 16]));
        facts.log.redo = Some(Lsn(0x30_0028));
        facts.log.stop = Some(Lsn(0x40_0000));
        facts.log.end_digest = Some(LogTail::of(Lsn(0x3F_0000), &[1; 0x1_0000]).to_string());
        facts.log.timelines = vec![
            TimelineStep {
                timeline: timeline(1),
                end: Some(Lsn(0x10_0000)),
            },
            TimelineStep {
                timeline: timeline(3),
                end: Some(Lsn(0x20_0000)),
            },
            TimelineStep {
                timeline: timeline(4),
                end: None,
            },
        ];
        facts
    }

    #[test]
    fn a_parent_is_read_from_what_was_recorded() {
        let id = CommitId::of(b"parent");
        let parent = Parent::recorded(id, &facts()).unwrap();
        assert_eq!(parent.history.timeline(), timeline(4));
        assert_eq!(parent.history.timeline_of(Lsn(0x18_0000)), timeline(3));
        assert_eq!((parent.redo, parent.stop), (Lsn(0x30_0028), Lsn(0x40_0000)));
        assert_eq!(parent.tail.unwrap().end(), parent.stop);
        assert!(parent.cluster.checksums);
    }

    #[test]
    fn what_was_not_recorded_or_cannot_be_is_no_parent() {
        let id = CommitId::of(b"parent");
        let without: [fn(&mut Facts); 5] = [
            |facts| facts.lineage = None,
            |facts| facts.log.redo = None,
            |facts| facts.log.stop = None,
            |facts| facts.cluster.wal_level = None,
            |facts| facts.log.timelines.clear(),
        ];
        for change in without {
            let mut facts = facts();
            change(&mut facts);
            let refused = Parent::recorded(id, &facts).unwrap_err();
            assert_eq!(refused, CannotSay::Parent(Invalid::TailNotRecorded));
        }
        let impossible: [fn(&mut Facts); 5] = [
            |facts| facts.log.end_digest = Some("0/0".into()),
            |facts| facts.cluster.block_size = 7,
            |facts| facts.cluster.wal_segment_size = 3,
            |facts| facts.log.timelines[1].end = None,
            |facts| facts.log.timelines[2].end = Some(Lsn(0x50_0000)),
        ];
        for change in impossible {
            let mut facts = facts();
            change(&mut facts);
            let refused = Parent::recorded(id, &facts).unwrap_err();
            assert!(
                matches!(refused, CannotSay::Unreadable { .. }),
                "{refused:?}"
            );
        }
    }
}
