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
#[path = "run/edges.rs"]
mod edges;
#[path = "run/embedded_postgres.rs"]
mod embedded_postgres;
#[path = "run/homes.rs"]
mod homes;
#[path = "run/inspect_pgdata.rs"]
mod inspect_pgdata;
#[path = "run/page_at.rs"]
mod page_at;
#[path = "run/recover_to_time.rs"]
mod recover_to_time;
#[path = "run/single_file.rs"]
mod single_file;
#[path = "run/tour.rs"]
mod tour;
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

mod storage_roundtrip {
    use std::process::{Command, Output};

    use neon_testkit::s3::{S3Server, S3ServerOptions};

    fn run(locator: &str, variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_storage_roundtrip"))
            .arg(locator)
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    fn check(output: &Output) {
        let printed = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}\n{complained}");
        assert!(printed.contains("stored 3145728 bytes"), "{printed}");
        assert!(printed.contains("refused: put large/object: the object exists already"));
        assert!(printed.contains("listed many/7 many/8 many/9"), "{printed}");
        assert!(printed.contains("deleted 12"), "{printed}");
    }

    #[test]
    fn a_directory_goes_round() {
        let dir = tempfile::tempdir().unwrap();
        check(&run(dir.path().to_str().unwrap(), &[]));
    }

    #[test]
    fn a_bucket_goes_round_with_credentials_from_the_environment() {
        let server = S3Server::start(S3ServerOptions::default());
        let locator = format!("s3://bucket/some/prefix?endpoint={}", server.endpoint());
        let options = server.options();
        let output = run(
            &locator,
            &[
                ("AWS_ACCESS_KEY_ID", options.access_key.as_str()),
                ("AWS_SECRET_ACCESS_KEY", options.secret_key.as_str()),
            ],
        );
        check(&output);
        assert_eq!(server.objects("bucket"), []);
        let output = run(&locator, &[("AWS_EC2_METADATA_DISABLED", "true")]);
        assert_eq!(output.status.code(), Some(1));
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(complained.contains("not authenticated"), "{complained}");
    }

    #[test]
    fn usage_is_shown_without_a_locator() {
        let output = Command::new(env!("CARGO_BIN_EXE_storage_roundtrip"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
}
