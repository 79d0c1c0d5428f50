//! What a snapshot leaves out, as one table with reasons.
//!
//! The server's own base backup leaves out what recovery makes again. That is right only where recovery
//! will run: a cold copy starts without it, so that nothing would reset unlogged relations or miss
//! statistics that are gone. Source: `backup/basebackup.c`.

use neon_pg_layout::{DataFile, Fork, Lsn, TimelineId, WalSegmentSize};

use crate::kind::SnapshotKind;
use crate::path::SnapshotPath;
use SnapshotKind::{Cold, Crashed, Online, Recovery, Standby};

/// One rule: what it leaves out, of which kinds of snapshot, and why.
#[derive(Debug, Clone, Copy)]
pub struct Exclusion {
    /// What it is, as paths or in words.
    pub what: &'static str,
    /// The kinds of snapshot it holds for.
    pub kinds: &'static [SnapshotKind],
    /// Why a snapshot is whole without it.
    pub reason: &'static str,
    matches: fn(&Subject<'_>) -> bool,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a str,
    pub(crate) file: DataFile,
    /// Whether the relation it belongs to has an init fork.
    pub(crate) unlogged: bool,
    pub(crate) wal: &'a WalNeeded,
}

/// Which segments of the log a stopped cluster needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WalNeeded {
    pub(crate) size: WalSegmentSize,
    /// Where replay, or the start after a clean stop, begins to read.
    pub(crate) redo: Lsn,
    /// For a clean stop: the timeline, and a position behind the last record.
    pub(crate) end: Option<(TimelineId, Lsn)>,
}

impl WalNeeded {
    fn wants(&self, file: neon_pg_layout::WalFileName) -> bool {
        let Some(segment) = file.segment() else {
            return true;
        };
        let Ok(number) = segment.number(self.size) else {
            return false;
        };
        let old = number < self.size.number_of(self.redo);
        let recycled = self.end.is_some_and(|(timeline, end)| {
            segment.timeline() != timeline || number > self.size.number_of(end)
        });
        !old && !recycled
    }
}

const ALL: &[SnapshotKind] = &SnapshotKind::ALL;
const BRACKETED: &[SnapshotKind] = &[Online, Standby];
const STOPPED: &[SnapshotKind] = &[Cold, Recovery, Crashed];
const RECOVERING: &[SnapshotKind] = &[Online, Standby, Recovery, Crashed];

