//! Directories that are there and become a snapshot: what must survive, and what must be refused in time.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan};
use neon_pagestore::{ErrorKind, Repository, Result};
use neon_pg_layout::{PgMajor, tablespace_version_directory};
use neon_snapshot_format::pgdata::{
    DirectoryOptions, ExistingDirectory, Flush, Ownership, TablespacePlaces,
};
use neon_testkit::{Cluster, Scratch, StopMode};

use crate::clusters::{
    beside, copy_cold, copy_online, prepare, repository, restore_into, snapshot,
};
use crate::files::reader;

const MAJOR: PgMajor = PgMajor::V16;
const CONTROL: &str = "global/pg_control";

/// A stopped cluster with a tablespace behind a link, a snapshot of it, and what was restored from that.
struct Scene {
    _place: Scratch,
    repository: Repository,
    source: Cluster,
    snapshot: Snapshot,
    copy: Cluster,
}

fn own() -> String {
    tablespace_version_directory(MAJOR.layout())
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

impl Scene {
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let source = Cluster::builder(MAJOR).checksums(true).init();
        let outside = source.scratch_dir().join("outside");
        put(&outside.join(own()).join("5/notes"), &[7; 16384]);
        symlink(&outside, source.data_dir().join("pg_tblspc/16400")).unwrap();
        prepare(&source.data_dir());
        let place = Scratch::new();
        let repository = repository(&place.path().join("repository")).await;
        let maps = reader(&repository);
        let id = snapshot(&repository, None, copy_cold(source.data_dir())).await;
        let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
        let copy = Cluster::without_data(MAJOR);
        restore_into(&snapshot, &copy).await;
        Self {
            _place: place,
            repository,
            source,
            snapshot,
            copy,
        }
    }

    fn data(&self, path: &str) -> PathBuf {
        self.copy.data_dir().join(path)
    }

    /// The first file of the tablespace, through whatever leads there.
    fn table(&self) -> PathBuf {
        self.data("pg_tblspc/16400").join(own()).join("5/notes")
    }

    async fn turn(&self) -> Result<RestorePlan> {
        turn(&self.snapshot, &self.copy, |_| ()).await
    }
}

fn writing(copy: &Cluster) -> DirectoryOptions {
    DirectoryOptions {
        ownership: Ownership::Recorded,
        tablespaces: TablespacePlaces::Below(copy.restored_tablespaces()),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    }
}

/// Compares and restores; `between` happens in the meantime.
async fn turn(
    snapshot: &Snapshot,
    copy: &Cluster,
    between: impl FnOnce(&Path) + Send + 'static,
) -> Result<RestorePlan> {
    turn_until(snapshot, copy, between, Arc::default()).await
}

