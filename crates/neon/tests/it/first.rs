//! The scenarios of the first document: init, start, export, with snapshots in a bucket; and instances straight from
//! what is outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use neon_pg::{
    CreatePg, CreateSnapshot, ErrorKind, Event, ExportFormat, ExportOptions, InitOptions, Neon,
    PgMajor, RestoreChoice, SnapshotName,
};
use neon_testkit::s3::S3Server;
use neon_testkit::{Cluster, StopMode};

use crate::moving::{fill, found, holds_what_was_filled, import, source};
use crate::remotes::{credentials, s3, s3_options};
use crate::restored::listening;
use crate::support::{Fixture, name, refused, run, sql};
use neon_testkit::web::Web;

const DEST: &str = "s3://tank/prefix";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn with_bucket(server: &S3Server) -> Fixture {
    Fixture::having(PgMajor::V15, |options| credentials(server, options))
}

fn wanted(server: Option<&S3Server>) -> InitOptions {
    let mut wanted = InitOptions::default();
    wanted.pg.major = Some(PgMajor::V15);
    if let Some(server) = server {
        wanted.storage_dest = Some(DEST.to_owned());
        wanted.storage_options = s3_options(server);
    }
    wanted
}

/// What is remembered on disk, beside the log of operations.
fn remembered(home: &Fixture) -> String {
    let state = home.scratch.path().join("home/state");
    let mut all = String::new();
    let mut folders = vec![state];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "json") {
                all.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_cluster_is_initialized_started_and_survives_in_the_bucket_alone() {
    let server = s3();
    let home = with_bucket(&server);
    let first = home.neon.snapshot_first();
    let none = BTreeMap::new();
    assert_eq!(refused(first.start(None, &none).await), ErrorKind::NotFound);
    let empty = first.start(Some(DEST), &s3_options(&server)).await;
    assert_eq!(refused(empty), ErrorKind::NotFound);

    let made = first.init(&wanted(Some(&server))).await.unwrap();
    assert_eq!((made.pg.as_str(), made.storage.as_str()), ("main", "dest"));
    assert_eq!(
        (made.storage_dest.as_str(), made.snapshot.to_string()),
        (DEST, "main@init".into())
    );
    assert_eq!(
        refused(first.init(&wanted(Some(&server))).await),
        ErrorKind::Exists
    );
    let started = first.start(None, &none).await.unwrap();
    assert!(started.restored.is_none() && started.endpoint.starts_with("localhost:"));
    assert_eq!(refused(first.start(None, &none).await), ErrorKind::Busy);
    run(
        &home.neon,
        "main",
        "create table t as select generate_series(1, 1000) i",
    )
    .await;
    let pushed = first.push().await.unwrap();
    assert_eq!((pushed.kind, pushed.storage.as_str()), ("online", "dest"));
    assert!(pushed.parent.is_some(), "it shares what did not change");
    run(&home.neon, "main", "insert into t values (0)").await;
    let left = first.stop().await.unwrap();
    assert_eq!(left.kind, "cold");
    // What was chosen is remembered, without secrets.
    let of = server.options();
    let said = remembered(&home);
    assert!(
        said.contains(DEST) && !said.contains(&of.secret_key) && !said.contains(&of.access_key)
    );

    // A directory that is there is used, though the bucket has a snapshot.
    first.start(None, &none).await.unwrap();
    run(&home.neon, "main", "insert into t values (-1)").await;
    home.neon.pg().stop(&name("main")).await.unwrap();
    let again = first.start(None, &none).await.unwrap();
    assert!(again.restored.is_none());
    assert_eq!(
        sql(&home.neon, "main", "select count(*) from t").await,
        "1002"
    );
    home.neon.pg().stop(&name("main")).await.unwrap();

    // Only the directory is gone.
    fs::remove_dir_all(home.scratch.path().join("home/pg/main")).unwrap();
    let (neon, told) = listening_with(&home, &server);
    let again = neon.snapshot_first().start(None, &none).await.unwrap();
    let restored = again.restored.unwrap();
    assert_eq!(restored.snapshot, left.name.unwrap().to_string());
    assert!(restored.age >= 0 && restored.taken > 1_700_000_000);
    let told = told.lock().unwrap().clone();
    let aged = |event: &Event| matches!(event, Event::Step(text) if text.contains(" old."));
    assert!(told.iter().any(aged), "{told:?}");
    assert_eq!(sql(&neon, "main", "select count(*) from t").await, "1001");
    home.neon.pg().stop(&name("main")).await.unwrap();

    // Everything is gone but the bucket.
    fs::remove_dir_all(home.scratch.path().join("home")).unwrap();
    let (neon, _) = listening_with(&home, &server);
    let first = neon.snapshot_first();
    assert_eq!(refused(first.start(None, &none).await), ErrorKind::NotFound);
    let again = first.start(Some(DEST), &s3_options(&server)).await.unwrap();
    assert!(again.restored.is_some());
    assert_eq!(sql(&neon, "main", "select count(*) from t").await, "1001");
    // And is remembered again, so that the next one goes on from there.
    let next = first.stop().await.unwrap();
    assert_eq!(next.storage.as_str(), "dest");
    assert!(first.start(None, &none).await.unwrap().restored.is_none());
}

fn listening_with(
    home: &Fixture,
    server: &S3Server,
) -> (Neon, std::sync::Arc<std::sync::Mutex<Vec<Event>>>) {
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = std::sync::Arc::clone(&told);
    let neon = home.with(|options| {
        credentials(server, options);
        options.events = neon_pg::EventSink::new(move |event| sink.lock().unwrap().push(event));
    });
    (neon, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_begins_with_a_directory_and_is_kept_in_the_bucket() {
    let server = s3();
    let home = with_bucket(&server);
    let cluster = source(PgMajor::V15);
    let first = home.neon.snapshot_first();
    let mut from = wanted(Some(&server));
    from.snapshot_path = Some(text(&cluster.data_dir()));
    from.snapshot_format = Some(ExportFormat::BaseBackup);
    let error = first.init(&from).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    from.snapshot_format = Some(ExportFormat::PgData);
    let made = first.init(&from).await.unwrap();
    assert_eq!(made.snapshot.to_string(), "main@init");
    let said = remembered(&home);
    assert!(
        !said.contains(&text(&cluster.data_dir())) && !said.contains("pgdata\""),
        "{said}"
    );
    first.start(None, &BTreeMap::new()).await.unwrap();
    assert_eq!(
        sql(&home.neon, "main", "select sum(i) from far").await,
        "12502500"
    );
    assert_eq!(
        sql(&home.neon, "main", "select count(*) from t").await,
        "3000"
    );
    // The original is as it was.
    let mut cluster = cluster;
    cluster.start();
    holds_what_was_filled(&cluster);
    cluster.stop(StopMode::Fast);
    run(&home.neon, "main", "insert into t values (1, 'x')").await;
    first.stop().await.unwrap();

    // From a snapshot in a bucket: another cluster on the same data, in a storage of its own.
    let other = with_bucket(&server);
    let mut from = wanted(None);
    from.storage_dest = Some(text(&other.scratch.path().join("own")));
    from.snapshot_path = Some(format!(
        "{DEST}?endpoint={}&path-style=true",
        server.endpoint()
    ));
    from.snapshot_format = Some(ExportFormat::Neon);
    let begun = other.neon.snapshot_first().init(&from).await.unwrap();
    // The first snapshot of its own is in its own storage.
    let own = other.neon.snapshots().list(Some(&begun.storage)).await;
    let names: Vec<_> = own
        .unwrap()
        .0
        .into_iter()
        .map(|one| one.listed.names)
        .collect();
    assert_eq!(names, [[begun.snapshot.clone()]]);
    assert_eq!(begun.snapshot.to_string(), "main@init");
    other
        .neon
        .snapshot_first()
        .start(None, &BTreeMap::new())
        .await
        .unwrap();
    assert_eq!(
        sql(&other.neon, "main", "select count(*) from t").await,
        "3001"
    );
    let said = remembered(&other);
    assert!(!said.contains("s3://"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_exported_once_in_every_format_to_somewhere_else() {
    let server = s3();
    let home = with_bucket(&server);
    let first = home.neon.snapshot_first();
    first.init(&wanted(Some(&server))).await.unwrap();
    first.start(None, &BTreeMap::new()).await.unwrap();
    run(
        &home.neon,
        "main",
        "create table t as select generate_series(1, 1000) i",
    )
    .await;
    let to = |named: &str| text(&home.scratch.path().join(named));
    for (named, format) in [
        ("pgdata", ExportFormat::PgData),
        ("tars", ExportFormat::BaseBackup),
        ("one.neon", ExportFormat::Neon),
    ] {
        let exported = first.export(&to(named), format).await.unwrap();
        assert_eq!(exported.exported.unwrap().format, format);
        // What cannot be written takes no snapshot either.
        let before = snapshots(&home.neon).await;
        assert_eq!(
            refused(first.export(&to(named), format).await),
            ErrorKind::Exists
        );
        assert_eq!(snapshots(&home.neon).await, before);
        let imported = import(&home, &to(named), named).await.unwrap();
        assert_eq!(imported.kind, "online");
    }
    assert!(!remembered(&home).contains("one.neon"));
    assert_eq!(
        refused(first.export(DEST, ExportFormat::Neon).await),
        ErrorKind::Invalid
    );
    let elsewhere = format!(
        "s3://tank/elsewhere?endpoint={}&path-style=true",
        server.endpoint()
    );
    let tars = first.export(&elsewhere, ExportFormat::BaseBackup).await;
    assert_eq!(refused(tars), ErrorKind::Invalid);
    let pushed = first.export(&elsewhere, ExportFormat::Neon).await.unwrap();
    assert!(pushed.pushed.unwrap().sent > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_exported_into_the_folder_of_the_storage() {
    let home = Fixture::new();
    let dest = home.scratch.path().join("dest");
    let mut own = wanted(None);
    own.storage_dest = Some(text(&dest));
    let first = home.neon.snapshot_first();
    first.init(&own).await.unwrap();
    std::os::unix::fs::symlink(&dest, home.scratch.path().join("link")).unwrap();
    for inside in ["dest", "dest/copy", "dest/not/there/yet", "link/copy"] {
        let to = text(&home.scratch.path().join(inside));
        let exported = first.export(&to, ExportFormat::PgData).await;
        assert_eq!(refused(exported), ErrorKind::Invalid, "{inside}");
    }
    let beside = text(&home.scratch.path().join("dest2"));
    first.export(&beside, ExportFormat::PgData).await.unwrap();
}

/// Every snapshot that anybody can see.
async fn snapshots(neon: &Neon) -> usize {
    neon.snapshots().list(None).await.unwrap().0.len()
}

fn create(named: &str) -> CreatePg {
    let mut create = CreatePg::default();
    create.name = Some(name(named));
    create
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_made_straight_from_servers_files_and_addresses() {
    let home = Fixture::new();
    let cluster = Cluster::builder(PgMajor::V15).checksums(true).tcp().start();
    fill(&cluster);
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    let (neon, told) = listening(&home);
    let how = RestoreChoice::default();
    let made = neon
        .snapshots()
        .create_pg(&create("fromserver"), &address, None, &how)
        .await
        .unwrap();
    assert!(made.snapshot.is_none() && made.imported.unwrap().format == "server");
    assert!(made.pg.endpoint().is_some());
    assert_eq!(snapshots(&neon).await, 0);
    // Nothing was stored that only a collection would free, and no other operation than the creation is remembered.
    assert!(
        !home
            .scratch
            .path()
            .join("home/store/local/neon.json")
            .exists()
    );
    let state = home.scratch.path().join("home/state/import");
    assert_eq!(fs::read_dir(state).unwrap().count(), 0);
    let verbs = neon.operations().unwrap();
    let verbs: Vec<&str> = verbs
        .iter()
        .map(|operation| operation.verb.as_str())
        .collect();
    assert!(!verbs.contains(&"snapshot import"), "{verbs:?}");
    let steps: Vec<String> = told
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Step(text) if text.ends_with("...") => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(steps, ["Downloading snapshot...", "Destroying snapshot..."]);
    assert_eq!(
        sql(&neon, "fromserver", "select sum(i) from far").await,
        "12502500"
    );
    // Its snapshots are its own, though the one it was made from is gone.
    let name = SnapshotName::to_give("fromserver@one").unwrap();
    let taken = neon
        .snapshots()
        .create(&CreateSnapshot::new(name))
        .await
        .unwrap();
    assert!(taken.parent.is_none());

    // From a file, here and behind HTTP.
    let one = found(&home, "fromserver@one").await;
    let file = home.scratch.path().join("movies_db.neon");
    let options = ExportOptions::new(ExportFormat::Neon);
    neon.snapshots()
        .export(&one, &file, &options)
        .await
        .unwrap();
    let web = Web::of(home.scratch.path());
    let other = Fixture::new();
    for (named, from) in [
        ("file", text(&file)),
        ("movies", format!("{}/movies_db.neon", web.address)),
    ] {
        let made = other
            .neon
            .snapshots()
            .create_pg(&create(named), &from, None, &how)
            .await
            .unwrap();
        assert_eq!(made.imported.unwrap().format, "neon file");
        assert_eq!(
            sql(&other.neon, named, "select count(*) from t").await,
            "3000"
        );
    }
    // By its name in a repository, and by the repository's address.
    let store = home.scratch.path().join("home/store/local/fromserver@one");
    let made = other
        .neon
        .snapshots()
        .create_pg(&create("byaddress"), &text(&store), None, &how)
        .await
        .unwrap();
    assert_eq!(made.snapshot.unwrap().id, one.id);
    assert_eq!(snapshots(&other.neon).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_imported_for_an_instance_goes_also_when_that_fails_or_is_killed() {
    let home = Fixture::new();
    let cluster = source(PgMajor::V15);
    let from = text(&cluster.data_dir());
    let how = RestoreChoice::default();
    let snapshots_of = home.neon.snapshots();
    // In the way of the instance, but not known to be.
    let in_the_way = home.scratch.path().join("home/pg/one");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(in_the_way.join("file"), "mine").unwrap();
    let made = snapshots_of
        .create_pg(&create("one"), &from, None, &how)
        .await;
    assert!(made.is_err());
    assert_eq!(snapshots(&home.neon).await, 0);
    assert_eq!(fs::read_to_string(in_the_way.join("file")).unwrap(), "mine");

    // A command that was killed left its repository and its note.
    let folder = home.scratch.path().join("home/state/import");
    fs::create_dir_all(folder.join("0123456789abcdef/packs")).unwrap();
    fs::write(
        folder.join("0123456789abcdef.json"),
        r#"{"source": "/somewhere"}"#,
    )
    .unwrap();
    let made = snapshots_of
        .create_pg(&create("two"), &from, None, &how)
        .await
        .unwrap();
    assert_eq!(made.imported.unwrap().kind, "cold");
    assert_eq!(snapshots(&home.neon).await, 0);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    assert_eq!(
        refused(
            snapshots_of
                .create_pg(&create("two"), &from, None, &how)
                .await
        ),
        ErrorKind::Exists
    );
    // Or the doctor does it.
    let folder = home.scratch.path().join("home/state/import");
    fs::create_dir_all(folder.join("fedcba9876543210/packs")).unwrap();
    let note = r#"{"source": "/somewhere"}"#;
    fs::write(folder.join("fedcba9876543210.json"), note).unwrap();
    fs::write(folder.join("0000000000000000.lock"), "").unwrap();
    let mut options = neon_pg::DoctorOptions::default();
    let report = home.neon.doctor(&options).await.unwrap();
    let left = report
        .findings
        .iter()
        .filter(|one| one.code == "import-left");
    assert_eq!(left.filter(|one| one.fixable).count(), 2, "{report:?}");
    options.fix = true;
    let report = home.neon.doctor(&options).await.unwrap();
    assert!(report.findings.iter().all(|one| one.code != "import-left"));
    assert_eq!(snapshots(&home.neon).await, 0);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    let nowhere = text(&home.scratch.path().join("no/where"));
    let made = snapshots_of
        .create_pg(&create("three"), &nowhere, None, &how)
        .await;
    assert_eq!(refused(made), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_cluster_is_kept_in_a_bucket_and_comes_up_in_a_home_that_knows_only_that() {
    let server = s3();
    let home = with_bucket(&server);
    crate::remotes::attach_s3(&home.neon, &server).await;
    let theirs = Cluster::builder(PgMajor::V15).start();
    theirs.psql("create table t as select generate_series(1, 1000) i");
    let mut adopt = neon_pg::AdoptPg::new(theirs.data_dir());
    adopt.name = Some(name("prod"));
    adopt.storage = Some(name("s3tank"));
    adopt.superuser = Some("postgres".to_owned());
    assert!(home.neon.pg().adopt(&adopt).await.unwrap().runs);
    let one = SnapshotName::to_give("prod@one").unwrap();
    let taken = home
        .neon
        .snapshots()
        .create(&CreateSnapshot::new(one))
        .await
        .unwrap();
    assert_eq!((taken.kind, taken.storage.as_str()), ("online", "s3tank"));

    let other = with_bucket(&server);
    let how = RestoreChoice::default();
    let address = format!(
        "s3://tank/neon/prod@one?endpoint={}&path-style=true",
        server.endpoint()
    );
    let made = other
        .neon
        .snapshots()
        .create_pg(&create("copy"), &address, None, &how)
        .await
        .unwrap();
    assert!(made.imported.is_none());
    assert_eq!(
        sql(&other.neon, "copy", "select count(*) from t").await,
        "1000"
    );
    // They go their own ways.
    run(&other.neon, "copy", "drop table t").await;
    assert_eq!(theirs.psql("select count(*) from t"), "1000");
}

/// What was initialized in a folder of this home's, with a snapshot of how it was left.
async fn kept_in_a_folder(home: &Fixture) -> (String, SnapshotName) {
    let dest = text(&home.scratch.path().join("dest"));
    let mut from = wanted(None);
    from.storage_dest = Some(dest.clone());
    let first = home.neon.snapshot_first();
    first.init(&from).await.unwrap();
    first.start(None, &BTreeMap::new()).await.unwrap();
    run(
        &home.neon,
        "main",
        "create table t as select generate_series(1, 1000) i",
    )
    .await;
    let left = first.stop().await.unwrap();
    (dest, left.name.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_below_the_home_is_never_taken_for_missing() {
    let none = BTreeMap::new();
    let kept = Fixture::new();
    let (dest, _) = kept_in_a_folder(&kept).await;

    // Adopted, with the name that snapshots of another have: its record and its files stay as they are.
    let home = Fixture::new();
    let theirs = Cluster::builder(PgMajor::V15).start();
    let mut adopt = neon_pg::AdoptPg::new(theirs.data_dir());
    adopt.name = Some(name("main"));
    adopt.superuser = Some("postgres".to_owned());
    home.neon.pg().adopt(&adopt).await.unwrap();
    let before = home.neon.pg().record_of(&name("main")).unwrap();
    let started = home.neon.snapshot_first().start(Some(&dest), &none).await;
    assert_eq!(refused(started), ErrorKind::Exists);
    assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
    assert_eq!(home.neon.storages().list().unwrap().len(), 1);
    assert_eq!(theirs.psql("select 1"), "1");

    // At a place that somebody chose, whose disk is not there.
    let home = Fixture::new();
    let disk = home.scratch.path().join("disk");
    neon_testkit::OsUser::current().create_dir(&disk);
    let mut from = wanted(None);
    from.pg.pgdata = Some(disk.join("data"));
    let first = home.neon.snapshot_first();
    first.init(&from).await.unwrap();
    let before = home.neon.pg().record_of(&name("main")).unwrap();
    let away = home.scratch.path().join("away");
    fs::rename(&disk, &away).unwrap();
    let error = first.start(None, &none).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(error.hint().is_some());
    assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
    fs::rename(&away, &disk).unwrap();
    assert!(first.start(None, &none).await.unwrap().restored.is_none());
    first.stop().await.unwrap();

    // Moved to another disk by hand, with a link to it.
    let folder = kept.scratch.path().join("home/pg/main");
    let away = kept.scratch.path().join("away");
    fs::rename(&folder, &away).unwrap();
    std::os::unix::fs::symlink(kept.scratch.path().join("not mounted"), &folder).unwrap();
    let first = kept.neon.snapshot_first();
    let started = first.start(None, &none).await;
    assert_eq!(refused(started), ErrorKind::Environment);
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    assert!(first.start(None, &none).await.unwrap().restored.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forgotten_before_the_directory_is_restored() {
    let none = BTreeMap::new();
    let home = Fixture::new();
    let (dest, left) = kept_in_a_folder(&home).await;
    let before = home.neon.pg().record_of(&name("main")).unwrap();
    assert!(before.port.is_some());
    let folder = home.scratch.path().join("home/pg/main");
    fs::remove_dir_all(folder.join("data")).unwrap();
    fs::write(folder.join("log/kept"), "mine").unwrap();
    // What it would be restored from cannot be read now.
    let packs = Path::new(&dest).join("packs");
    let away = home.scratch.path().join("packs");
    fs::rename(&packs, &away).unwrap();
    let first = home.neon.snapshot_first();
    assert!(first.start(None, &none).await.is_err());
    assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
    assert_eq!(fs::read_to_string(folder.join("log/kept")).unwrap(), "mine");
    // Nor when the whole storage is not there.
    let gone = home.scratch.path().join("gone");
    fs::rename(&dest, &gone).unwrap();
    assert!(first.start(None, &none).await.is_err());
    assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
    drop(fs::remove_dir_all(&dest));
    fs::rename(&gone, &dest).unwrap();
    drop(fs::remove_dir_all(&packs));
    fs::rename(&away, &packs).unwrap();

    let again = first.start(None, &none).await.unwrap();
    assert_eq!(again.restored.unwrap().snapshot, left.to_string());
    let after = home.neon.pg().record_of(&name("main")).unwrap();
    assert_eq!(after.port, before.port);
    assert!(after.in_place_of.is_none() && after.id != before.id);
    assert!(before.timelines.is_subset(&after.timelines));
    assert_eq!(
        sql(&home.neon, "main", "select count(*) from t").await,
        "1000"
    );
    // What was left of its folder is in the trash.
    let trash = home.scratch.path().join("home/trash");
    let kept = trash.join(&before.id).join("log/kept");
    assert!(kept.exists(), "{}", kept.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_was_killed_is_taken_back_or_finished() {
    let none = BTreeMap::new();
    let home = Fixture::new();
    let (_, left) = kept_in_a_folder(&home).await;
    let before = home.neon.pg().record_of(&name("main")).unwrap();
    let folder = home.scratch.path().join("home/pg/main");
    fs::remove_dir_all(folder.join("data")).unwrap();
    fs::write(folder.join("log/kept"), "mine").unwrap();
    for step in ["create: begun", "create: isolated", "create: named"] {
        let neon = home.with(|options| {
            options.at_step = Some(std::sync::Arc::new(move |at: &str| {
                assert_ne!(at, step, "killed");
            }));
        });
        let killed =
            tokio::spawn(async move { neon.snapshot_first().start(None, &BTreeMap::new()).await });
        assert!(killed.await.unwrap_err().is_panic());
        let now = home.neon.pg().record_of(&name("main")).unwrap();
        assert_eq!(now.in_place_of.as_deref(), Some(&before), "{step}");
        assert_eq!(now.port, before.port);
        if step == "create: begun" {
            // Any verb on the name settles it; what is there is what was there.
            drop(home.neon.pg().start(&name("main")).await);
            assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
            assert_eq!(fs::read_to_string(folder.join("log/kept")).unwrap(), "mine");
        }
    }
    let first = home.neon.snapshot_first();
    assert!(first.start(None, &none).await.unwrap().restored.is_none());
    let after = home.neon.pg().record_of(&name("main")).unwrap();
    assert_eq!((after.port, after.in_place_of), (before.port, None));
    assert_eq!(
        after.base.unwrap().snapshot,
        found(&home, &left.to_string()).await.id
    );
    assert_eq!(
        sql(&home.neon, "main", "select count(*) from t").await,
        "1000"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_is_what_was_lived_in() {
    let none = BTreeMap::new();
    let home = Fixture::new();
    let (dest, left) = kept_in_a_folder(&home).await;
    let first = home.neon.snapshot_first();
    first.start(None, &none).await.unwrap();
    run(&home.neon, "main", "drop table t").await;
    let good = home.neon.snapshots().find(&left.to_string(), None).await;
    let choice = neon_pg::CheckoutChoice::default();
    let pg = home.neon.pg();
    let (main, good) = (name("main"), good.unwrap());
    let plan = pg.plan_checkout(&main, &good, choice).await.unwrap();
    pg.checkout(&plan).await.unwrap();
    pg.stop(&main).await.unwrap();
    // The state that was rolled back is not the newest, with the record and without it.
    fs::remove_dir_all(home.scratch.path().join("home/pg/main")).unwrap();
    let again = first.start(None, &none).await.unwrap();
    assert_eq!(again.restored.unwrap().snapshot, left.to_string());
    pg.stop(&name("main")).await.unwrap();
    let other = Fixture::new();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = std::sync::Arc::clone(&told);
    let neon = other.with(|options| {
        options.events = neon_pg::EventSink::new(move |event| sink.lock().unwrap().push(event));
    });
    let again = neon.snapshot_first().start(Some(&dest), &none).await;
    assert_eq!(again.unwrap().restored.unwrap().snapshot, left.to_string());
    assert_eq!(sql(&neon, "main", "select count(*) from t").await, "1000");
    let warned = |event: &Event| matches!(event, Event::Warning(text) if text.contains("HEAD{0}"));
    assert!(told.lock().unwrap().iter().any(warned));
    // One that was destroyed is restored again, and what that leaves in the trash is told.
    neon.pg().destroy(&name("main")).await.unwrap();
    neon.snapshot_first().start(None, &none).await.unwrap();
    let warned = |event: &Event| matches!(event, Event::Warning(text) if text.contains("trash"));
    assert!(told.lock().unwrap().iter().any(warned));
    neon.pg().stop(&name("main")).await.unwrap();

    // Another cluster of the same name in the same place: nobody chooses between them.
    let third = Fixture::new();
    let mut from = wanted(None);
    from.storage_dest = Some(dest.clone());
    let begun = third.neon.snapshot_first().init(&from).await.unwrap();
    assert_eq!(begun.snapshot.to_string(), "main@init-2");
    let fourth = Fixture::new();
    let started = fourth.neon.snapshot_first().start(Some(&dest), &none).await;
    let error = started.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("main@init-2") && said.contains(&left.to_string()),
        "{said}"
    );
    // Who was one of them still knows which.
    fs::remove_dir_all(home.scratch.path().join("home/pg/main")).unwrap();
    let again = first.start(None, &none).await.unwrap();
    assert_eq!(again.restored.unwrap().snapshot, left.to_string());
    home.neon.pg().stop(&name("main")).await.unwrap();

    // One that cannot be read may be the newest: said, with its id.
    let broken = Path::new(&dest).join("snapshots");
    let broken = fs::read_dir(broken)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&broken, "no snapshot").unwrap();
    fs::remove_dir_all(Path::new(&dest).join("catalog")).unwrap();
    fs::remove_dir_all(home.scratch.path().join("home/pg/main")).unwrap();
    let before = home.again().pg().record_of(&name("main")).unwrap();
    let started = home.again().snapshot_first().start(None, &none).await;
    let error = started.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("by name")));
    assert_eq!(home.neon.pg().record_of(&name("main")).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_homes_that_live_on_side_by_side_nobody_chooses_one() {
    let none = BTreeMap::new();
    let server = Fixture::new();
    let (dest, _) = kept_in_a_folder(&server).await;
    let laptop = Fixture::new();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = std::sync::Arc::clone(&told);
    let on_laptop = laptop.with(|options| {
        options.events = neon_pg::EventSink::new(move |event| sink.lock().unwrap().push(event));
    });
    let start = async |neon: &Neon| neon.snapshot_first().start(Some(&dest), &none).await;
    let warned = |of: &str| {
        let told = told.lock().unwrap();
        told.iter()
            .any(|event| matches!(event, Event::Warning(text) if text.contains(of)))
    };
    start(&on_laptop).await.unwrap();
    on_laptop.snapshot_first().stop().await.unwrap();
    assert!(!warned("another home"));

    // One after the other: the last one is meant, and whose it is is said.
    let next = Fixture::new();
    start(&next.neon).await.unwrap();
    next.neon.pg().stop(&name("main")).await.unwrap();

    // The first lives on.
    start(&server.neon).await.unwrap();
    let of_server = server.neon.snapshot_first().stop().await.unwrap();
    start(&on_laptop).await.unwrap();
    let of_laptop = on_laptop.snapshot_first().stop().await.unwrap();
    assert!(warned("another home"));
    let error = start(&Fixture::new().neon).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    for newest in [of_server, of_laptop] {
        let newest = newest.name.unwrap().to_string();
        assert!(error.to_string().contains(&newest), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_a_place_are_what_it_was_attached_with_or_are_refused() {
    let none = BTreeMap::new();
    let sealed = BTreeMap::from([("encryption".to_owned(), "on".to_owned())]);
    let having = || {
        Fixture::having(PgMajor::V15, |options| {
            options.passphrase = Some("correct horse".into());
        })
    };
    let home = having();
    let dest = text(&home.scratch.path().join("dest"));
    let mut from = wanted(None);
    from.storage_dest = Some(dest.clone());
    from.storage_options = sealed.clone();
    home.neon.snapshot_first().init(&from).await.unwrap();

    // Without the option it cannot be opened, and is not remembered so.
    let other = having();
    let first = other.neon.snapshot_first();
    assert!(first.start(Some(&dest), &none).await.is_err());
    assert_eq!(other.neon.storages().list().unwrap().len(), 1);
    let again = first.start(Some(&dest), &sealed).await.unwrap();
    assert_eq!(again.restored.unwrap().snapshot, "main@init");

    // Attached in clear, it is not silently taken for encrypted.
    let clear = having();
    let place = text(&clear.scratch.path().join("clear"));
    let locator = neon_pg::Locator::parse(&place).unwrap();
    let storages = clear.neon.storages();
    let named = name("clear");
    let attached = storages.attach(&named, &locator, none.clone()).await;
    attached.unwrap();
    from.storage_dest = Some(place);
    let begun = clear.neon.snapshot_first().init(&from).await;
    assert_eq!(refused(begun), ErrorKind::Invalid);
    from.storage_options = none;
    let begun = clear.neon.snapshot_first().init(&from).await.unwrap();
    assert_eq!(begun.storage.as_str(), "clear");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_that_was_killed_is_gone_on_with_and_started() {
    let home = Fixture::new();
    let neon = &home.neon;
    let first = neon.snapshot_first();
    let none = BTreeMap::new();
    let mut wanted = wanted(None);
    wanted.storage_dest = Some(text(&home.scratch.path().join("dest")));
    let made = first.init(&wanted).await.unwrap();
    let place = home.scratch.path().join("home/state/first.json");
    let saved = fs::read_to_string(&place).unwrap();
    assert!(!saved.contains("unfinished"), "{saved}");
    // Killed when the instance was there, and nothing said so.
    let begun = saved.replacen('{', "{\"unfinished\": \"main@init\",", 1);
    fs::write(&place, &begun).unwrap();
    let again = first.init(&wanted).await.unwrap();
    assert_eq!(again.snapshot, made.snapshot);
    assert_eq!(fs::read_to_string(&place).unwrap(), saved);
    assert_eq!(refused(first.init(&wanted).await), ErrorKind::Exists);
    // Before its snapshot was.
    let planned = neon.snapshots().plan_destroy("main@init", None).await;
    neon.snapshots().destroy(&planned.unwrap()).await.unwrap();
    fs::write(&place, &begun).unwrap();
    let again = first.init(&wanted).await.unwrap();
    assert_eq!(again.snapshot.to_string(), "main@init");
    let found = neon.snapshots().find("main@init", None).await.unwrap();
    assert_eq!(found.repository.name, Some(name("dest")));
    // Elsewhere it would be another one.
    fs::write(&place, &begun).unwrap();
    let mut other = wanted.clone();
    other.storage_dest = Some(text(&home.scratch.path().join("elsewhere")));
    assert_eq!(refused(first.init(&other).await), ErrorKind::Exists);
    assert_eq!(neon.storages().list().unwrap().len(), 2);
    // Or it is started, as it is.
    first.start(None, &none).await.unwrap();
    assert_eq!(fs::read_to_string(&place).unwrap(), saved);
    neon.pg().stop(&name("main")).await.unwrap();
    // Killed before the instance was there.
    neon.pg().destroy(&name("main")).await.unwrap();
    fs::write(&place, &begun).unwrap();
    let again = first.init(&wanted).await.unwrap();
    assert_eq!(again.snapshot.to_string(), "main@init-2");
    // Made by the other verb: there is a way on from it, too.
    neon.pg().destroy(&name("main")).await.unwrap();
    fs::remove_file(&place).unwrap();
    neon.pg().create(&home.stopped("main")).await.unwrap();
    assert_eq!(refused(first.init(&wanted).await), ErrorKind::Exists);
    first.start(None, &none).await.unwrap();
    neon.pg().stop(&name("main")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_that_fails_leaves_neither_what_it_imported_nor_a_word() {
    let cluster = source(PgMajor::V15);
    let home = Fixture::new();
    let neon = &home.neon;
    // Something is in the way of the instance.
    let folder = home.scratch.path().join("home/pg/main");
    fs::create_dir(&folder).unwrap();
    let mut wanted = wanted(None);
    wanted.snapshot_path = Some(text(&cluster.data_dir()));
    let first = neon.snapshot_first();
    assert_eq!(refused(first.init(&wanted).await), ErrorKind::Exists);
    assert_eq!(snapshots(neon).await, 0);
    assert!(!home.scratch.path().join("home/state/first.json").exists());
    fs::remove_dir(&folder).unwrap();
    let made = first.init(&wanted).await.unwrap();
    assert_eq!(made.snapshot.to_string(), "main@init");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_that_went_on_side_by_side_are_not_restored_by_themselves() {
    let (one, copy, third) = (Fixture::new(), Fixture::new(), Fixture::new());
    let none = BTreeMap::new();
    let dest = text(&one.scratch.path().join("dest"));
    let mut begin = wanted(None);
    begin.storage_dest = Some(dest.clone());
    one.neon.snapshot_first().init(&begin).await.unwrap();
    one.neon.snapshot_first().start(None, &none).await.unwrap();
    run(&one.neon, "main", "create table t as select 1 i").await;
    one.neon.snapshot_first().push().await.unwrap();
    // Another home took over, as far as anybody can see; and it is told whose name it uses.
    let (neon, told) = listening(&copy);
    let first = neon.snapshot_first();
    first.start(Some(&dest), &none).await.unwrap();
    let told = told.lock().unwrap().clone();
    let of_others =
        |event: &Event| matches!(event, Event::Warning(text) if text.contains("another main"));
    assert!(told.iter().any(of_others), "{told:?}");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    first.stop().await.unwrap();
    // And the first goes on.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    one.neon.snapshot_first().push().await.unwrap();
    let restored = third.neon.snapshot_first().start(Some(&dest), &none).await;
    let error = restored.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.reason().contains("side by side"), "{error}");
    assert!(third.neon.pg().records().unwrap().is_empty());
    one.neon.pg().stop(&name("main")).await.unwrap();
}
