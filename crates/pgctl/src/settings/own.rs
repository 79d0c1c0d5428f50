//! `neon.conf`: the settings that we keep for an instance, in one file that a person can read.
//!
//! It lies in the data directory and is included at the end of `postgresql.conf`, which is not touched
//! after that. `ALTER SYSTEM` (`postgresql.auto.conf`) still wins over it.

use std::fs;
use std::path::{Path, PathBuf};

use neon_pg_layout::PgMajor;

use crate::create::{CreateOptions, own_settings};
use crate::durable;
use crate::error::{Error, Result};
use crate::os_user::OsUser;

use super::syntax::{self, quote};

/// The name of the file in a data directory.
pub const OWN_SETTINGS_FILE: &str = "neon.conf";

const HEADER: &str = "\
# Settings that neon keeps for this instance. postgresql.conf includes this file at its end.
# What is set here may be changed by neon; put your own settings into postgresql.conf, after the
# line that includes this file if they shall win.
";

/// The lines that `postgresql.conf` of an instance of ours ends with, as the server then reads our settings last.
pub const OWN_SETTINGS_INCLUDE: &str = "\n# Settings that neon keeps. What stands below this line wins over them.\ninclude_if_exists = 'neon.conf'\n";

/// The settings in `neon.conf`, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnSettings {
    entries: Vec<(String, String)>,
}

impl OwnSettings {
    /// No settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a new instance of this major has: reached from this machine only, with log files beside the data, and
    /// what tells later what changed since a snapshot. The port is chosen at the first start.
    #[must_use]
    pub fn defaults(major: PgMajor) -> Self {
        own_settings(major, &CreateOptions::new())
    }

    /// Reads the file of a data directory; none when it has none.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when it cannot be read, [`BadSetting`](crate::ErrorKind::BadSetting) when
    /// it is no configuration file.
    pub fn read(data_dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(data_dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "cannot be read", error)),
        };
        let mut own = Self::new();
        for line in syntax::parse(&text, &path)? {
            own.set(&line.name, &line.value);
        }
        Ok(Some(own))
    }

    /// Replaces the file of a data directory as a whole. Durable when it returns.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), [`Permissions`](crate::ErrorKind::Permissions) or
    /// [`DiskFull`](crate::ErrorKind::DiskFull); the old file is there then.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        durable::replace(
            &Self::path(data_dir),
            self.to_text().as_bytes(),
            0o600,
            &OsUser::owner_of(data_dir)?,
        )
    }

    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(OWN_SETTINGS_FILE)
    }

    /// Sets one. Names are compared without regard to case, as the server does.
    pub fn set(&mut self, name: &str, value: &str) {
        match self
            .entries
            .iter_mut()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
        {
            Some((_, known)) => value.clone_into(known),
            None => self.entries.push((name.to_owned(), value.to_owned())),
        }
    }

    /// As [`set`](Self::set), for building a list.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.set(name, &value.to_string());
        self
    }

    /// Forgets one; says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        before != self.entries.len()
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut entries = self.entries.iter();
        entries
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (name, value) in &self.entries {
            text.push_str(name);
            text.push_str(" = ");
            text.push_str(&quote(value));
            text.push('\n');
        }
        text
    }
}
