//! Which peers are here, and in which versions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::{Installation, PgMajor};

use crate::options::Options;

/// What may be done without, by name.
const OPTIONAL: [&str; 5] = [
    "pgbackrest",
    "restic",
    "zstd",
    "pg_combinebackup",
    "pg_rewind",
];

/// Programs, and what each says that it is.
#[derive(Debug)]
pub(crate) struct Peers {
    found: BTreeMap<&'static str, PathBuf>,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) neon: PathBuf,
}

impl Peers {
    /// Looks for all that was not given up.
    ///
    /// # Panics
    /// When one is missing: nothing is left out that nobody asked to leave out.
    pub(crate) fn find(options: &Options) -> Self {
        for name in &options.without {
            assert!(
                OPTIONAL.contains(&name.as_str()),
                "--without {name}: there is no such peer; there are {OPTIONAL:?}"
            );
        }
        let neon = options.neon.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().unwrap();
            own.with_file_name("neon")
        });
        assert!(
            neon.is_file(),
            "{} is not built: cargo build --release -p neon-pg-cli",
            neon.display()
        );
        let mut peers = Self {
            found: BTreeMap::new(),
            versions: BTreeMap::new(),
            neon: neon.clone(),
        };
        peers.say("neon", &neon, "--version");
        let installed = installed();
        let (main, new) = (
            Installation::of(PgMajor::V15),
            Installation::of(PgMajor::V18),
        );
        for name in OPTIONAL {
            if options.without.iter().any(|without| without == name) {
                continue;
            }
            let path = match name {
                "pg_combinebackup" => new.tool(name),
                "pg_rewind" => main.tool(name),
                _ => installed.get(name).cloned(),
            };
            let path = path.filter(|path| path.is_file()).unwrap_or_else(|| {
                panic!("{name} is not here: run scripts/peers, or go --without {name}")
            });
            let argument = if name == "pgbackrest" || name == "restic" {
                "version"
            } else {
                "--version"
            };
            peers.say(name, &path, argument);
            peers.found.insert(name, path);
        }
        for (name, installation) in [("PostgreSQL 15", main), ("PostgreSQL 18", new)] {
            let version = installation.version().to_owned();
            peers.versions.insert(name.to_owned(), version);
        }
        for name in ["tar", "cp"] {
            peers.say(name, Path::new(name), "--version");
        }
        peers
    }

    /// The program, unless it was given up.
    pub(crate) fn get(&self, name: &str) -> Option<&Path> {
        self.found.get(name).map(PathBuf::as_path)
    }

    fn say(&mut self, name: &str, path: &Path, argument: &str) {
        let mut command = Command::new(path);
        if name.starts_with("pg_") {
            Installation::of(PgMajor::V18).clean_environment(&mut command);
        }
        let output = command.arg(argument).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = version(&text).unwrap_or_else(|| panic!("{name} says {text:?}"));
        self.versions.insert(name.to_owned(), version);
    }
}

/// The first word with a dot between digits.
fn version(text: &str) -> Option<String> {
    text.split(|letter: char| letter.is_whitespace() || letter == ',' || letter == '(')
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

/// What `scripts/peers` listed: a name, a path and a version a line.
fn installed() -> BTreeMap<String, PathBuf> {
    let list = workspace().join(".peers/installed");
    let text = std::fs::read_to_string(list).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), PathBuf::from(words.next()?)))
        })
        .collect()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("benches/ lies in the workspace")
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let said = [
            ("pgBackRest 2.60.0\n", "2.60.0"),
            (
                "restic 0.19.1 compiled with go1.26 on linux/amd64",
                "0.19.1",
            ),
            (
                "*** Zstandard CLI (64-bit) v1.5.7, by Yann Collet ***",
                "1.5.7",
            ),
            ("pg_rewind (PostgreSQL) 15.18 (Debian 15.18-0)", "15.18"),
            ("tar (GNU tar) 1.34\nCopyright", "1.34"),
        ];
        for (text, wanted) in said {
            assert_eq!(version(text).as_deref(), Some(wanted));
        }
        assert_eq!(version("nothing of that"), None);
    }
}
