//! What libpq would take from the process; here it is handed in.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The environment, directories and names that connection parameters fall back to.
///
/// Nothing here is looked up by this crate: a program that wants libpq's behaviour fills it from its
/// own environment, and the default (nothing at all) makes connections depend on their parameters only.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Surroundings {
    /// Environment variables (`PGHOST`, `PGPASSWORD`, …); others are ignored.
    pub environment: BTreeMap<String, String>,
    /// The home directory: `.pgpass`, `.pg_service.conf` and `.postgresql/` are looked for in it.
    pub home: Option<PathBuf>,
    /// The directory of the system's `pg_service.conf`.
    pub system_config: Option<PathBuf>,
    /// The name of the operating system's user: the default for `user`.
    pub os_user: Option<String>,
    /// The directory of the Unix socket to use when no host is given. Without one, `localhost`.
    pub socket_directory: Option<PathBuf>,
    /// A PEM file with the system's certificate authorities, for `sslrootcert=system`.
    pub system_roots: Option<PathBuf>,
    /// The user database (`/etc/passwd`) in which `requirepeer` is looked up.
    pub user_database: Option<PathBuf>,
}

impl Surroundings {
    /// Nothing at all; the same as the default.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The value of a variable, if it is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A file in `~/.postgresql`.
    pub(crate) fn personal(&self, name: &str) -> Option<PathBuf> {
        self.home
            .as_ref()
            .map(|home| home.join(".postgresql").join(name))
    }
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values of variables may be passwords.
        f.debug_struct("Surroundings")
            .field("environment", &self.environment.keys())
            .field("home", &self.home)
            .field("os_user", &self.os_user)
            .finish_non_exhaustive()
    }
}
