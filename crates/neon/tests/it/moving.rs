//! Snapshots from outside and to the outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use neon_pg::{
    Compression, ErrorKind, ExportFormat, ExportOptions, Found, ImportSnapshot, ImportSource,
    Imported, PgMajor, RestoreChoice, SnapshotName,
};
use neon_testkit::workload::Workload;
use neon_testkit::{Cluster, Installation, OsUser, StopMode};

use crate::support::{Fixture, end_server, name, refused, take};

/// A stopped cluster with a tablespace and something in it.
pub(crate) fn source(major: PgMajor) -> Cluster {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    fill(&cluster);
    cluster.stop(StopMode::Fast);
    cluster
}

pub(crate) fn fill(cluster: &Cluster) {
    let outside = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        outside.display()
    ));
    cluster.psql("create table far tablespace outside as select generate_series(1, 5000) i");
    cluster.psql(
        "create table t as select i, repeat(md5(i::text), 20) v from generate_series(1, 3000) i",
    );
}

/// A cluster of this major without its data directory, to be exported into.
pub(crate) fn target(major: PgMajor) -> Cluster {
    let cluster = Cluster::builder(major).init();
    fs::remove_dir_all(cluster.data_dir()).unwrap();
    cluster
}

pub(crate) async fn import(home: &Fixture, source: &str, named: &str) -> neon_pg::Result<Imported> {
    let mut import = ImportSnapshot::new(ImportSource::parse(source)?);
    import.name = Some(SnapshotName::to_give(named).unwrap());
    home.neon.snapshots().import(&import).await
}

pub(crate) async fn found(home: &Fixture, named: &str) -> Found {
    home.neon.snapshots().find(named, None).await.unwrap()
}

/// Exports a snapshot as a data directory, has the stock program judge it, and starts it.
pub(crate) async fn boots(home: &Fixture, snapshot: &Found, major: PgMajor) -> Cluster {
    let mut copy = target(major);
    let options = ExportOptions::new(ExportFormat::PgData);
    let exported = home
        .neon
        .snapshots()
        .export(snapshot, &copy.data_dir(), &options)
        .await
        .unwrap();
    assert!(exported.size > 1 << 20);
    verify_backup(&copy, &copy.data_dir());
    copy.set("log_checkpoints", "on");
    copy.start();
    copy
}

/// `pg_verifybackup` where there is one of this major, the newest otherwise; the log is read by that of the major only.
fn verify_backup(cluster: &Cluster, directory: &Path) {
    let own = cluster.installation().tool("pg_verifybackup").is_some();
    let mut arguments = vec![directory.to_str().unwrap()];
    if !own {
        arguments.push("--no-parse-wal");
    }
    cluster.run_tool("pg_verifybackup", arguments);
}

