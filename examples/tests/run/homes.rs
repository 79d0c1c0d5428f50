//! The examples of the whole: a home each.

use neon_testkit::{Cluster, Installation, PgMajor, Scratch};

use super::run;

fn lines(program: &str, words: &[&str], expected: &[&str]) {
    let outcome = run(program, words);
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n{}",
        outcome.stdout,
        outcome.stderr
    );
    let printed: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(printed.len(), expected.len(), "{printed:#?}");
    for (line, begins) in printed.iter().zip(expected) {
        assert!(line.starts_with(begins), "{line:?} is not {begins:?}");
    }
}

fn without_a_url(program: &str, expected: &[&str]) {
    let installation = Installation::of(PgMajor::V15);
    let scratch = Scratch::new();
    let words = [
        installation.bin_dir().to_str().unwrap(),
        scratch.path().to_str().unwrap(),
    ];
    lines(program, &words, expected);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn quickstart_rolls_damage_back() {
    without_a_url(
        env!("CARGO_BIN_EXE_quickstart"),
        &[
            "pgdata1: PostgreSQL 15",
            "pgdata1@before: ",
            "after the damage: 0 films",
            "the damage will be kept as pgdata1@HEAD{0}",
            "rolled back: 10000 films, ",
        ],
    );
}

#[test]
fn branch_per_test_gives_every_test_the_data_as_it_was_loaded() {
    without_a_url(
        env!("CARGO_BIN_EXE_branch_per_test"),
        &["a clone for each: 3 tests, ", "one, rolled back: 3 tests, "],
    );
}

#[test]
fn import_from_running_starts_a_copy_beside_its_origin() {
    let origin = Cluster::builder(PgMajor::V15)
        .tcp()
        .password("s3cret")
        .start();
    origin.psql("create database films");
    let scratch = Scratch::new();
    let url = format!("basebackup://postgres:s3cret@127.0.0.1:{}/", origin.port());
    let words = [
        url.as_str(),
        Installation::of(PgMajor::V15).bin_dir().to_str().unwrap(),
        scratch.path().to_str().unwrap(),
    ];
    let first = "origin: online snapshot of ";
    lines(
        env!("CARGO_BIN_EXE_import_from_running"),
        &words,
        &[first, "copy: films, postgres"],
    );
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    let wrong = run(env!("CARGO_BIN_EXE_import_from_running"), [""; 0]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    let nobody = run(
        env!("CARGO_BIN_EXE_import_from_running"),
        ["basebackup://nobody@127.0.0.1:1/", words[1], words[2]],
    );
    assert_eq!(nobody.code, Some(1), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("caused by: "), "{}", nobody.stderr);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
