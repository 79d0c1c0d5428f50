//! Runs every example as an outsider would.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests panic on failure"
)]

mod wal_changes {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use neon_testkit::{Cluster, PgMajor, StopMode};

    /// Runs the example; exit code, what it printed, what it complained about.
    fn run(args: &[&str], path: &Path) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_wal_changes"))
            .args(args)
            .arg(path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    #[test]
    fn wal_changes_lists_what_a_range_changed_and_refuses_gaps_and_damage() {
        let mut cluster = Cluster::builder(PgMajor::V18)
            .wal_segment_mib(1)
            .setting("wal_keep_size", "1GB")
            .setting("autovacuum", "off")
            .start();
        let start = cluster.psql("create table gone (i int); select pg_current_wal_lsn()");
        cluster.psql(
            "create table t (i int); insert into t select generate_series(1, 20000);
             delete from t where i > 300; vacuum (truncate) t; drop table gone;
             select pg_create_restore_point('here')",
        );
        let end = cluster
            .psql("select pg_logical_emit_message(true, '', ''); select pg_current_wal_lsn()");
        let end = end.lines().last().unwrap();
        cluster.psql("insert into t select generate_series(1, 100000)");
        let relation = |name: &str| {
            cluster.psql(&format!(
                "select '1663/' || (select oid from pg_database where datname = 'postgres') || '/'
                        || pg_relation_filenode('{name}')"
            ))
        };
        let table = relation("t");
        let blocks = cluster.psql("select pg_relation_size('t') / 8192");
        cluster.stop(StopMode::Fast);
        let wal = cluster.data_dir().join("pg_wal");

        let (code, printed, complaint) = run(&["--start", &start, "--end", end], &wal);
        assert_eq!((code, complaint.as_str()), (Some(0), ""), "{printed}");
        let main = printed
            .lines()
            .find(|line| line.starts_with(&format!("{table} ")) && line.contains(" main "))
            .unwrap_or_else(|| panic!("no {table} in\n{printed}"));
        assert!(main.contains("created, truncated to 2"), "{main}");
        assert!(printed.contains("restore point \"here\""), "{printed}");
        assert!(
            printed.lines().any(|line| line.ends_with(" dropped")),
            "{printed}"
        );

        let (code, printed, _) = run(&[], &wal);
        assert_eq!(code, Some(0));
        assert!(printed.contains("shutdown checkpoint"), "{printed}");
        let main = printed
            .lines()
            .find(|line| line.starts_with(&format!("{table} ")) && line.contains(" main "))
            .unwrap();
        assert_eq!(main.split_whitespace().nth(2).unwrap(), blocks);

        let (code, _, complaint) = run(&["--end", "FF/0"], &wal);
        assert!(matches!(code, Some(3 | 5)), "{code:?} {complaint}");
        let (code, _, complaint) = run(&["--end"], &wal);
        assert_eq!(code, Some(2), "{complaint}");
        let (code, _, complaint) = run(&["--start", "x"], &wal);
        assert_eq!(code, Some(2), "{complaint}");
        let (code, _, complaint) = run(&[], &cluster.data_dir().join("base"));
        assert_eq!(code, Some(3), "{complaint}");

        let mut names: Vec<_> = fs::read_dir(&wal)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        names.sort();
        let victim = &names[names.len() / 2];
        let name = victim.file_name().unwrap().to_str().unwrap();
        let sound = fs::read(victim).unwrap();
        fs::remove_file(victim).unwrap();
        let (code, _, complaint) = run(&[], &wal);
        assert_eq!(
            (code, complaint),
            (Some(3), format!("error: segment {name} is missing\n"))
        );
        let mut damaged = sound.clone();
        damaged[300_000] ^= 1;
        fs::write(victim, damaged).unwrap();
        let (code, _, complaint) = run(&[], &wal);
        assert_eq!(code, Some(5));
        assert!(
            complaint.contains("CRC") || complaint.contains("WAL"),
            "{complaint}"
        );
        fs::write(victim, &sound[..500_000]).unwrap();
        let (code, _, complaint) = run(&[], &wal);
        assert_eq!(code, Some(5));
        assert!(
            complaint.contains(name) && complaint.contains("too short"),
            "{complaint}"
        );
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
