//! Storages: named places for snapshots and log, like remotes of git.

mod attach;
mod probe_memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::RepositoryId;
use neon_snapshot_format::pack::Codec;
use neon_storage::{Key, Locator, Storage};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::record::{self, Lock};
use crate::repositories::{self, codec, duration};
use crate::storages::probe_memory::Known;

/// What every repository has; whether it is there does not matter, that the question is answered does.
pub(crate) const ABOUT: &str = "neon.json";

/// What may be a place.
const PLACES: &str = "name one place: a path, s3://bucket/prefix, http(s)://…, or ssh://host/path";

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
                )
                .hinted(PLACES));
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
    /// The repository in it, once one was seen or made there. Another one, or none, is then never taken for it: what is
    /// there is the folder that a disk is mounted on, another disk, or another bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryId>,
}

impl FromStr for StorageType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Native, Self::S3, Self::Http, Self::Ssh]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("type {text:?}"),
                    "is none of native, s3, http, ssh",
                )
            })
    }
}

impl StorageRecord {
    /// A place that is used without being attached.
    pub(crate) fn unattached(kind: StorageType, locator: &Locator) -> Self {
        Self {
            kind,
            locator: locator.to_string(),
            options: BTreeMap::new(),
            attached: 0,
            repository: None,
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
    /// Of S3, as its locator takes them.
    pub(crate) s3: Vec<(&'static str, String)>,
}

/// With less, every writer would count as gone.
const LEAST_GRACE: Duration = Duration::from_secs(1);
/// The same for storages that other machines reach: each home has its own grace, and one that was told none says every ten
/// minutes that it is at work. With less than twice that its writers would count as gone to a collection of ours.
const LEAST_SHARED_GRACE: Duration = Duration::from_secs(20 * 60);

/// What an option of S3 is called here, and what its locator takes.
const S3_OPTIONS: [&str; 4] = ["endpoint", "region", "path-style", "profile"];

impl StorageOptions {
    pub(crate) fn of(kind: StorageType, options: &BTreeMap<String, String>) -> Result<Self> {
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
                    let (least, expected) = match kind {
                        StorageType::Native => {
                            (LEAST_GRACE, "a time of a second or more, such as 1h")
                        }
                        _ => (
                            LEAST_SHARED_GRACE,
                            "a time of 20 minutes or more, such as 1h: with less, writers on other machines would count as gone",
                        ),
                    };
                    let grace = duration(value).filter(|grace| *grace >= least);
                    chosen.grace = Some(grace.ok_or_else(|| refuse(expected))?);
                }
                _ => {
                    let s3 = S3_OPTIONS.iter().find(|known| *known == name);
                    let Some(s3) = s3.filter(|_| kind == StorageType::S3) else {
                        return Err(Error::new(
                            ErrorKind::Invalid,
                            format!("storage option {name}"),
                            format!("is not known for storages of type {}", kind.name()),
                        )
                        .hinted(
                            "options are compression, encryption, key-file, grace, and for s3 endpoint, region, path-style, profile",
                        ));
                    };
                    let value = match (*s3, value.as_str()) {
                        ("path-style", "on" | "true" | "1") => "true".to_owned(),
                        ("path-style", "off" | "false" | "0") => "false".to_owned(),
                        ("path-style", _) => return Err(refuse("on or off")),
                        (_, "") => return Err(refuse("a value")),
                        ("endpoint", text)
                            if !(text.starts_with("http://") || text.starts_with("https://"))
                                || text.contains('@') =>
                        {
                            return Err(refuse("an address of http or https without a password"));
                        }
                        (_, text) => text.to_owned(),
                    };
                    chosen.s3.push((s3, value));
                }
            }
        }
        Ok(chosen)
    }

