//! What verbs show: plans of what would be done, proofs, findings, settings.

use neon_testkit::{Installation, OsUser, PgMajor};

use crate::support::Home;
use crate::texts::{redacted, same};

/// Counts of what is stored say nothing here.
const COUNTED: [&str; 4] = ["packs", "frames", "pages", "objects"];
/// Of this machine, and of no test.
const MACHINE: [&str; 6] = [
    "no-reflink",
    "disk-full",
    "disk-nearly-full",
    "inodes-nearly-used",
    "postgresql-broken",
    "other-program",
];

/// What commands say, with what they were.
struct Said<'a> {
    home: &'a Home,
    text: String,
}

impl Said<'_> {
    fn run(&mut self, arguments: &[&str]) {
        let ran = self.home.run(arguments);
        self.text.push_str(&format!(
            "> neon {}\n{}exit code {}\n",
            arguments.join(" "),
            ran.out,
            ran.code
        ));
    }

    /// Without what differs from run to run and from machine to machine.
    fn shown(&self) -> String {
        let text = self.text.replace(
            &Installation::of(PgMajor::V15)
                .bin_dir()
                .display()
                .to_string(),
            "BIN",
        );
        let mut lines: Vec<String> = Vec::new();
        let mut of_machine = false;
        for line in redacted(&text, self.home.scratch()).lines() {
            of_machine = MACHINE
                .iter()
                .any(|code| line.ends_with(&format!("[{code}]")))
                || of_machine && line.starts_with("  hint: ");
            if of_machine {
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let mut shown = Vec::new();
            for (at, word) in words.iter().enumerate() {
                let counted = words
                    .get(at + 1)
                    .is_some_and(|next| COUNTED.contains(&next.trim_end_matches([',', '.', ';'])));
                let number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
                shown.push(if number && counted { "N" } else { word });
            }
            lines.push(shown.join(" "));
        }
        lines.join("\n") + "\n"
    }
}

#[test]
fn plans_and_proofs_read_as_they_should() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    home.sql(
        "one",
        "create table t as select g from generate_series(1, 1000) g",
    );
    home.ok(&["snapshot", "create", "one@a"]);
    home.ok(&["pg", "stop", "one"]);
    home.ok(&["snapshot", "create", "one@b"]);
    let mut said = Said {
        home: &home,
        text: String::new(),
    };
    for line in [
        "snapshot show one@a",
        "snapshot show one@b",
        "snapshot check one@a",
        "snapshot verify one@b --digests",
        "storage check local",
        "pg checkout one@a --dry-run",
        "snapshot destroy one@a --dry-run",
        "storage gc local --dry-run",
        "pg destroy one --dry-run",
        "undo --dry-run",
    ] {
        said.run(&line.split(' ').collect::<Vec<_>>());
    }
    home.ok(&["pg", "checkout", "one@a", "--yes"]);
    said.run(&["undo", "--dry-run"]);
    home.ok(&["pg", "destroy", "one", "--yes"]);
    said.run(&["undo", "--dry-run"]);
    said.run(&["pg", "trash", "--empty", "--dry-run"]);
    same("plans", &said.shown());
}

#[test]
fn findings_read_as_they_should() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["snapshot", "create", "one@a", "-s", "tank"]);
    // What commands that were killed leave, a server that shall run, a storage that went away.
    std::fs::write(home.path().join("state/pg/.new-0123456789abcdef"), "").unwrap();
    let record = home.path().join("state/pg/one.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let wanted = text.replace("\"wanted\": false", "\"wanted\": true");
    assert_ne!(wanted, text);
    std::fs::write(&record, wanted).unwrap();
    std::fs::rename(&tank, home.scratch().join("away")).unwrap();
    let mut said = Said {
        home: &home,
        text: String::new(),
    };
    said.run(&["doctor"]);
    said.run(&["doctor", "--fix", "--dry-run"]);
    same("findings", &said.shown());
}

#[test]
fn settings_and_what_was_adopted_read_as_they_should() {
    let theirs = Home::new();
    theirs.ok(&["pg", "create", "theirs", "--no-start"]);
    let home = Home::new();
    let mut said = Said {
        home: &home,
        text: String::new(),
    };
    let data = theirs.path().join("pg/theirs/data");
    said.run(&["pg", "adopt", data.to_str().unwrap(), "-n", "shop"]);
    said.run(&["config", "show", "--origin"]);
    let port = theirs.json(&["pg", "show", "theirs"])["port"].to_string();
    let said = said
        .shown()
        .replace(&theirs.scratch().display().to_string(), "THEIRS")
        .replace(home.ports(), "PORTS")
        .replace(&format!("port {port}"), "port PORT")
        .replace(&format!(" {} ", OsUser::current().name()), " USER ");
    let lines = said
        .lines()
        .map(|line| match line.strip_prefix("threads ") {
            Some(rest) => format!("threads N {}", rest.split_once(' ').unwrap().1),
            None => line.to_owned(),
        });
    same("settings", &(lines.collect::<Vec<_>>().join("\n") + "\n"));
}
