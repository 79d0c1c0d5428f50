//! Snapshots that are taken while more goes on than work on tables: of a standby that follows, and of a primary on which
//! tablespaces come and go.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use neon_pagestore::Facts;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::SnapshotWriter;
use neon_pg_layout::{ControlFile, Lsn, TimelineId};
use neon_snapshot_format::pgdata::{Bracket, PgData, Stop, StopWal};
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_testkit::workload::{Load, Workload};
use neon_testkit::{
    Backup, Client, Cluster, ClusterBuilder, OsUser, PgMajor, Scratch, StopMode, tree,
};

use crate::clusters::{judge, prepare, repository, restore_into, settings, snapshot};
use crate::files::reader;

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const LOADS: [Workload; 5] = [
    Workload::Ddl,
    Workload::Toast,
    Workload::Visibility,
    Workload::Multixacts,
    Workload::Indexes,
];

/// What a standby has replayed is copied while it goes on replaying; its log is that of the primary.
async fn a_standby_is_whole(major: PgMajor, checksums: bool) {
    let builder = || -> ClusterBuilder {
        Cluster::builder(major)
            .checksums(checksums)
            .setting("wal_keep_size", "1GB")
    };
    let mut primary = builder().init();
    prepare(&mut primary);
    primary.start();
    let loads: Vec<Load> = (1..)
        .zip(LOADS)
        .map(|(seed, load)| load.prepare(&primary, seed, 2).unwrap())
        .collect();
    primary.stop(StopMode::Fast);
    let copy = primary.copy_cold();
    primary.start();
    let mut standby = builder()
        .setting("primary_conninfo", primary.conninfo())
        .on_copy(copy);
    prepare(&mut standby);
    let signal = standby.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    OsUser::current().own(&signal);
    standby.start();
    let running: Vec<_> = loads.into_iter().map(Load::in_background).collect();
    let replayed = |least: Lsn| {
        until("the standby does not follow", || {
            let lsn: Lsn = standby
                .psql("select pg_last_wal_replay_lsn()")
                .parse()
                .unwrap();
            lsn >= least
        });
    };
    // A restart point has to be later than the copy that the standby was made of.
    let written = || -> Lsn {
        let lsn = primary.psql("select pg_current_wal_lsn()");
        lsn.parse().unwrap()
    };
    let begun = written();
    until("nothing is done", || written().0 > begun.0 + (1 << 20));
    primary.psql("checkpoint");
    replayed(written());

    let place = Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let backup = Backup::begin(&standby);
    let position = Backup::positions(&standby);
    let bracket = Bracket::new(backup.start, move || Ok(position()));
    let source = PgData::standby(&standby.data_dir(), bracket).unwrap();
    let (data, wal) = (standby.data_dir(), primary.data_dir().join("pg_wal"));
    let client: Client = (*primary).clone();
    let copy = move |sink: &SnapshotWriter| {
        let mut facts = Facts::of_control(SnapshotKind::Standby, 0, source.control());
        facts.log.start = Some(backup.start);
        let copied = source.copy_parallel(sink, 2).unwrap();
        let stopped = backup.stop();
        // What was copied last is consistent where the control file says.
        let bytes = fs::read(data.join("global/pg_control")).unwrap();
        let reached = ControlFile::decode(&bytes).map(|control| control.min_recovery_point);
        let position = stopped.position.max(reached.unwrap_or(stopped.position));
        facts.log.stop = Some(position);
        client.psql("select pg_switch_wal()");
        let stop = Stop {
            label: &stopped.label,
            tablespace_map: &stopped.map,
            position,
            timeline: TimelineId::FIRST,
            wal: StopWal::Directory(&wal),
        };
        let mut rest = Sequential::new(sink).unwrap();
        copied.finish(&mut rest, Some(stop)).unwrap();
        facts
    };
    let id = snapshot(&repository, None, copy).await;
    for load in running {
        drop(load.stop());
    }
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    let maps = reader(&repository);
    let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
    let mut copy = Cluster::without_data(major);
    let restored = restore_into(&snapshot, &copy).await;
    assert_eq!(restored.bad_pages, []);
    fs::remove_file(copy.data_dir().join("standby.signal")).unwrap();
    prepare(&mut copy);
    copy.start();
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "f");
    for load in LOADS {
        load.verify(&copy);
    }
    judge(copy);
    standby.stop(StopMode::Immediate);
    primary.stop(StopMode::Immediate);
}

