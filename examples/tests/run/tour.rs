//! The tour of the README, on the oldest and the newest major.

use neon_testkit::{Installation, PgMajor};

use crate::run;

fn tour(major: PgMajor) {
    let outcome = run(
        env!("CARGO_BIN_EXE_tour"),
        [Installation::of(major).bin_dir()],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stdout.contains("200000 accounts, sum 20000000"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn the_tour_brings_back_what_13_had() {
    tour(PgMajor::V13);
}

#[test]
fn the_tour_brings_back_what_18_had() {
    tour(PgMajor::V18);
}

#[test]
fn the_tour_without_a_server_says_what_is_missing() {
    let outcome = run(env!("CARGO_BIN_EXE_tour"), ["/nonexistent"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.starts_with("error: "), "{}", outcome.stderr);
    assert_eq!(run(env!("CARGO_BIN_EXE_tour"), ["a", "b"]).code, Some(2));
}