/// Directories that a snapshot holds empty, also when they are links to elsewhere.
pub(crate) const EMPTIED: [&str; 7] = [
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Every rule. The first that matches decides.
pub const EXCLUSIONS: &[Exclusion] = &[
    Exclusion {
        what: "pg_replslot/*",
        kinds: ALL,
        reason: "slots belong to one server; a copy of one would hold back log for a consumer that is not its own",
        matches: |s| below(s.path, "pg_replslot"),
    },
    Exclusion {
        what: "pg_dynshmem/*, pg_notify/*, pg_serial/*, pg_snapshots/*, pg_stat_tmp/*, pg_subtrans/*",
        kinds: ALL,
        reason: "state of server processes; every start empties or makes it again",
        matches: |s| EMPTIED.iter().any(|directory| below(s.path, directory)),
    },
    Exclusion {
        what: "pgsql_tmp*, temporary relations, *.tmp files of the server, pg_wal/xlogtemp.*",
        kinds: ALL,
        reason: "temporary; every start removes them",
        matches: |s| match s.file {
            DataFile::Temporary => true,
            DataFile::Relation(relation) => relation.backend.is_some(),
            _ => false,
        },
    },
    Exclusion {
        what: "pg_internal.init*",
        kinds: ALL,
        reason: "a cache that the server makes again",
        matches: |s| s.file == DataFile::RelationCache,
    },
    Exclusion {
        what: "postmaster.pid, postmaster.opts",
        kinds: ALL,
        reason: "they speak of one server process",
        matches: |s| {
            matches!(
                s.file,
                DataFile::PostmasterPid | DataFile::PostmasterOptions
            )
        },
    },
    Exclusion {
        what: "backup_manifest, .DS_Store",
        kinds: ALL,
        reason: "they describe another copy, or a folder on a desktop",
        matches: |s| {
            s.file == DataFile::BackupManifest || s.path.rsplit('/').next() == Some(".DS_Store")
        },
    },
    Exclusion {
        what: "backup_label, tablespace_map",
        kinds: BRACKETED,
        reason: "those in the directory are not of this backup; its own come when it stops",
        matches: |s| {
            matches!(
                s.file,
                DataFile::BackupLabel { old: false } | DataFile::TablespaceMap { old: false }
            )
        },
    },
    Exclusion {
        what: "every fork but the init fork of unlogged relations",
        kinds: RECOVERING,
        reason: "recovery resets them to the init fork",
        matches: |s| match s.file {
            DataFile::Relation(relation) => s.unlogged && relation.fork != Fork::Init,
            _ => false,
        },
    },
    Exclusion {
        what: "pg_wal/summaries/*",
        kinds: ALL,
        reason: "they describe log that the snapshot does not hold; the server makes those it needs",
        matches: |s| below(s.path, "pg_wal/summaries"),
    },
    Exclusion {
        what: "pg_wal/*",
        kinds: BRACKETED,
        reason: "the log from the start to the stop of the backup is added when it stops",
        matches: |s| {
            below(s.path, "pg_wal")
                && !matches!(s.path, "pg_wal/archive_status" | "pg_wal/summaries")
        },
    },
    Exclusion {
        what: "pg_wal: segments before the redo position and, after a clean stop, behind the last record",
        kinds: STOPPED,
        reason: "recovery does not read them: old, or kept to be written over",
        matches: |s| match s.file {
            DataFile::Wal(file) | DataFile::ArchiveStatus { file, .. } => !s.wal.wants(file),
            _ => false,
        },
    },
];

/// The rule that leaves the subject out of a snapshot of this kind.
pub(crate) fn excluded(kind: SnapshotKind, subject: &Subject<'_>) -> Option<&'static Exclusion> {
    EXCLUSIONS
        .iter()
        .find(|rule| rule.kinds.contains(&kind) && (rule.matches)(subject))
}

/// Whether a server misses what is at this path: what belongs to the data of a cluster, not to its configuration or its
/// logs. A link there that is not followed would be data that is missing from a snapshot.
#[must_use]
pub fn holds_data(path: &SnapshotPath) -> bool {
    let data: [&[u8]; 10] = [
        b"PG_VERSION",
        b"base",
        b"global",
        b"pg_commit_ts",
        b"pg_logical",
        b"pg_multixact",
        b"pg_tblspc",
        b"pg_twophase",
        b"pg_wal",
        b"pg_xact",
    ];
    let first = path.as_bytes().split(|byte| *byte == b'/').next();
    first.is_some_and(|first| data.contains(&first))
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use neon_pg_layout::PgMajor;

    fn rule_for(kind: SnapshotKind, path: &str, unlogged: bool) -> Option<&'static str> {
        let size = WalSegmentSize::DEFAULT;
        let timeline = TimelineId::FIRST;
        let wal = WalNeeded {
            size,
            redo: Lsn(0x300_0028),
            end: (kind == Cold).then_some((timeline, Lsn(0x300_0100))),
        };
        let file = DataFile::of(path, PgMajor::V16.layout());
        let subject = Subject {
            path,
            file,
            unlogged,
            wal: &wal,
        };
        excluded(kind, &subject).map(|rule| rule.what)
    }

    #[test]
    fn data_is_told_from_configuration_and_logs() {
        let data = |path: &str| holds_data(&SnapshotPath::new(path).unwrap());
        for path in [
            "base/5/16384.1",
            "base/5",
            "pg_xact",
            "global/1262",
            "pg_tblspc/1",
        ] {
            assert!(data(path), "{path}");
        }
        for path in [
            "postgresql.conf",
            "log",
            "server.key",
            "pg_stat/x",
            "baseline",
        ] {
            assert!(!data(path), "{path}");
        }
    }

    #[test]
    fn replication_slots_are_never_copied() {
        for kind in SnapshotKind::ALL {
            assert!(
                rule_for(kind, "pg_replslot/standby/state", false).is_some(),
                "{kind}"
            );
            assert!(rule_for(kind, "pg_replslot", false).is_none(), "{kind}");
        }
    }

    #[test]
    fn only_a_cold_copy_keeps_unlogged_relations() {
        for kind in SnapshotKind::ALL {
            for (path, kept) in [
                ("base/5/16400", kind == Cold),
                ("base/5/16400_fsm", kind == Cold),
                ("base/5/16400_init", true),
            ] {
                assert_eq!(rule_for(kind, path, true).is_none(), kept, "{kind} {path}");
            }
            assert!(rule_for(kind, "base/5/16401", false).is_none());
            assert!(rule_for(kind, "pg_stat/pgstat.stat", false).is_none());
        }
    }

    #[test]
    fn the_log_is_kept_as_far_as_a_start_reads_it() {
        let kept = |kind, path| rule_for(kind, path, false).is_none();
        for kind in [Cold, Crashed, Recovery] {
            assert!(!kept(kind, "pg_wal/000000010000000000000002"));
            assert!(kept(kind, "pg_wal/000000010000000000000003"));
            assert!(kept(
                kind,
                "pg_wal/archive_status/000000010000000000000003.ready"
            ));
            assert!(!kept(
                kind,
                "pg_wal/archive_status/000000010000000000000002.done"
            ));
            assert_eq!(kept(kind, "pg_wal/000000010000000000000004"), kind != Cold);
            assert!(kept(kind, "pg_wal/00000002.history"));
            assert!(kept(kind, "backup_label"));
        }
        for kind in [Online, Standby] {
            assert!(!kept(kind, "pg_wal/000000010000000000000003"));
            assert!(kept(kind, "pg_wal/archive_status") && kept(kind, "pg_wal"));
            assert!(!kept(kind, "backup_label") && kept(kind, "backup_label.old"));
        }
    }
}
