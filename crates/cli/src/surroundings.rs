//! The environment, read once. Nothing else of this program, and nothing below it, reads it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use neon_pg::Variables;

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

    /// The names of variables that storages look up and that are set.
    pub(crate) fn names_for_storages(&self) -> impl Iterator<Item = &str> {
        let prefixes = ["AWS_", "WALG_", "WALE_", "S3_", "SSH_USERNAME", "SSH_PORT"];
        self.variables
            .keys()
            .filter_map(|name| name.to_str())
            .filter(move |name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    }
}
