//! Storages: named places for snapshots and log, like remotes of git.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use neon_snapshot_format::pack::Codec;
use neon_storage::{Key, Locator, Storage, StorageExt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::record::{self, Lock};
use crate::repositories::{codec, duration};

/// What every repository has; whether it is there does not matter, that the question is answered does.
const ABOUT: &str = "neon.json";

/// The storage that every home has.
pub const LOCAL: &str = "local";

/// What kind of place a storage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StorageType {
    /// A folder.
    Native,
    /// S3 or one of its relatives.
    S3,
    /// Behind HTTP, to be read only.
    Http,
    /// On another machine, over SSH.
    Ssh,
}

impl StorageType {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::S3 => "s3",
            Self::Http => "http",
            Self::Ssh => "ssh",
        }
    }

    /// The type of the place that a locator names.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for another scheme.
    pub fn of(locator: &Locator) -> Result<Self> {
        Ok(match locator.scheme() {
            "file" => Self::Native,
            "s3" => Self::S3,
            "http" | "https" => Self::Http,
            "ssh" => Self::Ssh,
            other => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("storage {locator}"),
                    format!("no type of storage is at {other}://"),
                ));
            }
        })
    }
}

/// What a home knows of a storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StorageRecord {
    /// What kind of place it is.
    #[serde(rename = "type")]
    pub kind: StorageType,
    /// Where it is, without secrets.
    pub locator: String,
    /// What was chosen: `compression` and the like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// When it was attached, in seconds since 1970.
    pub attached: u64,
}

impl StorageRecord {
    /// A place that is used without being attached.
    pub(crate) fn unattached(kind: StorageType, locator: &Locator) -> Self {
        Self {
            kind,
            locator: locator.to_string(),
            options: BTreeMap::new(),
            attached: 0,
        }
    }
}

/// What can be chosen for a storage, read from its record.
#[derive(Debug, Clone, Default)]
pub(crate) struct StorageOptions {
    pub(crate) codec: Codec,
    pub(crate) encrypted: bool,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) grace: Option<Duration>,
}

impl StorageOptions {
    pub(crate) fn of(options: &BTreeMap<String, String>) -> Result<Self> {
        let mut chosen = Self::default();
        for (name, value) in options {
            let refuse = |expected: &str| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("storage option {name}={value}"),
                    format!("is not {expected}"),
                )
            };
            match name.as_str() {
                "compression" => {
                    chosen.codec = codec(value)
                        .ok_or_else(|| refuse("one of zstd:1 to zstd:22, lz4, none"))?;
                }
                "encryption" => {
                    chosen.encrypted = match value.as_str() {
                        "on" | "passphrase" => true,
                        "off" => false,
                        _ => return Err(refuse("on or off")),
                    };
                }
                "key-file" => {
                    let path = PathBuf::from(value);
                    if !path.is_absolute() {
                        return Err(refuse("an absolute path"));
                    }
                    chosen.key_file = Some(path);
                }
                "grace" => {
                    chosen.grace =
                        Some(duration(value).ok_or_else(|| refuse("a time such as 1h"))?);
                }
                _ => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("storage option {name}"),
                        "is not known",
                    )
                    .hinted("options are compression, encryption, key-file, grace"));
                }
            }
        }
        Ok(chosen)
    }
}

/// The storages of a home.
#[derive(Debug, Clone, Copy)]
pub struct Storages<'a>(pub(crate) &'a Neon);

