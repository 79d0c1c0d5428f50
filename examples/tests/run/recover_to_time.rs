//! `recover_to_time`.

use std::path::Path;
use std::process::Command;

use neon_testkit::{Cluster, OsUser, PgMajor, StopMode};

/// Exit code, and all it said.
fn run(cluster: &Cluster, base: &Path, wal: &Path, time: &str) -> (Option<i32>, String) {
    // A folder of its own for temporary files, which is empty afterwards.
    let temporary = cluster.scratch_dir().join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_recover_to_time"))
        .env("TMPDIR", &temporary)
        .arg("--bin")
        .arg(cluster.installation().bin_dir())
        .args([base, wal])
        .arg(time)
        .output()
        .unwrap();
    let left = std::fs::read_dir(&temporary).unwrap().count();
    assert_eq!(left, 0, "something is left in the temporary folder");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn recover_to_time_undoes_what_came_later_and_refuses_what_it_cannot_reach() {
    let mut cluster = Cluster::builder(PgMajor::V17)
        .wal_segment_mib(1)
        .setting("archive_mode", "on")
        .init();
    let wal = cluster.scratch_dir().join("archive");
    OsUser::current().create_dir(&wal);
    cluster.set("archive_command", format!("cp %p {}/%f", wal.display()));
    cluster.start();
    cluster.psql("create table t as select 1 as i");
    cluster.stop(StopMode::Fast);
    let (base, other) = (cluster.copy_cold(), cluster.copy_cold());
    cluster.start();
    let time = cluster.psql(
        "insert into t values (2); select pg_sleep(1.1); select now(); select pg_sleep(0.1); drop table t",
    );
    let time = time.trim().to_owned();
    let end = cluster.psql("select now() + interval '1 hour'");
    cluster.stop(StopMode::Fast);

    let early = run(&cluster, &base.path(), &wal, "2020-01-01T00:00:00Z");
    assert_eq!(early.0, Some(4), "{}", early.1);
    let zoneless = run(&cluster, &base.path(), &wal, "2020-01-01T00:00:00");
    assert_eq!(zoneless.0, Some(2), "{}", zoneless.1);
    let done = run(&cluster, &base.path(), &wal, &time);
    assert_eq!(done.0, Some(0), "{}", done.1);
    assert!(done.1.contains("is on timeline 2 now"), "{}", done.1);
    let mut recovered = Cluster::builder(PgMajor::V17).on_copy(base);
    recovered.start();
    assert_eq!(recovered.psql("select sum(i) from t"), "3");
    recovered.stop(StopMode::Fast);

    // Nothing tells that the time is reached: it is not taken for reached, and nothing is promoted.
    let late = run(&cluster, &other.path(), &wal, &end);
    assert_eq!(late.0, Some(3), "{}", late.1);
    assert!(late.1.contains("hint: if nothing more"), "{}", late.1);
    assert!(other.path().join("recovery.signal").exists());
    let nothing = run(&cluster, &cluster.scratch_dir().join("gone"), &wal, &end);
    assert_eq!(nothing.0, Some(1), "{}", nothing.1);
    let latest = run(&cluster, &other.path(), &wal, "latest");
    assert_eq!(latest.0, Some(0), "{}", latest.1);
    let mut recovered = Cluster::builder(PgMajor::V17).on_copy(other);
    recovered.start();
    assert!(recovered.try_psql("select from t").is_err());
}
