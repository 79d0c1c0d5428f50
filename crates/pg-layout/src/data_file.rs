//! What a file of a data directory is, told by its path.
//!
//! Copying, comparing and restoring clusters all begin with this question. The answer names the kind;
//! what to do with it (leave out, copy last, never copy) is the caller's policy. Sources: the directory
//! map of the server's documentation, `backup/basebackup.c`, `access/slru.c`, `access/twophase.c`.

use std::ops::RangeInclusive;

use crate::relation::Oid;
use crate::relation_path::{RelationPath, number, parse_directory};
use crate::segment::WalFileName;
use crate::slru::Slru;
use crate::version::VersionLayout;
use crate::wal_summary::WalSummaryName;

/// The kind of a file in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataFile {
    /// A segment file of a relation, temporary ones included.
    Relation(RelationPath),
    /// `pg_filenode.map`. Database 0 is the one in `global`.
    RelationMap {
        /// The tablespace of the directory.
        tablespace: Oid,
        /// The database of the directory.
        database: Oid,
    },
    /// `PG_VERSION` of one database.
    DatabaseVersion {
        /// The tablespace of the directory.
        tablespace: Oid,
        /// The database of the directory.
        database: Oid,
    },
    /// `pg_internal.init`, a cache that the server makes again when it is missing.
    RelationCache,
    /// `PG_VERSION` of the cluster.
    ClusterVersion,
    /// `global/pg_control`.
    Control,
    /// A segment of an SLRU: transaction status and the like, without page headers or checksums.
    Slru {
        /// Which one.
        area: Slru,
        /// The number of the segment.
        segment: u64,
    },
    /// A file of the log, in `pg_wal`.
    Wal(WalFileName),
    /// What the archiver knows about a file of the log: `archive_status/<name>.ready` or `.done`.
    ArchiveStatus {
        /// The file of the log.
        file: WalFileName,
        /// Whether it was archived (`.done`).
        done: bool,
    },
    /// A WAL summary, in `pg_wal/summaries`.
    WalSummary(WalSummaryName),
    /// The state of a prepared transaction, in `pg_twophase`.
    TwoPhase {
        /// The transaction; from 17 on with its epoch in the high half.
        xid: u64,
    },
    /// A link or directory of a tablespace, `pg_tblspc/<oid>`.
    TablespaceLink(Oid),
    /// `postgresql.conf`, `postgresql.auto.conf`, `pg_hba.conf`, `pg_ident.conf`.
    Configuration,
    /// `backup_label`, or the one that recovery put aside (`backup_label.old`).
    BackupLabel {
        /// Whether recovery has put it aside.
        old: bool,
    },
    /// `tablespace_map`, or the one that recovery put aside.
    TablespaceMap {
        /// Whether recovery has put it aside.
        old: bool,
    },
    /// `backup_manifest`.
    BackupManifest,
    /// `recovery.signal`
    RecoverySignal,
    /// `standby.signal`
    StandbySignal,
    /// `postmaster.pid`
    PostmasterPid,
    /// `postmaster.opts`
    PostmasterOptions,
    /// `current_logfiles`
    CurrentLogFiles,
    /// Below `pg_logical`: state of logical decoding and replication origins.
    Logical,
    /// Below `pg_replslot`: replication slots.
    ReplicationSlot,
    /// Below `pg_stat`: statistics kept over a clean stop.
    Statistics,
    /// Below `pg_stat_tmp`, `pg_dynshmem`, `pg_snapshots`: of no use to another server process.
    Volatile,
    /// Sort spill, transient copies: anything `pgsql_tmp…`, and the server's own `*.tmp` files.
    Temporary,
    /// None of these: logs, users' files, what extensions keep, other majors' directories.
    Other,
}