/// All of these majors with and without checksums in the long form; by default the first as it says.
async fn standbys(majors: &[PgMajor], checksums: bool) {
    let both = settings(checksums);
    let some = if both.len() > 1 { majors } else { &majors[..1] };
    for major in some {
        for checksums in &both {
            a_standby_is_whole(*major, *checksums).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_standby_of_14_without_checksums_is_whole() {
    standbys(&[PgMajor::V14, PgMajor::V13, PgMajor::V16], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_standby_of_17_with_checksums_is_whole() {
    standbys(&[PgMajor::V17, PgMajor::V15, PgMajor::V18], true).await;
}

/// One round of tablespaces that come and go, every other one in place. What is in them is in a registry, by the same
/// transaction.
fn churn(client: &Client, round: u32) {
    let name = format!("churn_{round}");
    let location = match round % 2 {
        0 => client.tablespace_dir(&name).display().to_string(),
        _ => String::new(),
    };
    let strategy = match (client.major() >= PgMajor::V15, round % 4 < 2) {
        (false, _) => "",
        (true, true) => "strategy file_copy",
        (true, false) => "strategy wal_log",
    };
    // One that was made two rounds ago goes.
    let old = round.checked_sub(2).map_or_else(String::new, |old| {
        format!(
            "begin; delete from churn.registry where name = 'in_{old}'; drop table churn.in_{old}; commit;
             drop database if exists placed_{old}; drop tablespace churn_{old};"
        )
    });
    client.psql(&format!(
        "create tablespace {name} location '{location}';
         alter table churn.moving set tablespace {name}; alter index churn.moving_i set tablespace {name};
         begin; create table churn.in_{round} tablespace {name} as select generate_series(1, 700) as i;
           insert into churn.registry values ('in_{round}', 700); commit;
         create database placed_{round} template seed tablespace {name} {strategy};
         update churn.moving set body = md5(body) where i % 5 = {round} % 5;
         begin; alter table churn.moving set tablespace pg_default; rollback;
         alter table churn.moving set tablespace steady; alter index churn.moving_i set tablespace pg_default;
         {old}"
    ));
}

/// That each table and database holds what it should.
fn assert_kept(copy: &Client) {
    for scan in ["enable_indexscan = off", "enable_seqscan = off"] {
        let count = format!("set {scan}; select count(*) from churn.moving where i > 0");
        assert_eq!(copy.psql(&count), "2000");
    }
    assert_eq!(copy.psql("select sum(i) from churn.far"), "12502500");
    for line in copy.psql("select name, rows from churn.registry").lines() {
        let (name, rows) = line.split_once('|').unwrap();
        let found = copy.psql(&format!("select count(*) from churn.{name}"));
        assert_eq!(found, rows, "{name}");
    }
    let placed =
        "select datname from pg_database where datname like 'placed%' and datconnlimit <> -2";
    for database in copy.psql(placed).lines() {
        assert_eq!(copy.psql_in(database, "select count(*) from marker"), "300");
    }
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// Tablespaces are created, filled, emptied and dropped before, while and after the files are copied. Those that the log
/// creates, replay makes at the path they had; that folder is there, and empty, as PostgreSQL asks of the machine that a
/// backup is restored on.
async fn tablespaces_come_and_go(major: PgMajor, checksums: bool) {
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_keep_size", "1GB")
        .init();
    prepare(&mut cluster);
    cluster.start();
    let steady = cluster.tablespace_dir("steady");
    cluster.psql(&format!(
        "create schema churn; create tablespace steady location '{}';
         create table churn.far tablespace steady as select generate_series(1, 5000) as i;
         create table churn.moving as select i, md5(i::text) as body from generate_series(1, 2000) i;
         create index moving_i on churn.moving (i);
         create table churn.registry (name text primary key, rows int);
         create database seed template template0",
        steady.display()
    ));
    let seeded = "create table marker as select generate_series(1, 300) i";
    cluster.psql_in("seed", seeded);
    let (rounds, done) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let churning = {
        let (client, rounds, done): (Client, _, _) =
            ((*cluster).clone(), Arc::clone(&rounds), Arc::clone(&done));
        std::thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                churn(&client, rounds.load(Ordering::SeqCst));
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let later = |by: u32| {
        let (rounds, least) = (Arc::clone(&rounds), rounds.load(Ordering::SeqCst) + by);
        move || {
            until("nothing comes and goes", || {
                rounds.load(Ordering::SeqCst) >= least
            });
        }
    };
    later(3)();
    let place = Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let backup = Backup::begin(&cluster);
    let position = Backup::positions(&cluster);
    let bracket = Bracket::new(backup.start, move || Ok(position()));
    later(2)();
    let source = PgData::online(&cluster.data_dir(), bracket).unwrap();
    let wal = cluster.data_dir().join("pg_wal");
    let (before, rounds_left) = (later(2), Arc::clone(&rounds));
    let copy = move |sink: &SnapshotWriter| {
        // What was there when it was opened is partly gone by now.
        before();
        let mut facts = Facts::of_control(SnapshotKind::Online, 0, source.control());
        facts.log.start = Some(backup.start);
        let copied = source.copy_parallel(sink, 2).unwrap();
        let least = rounds_left.load(Ordering::SeqCst) + 2;
        until("nothing comes and goes", || {
            rounds_left.load(Ordering::SeqCst) >= least
        });
        let stopped = backup.stop();
        facts.log.stop = Some(stopped.position);
        let stop = Stop {
            label: &stopped.label,
            tablespace_map: &stopped.map,
            position: stopped.position,
            timeline: TimelineId::FIRST,
            wal: StopWal::Directory(&wal),
        };
        let mut rest = Sequential::new(sink).unwrap();
        copied.finish(&mut rest, Some(stop)).unwrap();
        facts
    };
    let id = snapshot(&repository, None, copy).await;
    done.store(true, Ordering::SeqCst);
    churning.join().unwrap();
    assert_kept(&cluster);
    cluster.stop(StopMode::Immediate);
    let spaces = steady.parent().unwrap();
    for entry in fs::read_dir(spaces).unwrap() {
        let path = entry.unwrap().path();
        if path != steady {
            empty(&path);
        }
    }
    let origin = tree(&steady);

    let maps = reader(&repository);
    let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
    let mut copy = Cluster::without_data(major);
    let restored = restore_into(&snapshot, &copy).await;
    assert_eq!(restored.bad_pages, []);
    prepare(&mut copy);
    copy.start();
    assert_kept(&copy);
    judge(copy);
    // What was there before the log began is below the copy, and nowhere else.
    assert!(tree(&steady) == origin, "the origin was written to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tablespaces_of_13_come_and_go_while_a_snapshot_is_taken() {
    for checksums in settings(true) {
        tablespaces_come_and_go(PgMajor::V13, checksums).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tablespaces_of_17_come_and_go_while_a_snapshot_is_taken() {
    for major in [
        PgMajor::V17,
        PgMajor::V14,
        PgMajor::V15,
        PgMajor::V16,
        PgMajor::V18,
    ] {
        for checksums in settings(false) {
            tablespaces_come_and_go(major, checksums).await;
        }
        if settings(false).len() == 1 {
            break;
        }
    }
}