    /// The locator with what was chosen for it.
    pub(crate) fn apply(&self, name: &Name, locator: &Locator) -> Result<Locator> {
        if self.s3.is_empty() {
            return Ok(locator.clone());
        }
        let mut text = locator.expose().expose().to_owned();
        for (option, value) in &self.s3 {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(option);
            text.push('=');
            for byte in value.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    text.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        Locator::parse(&text).map_err(|error| Error::storage(format!("storage {name}"), error))
    }
}

/// A locator that means the same from every folder.
pub(crate) fn anchored(locator: &Locator) -> Result<Locator> {
    let Some(path) = locator.file_path() else {
        return Ok(locator.clone());
    };
    std::path::absolute(path)
        .map(Locator::path_of)
        .map_err(|error| Error::io(path, "cannot be made absolute", error))
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
            repository: None,
        };
        match record::create(&path, &local) {
            Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
            made => made,
        }
    }

    /// Forgets a storage. What is in it stays.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for the local one;
    /// [`Busy`](ErrorKind::Busy) while instances keep their snapshots there, or are on their way to one of them.
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
                format!("is where pg {} keep their snapshots", users.join(", pg ")),
            )
            .hinted(format!(
                "destroy what keeps its snapshots there (neon pg destroy {}), or keep the storage: an instance stays with the storage it was made with",
                users.join("; neon pg destroy ")
            )));
        }
        let records = self.0.pg().records()?;
        let kept = records
            .iter()
            .find(|record| record.heads.iter().any(|head| head.storage == *name));
        if let Some(record) = kept {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("storage {name}"),
                format!(
                    "holds states of {} before checkouts, its way back",
                    record.name
                ),
            )
            .hinted(format!(
                "keep the storage, or destroy the snapshots {}@HEAD{{i}} first",
                record.name
            )));
        }
        let needing: Vec<_> = self.0.pg().needing(name)?;
        if let Some(needing) = needing.first() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("storage {name}"),
                format!("has the snapshot that pg {needing} is on its way to"),
            )
            .hinted(format!(
                "try again when that is done; if its command was killed, neon pg start {needing} ends it"
            )));
        }
        let mut operation = self.0.begin_operation("storage detach", name.as_str())?;
        operation.detail("locator", known.locator.clone());
        // No secret is in it.
        operation.detail("record", serde_json::to_string(&known).unwrap_or_default());
        operation.end(record::remove(&self.record(name.as_str())))?;
        // It is of no use, and would be found out to be of another place.
        self.forget_probed(name);
        self.forget_used(name);
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
        self.forget_probed(name);
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
        self.open_as(name, Known::Believed).await
    }

    /// As [`open`](Self::open), to look at anew what it can do.
    pub(crate) async fn open_doubting(&self, name: &Name) -> Result<Arc<dyn Storage>> {
        self.open_as(name, Known::Doubted).await
    }

    async fn open_as(&self, name: &Name, known: Known) -> Result<Arc<dyn Storage>> {
        let record = self.get(name)?;
        let locator = Locator::parse(&record.locator)
            .map_err(|error| Error::storage(format!("storage {name}"), error))?;
        // What is looked for is not made.
        if record.repository.is_some() && locator.file_path().is_some_and(|path| !path.is_dir()) {
            return Err(repositories::missing(name, &record));
        }
        self.open_knowing(name, &record, known).await
    }

    /// Opens a storage, and makes the folder of one that is a folder.
    pub(crate) async fn open_anyway(
        &self,
        name: &Name,
        record: &StorageRecord,
    ) -> Result<Arc<dyn Storage>> {
        self.open_knowing(name, record, Known::Believed).await
    }

    async fn open_knowing(
        &self,
        name: &Name,
        record: &StorageRecord,
        known: Known,
    ) -> Result<Arc<dyn Storage>> {
        let locator = Locator::parse(&record.locator)
            .map_err(|error| Error::storage(format!("storage {name}"), error))?;
        let chosen = StorageOptions::of(record.kind, &record.options)?;
        self.open_at(name, &chosen.apply(name, &locator)?, known)
            .await
    }

    /// Remembers which repository is in a storage, or that it is this one from now on. One that was detached meanwhile
    /// stays so. Durable when it returns.
    pub(crate) async fn remember_repository(&self, name: &Name, id: RepositoryId) -> Result<()> {
        let _lock = self.lock(name).await?;
        let Some(mut record) = record::read::<StorageRecord>(&self.record(name.as_str()))? else {
            return Ok(());
        };
        if record.repository == Some(id) {
            return Ok(());
        }
        record.repository = Some(id);
        record::replace(&self.record(name.as_str()), &record)
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

    /// The place that a person means by the arguments of `storage attach`: a type, and a locator, a path or a URL.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for none or several of them, and when type and place do not agree.
    pub fn place(
        kind: Option<StorageType>,
        locator: Option<&str>,
        path: Option<&Path>,
        url: Option<&str>,
    ) -> Result<Locator> {
        let invalid = |subject: String, reason: String| {
            Error::new(ErrorKind::Invalid, subject, reason).hinted(PLACES)
        };
        let parse = |text: &str| {
            Locator::parse(text).map_err(|error| Error::storage("the place of the storage", error))
        };
        let place = match (locator, path, url) {
            (Some(text), None, None) => parse(text)?,
            (None, Some(path), None) => Locator::path_of(path),
            (None, None, Some(text)) => {
                let place = parse(text)?;
                if place.file_path().is_some() && !text.starts_with("file://") {
                    return Err(invalid(format!("--url={text}"), "has no scheme".to_owned()));
                }
                place
            }
            (None, None, None) => {
                return Err(invalid("storage".to_owned(), "has no place".to_owned()));
            }
            _ => {
                return Err(invalid(
                    "storage".to_owned(),
                    "has more than one place".to_owned(),
                ));
            }
        };
        let is = StorageType::of(&place)?;
        match kind.filter(|kind| *kind != is) {
            None => anchored(&place),
            Some(kind) => Err(invalid(
                format!("storage {place}"),
                format!("is of type {}, not {}", is.name(), kind.name()),
            )),
        }
    }

    /// Keeps an attached storage from being detached, until its user is on record. Taken after the lock of an instance, and
    /// nothing is locked after it.
    pub(crate) async fn hold(&self, name: &Name) -> Result<Lock> {
        let lock = self.lock(name).await?;
        self.get(name)?;
        Ok(lock)
    }

    async fn lock(&self, name: &Name) -> Result<Lock> {
        let path = self.lock_path(name);
        Lock::take(&path, &format!("storage {name}"), self.0.options().patience).await
    }

    fn lock_path(&self, name: &Name) -> PathBuf {
        self.0.home().storages().join(format!("{name}.lock"))
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
