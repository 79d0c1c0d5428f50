//! Real clusters: copied into a repository on a disk, restored, judged by the stock programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan, Restored, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, Facts, OpenOptions, Repository};
use neon_pg_layout::TimelineId;
use neon_snapshot_format::pack::{NeonWriter, PackId, PackOptions};
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, ExistingDirectory, Flush, Ownership, PgData, Stop,
    StopWal, TablespacePlaces,
};
use neon_snapshot_format::{Sequential, SnapshotKind, SnapshotPath};
use neon_storage::{Native, NativeOptions};
use neon_testkit::workload::Workload;
use neon_testkit::{Backup, Cluster, PgMajor, StopMode, assert_cold_copy};

use crate::files::reader;

/// One test per major, each calling `$body(PgMajor, checksums)`.
macro_rules! for_every_major {
    ($body:ident: $($name:ident = $major:ident $checksums:literal),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $body(PgMajor::$major, $checksums).await;
        }
    )*};
}

pub(crate) async fn repository(place: &Path) -> Repository {
    let place = place.to_owned();
    let native = tokio::task::spawn_blocking(|| Native::open(place, NativeOptions::default()))
        .await
        .unwrap()
        .unwrap();
    Repository::init(Arc::new(native), OpenOptions::new())
        .await
        .unwrap()
}

/// Runs in a thread beside the runtime.
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Writes a snapshot with what `copy` copies.
pub(crate) async fn snapshot(
    repository: &Repository,
    parent: Option<&Snapshot>,
    copy: impl FnOnce(&SnapshotWriter) -> Facts + Send + 'static,
) -> CommitId {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let parent = parent.cloned();
    let (stored, facts) = beside(move || {
        let mut sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
        }
        let facts = copy(&sink);
        (sink.complete().unwrap(), facts)
    })
    .await;
    let commit = stored.commit(facts).unwrap();
    assert_eq!(commit.facts.bad_pages, []);
    writing.commit(&commit).await.unwrap().id
}

pub(crate) fn copy_cold(data: PathBuf) -> impl FnOnce(&SnapshotWriter) -> Facts + Send + 'static {
    move |sink| {
        let source = PgData::cold(&data).unwrap();
        let facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
        let copied = source.copy_parallel(sink, 2).unwrap();
        let mut rest = Sequential::new(sink).unwrap();
        copied.finish(&mut rest, None).unwrap();
        facts
    }
}

pub(crate) fn copy_online(
    cluster: &Cluster,
) -> impl FnOnce(&SnapshotWriter) -> Facts + Send + 'static {
    let backup = Backup::begin(cluster);
    let position = Backup::positions(cluster);
    let bracket = Bracket::new(backup.start, move || Ok(position()));
    let source = PgData::online(&cluster.data_dir(), bracket).unwrap();
    let wal = cluster.data_dir().join("pg_wal");
    move |sink| {
        let mut facts = Facts::of_control(SnapshotKind::Online, 0, source.control());
        facts.log.start = Some(backup.start);
        let copied = source.copy_parallel(sink, 2).unwrap();
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
    }
}

pub(crate) async fn restore_into(snapshot: &Snapshot, target: &Cluster) -> Restored {
    let options = DirectoryOptions {
        ownership: Ownership::Recorded,
        tablespaces: TablespacePlaces::Below(target.restored_tablespaces()),
        // One flush, which many tests beside each other can afford.
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    };
    let writer = DirectoryWriter::create(&target.data_dir(), options).unwrap();
    let snapshot = snapshot.clone();
    beside(move || restore(&snapshot, &writer, &RestoreOptions::default()).unwrap()).await
}

/// Has PostgreSQL's own modules look at everything where they are here (14, 15, 17), visibility maps among it, and the
/// server read every row elsewhere (13 has modules for indexes and maps); then stops the cluster and has `pg_checksums` read every page where one does (not 17),
/// and our own reader everywhere.
pub(crate) fn judge(mut cluster: Cluster) {
    let looked_at = cluster.check_running();
    let here = ![PgMajor::V16, PgMajor::V18].contains(&cluster.major());
    assert_eq!(
        (looked_at.amcheck, looked_at.visible.is_some()),
        (here, here)
    );
    // Of the catalogues at least.
    assert!(!here || looked_at.visible > Some(100) && looked_at.frozen > Some(0));
    cluster.check_stopped();
    let mut nothing = NeonWriter::new(std::io::sink(), PackOptions::new(PackId([0; 16]))).unwrap();
    let copied = PgData::cold(&cluster.data_dir())
        .unwrap()
        .copy(&mut nothing);
    let end = copied.unwrap().finish(&mut nothing, None).unwrap();
    assert_eq!(end.bad_pages, []);
}

/// What a cluster under test is set to, and what what is written from it must be set to.
pub(crate) fn prepare(cluster: &mut Cluster) {
    cluster.set("max_prepared_transactions", 8);
    cluster.set("allow_in_place_tablespaces", "on");
}

const LOADS: [Workload; 5] = [
    Workload::Ddl,
    Workload::Toast,
    Workload::Tablespaces,
    Workload::Visibility,
    Workload::Prepared,
];

