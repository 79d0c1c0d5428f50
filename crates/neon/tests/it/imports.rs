//! A cluster that comes in more than once.

use std::path::Path;

use neon_pg::{ExportFormat, ExportOptions, Imported, PgMajor};
use neon_testkit::{Cluster, StopMode};

use crate::moving::{boots, fill, holds_what_was_filled, import};
use crate::support::Fixture;

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
