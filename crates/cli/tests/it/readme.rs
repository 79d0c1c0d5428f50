//! The tour in the README, run as it stands, and its other commands, looked at.
//!
//! Those need what a test has not: `scripts/demo` and `scripts/test` set up a machine and run all of this, and the examples
//! take the cluster of a distribution; `neon-examples` tests each of them on a cluster of its own.

use std::path::Path;
use std::process::Command;

use neon_testkit::PgMajor;

use crate::support::{Home, ran};
use crate::texts::redacted;

/// A command of the tour and what it prints.
struct Shown {
    command: String,
    printed: String,
}

fn tour() -> Vec<Shown> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let mut all: Vec<Shown> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                all.push(Shown {
                    command: command.to_owned(),
                    printed: String::new(),
                });
            } else {
                let last = all.last_mut().unwrap();
                last.printed.push_str(line);
                last.printed.push('\n');
            }
        }
    }
    all
}

#[test]
fn the_tour_runs_as_it_is_written() {
    let home = Home::of(PgMajor::V18);
    let tour = tour();
    assert!(tour.len() > 15, "{}", tour.len());
    let like_ours = home.command(&["pg", "list"]);
    let programs = Path::new(env!("CARGO_BIN_EXE_neon")).parent().unwrap();
    for shown in tour {
        let mut command = Command::new("sh");
        command
            .args(["-c", &shown.command])
            .env_clear()
            .envs(
                like_ours
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
            .current_dir(home.scratch());
        let ran = ran(&mut command);
        assert_eq!(ran.code, 0, "{}: {ran:#?}", shown.command);
        let expected = redacted(&shown.printed, Path::new("SCRATCH"));
        assert_eq!(
            redacted(&ran.out, home.scratch()),
            expected,
            "{}",
            shown.command
        );
    }
}

#[test]
fn the_commands_beside_the_tour_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let tested = std::fs::read_to_string(root.join("examples/tests/run.rs")).unwrap();
    // What stands between two fences: every other part, after the name of its language.
    let blocks = readme.split("```").skip(1).step_by(2);
    let mut seen = Vec::new();
    for block in blocks {
        let (language, lines) = block.split_once('\n').unwrap();
        assert!(["console", "sh"].contains(&language), "{block}");
        if language == "console" {
            continue;
        }
        for line in lines.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                [script, ..] if script.starts_with("scripts/") => {
                    let shown = Command::new("sh")
                        .args(["-c", &format!("test -x {script} && bash -n {script}")])
                        .current_dir(&root)
                        .status();
                    assert!(shown.unwrap().success(), "{line}");
                    seen.push(script.to_owned());
                }
                ["cargo", "run", "-p", "neon-examples", "--bin", name, ..] => {
                    assert!(root.join(format!("examples/{name}.rs")).exists(), "{line}");
                    assert!(tested.contains(&format!("mod {name};")), "{line}");
                    seen.push(name.to_owned());
                }
                _ => panic!("who runs this? {line}"),
            }
        }
    }
    assert_eq!(
        seen,
        [
            "scripts/demo",
            "scripts/test",
            "inspect_pgdata",
            "wal_changes"
        ]
    );
}
