//! `inspect_pgdata` on whole, damaged, running, missing and wrong directories.

use std::path::Path;

use neon_testkit::{Cluster, PgMajor, Scratch, StopMode};

use super::{Outcome, run};

fn inspect(directory: &Path) -> Outcome {
    run(env!("CARGO_BIN_EXE_inspect_pgdata"), [directory])
}

fn cluster(major: PgMajor, checksums: bool) -> (Cluster, String) {
    let cluster = Cluster::builder(major).checksums(checksums).start();
    let tablespace = cluster.tablespace_dir("elsewhere");
    cluster.psql(&format!(
        "create tablespace elsewhere location '{}'",
        tablespace.display()
    ));
    cluster.psql(
        "create table t (i int primary key, filler char(500)) tablespace elsewhere; \
         insert into t select i, 'x' from generate_series(1, 3000) i; checkpoint",
    );
    let path = cluster.psql("select pg_relation_filepath('t')");
    (cluster, path)
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

fn a_cluster_is_described_and_damage_is_found(major: PgMajor) {
    let (mut cluster, path) = cluster(major, true);
    let identifier = cluster.psql("select system_identifier from pg_control_system()");
    let running = inspect(&cluster.data_dir());
    assert_eq!(
        (running.code, running.stderr.as_str()),
        (Some(0), ""),
        "{}",
        running.stdout
    );
    assert!(
        running.stdout.contains("in production"),
        "{}",
        running.stdout
    );
    cluster.stop(StopMode::Fast);
    let whole = inspect(&cluster.data_dir());
    assert_eq!(
        (whole.code, whole.stderr.as_str()),
        (Some(0), ""),
        "{}",
        whole.stdout
    );
    for fact in [
        &format!("PostgreSQL {major}"),
        &identifier,
        "shut down",
        " 0 bad",
    ] {
        assert!(whole.stdout.contains(fact), "{fact}: {}", whole.stdout);
    }
    flip(&cluster.data_dir().join(&path), 3 * 8192 + 4000);
    flip(&cluster.data_dir().join(&path), 170 * 8192 + 8);
    let damaged = inspect(&cluster.data_dir());
    assert_eq!(damaged.code, Some(5));
    let bad: Vec<&str> = damaged
        .stdout
        .lines()
        .filter(|line| line.starts_with("bad: "))
        .collect();
    assert_eq!(bad.len(), 2, "{}", damaged.stdout);
    assert!(
        bad[0].starts_with(&format!("bad: {path} block 3: WrongChecksum")),
        "{bad:?}"
    );
    assert!(
        bad[1].starts_with(&format!("bad: {path} block 170: WrongChecksum")),
        "{bad:?}"
    );
    assert!(damaged.stdout.contains(" 2 bad"));
}

#[test]
fn a_cluster_of_15_is_described_and_damage_is_found() {
    a_cluster_is_described_and_damage_is_found(PgMajor::V15);
}

#[test]
fn a_cluster_of_18_is_described_and_damage_is_found() {
    a_cluster_is_described_and_damage_is_found(PgMajor::V18);
}

#[test]
fn after_a_crash_a_torn_page_is_excused_and_a_page_of_no_server_is_not() {
    let (mut cluster, path) = cluster(PgMajor::V15, true);
    cluster.psql("update t set filler = 'y' where i < 100");
    cluster.psql("select count(*) from t; insert into t values (9000, 'z')");
    cluster.kill9();
    let file = cluster.data_dir().join(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    let control = std::fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    let redo = neon_pg_layout::ControlFile::decode(&control)
        .unwrap()
        .checkpoint
        .redo;
    let stamp = |page: &mut [u8], lsn: u64| {
        // Only the low half: the log of a small cluster is short.
        page[4..8].copy_from_slice(&u32::try_from(lsn).unwrap().to_le_bytes());
    };
    stamp(&mut bytes[2 * 8192..], redo.0 + 8);
    std::fs::write(&file, &bytes).unwrap();
    let torn = inspect(&cluster.data_dir());
    assert_eq!(torn.code, Some(0), "{}", torn.stdout);
    assert!(
        torn.stdout
            .contains(" 1 torn but restored by the log, 0 bad"),
        "{}",
        torn.stdout
    );
    bytes[3 * 8192..4 * 8192].fill(0xFF);
    stamp(&mut bytes[4 * 8192..], redo.0 + (1 << 30));
    stamp(&mut bytes[5 * 8192..], redo.0 - 8);
    std::fs::write(&file, &bytes).unwrap();
    let damaged = inspect(&cluster.data_dir());
    assert_eq!(damaged.code, Some(5), "{}", damaged.stdout);
    assert!(
        damaged
            .stdout
            .contains(" 1 torn but restored by the log, 3 bad"),
        "{}",
        damaged.stdout
    );
}

#[test]
fn without_checksums_only_headers_are_checked_and_it_says_so() {
    let (mut cluster, path) = cluster(PgMajor::V14, false);
    cluster.stop(StopMode::Fast);
    flip(&cluster.data_dir().join(&path), 4000);
    let outcome = inspect(&cluster.data_dir());
    assert_eq!(outcome.code, Some(0));
    assert_eq!(without_a_reader(&cluster.data_dir()), (Some(0), Vec::new()));
    assert!(
        outcome.stdout.contains("page checksums are off"),
        "{}",
        outcome.stdout
    );
    flip(&cluster.data_dir().join(&path), 8192 + 17);
    assert_eq!(without_a_reader(&cluster.data_dir()), (Some(5), Vec::new()));
    let outcome = inspect(&cluster.data_dir());
    assert_eq!(outcome.code, Some(5));
    assert!(
        outcome.stdout.contains("block 1: WrongHeader"),
        "{}",
        outcome.stdout
    );
}

/// The exit code and the complaints when nobody reads what is printed.
fn without_a_reader(directory: &Path) -> (Option<i32>, Vec<u8>) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_inspect_pgdata"))
        .arg(directory)
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    (output.status.code(), output.stderr)
}

#[test]
fn only_the_folders_of_relations_and_the_links_of_tablespaces_are_walked() {
    let (mut cluster, _) = cluster(PgMajor::V16, true);
    cluster.stop(StopMode::Fast);
    let whole = inspect(&cluster.data_dir());
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    let data = cluster.data_dir();
    // Each holds what looks like a relation with a bad page, were it looked for there.
    let bad = cluster.scratch_dir().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("16384"), [7; 8192]).unwrap();
    std::os::unix::fs::symlink("/", data.join("root")).unwrap();
    std::os::unix::fs::symlink(&bad, data.join("base/linked")).unwrap();
    std::os::unix::fs::symlink("/nowhere", data.join("pg_tblspc/99999")).unwrap();
    std::fs::create_dir(data.join("lost+found")).unwrap();
    std::fs::write(data.join("base/12345"), "no folder").unwrap();
    let outcome = inspect(&data);
    assert_eq!((outcome.code, outcome.stdout), (Some(0), whole.stdout));
}

#[test]
fn what_is_no_cluster_is_refused_with_a_reason() {
    let scratch = Scratch::new();
    let missing = inspect(&scratch.path().join("missing"));
    assert_eq!(missing.code, Some(3));
    assert!(
        missing.stderr.contains("No such file or directory"),
        "{}",
        missing.stderr
    );
    let empty = inspect(scratch.path());
    assert_eq!(empty.code, Some(3));
    assert!(empty.stderr.contains("pg_control"), "{}", empty.stderr);
    std::fs::create_dir(scratch.path().join("global")).unwrap();
    std::fs::write(scratch.path().join("global/pg_control"), "not one").unwrap();
    let wrong = inspect(scratch.path());
    assert_eq!(wrong.code, Some(5));
    assert!(
        wrong.stderr.contains("7 bytes long instead of 8192"),
        "{}",
        wrong.stderr
    );
    let nothing = run(env!("CARGO_BIN_EXE_inspect_pgdata"), [] as [&str; 0]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.starts_with("usage: "));
}
