//! `snapshot_to_single_file` and `restore_single_file`: a cluster goes into one file and starts again.

use std::fs::File;
use std::process::{Command, Stdio};

use neon_testkit::{Cluster, PgMajor, StopMode};

use super::run;

const PACK: &str = env!("CARGO_BIN_EXE_snapshot_to_single_file");
const RESTORE: &str = env!("CARGO_BIN_EXE_restore_single_file");

#[test]
fn a_cluster_goes_into_one_file_and_starts_again() {
    let major = PgMajor::V17;
    let mut cluster = Cluster::builder(major).start();
    let tablespace = cluster.tablespace_dir("elsewhere");
    cluster.psql(&format!(
        "create tablespace elsewhere location '{}'",
        tablespace.display()
    ));
    cluster.psql("create table t tablespace elsewhere as select generate_series(1, 3000) i");
    let data = cluster.data_dir();
    let file = cluster.scratch_dir().join("cluster.neon");

    let running = run(PACK, [&data, &file]);
    assert_eq!(running.code, Some(1));
    assert!(
        running.stderr.contains("in production"),
        "{}",
        running.stderr
    );
    assert!(!file.exists());

    cluster.stop(StopMode::Fast);
    let packed = run(PACK, [&data, &file]);
    assert_eq!((packed.code, packed.stderr.as_str()), (Some(0), ""));
    assert!(packed.stdout.contains("bytes"), "{}", packed.stdout);
    assert_eq!(run(PACK, [&data, &file]).code, Some(1), "never over a file");

    // Through a pipe it is the same snapshot.
    let piped = cluster.scratch_dir().join("piped.neon");
    let status = Command::new(PACK)
        .args([data.as_os_str(), "-".as_ref()])
        .stdout(Stdio::from(File::create(&piped).unwrap()))
        .status()
        .unwrap();
    assert!(status.success());

    for file in [file, piped] {
        let mut restored = Cluster::builder(major).init();
        std::fs::remove_dir_all(restored.data_dir()).unwrap();
        let target = restored.data_dir();
        let outcome = run(RESTORE, [&file, &target]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
        assert!(
            outcome.stdout.starts_with("PostgreSQL 17\n"),
            "{}",
            outcome.stdout
        );
        restored.set("jit", "off");
        restored.start();
        assert_eq!(restored.psql("select sum(i) from t"), "4501500");
        let again = run(RESTORE, [&file, &target]);
        assert_eq!(
            again.code,
            Some(1),
            "never into a directory that is not empty"
        );
        assert!(again.stderr.contains("not empty"), "{}", again.stderr);
    }
}

#[test]
fn what_is_no_single_file_is_named() {
    let cluster = Cluster::builder(PgMajor::V16).init();
    let target = cluster.scratch_dir().join("target");
    let outcome = run(RESTORE, [&cluster.data_dir(), &target]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("a data directory of PostgreSQL 16"),
        "{}",
        outcome.stderr
    );
    assert!(!target.exists());
    assert_eq!(run(RESTORE, ["only one"]).code, Some(2));
    assert_eq!(run(PACK, ["only one"]).code, Some(2));
}