impl DataFile {
    /// What the file at this path is. The path is relative to the data directory, in the server's own
    /// form: separated by single slashes, without `./`. A path that is not UTF-8 is
    /// [`Other`](Self::Other) by definition.
    #[must_use]
    pub fn of(path: &str, layout: &VersionLayout) -> Self {
        if path.split('/').any(|part| part.starts_with("pgsql_tmp")) {
            return Self::Temporary;
        }
        let found = match path.split_once('/') {
            None => Some(in_root(path)),
            Some(("pg_wal", rest)) => in_wal(rest),
            Some(("pg_twophase", name)) => {
                let digits = layout.twophase_name_digits;
                hexadecimal(name, digits..=digits).map(|xid| Self::TwoPhase { xid })
            }
            Some(("pg_logical", _)) => Some(Self::Logical),
            Some(("pg_replslot", _)) => Some(Self::ReplicationSlot),
            Some(("pg_stat", _)) => Some(Self::Statistics),
            Some(("pg_stat_tmp" | "pg_dynshmem" | "pg_snapshots", _)) => Some(Self::Volatile),
            Some(("global", "pg_control")) => Some(Self::Control),
            Some(("pg_tblspc", name)) if !name.contains('/') => {
                number(name).map(Self::TablespaceLink)
            }
            Some(_) => in_slru(path).or_else(|| in_database(path, layout)),
        };
        found.unwrap_or(Self::Other)
    }
}

fn in_root(name: &str) -> DataFile {
    match name {
        "PG_VERSION" => DataFile::ClusterVersion,
        "postgresql.conf" | "postgresql.auto.conf" | "pg_hba.conf" | "pg_ident.conf" => {
            DataFile::Configuration
        }
        "backup_label" => DataFile::BackupLabel { old: false },
        "backup_label.old" => DataFile::BackupLabel { old: true },
        "tablespace_map" => DataFile::TablespaceMap { old: false },
        "tablespace_map.old" => DataFile::TablespaceMap { old: true },
        "backup_manifest" => DataFile::BackupManifest,
        "recovery.signal" => DataFile::RecoverySignal,
        "standby.signal" => DataFile::StandbySignal,
        "postmaster.pid" => DataFile::PostmasterPid,
        "postmaster.opts" => DataFile::PostmasterOptions,
        "current_logfiles" => DataFile::CurrentLogFiles,
        "postgresql.auto.conf.tmp" | "current_logfiles.tmp" | "backup_manifest.tmp" => {
            DataFile::Temporary
        }
        _ => DataFile::Other,
    }
}

fn in_wal(rest: &str) -> Option<DataFile> {
    match rest.split_once('/') {
        Some(("archive_status", name)) => {
            let (file, done) = match name.strip_suffix(".done") {
                Some(file) => (file, true),
                None => (name.strip_suffix(".ready")?, false),
            };
            let file = file.parse().ok()?;
            Some(DataFile::ArchiveStatus { file, done })
        }
        Some(("summaries", name)) => match name.parse() {
            Ok(name) => Some(DataFile::WalSummary(name)),
            Err(_) => (name == "temp.summary").then_some(DataFile::Temporary),
        },
        Some(_) => None,
        None if rest.starts_with("xlogtemp.") => Some(DataFile::Temporary),
        // What a restore command is asked to write, before it gets its name.
        None if ["RECOVERYXLOG", "RECOVERYHISTORY"].contains(&rest) => Some(DataFile::Temporary),
        None => rest.parse().ok().map(DataFile::Wal),
    }
}

fn in_slru(path: &str) -> Option<DataFile> {
    let (directory, name) = path.rsplit_once('/')?;
    let area = Slru::ALL
        .into_iter()
        .find(|area| area.directory() == directory)?;
    let segment = hexadecimal(name, 4..=16)?;
    Some(DataFile::Slru { area, segment })
}

fn in_database(path: &str, layout: &VersionLayout) -> Option<DataFile> {
    let (directory, name) = path.rsplit_once('/')?;
    let (tablespace, database) = parse_directory(directory, layout)?;
    Some(match name {
        "pg_filenode.map" => DataFile::RelationMap {
            tablespace,
            database,
        },
        "pg_filenode.map.tmp" => DataFile::Temporary,
        "PG_VERSION" if database != 0 => DataFile::DatabaseVersion {
            tablespace,
            database,
        },
        _ if name.starts_with("pg_internal.init") => DataFile::RelationCache,
        _ => RelationPath::parse_file(tablespace, database, name).map(DataFile::Relation)?,
    })
}

