//! The settings that the files of a cluster give, read without a server: `postgresql.conf` with what it
//! includes, then `postgresql.auto.conf`; what comes later wins.
//!
//! This is what the server does at its start (`ProcessConfigFile`), except that a mistake does not end it:
//! a clone's files may name things that are on another machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::instance::Instance;

use super::own::OWN_SETTINGS_FILE;
use super::syntax;

/// The file that `ALTER SYSTEM` writes.
pub(crate) const AUTO_FILE: &str = "postgresql.auto.conf";

/// As deep as the server follows includes.
const DEEPEST: usize = 10;

/// A setting and the line that gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSetting {
    /// In lower case.
    pub name: String,
    /// Without quotes.
    pub value: String,
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
}

/// All settings that the files of a cluster give. What no file gives has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSettings {
    settings: Vec<FileSetting>,
    files: Vec<PathBuf>,
    problems: Vec<String>,
}

impl FileSettings {
    /// Reads the main configuration file and `postgresql.auto.conf` of the data directory.
    pub(crate) fn read(data_dir: &Path, config_file: &Path) -> Self {
        let mut found = Self::default();
        found.include(config_file, 0);
        let auto = data_dir.join(AUTO_FILE);
        if auto.exists() {
            found.include(&auto, 0);
        }
        found
    }

    /// The setting of this name, if a file gives it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&FileSetting> {
        self.settings
            .iter()
            .find(|setting| setting.name.eq_ignore_ascii_case(name))
    }

    /// The value of this name, if a file gives it.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(|setting| setting.value.as_str())
    }

    /// All, each name once, with the line that wins.
    pub fn iter(&self) -> impl Iterator<Item = &FileSetting> {
        self.settings.iter()
    }

    /// The files that were read, in their order, also those that give nothing.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Why files or lines could not be used. The server would not start with any of these.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn problem(&mut self, what: impl fmt::Display) {
        self.problems.push(what.to_string());
    }

    fn include(&mut self, file: &Path, depth: usize) {
        if depth > DEEPEST {
            self.problem(format_args!(
                "{}: includes are nested too deeply",
                file.display()
            ));
            return;
        }
        let text = match fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                self.problem(Error::io(file, "cannot be read", error));
                return;
            }
        };
        self.files.push(file.to_owned());
        for (number, line) in syntax::parse_leniently(&text) {
            let line = match line {
                Ok(line) => line,
                Err(near) => {
                    self.problem(format_args!(
                        "{} line {number}: syntax error near {near:?}",
                        file.display()
                    ));
                    continue;
                }
            };
            let folder = file.parent().unwrap_or(Path::new("/"));
            let target = || folder.join(&line.value);
            match line.name.to_ascii_lowercase().as_str() {
                "include" => self.include(&target(), depth + 1),
                "include_if_exists" => {
                    if target().exists() {
                        self.include(&target(), depth + 1);
                    }
                }
                "include_dir" => self.include_dir(&target(), depth + 1),
                name => self.set(FileSetting {
                    name: name.to_owned(),
                    value: line.value,
                    file: file.to_owned(),
                    line: number,
                }),
            }
        }
    }

    /// Files that end in `.conf` and do not start with a dot, in the order of their bytes.
    fn include_dir(&mut self, dir: &Path, depth: usize) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => {
                self.problem(Error::io(dir, "cannot be read", error));
                return;
            }
        };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.len() > ".conf".len() && name.ends_with(".conf") && !name.starts_with('.')
            })
            .map(|entry| entry.path())
            .filter(|path| !path.is_dir())
            .collect();
        files.sort();
        for file in files {
            self.include(&file, depth);
        }
    }

    fn set(&mut self, setting: FileSetting) {
        self.settings.retain(|known| known.name != setting.name);
        self.settings.push(setting);
    }
}

/// A setting of ours that another file overrides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shadowed {
    /// Name and value that `neon.conf` gives.
    pub name: String,
    /// What wins instead.
    pub by: FileSetting,
}

impl Instance {
    /// The settings that the files give, whether or not a server runs. A running one may have been started
    /// with others, or not have been told of a change.
    #[must_use]
    pub fn file_settings(&self) -> FileSettings {
        FileSettings::read(&self.data_dir, &self.config_file())
    }

    /// The settings of `neon.conf` that a line of the user's overrides.
    ///
    /// # Errors
    /// As [`OwnSettings::read`](super::OwnSettings::read).
    pub fn shadowed_settings(&self) -> Result<Vec<Shadowed>> {
        let Some(own) = super::OwnSettings::read(&self.data_dir)? else {
            return Ok(Vec::new());
        };
        let ours = self.data_dir.join(OWN_SETTINGS_FILE);
        let files = self.file_settings();
        let shadowed = own.iter().filter_map(|(name, _)| {
            let by = files.get(name)?;
            (by.file != ours).then(|| Shadowed {
                name: name.to_owned(),
                by: by.clone(),
            })
        });
        Ok(shadowed.collect())
    }
}
