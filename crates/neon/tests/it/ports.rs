//! Ports: chosen, taken by somebody else, and changed.

use std::fs;
use std::net::TcpListener;

use neon_pg::{ErrorKind, RestoreChoice};

use crate::support::{Fixture, name, refused, sql, take};

/// A port that somebody else has as long as the listener lives.
fn taken() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_cannot_be_had_is_refused_before_anything_is_made() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("origin")).await.unwrap();
    let snapshot = take(&home.neon, "origin", "one").await;
    let (_listener, port) = taken();
    for (port, kind) in [(0, ErrorKind::Invalid), (port, ErrorKind::Busy)] {
        let mut create = home.create();
        create.name = Some(name("new"));
        create.port = Some(port);
        let error = pg.create(&create).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.hint().is_some());
        let how = RestoreChoice::default();
        let restored = pg.create_from(&create, &snapshot, &how).await;
        assert_eq!(refused(restored), kind);
        let file = home.scratch.path().join("nothing.neon");
        fs::write(&file, "").unwrap();
        let text = file.to_str().unwrap();
        let snapshots = home.neon.snapshots();
        let imported = snapshots.create_pg(&create, text, None, &how);
        assert_eq!(refused(imported.await), kind);
        assert_eq!(refused(pg.get(&name("new")).await), ErrorKind::NotFound);
        let folders = fs::read_dir(home.scratch.path().join("home/pg")).unwrap();
        // And the sign of the home.
        assert_eq!(folders.count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_can_be_given_another_port() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let (listener, port) = taken();
    let mut create = home.stopped("one");
    create.port = Some(port);
    pg.create(&create).await.unwrap();
    assert_eq!(refused(pg.start(&name("one")).await), ErrorKind::Busy);
    // One that is taken changes nothing.
    assert_eq!(
        refused(pg.start_on(&name("one"), port).await),
        ErrorKind::Busy
    );
    assert_eq!(
        refused(pg.start_on(&name("one"), 0).await),
        ErrorKind::Invalid
    );
    let (other, free) = taken();
    drop(other);
    let started = pg.start_on(&name("one"), free).await.unwrap();
    assert_eq!(started.port, free);
    drop(listener);
    pg.restart(&name("one")).await.unwrap();
    let listed = pg.get(&name("one")).await.unwrap();
    assert_eq!(listed.endpoint(), Some(format!("localhost:{free}")));
    assert_eq!(sql(&home.neon, "one", "show port").await, free.to_string());
    // What runs is not moved, and it is said where it runs.
    for running in [
        pg.start_on(&name("one"), port).await,
        pg.start(&name("one")).await,
    ] {
        let error = running.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(
            error.reason().contains(&format!("localhost:{free}")),
            "{error}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("neon pg")));
    }
    pg.stop(&name("one")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_first_start_fails_is_there_and_that_is_said() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("origin")).await.unwrap();
    let instance = pg.instance(&name("origin")).await.unwrap();
    let conf = instance.data_dir().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    // No server listens there.
    fs::write(&conf, format!("{text}\nlisten_addresses = '203.0.113.1'\n")).unwrap();
    let snapshot = take(&home.neon, "origin", "one").await;
    let mut create = home.create();
    create.name = Some(name("copy"));
    let mut how = RestoreChoice::default();
    how.as_is = true;
    let error = pg.create_from(&create, &snapshot, &how).await.unwrap_err();
    assert!(error.reason().contains("made, but does not run"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("neon pg start copy"), "{hint}");
    assert!(pg.get(&name("copy")).await.unwrap().endpoint().is_none());
}
