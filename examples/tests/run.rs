//! Runs every example as an outsider would, on real clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests panic on failure"
)]

#[path = "run/base_backup_and_wal.rs"]
mod base_backup_and_wal;
#[path = "run/embedded_postgres.rs"]
mod embedded_postgres;
#[path = "run/inspect_pgdata.rs"]
mod inspect_pgdata;
#[path = "run/recover_to_time.rs"]
mod recover_to_time;
#[path = "run/single_file.rs"]
mod single_file;
#[path = "run/wal_changes.rs"]
mod wal_changes;

use std::process::Command;

/// What a program printed and how it ended.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs an example: `run(env!("CARGO_BIN_EXE_name"), [...])`.
fn run<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Outcome {
    let output = Command::new(program).args(args).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
