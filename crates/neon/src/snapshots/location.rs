//! Where a snapshot is that somebody names: in a repository, in a file, behind a server.

use std::fmt;
use std::path::{Path, PathBuf};

use neon_pgwire::Params;
use neon_storage::Locator;

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::snapshots::{Found, Snapshots};
use crate::storages::StorageType;

/// What files of our own format are called.
const NEON: &str = ".neon";
const SERVER: &str = "basebackup://";
/// What every repository has.
const ABOUT: &str = "neon.json";

/// Something outside of all repositories that a snapshot is made from.
#[derive(Clone)]
#[non_exhaustive]
pub enum ImportSource {
    /// A running server, over the replication protocol.
    Server(Box<Params>),
    /// A data directory, a base backup in either format, or a `.neon` file: told by content.
    Path(PathBuf),
    /// A `.neon` file behind HTTP or in a bucket.
    Object(Locator),
}

impl ImportSource {
    /// Reads `basebackup://user@host:port/?sslmode=…`, `http://host/movies.neon`, `s3://bucket/movies.neon`, or a path.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for an address of another kind.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with(SERVER) {
            let params: Params = text.parse().map_err(|error: neon_pgwire::Error| {
                Error::new(ErrorKind::Invalid, "basebackup://…", "cannot be understood")
                    .caused_by(error)
            })?;
            return Ok(Self::Server(Box::new(params)));
        }
        let locator = locator(text)?;
        if let Some(path) = locator.file_path() {
            return Ok(Self::Path(path.to_owned()));
        }
        if locator.path().ends_with(NEON) {
            return Ok(Self::Object(locator));
        }
        Err(Error::new(
            ErrorKind::Invalid,
            locator.to_string(),
            "is nothing that a snapshot is imported from",
        )
        .hinted("give basebackup://user@host:port/, a path, or the address of a .neon file"))
    }

    /// A name for the snapshot, if there is one in it.
    pub(crate) fn suggested(&self) -> Option<String> {
        let stem = match self {
            Self::Server(_) => return None,
            Self::Path(path) => path.file_name()?.to_str()?.to_owned(),
            Self::Object(locator) => locator.path().rsplit('/').next()?.to_owned(),
        };
        let stem = stem.strip_suffix(NEON).unwrap_or(&stem);
        let plain: String = stem
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "._-".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let plain = plain.trim_start_matches(['.', '-', '_']);
        plain.parse::<Name>().ok().map(String::from)
    }
}

/// Without passwords.
impl fmt::Display for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(params) => {
                f.write_str(SERVER)?;
                if let Some(user) = params.get("user") {
                    write!(f, "{user}@")?;
                }
                let host = params.get("host").or(params.get("hostaddr"));
                f.write_str(host.unwrap_or("localhost"))?;
                match params.get("port") {
                    Some(port) => write!(f, ":{port}/"),
                    None => f.write_str("/"),
                }
            }
            Self::Path(path) => path.display().fmt(f),
            Self::Object(locator) => locator.fmt(f),
        }
    }
}

impl fmt::Debug for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportSource({self})")
    }
}

/// A snapshot that somebody named.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Located {
    /// In a repository.
    Stored(Found),
    /// Outside: to be imported first.
    Outside(ImportSource),
}

pub(crate) fn locator(text: &str) -> Result<Locator> {
    Locator::parse(text).map_err(|error| Error::storage("address", error))
}

/// Whether a text is an address or a path rather than a name. Names have no slash and no scheme; one may end as files of
/// ours do.
fn is_address(text: &str) -> bool {
    text.contains("://")
        || text.contains('/')
        || text == "."
        || text == ".."
        || (text.ends_with(NEON) && Path::new(text).exists())
}

/// Whether a folder is a repository.
pub(crate) fn is_repository(path: &Path) -> bool {
    // One that no snapshot came to yet, as its first writer failed, has a lock and no snapshots.
    let begun = ["snapshots", "packs", "leases", ".neon-storage"];
    path.join(ABOUT).is_file() && begun.iter().any(|name| path.join(name).is_dir())
}

impl Snapshots<'_> {
    /// Finds a snapshot by what a person wrote: a name or an id in this storage or any, `basebackup://…`, a path, the
    /// address of a `.neon` file, or the address of a repository with a name or id behind it (`s3://bucket/prefix/before`,
    /// `/mnt/store/pgdata1@before`).
    ///
    /// # Errors
    /// As [`find`](Self::find); [`NotFound`](ErrorKind::NotFound) for an address where there is no repository.
    pub async fn locate(&self, text: &str, storage: Option<&Name>) -> Result<Located> {
        if storage.is_some() || !is_address(text) {
            return self.find(text, storage).await.map(Located::Stored);
        }
        if text.starts_with(SERVER) {
            return ImportSource::parse(text).map(Located::Outside);
        }
        let whole = locator(text)?;
        StorageType::of(&whole)?;
        if let Some(path) = whole.file_path() {
            if path.exists() {
                return Ok(Located::Outside(ImportSource::Path(path.to_owned())));
            }
        } else if whole.path().ends_with(NEON) {
            return Ok(Located::Outside(ImportSource::Object(whole)));
        }
        let nothing = || {
            Error::new(
                ErrorKind::NotFound,
                whole.to_string(),
                "is neither a file nor a snapshot in a repository",
            )
        };
        // The options of an address stand behind all of it.
        let exposed = whole.expose();
        let (place, options) = match exposed.expose().split_once('?') {
            Some((place, options)) if whole.file_path().is_none() => (place, format!("?{options}")),
            _ => (exposed.expose(), String::new()),
        };
        let (prefix, name) = place.rsplit_once('/').ok_or_else(nothing)?;
        if name.is_empty() || prefix.ends_with(":/") {
            return Err(nothing());
        }
        let place = locator(&format!("{prefix}{options}"))?;
        match self.0.storages().repository_at(&place).await? {
            Some(repository) => self.find_in(repository, name).await.map(Located::Stored),
            None => Err(nothing()),
        }
    }
}
