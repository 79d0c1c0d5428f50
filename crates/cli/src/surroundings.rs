//! The environment. Nothing else of this program, and nothing below it, reads it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use neon_pg::{Surroundings as Connections, Variables};

use crate::args::PREFIX;

/// The format of results that it asks for: known before arguments are, which may be wrong.
pub(crate) fn output() -> Option<OsString> {
    std::env::var_os(format!("{PREFIX}OUTPUT"))
}

/// What the environment says.
#[derive(Debug)]
pub(crate) struct Surroundings {
    variables: BTreeMap<OsString, OsString>,
    /// Who we are to the operating system.
    pub(crate) root: bool,
}

impl Surroundings {
    pub(crate) fn read() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            root: neon_pg::OsUser::current().is_root(),
        }
    }

    /// A variable; an empty one counts as none.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.variables.get(OsStr::new(name))?;
        (!value.is_empty()).then_some(value)
    }

    /// The names of all variables.
    pub(crate) fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.variables.keys().map(OsString::as_os_str)
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// Whether messages may have colours: <https://no-color.org>.
    pub(crate) fn colours(&self) -> bool {
        self.get("NO_COLOR").is_none() && self.get("TERM") != Some(OsStr::new("dumb"))
    }

    /// All that is text, for storages: they look up `AWS_*`, the names of WAL-G and `HOME` by themselves.
    pub(crate) fn for_storages(&self) -> Variables {
        self.variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
            .collect()
    }

    /// What connections to servers of others fall back to, as libpq would.
    pub(crate) fn for_connections(&self) -> Connections {
        let mut connections = Connections::none();
        connections.environment = self
            .variables
            .iter()
            .filter_map(|(name, value)| {
                Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))
            })
            .filter(|(name, _)| name.starts_with("PG"))
            .collect();
        connections.home = self.path("HOME");
        connections.os_user = neon_pg::OsUser::current().name().map(str::to_owned);
        for folder in ["/var/run/postgresql", "/tmp"] {
            if std::path::Path::new(folder).is_dir() {
                connections.socket_directory = Some(PathBuf::from(folder));
                break;
            }
        }
        for file in [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
        ] {
            if std::path::Path::new(file).is_file() {
                connections.system_roots = Some(PathBuf::from(file));
                break;
            }
        }
        connections.user_database = Some(PathBuf::from("/etc/passwd"));
        connections
    }

    /// The names of variables that storages look up and that are set.
    pub(crate) fn names_for_storages(&self) -> impl Iterator<Item = &str> {
        let prefixes = ["AWS_", "WALG_", "WALE_", "S3_", "SSH_USERNAME", "SSH_PORT"];
        self.variables
            .keys()
            .filter_map(|name| name.to_str())
            .filter(move |name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    }
}