async fn turn_until(
    snapshot: &Snapshot,
    copy: &Cluster,
    between: impl FnOnce(&Path) + Send + 'static,
    cancel: Arc<AtomicBool>,
) -> Result<RestorePlan> {
    let (snapshot, data, writing) = (snapshot.clone(), copy.data_dir(), writing(copy));
    let major = copy.major();
    beside(move || {
        let directory = ExistingDirectory::open(&data, major).unwrap();
        let options = RestoreOptions::default();
        let plan = RestorePlan::by_content(&snapshot, &directory, &|_| false, &options)?;
        between(&data);
        let options = RestoreOptions { cancel, ..options };
        plan.execute(&snapshot, directory, writing, &options)?;
        Ok(plan)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_clusters_have_in_a_shared_tablespace_stays() {
    let scene = Scene::new(|_| ()).await;
    let tablespace = scene.data("pg_tblspc/16400");
    let foreign = [
        tablespace.join("PG_17_202406281/5/1"),
        tablespace.join("README"),
    ];
    for path in &foreign {
        put(path, b"theirs");
    }
    let left_over = tablespace.join(own()).join("5/left");
    put(&left_over, b"ours");
    put(&scene.table(), &[8; 24576]);
    scene.turn().await.unwrap();
    for path in &foreign {
        assert_eq!(fs::read(path).unwrap(), b"theirs");
    }
    assert!(!left_over.exists());
    assert_eq!(fs::read(scene.table()).unwrap(), [7; 16384]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_changed_since_it_was_compared_is_left_alone() {
    let scene = Scene::new(|_| ()).await;
    put(&scene.table(), &[8; 16384]);
    let untouched = |error: &neon_pagestore::Error| {
        assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
        assert!(scene.data(CONTROL).exists());
        assert_eq!(fs::read(scene.table()).unwrap(), [8; 16384]);
    };
    let pid = scene.data("postmaster.pid");
    let started = turn(&scene.snapshot, &scene.copy, |data| {
        put(&data.join("postmaster.pid"), b"1");
    });
    untouched(&started.await.unwrap_err());
    fs::remove_file(pid).unwrap();
    let before = fs::read(scene.data(CONTROL)).unwrap();
    let ran = turn(&scene.snapshot, &scene.copy, |data| {
        let mut control = fs::read(data.join(CONTROL)).unwrap();
        control[100] ^= 1;
        put(&data.join(CONTROL), &control);
    });
    let error = ran.await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("compare again"), "{cause}");
    untouched(&error);
    put(&scene.data(CONTROL), &before);

    // A plan that is older than the directory as it was opened, and one for another snapshot.
    let maps = reader(&scene.repository);
    put(&scene.source.data_dir().join("base/new"), b"new");
    let copied = copy_cold(scene.source.data_dir());
    let second = snapshot(&scene.repository, Some(&scene.snapshot), copied).await;
    let second = Snapshot::open(&scene.repository, second, &maps)
        .await
        .unwrap();
    let (first, data, writing) = (
        scene.snapshot.clone(),
        scene.copy.data_dir(),
        writing(&scene.copy),
    );
    let errors = beside(move || {
        let open = || ExistingDirectory::open(&data, MAJOR).unwrap();
        let options = RestoreOptions::default();
        let plan = RestorePlan::by_content(&first, &open(), &|_| false, &options).unwrap();
        let other = plan.execute(&second, open(), writing.clone(), &options);
        put(&data.join("base/1/more"), b"later");
        let stale = plan.execute(&first, open(), writing, &options);
        [other.unwrap_err(), stale.unwrap_err()]
    })
    .await;
    errors.iter().for_each(untouched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_alone_is_believed_only_where_it_can_be() {
    let scene = Scene::new(|_| ()).await;
    let maps = reader(&scene.repository);
    let source = scene.source.data_dir();
    put(&source.join("base/1/notes"), &[5; 8192]);
    let second = snapshot(
        &scene.repository,
        Some(&scene.snapshot),
        copy_cold(source.clone()),
    )
    .await;
    let second = Snapshot::open(&scene.repository, second, &maps)
        .await
        .unwrap();
    let (first, data, options) = (
        scene.snapshot.clone(),
        scene.copy.data_dir(),
        writing(&scene.copy),
    );
    let fork = data.join("base/1/1259_fsm");
    let before = fs::read(&fork).unwrap();
    put(&fork, &vec![9; before.len()]);
    let to = second.clone();
    beside(move || {
        let open = || ExistingDirectory::open(&data, MAJOR).unwrap();
        // Maps of free space are written whatever the maps say.
        let restore = RestoreOptions::default();
        let plan = RestorePlan::by_map(&to, &first, None, &open(), &|_| false, &restore).unwrap();
        plan.execute(&to, open(), options, &restore).unwrap();
        assert_eq!(fs::read(&fork).unwrap(), before);
        assert_eq!(fs::read(data.join("base/1/notes")).unwrap(), [5; 8192]);
        // It is not what is said to be there.
        let mut control = fs::read(data.join(CONTROL)).unwrap();
        control[100] ^= 1;
        put(&data.join(CONTROL), &control);
        let error =
            RestorePlan::by_map(&first, &to, None, &open(), &|_| false, &restore).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
    })
    .await;

    // Without checksums and logged hints never.
    let source = Cluster::builder(MAJOR).checksums(false).init();
    let id = snapshot(&scene.repository, None, copy_cold(source.data_dir())).await;
    let bare = Snapshot::open(&scene.repository, id, &maps).await.unwrap();
    beside(move || {
        let directory = ExistingDirectory::open(&source.data_dir(), MAJOR).unwrap();
        let options = RestoreOptions::default();
        let error =
            RestorePlan::by_map(&bare, &bare, None, &directory, &|_| false, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tablespace_stays_where_it_is() {
    let scene = Scene::new(|data| {
        put(
            &data.join("pg_tblspc/16401").join(own()).join("5/notes"),
            b"inside",
        );
    })
    .await;
    // What was behind a link lies inside, and the other way round.
    let (linked, inside) = (scene.data("pg_tblspc/16400"), scene.data("pg_tblspc/16401"));
    let away = scene.copy.scratch_dir().join("away");
    fs::remove_file(&linked).unwrap();
    put(&scene.table(), &[8; 16384]);
    put(&linked.join(own()).join("5/left"), b"over");
    fs::rename(&inside, &away).unwrap();
    symlink(&away, &inside).unwrap();
    scene.turn().await.unwrap();
    assert!(fs::symlink_metadata(&linked).unwrap().is_dir());
    assert!(fs::symlink_metadata(&inside).unwrap().is_symlink());
    assert_eq!(fs::read(scene.table()).unwrap(), [7; 16384]);
    assert!(!linked.join(own()).join("5/left").exists());
    assert_eq!(
        fs::read(inside.join(own()).join("5/notes")).unwrap(),
        b"inside"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_known_to_fail_fails_before_the_first_change() {
    let scene = Scene::new(|_| ()).await;
    let tablespace = scene.data("pg_tblspc/16400");
    put(&scene.table(), &[8; 16384]);
    let second_name = scene.copy.scratch_dir().join("second name");
    fs::hard_link(scene.table(), &second_name).unwrap();
    scene.turn().await.unwrap_err();
    assert!(scene.data(CONTROL).exists());
    assert_eq!(fs::read(&second_name).unwrap(), [8; 16384]);
    fs::remove_file(second_name).unwrap();

    // The link is gone, and where the tablespace would be made anew there is something.
    fs::remove_file(&tablespace).unwrap();
    let error = scene.turn().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert!(scene.data(CONTROL).exists());
    fs::remove_dir_all(scene.copy.restored_tablespaces().join("16400")).unwrap();
    scene.turn().await.unwrap();
    assert_eq!(fs::read(scene.table()).unwrap(), [7; 16384]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_snapshot_could_not_hold_is_kept() {
    let scene = Scene::new(|data| {
        let file = data.join("postgresql.conf");
        let outside = data.parent().unwrap().join("postgresql.conf");
        fs::rename(&file, &outside).unwrap();
        symlink(&outside, &file).unwrap();
    })
    .await;
    assert_eq!(scene.snapshot.facts().skipped[0].path, "postgresql.conf");
    let (linked, other) = (scene.data("postgresql.conf"), scene.data("other.conf"));
    for link in [&linked, &other] {
        symlink("/nowhere", link).unwrap();
    }
    scene.turn().await.unwrap();
    assert!(fs::symlink_metadata(linked).unwrap().is_symlink());
    assert!(fs::symlink_metadata(other).is_err(), "not in the snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_restore_of_an_online_snapshot_is_repeated_and_starts() {
    let mut cluster = Cluster::builder(MAJOR).checksums(true).start();
    let outside = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        outside.display()
    ));
    cluster.psql("create table far tablespace outside as select generate_series(1, 5000) i");
    let place = Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let id = snapshot(&repository, None, copy_online(&cluster)).await;
    cluster.stop(StopMode::Immediate);
    let snapshot = Snapshot::open(&repository, id, &reader(&repository))
        .await
        .unwrap();
    let mut copy = Cluster::without_data(MAJOR);
    restore_into(&snapshot, &copy).await;
    prepare(&mut copy);
    copy.start();
    copy.psql("drop table far; create table near as select generate_series(1, 100000) i");
    copy.stop(StopMode::Fast);

    let mut finished = false;
    for delay in [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 60_000] {
        // Left behind by who unpacked an archive; it leads to the live tablespace.
        let map = format!("{} {}\n", 1, outside.display());
        put(&copy.data_dir().join("tablespace_map"), map.as_bytes());
        let cancel = Arc::<AtomicBool>::default();
        let stop = Arc::clone(&cancel);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            stop.store(true, Ordering::Relaxed);
        });
        let outcome = turn_until(&snapshot, &copy, |_| (), cancel).await;
        timer.abort();
        let control = copy.data_dir().join(CONTROL);
        match outcome {
            Ok(_) if finished => break,
            Ok(_) => {
                // As if it had stopped right before its last step.
                fs::remove_file(control).unwrap();
                finished = true;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
                assert!(!control.exists());
            }
        }
    }
    turn(&snapshot, &copy, |_| ()).await.unwrap();
    assert!(finished);
    assert!(!copy.data_dir().join("tablespace_map").exists());
    prepare(&mut copy);
    copy.start();
    assert_eq!(copy.psql("select sum(i) from far"), "12502500");
    assert_eq!(copy.psql("select to_regclass('near')"), "");
}
