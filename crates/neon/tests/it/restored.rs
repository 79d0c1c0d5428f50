//! Instances made from snapshots.

use std::fs;
use std::sync::{Arc, Mutex};

use neon_pg::{Event, EventSink, PgMajor, RestoreChoice, Stage};

use crate::support::{Fixture, name, run, sql, take};

/// What was told, in order.
pub(crate) fn listening(home: &Fixture) -> (neon_pg::Neon, Arc<Mutex<Vec<Event>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| sink.lock().unwrap().push(event));
    });
    (neon, told)
}

async fn a_copy_lives_beside_its_origin(major: PgMajor) {
    let home = Fixture::of(major);
    let pg = home.neon.pg();
    let origin = pg.create(&home.create()).await.unwrap();
    let archive = home.scratch.path().join("archive");
    run(
        &home.neon,
        "pgdata1",
        &format!(
            "create table t as select i from generate_series(1, 10000) i; \
         create role app login password 'secret'; \
         create unlogged table u as select 1 i; \
         select pg_create_physical_replication_slot('kept', true); \
         alter system set archive_mode = on; \
         alter system set archive_command = 'cp %p {}/%f'; \
         alter system set synchronous_standby_names = ''; \
         alter system set listen_addresses = '*'",
            archive.display()
        ),
    )
    .await;
    pg.restart(&name("pgdata1")).await.unwrap();
    let online = take(&home.neon, "pgdata1", "online").await;
    run(&home.neon, "pgdata1", "insert into t values (0)").await;

    let (neon, told) = listening(&home);
    let copy = neon
        .pg()
        .create_from(&home.create(), &online, &RestoreChoice::default())
        .await
        .unwrap();
    assert_eq!(copy.record.name.as_str(), "pgdata2");
    assert_eq!(copy.record.stage, Stage::Ready);
    assert_ne!(copy.endpoint(), origin.endpoint());
    assert_ne!(copy.record.lineage, origin.record.lineage);
    assert_eq!(copy.record.base.as_ref().unwrap().snapshot, online.id);
    assert_eq!(
        copy.record.timelines.iter().copied().collect::<Vec<_>>(),
        [1, 2]
    );
    let ask = async |text: &str| sql(&neon, "pgdata2", text).await;
    assert_eq!(ask("select count(*) from t").await, "10000");
    assert_eq!(ask("select count(*) from u").await, "0");
    assert_eq!(ask("select count(*) from pg_replication_slots").await, "0");
    assert_eq!(ask("show archive_mode").await, "off");
    assert_eq!(ask("show archive_command").await, "(disabled)");
    assert_eq!(ask("show listen_addresses").await, "localhost");
    assert_eq!(
        ask("select timeline_id from pg_control_checkpoint()").await,
        "2"
    );
    let notes: Vec<String> = told
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Note(note) => Some(note.clone()),
            _ => None,
        })
        .collect();
    assert!(
        notes.iter().any(|note| note.starts_with("archive_mode:")),
        "{notes:?}"
    );
    // A connection over TCP, with the password of its own.
    let instance = neon.pg().instance(&name("pgdata2")).await.unwrap();
    let uri = instance.uri("postgres").unwrap();
    assert!(uri.contains("@localhost:"), "{uri}");
    let theirs = neon.pg().instance(&name("pgdata1")).await.unwrap();
    assert_ne!(
        fs::read_to_string(instance.pass_file().unwrap()).unwrap(),
        fs::read_to_string(theirs.pass_file().unwrap()).unwrap()
    );
    // Nothing of how it was made is left.
    let left: Vec<_> = fs::read_dir(home.scratch.path().join("home/pg"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_str().unwrap().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // Of a stopped cluster, and as it is. A second copy of one lineage is on a timeline that the first is not judged by.
    pg.stop(&name("pgdata1")).await.unwrap();
    let cold = take(&home.neon, "pgdata1", "cold").await;
    let mut as_is = RestoreChoice::default();
    as_is.as_is = true;
    let copy = neon
        .pg()
        .create_from(&home.create(), &cold, &as_is)
        .await
        .unwrap();
    assert_eq!(copy.record.name.as_str(), "pgdata3");
    let instance = neon.pg().instance(&name("pgdata3")).await.unwrap();
    let settings = instance.file_settings();
    assert_eq!(settings.value("archive_mode"), Some("on"));
    for pg in ["pgdata2", "pgdata3"] {
        neon.pg().stop(&name(pg)).await.unwrap();
    }
    assert!(!archive.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_13_lives_beside_its_origin() {
    a_copy_lives_beside_its_origin(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_18_lives_beside_its_origin() {
    a_copy_lives_beside_its_origin(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_opened_to_be_read_and_leaves_nothing() {
    let home = Fixture::new();
    home.neon.pg().create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 7 i").await;
    let found = take(&home.neon, "pgdata1", "a").await;
    let open = home.neon.snapshots().open(&found).await.unwrap();
    let data = open.instance().data_dir().to_owned();
    let mut client = open.connect("postgres").await.unwrap();
    let rows = client.simple_query("select i from t").await.unwrap();
    assert_eq!(rows[0].value(0, 0), Some("7"));
    client
        .simple_query("insert into t values (8)")
        .await
        .unwrap_err();
    client.close().await;
    let (folder, port) = open.socket();
    assert!(folder.join(format!(".s.PGSQL.{port}")).exists());
    // Another one beside it; each goes by itself.
    let second = home.neon.snapshots().open(&found).await.unwrap();
    assert!(data.exists());
    open.close().await;
    assert!(!data.exists());
    second.connect("postgres").await.unwrap().close().await;
    drop(second);
    for folder in ["pg", "state/open"] {
        let left = fs::read_dir(home.scratch.path().join("home").join(folder)).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "pgdata1"), "{left:?}");
    }
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}
