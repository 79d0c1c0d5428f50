//! What every program does with words and readers that are not what it hopes for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

/// Every program, and a number of words that is wrong for it.
const PROGRAMS: [(&str, usize); 9] = [
    (env!("CARGO_BIN_EXE_embedded_postgres"), 3),
    (env!("CARGO_BIN_EXE_inspect_pgdata"), 2),
    (env!("CARGO_BIN_EXE_recover_to_time"), 4),
    (env!("CARGO_BIN_EXE_restore_single_file"), 3),
    (env!("CARGO_BIN_EXE_snapshot_to_single_file"), 3),
    (env!("CARGO_BIN_EXE_storage_roundtrip"), 2),
    (env!("CARGO_BIN_EXE_stream_wal"), 3),
    (env!("CARGO_BIN_EXE_take_base_backup"), 3),
    (env!("CARGO_BIN_EXE_wal_changes"), 0),
];

#[test]
fn help_is_no_failure_and_wrong_numbers_of_words_are_wrong_usage() {
    for (program, wrong) in PROGRAMS {
        let help = super::run(program, ["--help"]);
        assert_eq!(
            (help.code, help.stderr.as_str()),
            (Some(0), ""),
            "{program}"
        );
        assert!(help.stdout.starts_with("usage: "), "{}", help.stdout);
        let outcome = super::run(program, vec!["nothing"; wrong]);
        assert_eq!(outcome.code, Some(2), "{program}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("usage: "), "{}", outcome.stderr);
    }
}

#[test]
fn words_that_are_no_text_make_no_program_panic() {
    let shim = env!("CARGO_BIN_EXE_pg_basebackup_shim");
    let programs = PROGRAMS.iter().map(|(program, _)| *program);
    for program in programs.chain([shim]) {
        for count in 1..4 {
            let words = vec![OsStr::from_bytes(b"/nowhere/\xff"); count];
            let outcome = super::run(program, words);
            let expected = matches!(outcome.code, Some(1..=3));
            assert!(expected, "{program}: {:?} {}", outcome.code, outcome.stderr);
        }
    }
}

#[test]
fn without_a_reader_a_program_ends_quietly() {
    for (program, _) in PROGRAMS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(program)
            .arg("--help")
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*complaint),
            (Some(0), ""),
            "{program}"
        );
    }
}
