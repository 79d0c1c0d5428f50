//! Settings that leave changes out of the log are noticed on real servers, also when they were set back.

use neon_pagestore::changes::{CannotSay, LogSource, SegmentDirectory, Span};
use neon_pg_layout::PgMajor;
use neon_testkit::{Cluster, StopMode};

use super::chain::Stop;
use super::forged::ask;

/// What the log says of a time in which these settings held, with the first of each pair set back after.
fn asked_after(
    major: PgMajor,
    checksums: bool,
    settings: &[(&str, &str, &str)],
) -> Result<(), CannotSay> {
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_level", "replica")
        .setting("wal_keep_size", "1GB")
        .start();
    cluster.psql("create table t as select i from generate_series(1, 1000) i");
    cluster.stop(StopMode::Fast);
    let before = Stop::of(&cluster);
    for (name, there, _) in settings {
        cluster.set(name, there);
    }
    cluster.start();
    cluster.psql("insert into t values (1)");
    cluster.stop(StopMode::Fast);
    for (name, _, back) in settings {
        cluster.set(name, back);
    }
    cluster.start();
    cluster.stop(StopMode::Fast);
    let after = Stop::of(&cluster);
    let mut log = SegmentDirectory::new(cluster.data_dir().join("pg_wal"));
    let child = after.child(&before, &mut log);
    let span = Span::between(&before.parent(), &child).unwrap();
    ask(&mut LogSource::new(span, &mut log)).map(drop)
}

#[test]
fn a_server_that_ran_without_full_logging_is_noticed() {
    let minimal = [
        ("wal_level", "minimal", "replica"),
        ("max_wal_senders", "0", "10"),
    ];
    for major in [PgMajor::V13, PgMajor::V18] {
        let reason = asked_after(major, true, &minimal).unwrap_err();
        assert_eq!(reason.code(), "wal-level-minimal", "{major}: {reason}");
    }
}

#[test]
fn a_server_that_logged_hints_for_a_while_is_noticed() {
    let hints = [("wal_log_hints", "on", "off")];
    let reason = asked_after(PgMajor::V15, false, &hints).unwrap_err();
    assert_eq!(reason.code(), "hint-logging-changed", "{reason}");
    asked_after(PgMajor::V15, true, &hints).unwrap();
}

#[test]
fn other_settings_do_not_matter() {
    let others = [
        ("max_connections", "60", "40"),
        ("full_page_writes", "off", "on"),
    ];
    asked_after(PgMajor::V16, false, &others).unwrap();
}