pub(crate) fn holds_what_was_filled(copy: &Cluster) {
    assert_eq!(copy.psql("select sum(i) from far"), "12502500");
    assert_eq!(
        copy.psql("select count(*), sum(length(v)) from t"),
        "3000|1920000"
    );
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

async fn goes_round(major: PgMajor) {
    let home = Fixture::of(major);
    let cluster = source(major);
    let imported = import(&home, &path(&cluster.data_dir()), "old")
        .await
        .unwrap();
    assert_eq!((imported.format, imported.kind), ("data directory", "cold"));
    let first = found(&home, "old").await;
    let facts = first.repository.snapshot(first.id).await.unwrap();
    let facts = facts.facts().clone();
    assert_eq!(facts.cluster.major, major);
    assert_eq!(facts.log.timelines.len(), 1);
    assert!(facts.log.stop > facts.log.redo, "{:?}", facts.log);
    assert_eq!(facts.cluster.wal_level.as_deref(), Some("replica"));
    assert!(facts.needs.architecture.is_none() && facts.log.end_digest.is_some());
    // Its name is taken now.
    let again = import(&home, &path(&cluster.data_dir()), "old").await;
    assert_eq!(refused(again), ErrorKind::Exists);

    // As one file, and back.
    let file = home.scratch.path().join("old.neon");
    let as_file = ExportOptions::new(ExportFormat::Neon);
    let snapshots = home.neon.snapshots();
    snapshots.export(&first, &file, &as_file).await.unwrap();
    assert_eq!(
        refused(snapshots.export(&first, &file, &as_file).await),
        ErrorKind::Exists
    );
    let imported = import(&home, &path(&file), "again").await.unwrap();
    assert_eq!((imported.format, imported.kind), ("neon file", "cold"));

    // As archives, and back.
    for (named, compression) in [
        ("plain", Compression::None),
        ("lz4", Compression::Lz4),
        ("zst", Compression::Zstd(3)),
    ] {
        let folder = home.scratch.path().join(named);
        let mut options = ExportOptions::new(ExportFormat::BaseBackup);
        options.compression = compression;
        snapshots.export(&first, &folder, &options).await.unwrap();
        let imported = import(&home, &path(&folder), named).await.unwrap();
        assert_eq!((imported.format, imported.kind), ("base backup", "cold"));
        // Nothing but what was asked for is left.
        let left: Vec<_> = fs::read_dir(home.scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("partial"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
    // Through every format, and still a cluster.
    holds_what_was_filled(&boots(&home, &found(&home, "zst").await, major).await);
    if cluster.installation().tool("pg_verifybackup").is_some() && major >= PgMajor::V18 {
        let folder = home.scratch.path().join("plain");
        let opened = Command::new("chmod")
            .args(["-R", "a+rX"])
            .arg(&folder)
            .status();
        assert!(opened.unwrap().success());
        cluster.run_tool(
            "pg_verifybackup",
            ["--no-parse-wal", folder.to_str().unwrap()],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_13_goes_in_and_out_in_every_format() {
    goes_round(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_18_goes_in_and_out_in_every_format() {
    goes_round(PgMajor::V18).await;
}

/// What `pg_basebackup` writes, in each of its formats.
async fn base_backups_come_in(major: PgMajor) {
    let home = Fixture::of(major);
    let cluster = Cluster::builder(major).checksums(true).start();
    fill(&cluster);
    let folder = cluster.scratch_dir().join("backups");
    neon_testkit::OsUser::current().create_dir(&folder);
    let take = |named: &str, arguments: &[&str]| -> PathBuf {
        let to = folder.join(named);
        let mut all = vec!["-D", to.to_str().unwrap(), "--no-sync", "-c", "fast"];
        all.extend(arguments);
        cluster.run_tool("pg_basebackup", all);
        to
    };
    let outside = folder.join("moved");
    let place = cluster
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    let mapping = format!("--tablespace-mapping={place}={}", outside.display());
    let taken = [
        ("plain", take("plain", &["-Fp", &mapping])),
        ("tar", take("tar", &["-Ft", "-X", "fetch"])),
        ("gz", take("gz", &["-Ft", "-z"])),
    ];
    for (named, place) in &taken {
        let imported = import(&home, &path(place), named).await.unwrap();
        assert_eq!((imported.format, imported.kind), ("base backup", "online"));
        let snapshot = imported.found.repository.snapshot(imported.found.id).await;
        let facts = snapshot.unwrap().facts().clone();
        assert!(facts.log.start.is_some() && facts.log.stop >= facts.log.start);
        assert_eq!(facts.log.ranges.len(), 1, "{named}");
    }
    holds_what_was_filled(&boots(&home, &found(&home, "plain").await, major).await);
    holds_what_was_filled(&boots(&home, &found(&home, "gz").await, major).await);

    // Without its log it would never start, and with another byte it is not what was taken.
    let none = take("none", &["-Ft", "-X", "none"]);
    let error = import(&home, &path(&none), "none").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint().unwrap().contains("-X"), "{error:?}");
    let spoilt = taken[0].1.join("PG_VERSION");
    fs::write(&spoilt, "99\n").unwrap();
    let error = import(&home, &path(&taken[0].1), "spoilt")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    fs::write(&spoilt, format!("{major}\n")).unwrap();
    fs::remove_file(taken[0].1.join("global/1262")).unwrap();
    let error = import(&home, &path(&taken[0].1), "spoilt")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    let listed = home.neon.snapshots().list(None).await.unwrap().0;
    let mut names: Vec<String> = listed
        .iter()
        .flat_map(|listed| listed.listed.names.iter().map(ToString::to_string))
        .collect();
    names.sort();
    assert_eq!(names, ["gz", "plain", "tar"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_backups_of_15_come_in_plain_and_as_archives() {
    base_backups_come_in(PgMajor::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_backups_of_18_come_in_plain_and_as_archives() {
    base_backups_come_in(PgMajor::V18).await;
}

async fn a_running_server_comes_in(major: PgMajor) {
    let home = Fixture::having(major, |options| {
        options
            .connections
            .environment
            .insert("PGPASSWORD".into(), "s3cret".into());
    });
    let cluster = Cluster::builder(major)
        .checksums(true)
        .tcp()
        .password("s3cret")
        .start();
    fill(&cluster);
    let load = Workload::Pgbench.prepare(&cluster, 1, 2).unwrap();
    let load = load.in_background();
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    let imported = import(&home, &address, "oldpg").await.unwrap();
    drop(load.stop());
    assert_eq!((imported.format, imported.kind), ("server", "online"));
    let copy = boots(&home, &imported.found, major).await;
    holds_what_was_filled(&copy);
    Workload::Pgbench.verify(&copy);
    // Nothing is left at the server, once it has noticed that the session ended.
    let patience = Instant::now() + Duration::from_secs(120);
    while cluster.psql("select count(*) from pg_replication_slots") != "0" {
        assert!(Instant::now() < patience, "a slot is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let facts = imported
        .found
        .repository
        .snapshot(imported.found.id)
        .await
        .unwrap();
    let log = &facts.facts().log;
    assert!(log.redo.is_some() && log.start.is_some() && log.stop > log.start);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_of_13_comes_in_over_the_replication_protocol() {
    a_running_server_comes_in(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_of_16_comes_in_over_the_replication_protocol() {
    a_running_server_comes_in(PgMajor::V16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_of_18_comes_in_over_the_replication_protocol() {
    a_running_server_comes_in(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_let_us_in_says_so_and_a_person_is_asked_for_the_password() {
    let cluster = Cluster::builder(PgMajor::V15)
        .tcp()
        .password("s3cret")
        .start();
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    let home = Fixture::new();
    let error = import(&home, &address, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(error.hint().is_some());
    let wrong = address.replace("postgres@", "postgres:nottheone@");
    let error = import(&home, &wrong, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(!format!("{error:?}").contains("nottheone"));
    let port: u16 = cluster.port();
    let asked = Fixture::having(PgMajor::V15, move |options| {
        options.ask_password = Some(neon_pg::AskPassword::new(move |whose| {
            assert_eq!(whose, format!("postgres@127.0.0.1:{port}"));
            Some("s3cret".into())
        }));
    });
    import(&asked, &address, "a").await.unwrap();
    // As psql takes it, from the file.
    let folder = home.scratch.path().join("person");
    fs::create_dir(&folder).unwrap();
    let pass_file = folder.join(".pgpass");
    fs::write(
        &pass_file,
        format!("127.0.0.1:{port}:replication:postgres:s3cret\n"),
    )
    .unwrap();
    fs::set_permissions(&pass_file, fs::Permissions::from_mode(0o600)).unwrap();
    let by_file = Fixture::having(PgMajor::V15, move |options| {
        options.connections.home = Some(folder);
    });
    import(&by_file, &address, "a").await.unwrap();
    drop(cluster);
    assert_eq!(
        refused(import(&home, &address, "a").await),
        ErrorKind::Failed
    );
    let log = fs::read_to_string(home.scratch.path().join("home/state/operations.ndjson"));
    assert!(!log.unwrap().contains("nottheone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_snapshot_is_refused_with_what_to_do() {
    let home = Fixture::new();
    let scratch = home.scratch.path();
    for (what, content) in [("dump", "PGDMP..."), ("text", "hello")] {
        fs::write(scratch.join(what), content).unwrap();
        let error = import(&home, &path(&scratch.join(what)), "x")
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    }
    assert_eq!(
        refused(import(&home, &path(&scratch.join("nowhere")), "x").await),
        ErrorKind::NotFound
    );
    fs::create_dir(scratch.join("empty")).unwrap();
    assert_eq!(
        refused(import(&home, &path(&scratch.join("empty")), "x").await),
        ErrorKind::Invalid
    );
    // A running one is adopted, not imported; a crashed one is taken as it lies.
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    fill(&cluster);
    let error = import(&home, &path(&cluster.data_dir()), "x")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.hint().unwrap().contains("adopt"));
    cluster.kill9();
    let imported = import(&home, &path(&cluster.data_dir()), "x")
        .await
        .unwrap();
    assert_eq!(imported.kind, "crashed");
    let snapshot = imported
        .found
        .repository
        .snapshot(imported.found.id)
        .await
        .unwrap();
    let log = &snapshot.facts().log;
    assert!(log.stop > log.redo && log.ranges.len() == 1, "{log:?}");
    holds_what_was_filled(&boots(&home, &imported.found, PgMajor::V15).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_and_broken_archives_are_refused() {
    let home = Fixture::new();
    let scratch = home.scratch.path();
    let folder = scratch.join("hostile");
    fs::create_dir(&folder).unwrap();
    fs::write(scratch.join("PG_VERSION"), "15\n").unwrap();
    let tar = |arguments: &[&str]| {
        let status = Command::new("tar")
            .current_dir(scratch)
            .args(["--format=ustar", "-cf", "hostile/base.tar", "-P"])
            .args(arguments)
            .status();
        assert!(status.unwrap().success());
    };
    std::os::unix::fs::symlink("/etc", scratch.join("link")).unwrap();
    for members in [
        &["--transform=s,PG_VERSION,../../escape,", "PG_VERSION"][..],
        &["--transform=s,PG_VERSION,/etc/escape,", "PG_VERSION"],
        &["link"],
        &["PG_VERSION", "PG_VERSION"],
        &["PG_VERSION"],
    ] {
        tar(members);
        let error = import(&home, &path(&folder), "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{members:?} {error:?}");
    }
    assert!(!Path::new("/etc/escape").exists());
    assert!(home.neon.snapshots().list(None).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_import_or_export_leaves_nothing() {
    let home = Fixture::new();
    let cluster = source(PgMajor::V15);
    let other = home.with(|options| {
        let cancel = std::sync::Arc::clone(&options.cancel);
        // Stops as soon as anything was written.
        options.events = neon_pg::EventSink::new(move |event| {
            if matches!(event, neon_pg::Event::Progress { .. }) {
                cancel.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
    });
    let mut wanted = ImportSnapshot::new(ImportSource::Path(cluster.data_dir()));
    wanted.name = Some(SnapshotName::to_give("x").unwrap());
    assert_eq!(
        refused(other.snapshots().import(&wanted).await),
        ErrorKind::Cancelled
    );
    assert!(home.neon.snapshots().list(None).await.unwrap().0.is_empty());
    let imported = import(&home, &path(&cluster.data_dir()), "x")
        .await
        .unwrap();

    for format in [
        ExportFormat::PgData,
        ExportFormat::BaseBackup,
        ExportFormat::Neon,
    ] {
        let to = home.scratch.path().join("out");
        let stopping = home.with(|options| {
            let cancel = std::sync::Arc::clone(&options.cancel);
            options.events = neon_pg::EventSink::new(move |event| {
                if matches!(event, neon_pg::Event::Progress { .. }) {
                    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            });
        });
        let snapshots = stopping.snapshots();
        let from = snapshots.find("x", None).await.unwrap();
        let exported = snapshots
            .export(&from, &to, &ExportOptions::new(format))
            .await;
        assert_eq!(refused(exported), ErrorKind::Cancelled, "{format:?}");
        assert!(!to.exists());
        let left = fs::read_dir(home.scratch.path()).unwrap().count();
        assert_eq!(left, 1, "only the home is there");
    }
    assert!(imported.size > 0);
    // What somebody else has where tablespaces would go stays theirs, and so does an empty folder.
    let out = home.scratch.path().join("out");
    let theirs = home.scratch.path().join("out.tablespaces");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("file"), "theirs").unwrap();
    let options = ExportOptions::new(ExportFormat::PgData);
    let snapshots = home.neon.snapshots();
    let from = found(&home, "x").await;
    let exported = snapshots.export(&from, &out, &options).await;
    assert_eq!(refused(exported), ErrorKind::Exists);
    assert_eq!(fs::read_to_string(theirs.join("file")).unwrap(), "theirs");
    assert!(!out.exists());
    fs::remove_file(theirs.join("file")).unwrap();
    fs::create_dir(&out).unwrap();
    let exported = snapshots.export(&from, &out, &options).await.unwrap();
    assert_eq!(exported.tablespaces.unwrap(), theirs);
    assert!(out.join("global/pg_control").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_comes_in_and_recovers_to_where_it_was() {
    let mut primary = Cluster::builder(PgMajor::V15).checksums(true).tcp().start();
    primary.psql("create table t as select generate_series(1, 1000) i");
    primary.stop(StopMode::Fast);
    let copy = primary.copy_cold();
    primary.start();
    primary.psql("select pg_create_physical_replication_slot('standby')");
    let mut standby = Cluster::builder(PgMajor::V15)
        .tcp()
        .setting("primary_slot_name", "standby")
        .setting("primary_conninfo", primary.tcp_conninfo())
        .on_copy(copy);
    fs::write(standby.data_dir().join("standby.signal"), "").unwrap();
    standby.start();
    primary.psql("insert into t select generate_series(1, 1000)");
    while standby.psql("select count(*) from t") != "2000" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let home = Fixture::new();
    let address = format!("basebackup://postgres@127.0.0.1:{}/", standby.port());
    let imported = import(&home, &address, "standby").await.unwrap();
    assert_eq!(imported.kind, "standby");
    let found = &imported.found;
    let snapshot = found.repository.snapshot(found.id).await.unwrap();
    let log = &snapshot.facts().log;
    assert!(
        log.min_recovery.is_some() && log.stop >= log.start,
        "{log:?}"
    );

    // And once it was stopped, by its directory.
    standby.stop(StopMode::Fast);
    let imported = import(&home, &path(&standby.data_dir()), "stopped")
        .await
        .unwrap();
    assert_eq!(imported.kind, "recovery");
    let how = neon_pg::RestoreChoice::default();
    for (named, from) in [("one", "standby"), ("two", "stopped")] {
        let mut create = home.create();
        create.name = Some(name(named));
        let from = self::found(&home, from).await;
        home.neon
            .pg()
            .create_from(&create, &from, &how)
            .await
            .unwrap();
        let rows = crate::support::sql(&home.neon, named, "select count(*) from t").await;
        assert_eq!(rows, "2000");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_through_a_pipe() {
    let home = Fixture::new();
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    cluster.psql("create table t as select generate_series(1, 1000) i");
    cluster.stop(StopMode::Fast);
    import(&home, &path(&cluster.data_dir()), "x")
        .await
        .unwrap();
    let from = found(&home, "x").await;
    for (format, file) in [
        (ExportFormat::Neon, "x.neon"),
        (ExportFormat::BaseBackup, "x.tar"),
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let to = home.scratch.path().join(file);
        let mut file = fs::File::create(&to).unwrap();
        let copying = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut file));
        let options = ExportOptions::new(format);
        let exported = home
            .neon
            .snapshots()
            .export_stream(&from, writer, &options)
            .await;
        assert!(exported.unwrap().path.is_none());
        assert!(copying.await.unwrap().unwrap() > 1 << 20);
        let imported = import(&home, &path(&to), &format!("from-{}", format.name()))
            .await
            .unwrap();
        assert_eq!(imported.kind, "cold");
        assert_eq!(
            imported.files,
            from.repository
                .snapshot(from.id)
                .await
                .unwrap()
                .facts()
                .cost
                .files
        );
    }
    // The manifest that lies in the archive is held against it.
    let spoilt = home.scratch.path().join("x.tar");
    let mut bytes = fs::read(&spoilt).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&spoilt, bytes).unwrap();
    let spoilt = import(&home, &path(&spoilt), "spoilt").await;
    assert_eq!(refused(spoilt), ErrorKind::Damaged);
    let options = ExportOptions::new(ExportFormat::PgData);
    let refusal = home
        .neon
        .snapshots()
        .export_stream(&from, Vec::new(), &options)
        .await;
    assert_eq!(refused(refusal), ErrorKind::Invalid);
}

/// What of its own home an instance's settings name.
const OF_THE_HOME: [&str; 4] = [
    "\nport",
    "\nunix_socket_directories",
    "\nlogging_collector",
    "\nlog_directory",
];

fn names_the_home(settings: &str) -> Vec<&'static str> {
    let settings = format!("\n{settings}");
    let named = OF_THE_HOME.into_iter();
    named.filter(|what| settings.contains(what)).collect()
}

#[tokio::test]
async fn what_is_exported_of_an_instance_starts_beside_it_and_anywhere() {
    let home = Fixture::new();
    let mut create = home.create();
    create.name = Some(name("origin"));
    home.neon.pg().create(&create).await.unwrap();
    let snapshot = take(&home.neon, "origin", "one").await;
    let snapshots = home.neon.snapshots();

    // A data directory in a folder that its server may not write, while the origin runs.
    let closed = home.scratch.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let copy = closed.join("copy");
    let as_directory = ExportOptions::new(ExportFormat::PgData);
    snapshots
        .export(&snapshot, &copy, &as_directory)
        .await
        .unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let settings = fs::read_to_string(copy.join("neon.conf")).unwrap();
    assert_eq!(names_the_home(&settings), Vec::<&str>::new(), "{settings}");
    assert!(settings.contains("listen_addresses"), "{settings}");
    verify_backup(&target(PgMajor::V15), &copy);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let sockets = home.scratch.path().join("sockets");
    OsUser::current().create_dir(&sockets);
    let mut pg_ctl = Installation::of(PgMajor::V15).command("pg_ctl");
    let started = pg_ctl
        .args(["-w", "start", "-l", "/dev/null", "-D"])
        .arg(&copy)
        .arg("-o")
        .arg(format!("-p {port} -k '{}'", sockets.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let mut pg_ctl = Installation::of(PgMajor::V15).command("pg_ctl");
    let stopped = pg_ctl
        .args(["-w", "stop", "-m", "fast", "-D"])
        .arg(&copy)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    end_server(&copy);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(started.unwrap().success() && stopped.unwrap().success());

    // Archives.
    let archives = home.scratch.path().join("archives");
    let as_archives = ExportOptions::new(ExportFormat::BaseBackup);
    snapshots
        .export(&snapshot, &archives, &as_archives)
        .await
        .unwrap();
    let tar = Command::new("tar")
        .args(["-xOf"])
        .arg(archives.join("base.tar"))
        .arg("neon.conf")
        .output()
        .unwrap();
    let settings = String::from_utf8(tar.stdout).unwrap();
    assert!(settings.contains("listen_addresses"), "{settings}");
    assert_eq!(names_the_home(&settings), Vec::<&str>::new());

    // One file is the snapshot itself, and an instance made from any of them has settings of its own.
    let file = home.scratch.path().join("one.neon");
    let as_file = ExportOptions::new(ExportFormat::Neon);
    snapshots.export(&snapshot, &file, &as_file).await.unwrap();
    for (number, source) in [&copy, &archives, &file].into_iter().enumerate() {
        let named = format!("copy{number}");
        let mut create = home.create();
        create.name = Some(name(&named));
        let made = snapshots
            .create_pg(
                &create,
                source.to_str().unwrap(),
                None,
                &RestoreChoice::default(),
            )
            .await
            .unwrap();
        assert!(made.pg.endpoint().is_some());
        let data = home
            .scratch
            .path()
            .join("home/pg")
            .join(&named)
            .join("data");
        let settings = fs::read_to_string(data.join("neon.conf")).unwrap();
        assert_eq!(names_the_home(&settings), OF_THE_HOME, "{settings}");
        home.neon.pg().stop(&name(&named)).await.unwrap();
    }
}
