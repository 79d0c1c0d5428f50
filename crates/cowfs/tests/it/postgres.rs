//! Stopped clusters with tablespaces: each method's clone starts, answers and has good checksums, and the
//! original does not change with it.

use std::fs;
use std::path::{Path, PathBuf};

use neon_cowfs::{CloneOptions, Method, Wanted, clone_tree, extents};
use neon_testkit::{Cluster, Installation, OsUser, PgMajor, StopMode};

use crate::mounts::{btrfs, ext4, run, with_mounts, xfs};
use crate::support::tree;

const QUESTION: &str = "select (select count(*) || ' ' || sum(hashtext(body)::bigint) from kept),
    (select sum(i) from far), (select sum(i) from near), (select count(*) from scratch)";

/// A stopped cluster with a tablespace elsewhere and one in place, and what it answers.
fn stopped(major: PgMajor) -> (Cluster, String) {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    let place = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        place.display()
    ));
    cluster.psql("set allow_in_place_tablespaces = on; create tablespace inside location ''");
    cluster.psql(
        "create table kept (id int primary key, body text);
         insert into kept select i, repeat(md5(i::text), 20) from generate_series(1, 20000) i;
         create table far (i int) tablespace outside;
         insert into far select generate_series(1, 50000);
         create table near (i int) tablespace inside;
         insert into near select generate_series(1, 700);
         create unlogged table scratch as select generate_series(1, 1000) as i",
    );
    let answer = cluster.psql(QUESTION);
    cluster.stop(StopMode::Fast);
    (cluster, answer)
}

/// A server on a data directory that lies elsewhere, which is mounted where the test kit looks for it.
struct Served(Cluster);

impl Served {
    fn on(major: PgMajor, data: &Path) -> Self {
        let cluster = Cluster::builder(major).checksums(true).init();
        let place = cluster.data_dir();
        run(
            "mount",
            &["--bind", data.to_str().unwrap(), place.to_str().unwrap()],
        );
        let mut served = Self(cluster);
        served.0.set("allow_in_place_tablespaces", "on");
        served.0.start();
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.0.pid().is_some() {
            self.0.kill9();
        }
        let place = self.0.data_dir();
        run("umount", &["-l", place.to_str().unwrap()]);
    }
}

fn check_sums(major: PgMajor, data: &Path) {
    let output = Installation::of(major)
        .command("pg_checksums")
        .arg("--check")
        .arg("-D")
        .arg(data)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("Bad checksums:  0"),
        "{text}{said}"
    );
}

fn tablespaces(disk: &Path, name: &str) -> PathBuf {
    let folder = disk.join(name);
    OsUser::current().create_dir(&folder);
    folder
}

fn a_clone_starts_answers_and_leaves_its_original_alone(
    major: PgMajor,
    disk: &Path,
    method: Method,
) {
    let (cluster, answer) = stopped(major);
    let (origin, clone) = (disk.join("origin"), disk.join("clone"));
    // Onto the disk, by a copy: nothing is shared between two file systems.
    let spaces = tablespaces(disk, "origin-spaces");
    let moved = clone_tree(
        &cluster.data_dir(),
        &origin,
        &CloneOptions::new().tablespaces_below(&spaces),
    )
    .unwrap();
    assert_eq!((moved.method, moved.parts.len()), (Method::Copy, 2));
    drop(cluster);
    check_sums(major, &origin);
    let before = (tree(&origin), tree(&spaces));

    let spaces_of_clone = tablespaces(disk, "clone-spaces");
    let options = CloneOptions::new()
        .wanted(Wanted::Only(method))
        .tablespaces_below(&spaces_of_clone);
    let cloned = clone_tree(&origin, &clone, &options).unwrap();
    assert_eq!(cloned.parts.len(), 2);
    if method.is_copy_on_write() {
        assert_eq!(cloned.shared_bytes, cloned.bytes);
        for part in [&clone, &spaces_of_clone] {
            let found = extents(part).unwrap();
            assert!(
                found.shared >= found.written / 10 * 9 && found.shared > 0,
                "{found:?}"
            );
        }
    }
    check_sums(major, &clone);
    let mut served = Served::on(major, &clone);
    assert_eq!(served.0.psql(QUESTION), answer);
    let place = served
        .0
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    assert!(
        place.starts_with(spaces_of_clone.to_str().unwrap()),
        "{place}"
    );
    assert!(!served.0.log().contains("not properly shut down"));
    served.0.psql(
        "update kept set body = 'other'; delete from far; insert into near select 1; truncate scratch;
         create table more (i int) tablespace outside; drop table more; checkpoint",
    );
    served.0.psql("vacuum full kept");
    served.0.stop(StopMode::Fast);
    check_sums(major, &clone);
    assert!(
        (tree(&origin), tree(&spaces)) == before,
        "the original changed"
    );
    drop(served);

    let mut served = Served::on(major, &origin);
    assert_eq!(served.0.psql(QUESTION), answer);
    served.0.stop(StopMode::Fast);
    drop(served);
    check_sums(major, &origin);
    neon_cowfs::remove_tree(&clone).unwrap();
    assert!(fs::symlink_metadata(&clone).is_err());
}

#[test]
fn a_cluster_of_18_is_cloned_by_a_snapshot_on_btrfs() {
    with_mounts(|| {
        a_clone_starts_answers_and_leaves_its_original_alone(
            PgMajor::V18,
            &btrfs(),
            Method::Subvolume,
        );
    });
}

#[test]
fn a_cluster_of_16_is_cloned_by_reflinks_on_xfs() {
    with_mounts(|| {
        a_clone_starts_answers_and_leaves_its_original_alone(PgMajor::V16, &xfs(), Method::Reflink);
    });
}

#[test]
fn a_cluster_of_15_is_cloned_by_a_copy_on_ext4() {
    with_mounts(|| {
        a_clone_starts_answers_and_leaves_its_original_alone(PgMajor::V15, &ext4(), Method::Copy);
    });
}

#[test]
fn a_running_server_is_noticed_by_what_it_writes() {
    let mut cluster = Cluster::builder(PgMajor::V16).start();
    cluster.psql("create table t (i int)");
    let target = cluster.scratch_dir().join("clone");
    let writer = std::sync::Mutex::new(cluster.session("postgres"));
    let options = CloneOptions::new().on_event(move |event| {
        if matches!(event, neon_cowfs::Event::Listed { .. }) {
            writer
                .lock()
                .unwrap()
                .run("insert into t select generate_series(1, 100000); checkpoint");
        }
    });
    let error = clone_tree(&cluster.data_dir(), &target, &options).unwrap_err();
    assert_eq!(error.kind(), neon_cowfs::ErrorKind::Changed, "{error}");
    assert!(!target.exists());
    cluster.stop(StopMode::Fast);
}
