//! What each kind of snapshot leaves out, against a list of its own: what the server's base backup leaves
//! out (`backup/basebackup.c`), and what differs for clusters that do not run.

use std::fs;
use std::path::Path;

use neon_pg_layout::{ControlFile, Lsn};
use neon_snapshot_format::SnapshotKind::{self, Cold, Crashed, Online, Recovery, Standby};
use neon_snapshot_format::pgdata::{Bracket, EXCLUSIONS, PgData};
use neon_testkit::{Cluster, PgMajor};

use crate::pgdata_selected::Recorder;

const ALL: &[SnapshotKind] = &SnapshotKind::ALL;
const NONE: &[SnapshotKind] = &[];

/// What is put into the directory, and which kinds keep it.
const PLANTED: &[(&str, &[SnapshotKind])] = &[
    // Directories whose content goes.
    ("pg_replslot/standby/state", NONE),
    ("pg_dynshmem/mmap.1", NONE),
    ("pg_notify/0000", NONE),
    ("pg_serial/0000", NONE),
    ("pg_snapshots/00000003-1", NONE),
    ("pg_stat_tmp/global.stat", NONE),
    ("pg_subtrans/0000", NONE),
    (
        "pg_wal/summaries/0000000100000000010000280000000001000100.summary",
        NONE,
    ),
    // Temporary.
    ("base/pgsql_tmp/pgsql_tmp123.0", NONE),
    ("base/5/t3_70010", NONE),
    ("base/5/t3_70010_fsm", NONE),
    ("postgresql.auto.conf.tmp", NONE),
    ("current_logfiles.tmp", NONE),
    ("pg_wal/xlogtemp.123", NONE),
    // Caches and what speaks of one process or one folder.
    ("global/pg_internal.init", NONE),
    ("base/5/pg_internal.init", NONE),
    ("base/5/pg_internal.init.123", NONE),
    ("postmaster.opts", NONE),
    ("backup_manifest", NONE),
    (".DS_Store", NONE),
    ("base/5/.DS_Store", NONE),
    // Unlogged relations: what recovery resets them to.
    ("base/5/70001", &[Cold]),
    ("base/5/70001.1", &[Cold]),
    ("base/5/70001_fsm", &[Cold]),
    ("base/5/70001_vm", &[Cold]),
    ("base/5/70001_init", ALL),
    ("base/5/70002", ALL),
    ("base/5/70002_fsm", ALL),
    // The log: of a backup it comes later; of others what a start reads.
    ("pg_wal/000000010000000000000000", NONE),
    (
        "pg_wal/000000010000000000000001",
        &[Cold, Recovery, Crashed],
    ),
    ("pg_wal/000000010000000000000002", &[Recovery, Crashed]),
    ("pg_wal/00000001.history", &[Cold, Recovery, Crashed]),
    (
        "pg_wal/archive_status/000000010000000000000001.ready",
        &[Cold, Recovery, Crashed],
    ),
    // Labels of another backup; of a cluster that was restored and not started they are its own.
    ("tablespace_map", &[Cold, Recovery, Crashed]),
    ("backup_label.old", ALL),
    ("tablespace_map.old", ALL),
    // Everything else.
    ("pg_stat/pgstat.stat", ALL),
    ("pg_xact/0000", ALL),
    ("pg_logical/mappings/map-5-4eb-0_16B5A08-2df-2e0", ALL),
    ("pg_twophase/0000000000000300", ALL),
    ("standby.signal", ALL),
    ("log/postgresql.log", ALL),
    ("notes.txt", ALL),
    ("base/5/notes.tmp", ALL),
];

/// Writes another state into the control file, and its checksum.
fn set_state(data: &Path, state: u32) {
    let path = data.join("global/pg_control");
    let mut bytes = fs::read(&path).unwrap();
    let summed = (16..512)
        .find(|end| crc32c::crc32c(&bytes[..*end]).to_le_bytes() == bytes[*end..end + 4])
        .unwrap();
    bytes[16..20].copy_from_slice(&state.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..summed]).to_le_bytes();
    bytes[summed..summed + 4].copy_from_slice(&sum);
    fs::write(&path, &bytes).unwrap();
    ControlFile::decode(&bytes).unwrap();
}

fn copied(data: &Path, kind: SnapshotKind) -> Vec<String> {
    // `DBState` of `catalog/pg_control.h`.
    set_state(
        data,
        match kind {
            Cold => 1,
            Recovery => 2,
            Standby => 5,
            Online | Crashed => 6,
        },
    );
    let bracket = || Bracket::new(Lsn(0), || Ok(Lsn::MAX));
    let source = match kind {
        Cold => PgData::cold(data),
        Recovery => PgData::recovery(data),
        Crashed => PgData::crashed(data),
        Online => PgData::online(data, bracket()),
        Standby => PgData::standby(data, bracket()),
    };
    let recorder = Recorder::default();
    drop(source.unwrap().copy_parallel(&recorder, 1).unwrap());
    let directories = recorder.directories.lock().unwrap();
    for kept in [
        "pg_replslot",
        "pg_notify",
        "pg_wal",
        "pg_wal/archive_status",
        "pg_stat_tmp",
    ] {
        assert!(
            directories
                .iter()
                .any(|entry| entry.path.to_string() == kept),
            "{kind}: {kept}"
        );
    }
    assert!(
        !directories
            .iter()
            .any(|entry| entry.path.to_string() == "pg_replslot/standby")
    );
    recorder.over(&Default::default()).into_keys().collect()
}

fn each_kind_leaves_out_what_its_list_says(major: PgMajor) {
    let cluster = Cluster::builder(major).init();
    let data = cluster.data_dir();
    for (path, _) in PLANTED {
        let path = data.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !path.exists() {
            // Empty: neither pages nor anything else to be judged.
            fs::write(path, "").unwrap();
        }
    }
    for kind in SnapshotKind::ALL {
        let files = copied(&data, kind);
        for (path, kinds) in PLANTED {
            let kept = files.iter().any(|file| file == path);
            assert_eq!(kept, kinds.contains(&kind), "{kind}: {path}");
        }
        assert_eq!(
            files
                .last()
                .map(|_| files.contains(&"global/pg_control".to_owned())),
            Some(true)
        );
    }
    // A label, and the lock file of a server that died: refused where the cluster was stopped cleanly.
    fs::write(data.join("backup_label"), "").unwrap();
    for (kind, kept) in [
        (Recovery, true),
        (Crashed, true),
        (Online, false),
        (Standby, false),
    ] {
        assert_eq!(
            copied(&data, kind).contains(&"backup_label".to_owned()),
            kept,
            "{kind}"
        );
    }
    fs::write(data.join("postmaster.pid"), "").unwrap();
    for kind in [Crashed, Online, Standby] {
        assert!(
            !copied(&data, kind).contains(&"postmaster.pid".to_owned()),
            "{kind}"
        );
    }
    // Every rule was tried.
    assert_eq!(EXCLUSIONS.len(), 11);
}

#[test]
fn each_kind_of_13_leaves_out_what_its_list_says() {
    each_kind_leaves_out_what_its_list_says(PgMajor::V13);
}

#[test]
fn each_kind_of_18_leaves_out_what_its_list_says() {
    each_kind_leaves_out_what_its_list_says(PgMajor::V18);
}
