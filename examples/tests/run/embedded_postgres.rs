use neon_testkit::{Installation, Scratch};

use super::run;

#[test]
fn embedded_postgres_starts_asks_and_leaves_nothing() {
    for installation in Installation::all() {
        let scratch = Scratch::new();
        let outcome = run(
            env!("CARGO_BIN_EXE_embedded_postgres"),
            [installation.bin_dir(), scratch.path()],
        );
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let version = installation.version();
        for line in [
            format!("PostgreSQL {version} in "),
            "blocking: postgresql://postgres:…@localhost:".to_owned(),
            format!("blocking: work_mem 4MB, {version}"),
            format!("async: work_mem 9MB, {version}"),
        ] {
            assert!(
                outcome
                    .stdout
                    .lines()
                    .any(|printed| printed.starts_with(&line)),
                "no {line:?} in\n{}",
                outcome.stdout
            );
        }
        let left = std::fs::read_dir(scratch.path()).unwrap().count();
        assert_eq!(left, 0);
    }
}

#[test]
fn embedded_postgres_says_what_is_missing() {
    let scratch = Scratch::new();
    let outcome = run(env!("CARGO_BIN_EXE_embedded_postgres"), [scratch.path()]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("error: PostgreSQL: no "),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
}