/// With checksums or without, as it says; in the long form both.
pub(crate) fn settings(checksums: bool) -> Vec<bool> {
    match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => vec![checksums, !checksums],
        None => vec![checksums],
    }
}

async fn a_cold_snapshot_comes_back(major: PgMajor, checksums: bool) {
    for checksums in settings(checksums) {
        a_cold_snapshot_is_taken_and_restored(major, checksums).await;
    }
}

async fn a_cold_snapshot_is_taken_and_restored(major: PgMajor, checksums: bool) {
    let mut cluster = Cluster::builder(major).checksums(checksums).init();
    prepare(&mut cluster);
    cluster.start();
    for (seed, load) in (1..).zip(LOADS) {
        load.run(&cluster, seed, 3, 4);
    }
    cluster.psql("create unlogged table scratch as select generate_series(1, 1000) i");
    cluster.stop(StopMode::Fast);
    let place = neon_testkit::Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let maps = reader(&repository);
    let first = snapshot(&repository, None, copy_cold(cluster.data_dir())).await;
    let first = Snapshot::open(&repository, first, &maps).await.unwrap();
    let mut copy = Cluster::without_data(major);
    let restored = restore_into(&first, &copy).await;
    assert_eq!(restored.bad_pages, []);
    assert!(
        restored.used.received < 2 * restored.live,
        "{} received for {} live",
        restored.used.received,
        restored.live
    );
    assert_cold_copy(&cluster.data_dir(), &copy.data_dir());
    prepare(&mut copy);
    copy.start();
    assert_eq!(copy.psql("select count(*) from scratch"), "1000");
    for load in LOADS {
        load.verify(&copy);
    }
    judge(copy);

    // And with a parent, of which everything is read and much is the same.
    cluster.start();
    for (seed, load) in (11..).zip(LOADS) {
        let mut load = load.prepare(&cluster, seed, 1);
        drop(load.as_mut().map(|load| load.rounds(2)));
    }
    cluster.stop(StopMode::Fast);
    let copied = copy_cold(cluster.data_dir());
    let second = snapshot(&repository, Some(&first), copied).await;
    let second = Snapshot::open(&repository, second, &maps).await.unwrap();
    let copy = Cluster::without_data(major);
    restore_into(&second, &copy).await;
    assert_cold_copy(&cluster.data_dir(), &copy.data_dir());
}

for_every_major!(a_cold_snapshot_comes_back:
    a_cold_snapshot_of_13_without_checksums_comes_back_byte_for_byte = V13 false,
    a_cold_snapshot_of_14_comes_back_byte_for_byte = V14 true,
    a_cold_snapshot_of_15_comes_back_byte_for_byte = V15 true,
    a_cold_snapshot_of_16_without_checksums_comes_back_byte_for_byte = V16 false,
    a_cold_snapshot_of_17_without_checksums_comes_back_byte_for_byte = V17 false,
    a_cold_snapshot_of_18_comes_back_byte_for_byte = V18 true,
);

async fn an_online_snapshot_under_load_starts(major: PgMajor, checksums: bool) {
    for checksums in settings(checksums) {
        an_online_snapshot_is_taken_and_started(major, checksums).await;
    }
}

async fn an_online_snapshot_is_taken_and_started(major: PgMajor, checksums: bool) {
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_keep_size", "512MB")
        .init();
    prepare(&mut cluster);
    cluster.start();
    // Not the one that moves whole databases between tablespaces: replay copies what it finds of a database that moved
    // while it was copied, with any program that copies files.
    let mut loads = LOADS.to_vec();
    loads.retain(|load| *load != Workload::Tablespaces);
    loads.extend([Workload::Databases, Workload::Pgbench]);
    let outside = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        outside.display()
    ));
    cluster.psql("create table far (i int) tablespace outside; create unlogged table scratch (i int) tablespace outside");
    cluster.psql("insert into far select generate_series(1, 5000); insert into scratch values (1)");
    let running: Vec<_> = (1..)
        .zip(&loads)
        .map(|(seed, load)| load.prepare(&cluster, seed, 2).unwrap().in_background())
        .collect();
    let place = neon_testkit::Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let id = snapshot(&repository, None, copy_online(&cluster)).await;
    for load in running {
        drop(load.stop());
    }
    let maps = reader(&repository);
    let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
    let mut copy = Cluster::without_data(major);
    let restored = restore_into(&snapshot, &copy).await;
    assert_eq!(restored.bad_pages, []);
    prepare(&mut copy);
    copy.start();
    for load in loads {
        load.verify(&copy);
    }
    assert_eq!(copy.psql("select sum(i) from far"), "12502500");
    assert_eq!(
        copy.psql("select count(*) from scratch"),
        "0",
        "recovery reset it"
    );
    judge(copy);
    cluster.stop(StopMode::Immediate);
}

