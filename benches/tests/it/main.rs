//! The program `side-by-side` as a whole process, on as little data as there can be.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The command that is compared, built as this test was.
fn neon() -> PathBuf {
    let neon = Path::new(env!("CARGO_BIN_EXE_side-by-side")).with_file_name("neon");
    // A run of all tests has built it.
    if !neon.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-p", "neon-pg-cli"])
            .status();
        assert!(built.unwrap().success());
    }
    neon
}

fn side_by_side(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_side-by-side"))
        .args(["--quick", "--scale", "1", "--rounds", "1", "--directory"])
        .arg(folder)
        .arg("--neon")
        .arg(neon())
        .args(arguments)
        .output()
        .unwrap()
}

/// A folder that servers may walk through.
fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap()
}

fn left(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn everybody_takes_and_gives_back_the_same_and_nothing_is_left() {
    let folder = folder();
    let results = tempfile::tempdir().unwrap();
    let (json, svg) = (results.path().join("json"), results.path().join("svg"));
    let mut arguments = vec!["--only", "first", "--only", "requests"];
    for peer in ["pgbackrest", "restic", "zstd", "pg_combinebackup"] {
        arguments.extend(["--without", peer]);
    }
    let paths = [
        "--json",
        json.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ];
    arguments.extend(paths);
    let output = side_by_side(folder.path(), &arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(left(folder.path()), 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("| pg_basebackup plain |"), "{text}");
    let document = std::fs::read(json).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let rows = document["results"].as_array().unwrap();
    let ran = |stage: &str| rows.iter().filter(|row| row["stage"] == stage).count();
    // Two of ours, two of pg_basebackup, cp, and the floors.
    assert_eq!(ran("first snapshot"), 5 + 3);
    assert_eq!(ran("restore into an empty directory"), 5 + 1);
    let asked = |stage: &str| {
        let row = rows.iter().find(|row| row["stage"] == stage).unwrap();
        row["runs"][0]["requests"].as_u64().unwrap()
    };
    assert!(asked("to a bucket: first snapshot") > asked("to a bucket: list"));
    assert!(asked("to a bucket: list") > 0);
    for row in rows {
        let run = &row["runs"][0];
        assert!(run["wall"].as_f64().unwrap() > 0.0, "{row}");
        let keeps = run["added"].as_u64().unwrap_or(1 << 20);
        assert!(keeps > 1 << 18, "a cluster is larger than that: {row}");
    }
    assert!(std::fs::read_to_string(svg).unwrap().ends_with("</svg>\n"));
}

#[test]
fn a_peer_that_is_missing_ends_the_run_and_nothing_is_left() {
    let folder = folder();
    let output = side_by_side(folder.path(), &["--without", "a-peer-of-that-name"]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no such peer"), "{said}");
    assert_eq!(left(folder.path()), 0);
}
