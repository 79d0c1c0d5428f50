//! A cluster that comes in more than once.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use neon_pg::{
    ErrorKind, Event, EventSink, ExportFormat, ExportOptions, ImportSnapshot, ImportSource,
    Imported, ParentChoice, PgMajor, Pulled, Remote, SnapshotName,
};
use neon_testkit::{Cluster, StopMode};

use crate::moving::{boots, fill, holds_what_was_filled, import};
use crate::support::{Fixture, refused};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// That little was stored of what is nearly the same. A segment of the log, most of it empty pages, comes each time.
fn costs_little(again: &Imported, first: &Imported) {
    assert!(again.stored * 4 < first.stored, "{again:?} after {first:?}");
    assert!(again.changed_pages < first.changed_pages, "{again:?}");
}

async fn a_second_import_costs_what_changed(major: PgMajor) {
    let home = Fixture::having(major, |options| {
        let variables = &mut options.connections.environment;
        variables.insert("PGPASSWORD".into(), "s3cret".into());
    });
    let mut cluster = Cluster::builder(major)
        .checksums(true)
        .tcp()
        .password("s3cret")
        .start();
    fill(&cluster);
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    let first = import(&home, &address, "one").await.unwrap();
    assert_eq!(first.parent, None);
    cluster.psql("update t set v = repeat('x', 640) where i = 7");
    cluster.psql("create table gone as select 1; drop table gone; checkpoint");
    let second = import(&home, &address, "two").await.unwrap();
    assert_eq!(second.parent, Some(first.id));
    costs_little(&second, &first);

    // What it was compared with is not needed any more, and goes.
    let snapshots = home.neon.snapshots();
    let plan = snapshots.plan_destroy("one", None).await.unwrap();
    snapshots.destroy(&plan).await.unwrap();
    let copy = boots(&home, &second.found, major).await;
    holds_what_was_filled(&copy);
    assert_eq!(copy.psql("select left(v, 2) from t where i = 7"), "xx");

    // In other forms, of the same cluster.
    let file = home.scratch.path().join("two.neon");
    let as_file = ExportOptions::new(ExportFormat::Neon);
    snapshots
        .export(&second.found, &file, &as_file)
        .await
        .unwrap();
    let of_file = import(&home, &text(&file), "file").await.unwrap();
    assert_eq!(of_file.parent, Some(second.id));
    costs_little(&of_file, &first);
    // The same once more, after another: it is compared with what is nearest, not with the newest.
    cluster.psql("update t set v = upper(v) where i < 300; checkpoint");
    let third = import(&home, &address, "three").await.unwrap();
    let again = import(&home, &text(&file), "again").await.unwrap();
    assert_ne!(again.parent, Some(third.id));
    costs_little(&again, &first);
    let tars = home.scratch.path().join("tars");
    let as_tars = ExportOptions::new(ExportFormat::BaseBackup);
    snapshots
        .export(&second.found, &tars, &as_tars)
        .await
        .unwrap();
    let of_tars = import(&home, &text(&tars), "tars").await.unwrap();
    // Before 17 no manifest says of which cluster it is.
    assert_eq!(of_tars.parent.is_some(), major >= PgMajor::V17);
    if of_tars.parent.is_some() {
        costs_little(&of_tars, &first);
    }
    cluster.stop(StopMode::Fast);
    let stopped = import(&home, &text(&cluster.data_dir()), "stopped")
        .await
        .unwrap();
    assert!(stopped.parent.is_some());
    costs_little(&stopped, &first);
    let copy = boots(&home, &stopped.found, major).await;
    holds_what_was_filled(&copy);

    // Another cluster shares nothing.
    let mut other = Cluster::builder(major).fresh_system_identifier().start();
    other.stop(StopMode::Fast);
    let other = import(&home, &text(&other.data_dir()), "other")
        .await
        .unwrap();
    assert_eq!(other.parent, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_import_of_15_costs_what_changed() {
    a_second_import_costs_what_changed(PgMajor::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_import_of_18_costs_what_changed() {
    a_second_import_costs_what_changed(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_shares_nothing_if_told_so_or_with_what_cannot_be_read() {
    let home = Fixture::new();
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    cluster.stop(StopMode::Fast);
    let source = text(&cluster.data_dir());
    let first = import(&home, &source, "one").await.unwrap();
    let second = import(&home, &source, "two").await.unwrap();
    assert_eq!(second.parent.is_some(), first.parent.is_none());
    let mut alone = ImportSnapshot::new(ImportSource::parse(&source).unwrap());
    alone.name = Some(SnapshotName::to_give("alone").unwrap());
    alone.parent = ParentChoice::None;
    let alone = home.neon.snapshots().import(&alone).await.unwrap();
    assert_eq!(alone.parent, None);
    assert_eq!(alone.changed_pages, first.changed_pages);
    let from = Remote::parse(&source).unwrap();
    let snapshots = home.neon.snapshots();
    let none = ParentChoice::None;
    let pulled = snapshots.pull_sharing(&from, "pulled", None, &none).await;
    let Pulled::Imported(pulled) = pulled.unwrap() else {
        panic!("{from:?} is no storage");
    };
    assert_eq!(pulled.parent, None);
    // What a storage has comes as it is there.
    let local = Remote::parse("local").unwrap();
    let pulled = snapshots.pull_sharing(&local, "one", None, &none).await;
    assert_eq!(refused(pulled), ErrorKind::Invalid);

    // All that those have is lost.
    let packs = home.scratch.path().join("home/store/local/packs");
    for folder in fs::read_dir(&packs).unwrap().flatten() {
        for pack in fs::read_dir(folder.path()).unwrap().flatten() {
            fs::remove_file(pack.path()).unwrap();
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| {
            if let Event::Note(text) = event {
                heard.lock().unwrap().push(text);
            }
        });
    });
    let mut anew = ImportSnapshot::new(ImportSource::parse(&source).unwrap());
    anew.name = Some(SnapshotName::to_give("anew").unwrap());
    let anew = neon.snapshots().import(&anew).await.unwrap();
    assert_eq!(anew.parent, None);
    let told = told.lock().unwrap().clone();
    assert!(
        told.iter().any(|text| text.contains("stored anew")),
        "{told:?}"
    );
    let checked = neon.snapshots().check(&anew.found).await.unwrap();
    assert!(checked.is_sound(), "{checked:?}");
}