for_every_major!(an_online_snapshot_under_load_starts:
    an_online_snapshot_of_13_under_load_starts_and_is_whole = V13 true,
    an_online_snapshot_of_14_without_checksums_under_load_starts_and_is_whole = V14 false,
    an_online_snapshot_of_15_without_checksums_under_load_starts_and_is_whole = V15 false,
    an_online_snapshot_of_16_under_load_starts_and_is_whole = V16 true,
    an_online_snapshot_of_17_under_load_starts_and_is_whole = V17 true,
    an_online_snapshot_of_18_without_checksums_under_load_starts_and_is_whole = V18 false,
);

async fn turn_into(snapshot: &Snapshot, copy: &Cluster) -> RestorePlan {
    let directory = ExistingDirectory::open(&copy.data_dir(), copy.major()).unwrap();
    let snapshot = snapshot.clone();
    let writing = DirectoryOptions {
        ownership: Ownership::Recorded,
        tablespaces: TablespacePlaces::Below(copy.restored_tablespaces()),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    };
    beside(move || {
        let options = RestoreOptions::default();
        let keep = |path: &SnapshotPath| path.as_bytes() == b"kept/by whom.txt";
        let plan = RestorePlan::by_content(&snapshot, &directory, &keep, &options).unwrap();
        let restored = plan
            .execute(&snapshot, directory, writing, &options)
            .unwrap();
        assert_eq!(restored.bad_pages, []);
        assert_eq!(restored.bytes, plan.bytes);
        plan
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_went_on_is_turned_back_by_writing_what_differs() {
    // Without checksums hints are not in the log: only the content tells.
    let mut cluster = Cluster::builder(PgMajor::V15).checksums(false).init();
    prepare(&mut cluster);
    cluster.start();
    let loads = [Workload::Ddl, Workload::Tablespaces, Workload::Visibility];
    for (seed, load) in (1..).zip(loads) {
        load.run(&cluster, seed, 3, 3);
    }
    cluster.psql("create table filler as select i, repeat(md5(i::text), 30) from generate_series(1, 30000) i; checkpoint");
    cluster.stop(StopMode::Fast);
    let place = neon_testkit::Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let maps = reader(&repository);
    let first = snapshot(&repository, None, copy_cold(cluster.data_dir())).await;
    let first = Snapshot::open(&repository, first, &maps).await.unwrap();
    let mut copy = Cluster::without_data(PgMajor::V15);
    restore_into(&first, &copy).await;

    prepare(&mut copy);
    copy.start();
    for load in loads {
        load.verify(&copy);
    }
    copy.psql("select count(*) from filler; update filler set i = -i where i % 500 = 0; create table more as select 1 i; vacuum filler; create table short as select generate_series(1, 100000)");
    copy.stop(StopMode::Fast);
    let kept = copy.data_dir().join("kept/by whom.txt");
    fs::create_dir(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "mine").unwrap();
    fs::write(copy.data_dir().join("base/left over"), "not mine").unwrap();
    // A second name elsewhere must not be written through.
    let outside = copy.scratch_dir().join("outside");
    let config = copy.data_dir().join("PG_VERSION");
    fs::hard_link(&config, &outside).unwrap();
    fs::remove_file(&config).unwrap();
    fs::write(&config, "99\n").unwrap();

    let plan = turn_into(&first, &copy).await;
    let total: u64 = first.facts().cost.bytes;
    assert!(plan.bytes < total / 2, "{} of {total} bytes", plan.bytes);
    assert!(plan.compared > total / 2);
    assert!(
        plan.removed
            .iter()
            .any(|entry| entry.path.as_bytes() == b"base/left over")
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), "mine");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "15\n");
    fs::remove_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(copy.data_dir().join("backup_manifest"), "").unwrap();
    assert_cold_copy(&cluster.data_dir(), &copy.data_dir());

    // Again: nothing differs but what always comes last.
    fs::remove_file(copy.data_dir().join("backup_manifest")).unwrap();
    let plan = turn_into(&first, &copy).await;
    assert_eq!(
        (plan.bytes, plan.removed.len()),
        (8192, 0),
        "{:?}",
        plan.files
    );

    // And forward.
    cluster.start();
    cluster
        .psql("update filler set i = -i where i % 300 = 0; drop table if exists more; checkpoint");
    cluster.stop(StopMode::Fast);
    let second = snapshot(&repository, Some(&first), copy_cold(cluster.data_dir())).await;
    let second = Snapshot::open(&repository, second, &maps).await.unwrap();
    let plan = turn_into(&second, &copy).await;
    assert!(plan.bytes < total / 2, "{} of {total} bytes", plan.bytes);
    fs::write(copy.data_dir().join("backup_manifest"), "").unwrap();
    assert_cold_copy(&cluster.data_dir(), &copy.data_dir());
    fs::remove_file(copy.data_dir().join("backup_manifest")).unwrap();

    // Stopped in the middle, it is no cluster for anybody.
    let writer = ExistingDirectory::open(&copy.data_dir(), PgMajor::V15)
        .unwrap()
        .change(DirectoryOptions::default())
        .unwrap();
    drop(writer);
    assert!(PgData::cold(&copy.data_dir()).is_err());
    assert!(copy.try_start().is_err());
    turn_into(&second, &copy).await;
    prepare(&mut copy);
    copy.start();
    for load in loads {
        load.verify(&copy);
    }
    judge(copy);
}
