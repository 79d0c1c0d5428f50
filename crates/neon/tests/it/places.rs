//! Places outside of the home: what is beside a chosen one, who may go there, and who else writes there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use neon_pg::{DoctorOptions, ErrorKind, Event, PgMajor};

use crate::restored::listening;
use crate::support::{Fixture, name, refused, run, sql};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_of_others_beside_a_chosen_place_is_never_taken() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let away = home.scratch.path().join("away");
    neon_testkit::OsUser::current().create_dir(&away);
    let theirs = away.join("data-tablespaces");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("file"), "precious").unwrap();
    let mut one = home.stopped("one");
    one.pgdata = Some(away.join("data"));
    let error = pg.create(&one).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.subject().ends_with("data-tablespaces"), "{error}");
    assert_eq!(names(&away), ["data-tablespaces"]);
    assert!(pg.records().unwrap().is_empty());

    // One that came later.
    fs::rename(&theirs, away.join("aside")).unwrap();
    pg.create(&one).await.unwrap();
    fs::rename(away.join("aside"), &theirs).unwrap();
    let id = pg.destroy(&name("one")).await.unwrap();
    let kept = || fs::read_to_string(theirs.join("file")).unwrap();
    assert_eq!(kept(), "precious");
    pg.undo_destroy(&id).await.unwrap();
    pg.destroy(&name("one")).await.unwrap();
    assert_eq!(kept(), "precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_servers_cannot_reach_is_refused_before_anything_is_made() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let closed = home.scratch.path().join("closed");
    let folder = closed.join("folder");
    fs::create_dir_all(&folder).unwrap();
    let mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o700);
    let mut one = home.create();
    one.pgdata = Some(folder.join("data"));
    let before = home.neon.operations().unwrap().len();
    let error = pg.create(&one).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert_eq!(
        error.hint(),
        Some(&*format!("chmod o+x {}", closed.display()))
    );
    assert_eq!(names(&folder), Vec::<String>::new());
    assert!(pg.records().unwrap().is_empty());
    assert_eq!(home.neon.operations().unwrap().len(), before);

    // Where they may go, and not write: the log is in the home.
    mode(0o755);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    pg.create(&one).await.unwrap();
    assert_eq!(names(&folder), ["data"]);
    let log = home.scratch.path().join("home/pg/pgdata1/log");
    let logged = || names(&log).iter().any(|name| name.starts_with("postgres"));
    let begun = Instant::now();
    while !logged() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            names(&log)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let shown = sql(&home.neon, "pgdata1", "show log_directory").await;
    assert_eq!(shown, log.display().to_string());
    pg.stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test]
async fn what_has_neither_data_nor_programs_is_destroyed_all_the_same() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    pg.create(&home.stopped("two")).await.unwrap();
    fs::remove_dir_all(home.scratch.path().join("home/pg/one/data")).unwrap();
    pg.destroy(&name("one")).await.unwrap();
    let nothing = home.with(|options| options.pg_bin = Vec::new());
    let record = home.scratch.path().join("home/state/pg/two.json");
    let text = fs::read_to_string(&record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["bin_dir"] = "/nowhere".into();
    value["major"] = "12".into();
    fs::write(&record, value.to_string()).unwrap();
    nothing.pg().destroy(&name("two")).await.unwrap();
    assert!(pg.records().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_writes_into_the_tablespace_of_its_primary_is_told_and_not_started_again() {
    let home = Fixture::of(PgMajor::V15);
    let (neon, told) = listening(&home);
    let pg = neon.pg();
    pg.create(&home.create()).await.unwrap();
    let replica = pg
        .start_replica(&name("pgdata1"))
        .await
        .unwrap()
        .record
        .name;
    let warned = |event: &Event| matches!(event, Event::Warning(text) if text.contains("do not create tablespaces"));
    assert!(told.lock().unwrap().iter().any(warned));
    let shared = async || {
        let report = neon.doctor(&DoctorOptions::default()).await.unwrap();
        let shared = report.findings.into_iter();
        shared
            .filter(|one| one.code == "tablespace-shared")
            .map(|one| one.subject)
            .collect::<Vec<_>>()
    };
    assert_eq!(shared().await, Vec::<String>::new());
    let space = home.scratch.path().join("space");
    neon_testkit::OsUser::current().create_dir(&space);
    let place = format!("create tablespace s location '{}'", space.display());
    run(&neon, "pgdata1", &place).await;
    let begun = Instant::now();
    loop {
        let found = shared().await;
        if found == [format!("pg {replica}")] {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pg.stop(&replica).await.unwrap();
    assert_eq!(refused(pg.start(&replica).await), ErrorKind::Failed);
    // What it links to stays where it is.
    pg.destroy(&replica).await.unwrap();
    run(
        &neon,
        "pgdata1",
        "create table t tablespace s as select 7 i; checkpoint",
    )
    .await;
    assert_eq!(sql(&neon, "pgdata1", "select i from t").await, "7");
    pg.stop(&name("pgdata1")).await.unwrap();
}