/// So many upper-case hexadecimal digits.
fn hexadecimal(name: &str, digits: RangeInclusive<usize>) -> Option<u64> {
    let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    (digits.contains(&name.len()) && name.bytes().all(plain))
        .then(|| u64::from_str_radix(name, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::PgMajor;

    #[test]
    fn every_kind_is_told_by_its_path() {
        let layout = PgMajor::V17.layout();
        let of = |path| DataFile::of(path, layout);
        assert_eq!(of("PG_VERSION"), DataFile::ClusterVersion);
        assert_eq!(of("global/pg_control"), DataFile::Control);
        let map = |tablespace, database| DataFile::RelationMap {
            tablespace,
            database,
        };
        assert_eq!(of("global/pg_filenode.map"), map(1664, 0));
        assert_eq!(of("base/5/pg_filenode.map"), map(1663, 5));
        assert_eq!(
            of("pg_tblspc/9/PG_17_202406281/5/PG_VERSION"),
            DataFile::DatabaseVersion {
                tablespace: 9,
                database: 5
            }
        );
        assert_eq!(of("base/5/pg_internal.init.77"), DataFile::RelationCache);
        for (path, area, segment) in [
            ("pg_xact/0000", Slru::Transactions, 0),
            (
                "pg_multixact/members/14078",
                Slru::MultiXactMembers,
                0x14078,
            ),
            ("pg_notify/00000000000000A", Slru::Notifications, 10),
        ] {
            assert_eq!(of(path), DataFile::Slru { area, segment });
        }
        let xid = 0x2F1;
        assert_eq!(
            of("pg_twophase/00000000000002F1"),
            DataFile::TwoPhase { xid }
        );
        assert_eq!(of("pg_tblspc/16400"), DataFile::TablespaceLink(16400));
        assert!(matches!(
            of("pg_wal/archive_status/00000002.history.done"),
            DataFile::ArchiveStatus { done: true, .. }
        ));
        assert!(matches!(of("pg_wal/00000002.history"), DataFile::Wal(_)));
        assert!(matches!(
            of("pg_wal/summaries/0000000100000000010000280000000001532530.summary"),
            DataFile::WalSummary(_)
        ));
        assert!(matches!(of("base/5/t3_16385_vm"), DataFile::Relation(_)));
    }

    #[test]
    fn temporary_files_are_told_wherever_they_lie() {
        for path in [
            "base/pgsql_tmp/pgsql_tmp77.0",
            "pg_tblspc/16400/PG_15_202209061/pgsql_tmp/pgsql_tmp1.0",
            "base/pgsql_tmp/pgsql_tmp1.0.sharedfileset/0",
            "postgresql.auto.conf.tmp",
            "pg_wal/xlogtemp.123",
            "pg_wal/RECOVERYXLOG",
            "base/5/pg_filenode.map.tmp",
        ] {
            let kind = DataFile::of(path, PgMajor::V15.layout());
            assert_eq!(kind, DataFile::Temporary, "{path}");
        }
    }

    #[test]
    fn what_the_server_does_not_write_is_other() {
        for path in [
            "",
            "notes.txt",
            "log/postgresql.log",
            "base/5",
            "base/5/core",
            "pg_xact/0",
            "pg_xact/zzzz",
            "pg_twophase/00000000000002F1",
            "pg_twophase/2F1",
            "pg_wal/notes",
            "pg_wal/a/b",
            "pg_wal/archive_status/notes.done",
            "global/PG_VERSION",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/x",
        ] {
            let kind = DataFile::of(path, PgMajor::V15.layout());
            assert_eq!(kind, DataFile::Other, "{path}");
        }
    }
}
