//! Settings: built in, then `config.json` in the home, then the environment, then options.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::args::{Format, Global, PREFIX};
use crate::failure::{Failure, Outcome};
use crate::surroundings::Surroundings;

/// The file in the home.
pub(crate) const FILE: &str = "config.json";

/// What the file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pg_bin: Option<Vec<PathBuf>>,
    os_user: Option<String>,
    output: Option<String>,
    ports: Option<String>,
    patience: Option<u64>,
    threads: Option<usize>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) origin: String,
}

/// What all settings come to.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) home: PathBuf,
    pub(crate) pg_bin: Vec<PathBuf>,
    pub(crate) os_user: String,
    pub(crate) output: Format,
    pub(crate) ports: std::ops::RangeInclusive<u16>,
    pub(crate) patience: Duration,
    pub(crate) threads: usize,
    /// All of them with their origin, in the order they are shown.
    pub(crate) shown: Vec<Setting>,
}

/// Gathers one setting after the other.
struct Gather<'a> {
    surroundings: &'a Surroundings,
    file: PathBuf,
    shown: Vec<Setting>,
}

impl Gather<'_> {
    /// The first of option, variable, file and default that is there.
    fn pick<T>(
        &mut self,
        name: &str,
        option: Option<T>,
        variable: impl Fn(&str) -> Result<T, String>,
        file: Option<Result<T, String>>,
        default: (T, &str),
        show: impl Fn(&T) -> String,
    ) -> Outcome<T> {
        let in_environment = format!("{PREFIX}{}", name.to_uppercase());
        let (value, origin) = if let Some(value) = option {
            (Ok(value), format!("option --{}", name.replace('_', "-")))
        } else if let Some(value) = self.surroundings.get(&in_environment) {
            let text = value.to_str().ok_or_else(|| "is no text".to_owned());
            (
                text.and_then(variable),
                format!("environment {in_environment}"),
            )
        } else if let Some(value) = file {
            (value, format!("file {}", self.file.display()))
        } else {
            (Ok(default.0), default.1.to_owned())
        };
        let value =
            value.map_err(|why| Failure::usage(format!("setting {name} of {origin}: {why}")))?;
        self.shown.push(Setting {
            name: name.to_owned(),
            value: show(&value),
            origin,
        });
        Ok(value)
    }

    /// A secret: only that it is set.
    fn secret(&mut self, name: &str, origin: impl Display) {
        self.shown.push(Setting {
            name: name.to_owned(),
            value: "(set)".to_owned(),
            origin: origin.to_string(),
        });
    }
}

impl Settings {
    pub(crate) fn gather(global: &Global, surroundings: &Surroundings) -> Outcome<Self> {
        let mut gather = Gather {
            surroundings,
            file: PathBuf::new(),
            shown: Vec::new(),
        };
        let home = gather.home(global)?;
        gather.file = home.join(FILE);
        let file = read(&gather.file)?;
        let os_user = gather.pick(
            "os_user",
            global.os_user.clone(),
            |text| Ok(text.to_owned()),
            file.os_user.map(Ok),
            ("postgres".to_owned(), "default"),
            Clone::clone,
        )?;
        let pg_bin = gather.pick(
            "pg_bin",
            (!global.pg_bin.is_empty()).then(|| global.pg_bin.clone()),
            |text| Ok(std::env::split_paths(text).collect()),
            file.pg_bin.map(Ok),
            (Vec::new(), "default: PATH and the usual folders"),
            |folders: &Vec<PathBuf>| {
                let folders: Vec<String> = folders
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                folders.join(":")
            },
        )?;
        let output = gather.pick(
            "output",
            global.output,
            format,
            file.output.as_deref().map(format),
            (Format::Table, "default"),
            |format| format!("{format:?}").to_lowercase(),
        )?;
        let library = neon_pg::Options::new();
        let ports = gather.pick(
            "ports",
            None,
            range,
            file.ports.as_deref().map(range),
            (library.ports, "default"),
            |range| format!("{}-{}", range.start(), range.end()),
        )?;
        let patience = gather.pick(
            "patience",
            None,
            |text| {
                text.parse()
                    .map_err(|_| "is not a number of seconds".to_owned())
            },
            file.patience.map(Ok),
            (library.patience.as_secs(), "default"),
            u64::to_string,
        )?;
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = gather.pick(
            "threads",
            None,
            |text| text.parse().map_err(|_| "is not a number".to_owned()),
            file.threads.map(Ok),
            (processors, "default: as many as processors"),
            usize::to_string,
        )?;
        for name in [
            format!("{PREFIX}PASSPHRASE"),
            format!("{PREFIX}PASSPHRASE_FILE"),
        ] {
            if surroundings.get(&name).is_some() {
                gather.secret("passphrase", format!("environment {name}"));
                break;
            }
        }
        for name in surroundings.names_for_storages() {
            gather.secret(name, "environment");
        }
        Ok(Self {
            home,
            pg_bin,
            os_user,
            output,
            ports,
            patience: Duration::from_secs(patience),
            threads: threads.clamp(1, 64),
            shown: gather.shown,
        })
    }
}

impl Gather<'_> {
    fn home(&mut self, global: &Global) -> Outcome<PathBuf> {
        let surroundings = self.surroundings;
        let default = if surroundings.root {
            Some((PathBuf::from("/var/lib/neon"), "default of root"))
        } else if let Some(data) = surroundings
            .path("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
        {
            Some((data.join("neon"), "default: below XDG_DATA_HOME"))
        } else {
            let home = surroundings.path("HOME");
            home.map(|home| (home.join(".local/share/neon"), "default: below HOME"))
        };
        let named = global.home.is_some() || surroundings.get("NEON_HOME").is_some();
        let Some(default) = default.or_else(|| named.then(|| (PathBuf::new(), ""))) else {
            return Err(Failure::usage(
                "there is no home: neither --home nor NEON_HOME nor HOME is given",
            )
            .hinted("give --home DIR, or set NEON_HOME"));
        };
        self.pick(
            "home",
            global.home.clone(),
            |text| Ok(PathBuf::from(text)),
            None,
            default,
            |path| path.display().to_string(),
        )
    }
}

fn read(path: &Path) -> Outcome<File> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        // A home that is a file, or that we may not enter, is told where it is opened.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Ok(File::default());
        }
        Err(error) => {
            return Err(Failure::io(
                format!("{} cannot be read", path.display()),
                &error,
            ));
        }
    };
    serde_json::from_slice(&text).map_err(|error| {
        Failure::usage(format!("{} is no configuration", path.display()))
            .because(error.to_string())
            .hinted("settings are pg_bin, os_user, output, ports, patience, threads")
    })
}

fn format(text: &str) -> Result<Format, String> {
    <Format as clap::ValueEnum>::from_str(text, true)
        .map_err(|_| format!("{text:?} is not table, json or ndjson"))
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err(format!(
            "{text:?} is not a range of ports such as 5432-6431"
        )),
    }
}