impl Storages<'_> {
    /// Makes the local storage known, if it is not.
    pub(crate) fn ensure_local(&self) -> Result<()> {
        let path = self.record(LOCAL);
        if path.exists() {
            return Ok(());
        }
        let place = self.0.home().local_store();
        record::folder(&place, 0o700)?;
        let local = StorageRecord {
            kind: StorageType::Native,
            locator: place.display().to_string(),
            options: BTreeMap::new(),
            attached: seconds(self.0.now()),
        };
        match record::create(&path, &local) {
            Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
            made => made,
        }
    }

    /// Attaches a storage: looks whether it can be reached, and remembers it. Nothing is written to it.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when the name is taken; [`Invalid`](ErrorKind::Invalid) for a locator with a
    /// password in it, or that names no place; what the storage answers.
    pub async fn attach(
        &self,
        name: &Name,
        locator: &Locator,
        options: BTreeMap<String, String>,
    ) -> Result<StorageRecord> {
        let kind = StorageType::of(locator)?;
        if locator.password().is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("storage {locator}"),
                "has a password in its address, which would be kept in clear",
            )
            .hinted("give credentials by the environment or a profile"));
        }
        StorageOptions::of(&options)?;
        let _lock = self.lock(name).await?;
        if self.get(name).is_ok() {
            return Err(taken(name));
        }
        let place = self.open_at(name, locator).await?;
        let about = Key::new(ABOUT).map_err(|error| {
            Error::new(ErrorKind::Failed, ABOUT, "cannot be asked for").caused_by(error)
        })?;
        let reached = place.exists(&about).await;
        reached.map_err(|error| Error::storage(format!("storage {name}"), error))?;
        let record = StorageRecord {
            kind,
            locator: locator.to_string(),
            options,
            attached: seconds(self.0.now()),
        };
        let operation = self.0.begin_operation("storage attach", name.as_str())?;
        operation.end(record::create(&self.record(name.as_str()), &record))?;
        Ok(record)
    }

    /// Forgets a storage. What is in it stays.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for the local one;
    /// [`Busy`](ErrorKind::Busy) while instances keep their snapshots there.
    pub async fn detach(&self, name: &Name) -> Result<StorageRecord> {
        if name.as_str() == LOCAL {
            return Err(Error::new(
                ErrorKind::Invalid,
                "storage local",
                "belongs to the home and stays",
            ));
        }
        let _lock = self.lock(name).await?;
        let known = self.get(name)?;
        let users: Vec<_> = self
            .0
            .pg()
            .records()?
            .into_iter()
            .filter(|record| record.storage == *name)
            .map(|record| record.name.to_string())
            .collect();
        if !users.is_empty() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("storage {name}"),
                format!("holds the snapshots of {}", users.join(", ")),
            )
            .hinted("destroy them, or keep the storage"));
        }
        let mut operation = self.0.begin_operation("storage detach", name.as_str())?;
        operation.detail("locator", known.locator.clone());
        // No secret is in it.
        operation.detail("record", serde_json::to_string(&known).unwrap_or_default());
        operation.end(record::remove(&self.record(name.as_str())))?;
        Ok(known)
    }

    /// Attaches a storage again as it was.
    pub(crate) async fn undo_detach(&self, name: &Name, known: &str) -> Result<()> {
        let known: StorageRecord = serde_json::from_str(known).map_err(|error| {
            Error::new(
                ErrorKind::Damaged,
                format!("storage {name}"),
                "is not known as it was",
            )
            .caused_by(error)
        })?;
        let _lock = self.lock(name).await?;
        let attached = record::create(&self.record(name.as_str()), &known);
        attached.map_err(|error| match error.kind() {
            ErrorKind::Exists => taken(name),
            _ => error,
        })
    }

    /// What is known of a storage.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn get(&self, name: &Name) -> Result<StorageRecord> {
        record::read(&self.record(name.as_str()))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("storage {name}"),
                "is not attached here",
            )
            .hinted("see `neon storage list`")
        })
    }

    /// All storages, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self) -> Result<Vec<(Name, StorageRecord)>> {
        record::list(&self.0.home().storages())?
            .into_iter()
            .map(|(name, record)| Ok((name.parse()?, record)))
            .collect()
    }

    /// Opens a storage.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and what the storage answers.
    pub async fn open(&self, name: &Name) -> Result<Arc<dyn Storage>> {
        let record = self.get(name)?;
        let locator = Locator::parse(&record.locator)
            .map_err(|error| Error::storage(format!("storage {name}"), error))?;
        self.open_at(name, &locator).await
    }

    /// The storage and the key of one object at an address, such as a `.neon` file.
    pub(crate) async fn object_at(&self, locator: &Locator) -> Result<(Arc<dyn Storage>, Key)> {
        let invalid = || {
            Error::new(
                ErrorKind::Invalid,
                format!("address {locator}"),
                "names no object",
            )
        };
        let exposed = locator.expose();
        let (place, options) = match exposed.expose().split_once('?') {
            Some((place, options)) => (place, format!("?{options}")),
            None => (exposed.expose(), String::new()),
        };
        let (folder, _) = place.rsplit_once('/').ok_or_else(invalid)?;
        let path = locator.path();
        let object = path.rsplit('/').next().filter(|name| !name.is_empty());
        let key = Key::new(object.ok_or_else(invalid)?).map_err(|_| invalid())?;
        let failed = |error| Error::storage(format!("address {locator}"), error);
        let folder = Locator::parse(&format!("{folder}{options}")).map_err(failed)?;
        let context = &self.0.options().context;
        let opened = self.0.options().registry.open(&folder, context).await;
        Ok((opened.map_err(failed)?, key))
    }

    async fn open_at(&self, name: &Name, locator: &Locator) -> Result<Arc<dyn Storage>> {
        let options = self.0.options();
        options
            .registry
            .open(locator, &options.context)
            .await
            .map_err(|error| Error::storage(format!("storage {name}"), error))
    }

    async fn lock(&self, name: &Name) -> Result<Lock> {
        let path = self.0.home().storages().join(format!("{name}.lock"));
        Lock::take(&path, &format!("storage {name}"), self.0.options().patience).await
    }

    fn record(&self, name: &str) -> PathBuf {
        self.0.home().storages().join(format!("{name}.json"))
    }
}

fn taken(name: &Name) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!("storage {name}"),
        "is attached already",
    )
    .hinted("detach it first, or choose another name")
}
