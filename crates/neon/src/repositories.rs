//! The repository in a storage: made with the first snapshot, opened with the options of the storage.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::{DiskCache, FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_snapshot_format::pack::Codec;
use neon_storage::{Key, Locator, Storage, StorageExt};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::record;
use crate::storages::{ABOUT, StorageOptions, StorageRecord, StorageType, Storages, anchored};

/// Bytes of maps that are kept in memory.
const MAPS: u64 = 64 << 20;
/// Bytes of frames of distant storages that are kept on disk, for each repository.
const CACHE: u64 = 1 << 30;

/// An open repository with what its storage was attached with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StorageRepository {
    /// The name of its storage; absent for one that is not attached.
    pub name: Option<Name>,
    /// Where its storage is.
    pub(crate) locator: String,
    /// It.
    pub repository: Repository,
    /// How new frames are compressed.
    pub codec: Codec,
    /// Reads maps, with a cache that all snapshots opened here share.
    pub maps: MapReader,
}

impl StorageRepository {
    /// What to call it in messages.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("storage {name}"),
            None => format!("storage {}", self.repository.storage().location()),
        }
    }

    /// Opens a snapshot of it.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub async fn snapshot(&self, id: CommitId) -> Result<Snapshot> {
        Snapshot::open(&self.repository, id, &self.maps)
            .await
            .map_err(|error| Error::repository(self.label(), error))
    }
}

impl Storages<'_> {
    /// The repository in a storage, made if there is none.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for the storage, [`Environment`](ErrorKind::Environment) without the key of an
    /// encrypted one, and what the storage answers.
    pub async fn repository(&self, name: &Name) -> Result<StorageRepository> {
        let record = self.get(name)?;
        let storage = self.open(name).await?;
        let options = self.open_options(name, &record)?;
        let repository = match Repository::open(Arc::clone(&storage), options.clone()).await {
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {
                if record.repository.is_some() {
                    return Err(missing(name, &record));
                }
                made(&storage, &options).await
            }
            opened => opened,
        };
        let repository = repository.map_err(|error| locked(name, error))?;
        self.is_known(name, &record, &repository).await?;
        self.opened(Some(name), &record, repository).await
    }

    /// Takes what is in a storage now for its repository, and makes an empty one if there is none: for a storage whose
    /// repository is lost for good, or was replaced.
    ///
    /// # Errors
    /// As [`repository`](Self::repository). The storage is known as before then.
    pub async fn accept(&self, name: &Name) -> Result<StorageRepository> {
        let record = self.get(name)?;
        let operation = self.0.begin_operation("storage init", name.as_str())?;
        let accepted = async {
            self.forget_probed(name);
            let storage = self.open_anyway(name, &record).await?;
            let options = self.open_options(name, &record)?;
            let repository = match Repository::open(Arc::clone(&storage), options.clone()).await {
                Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {
                    made(&storage, &options).await
                }
                opened => opened,
            };
            let repository = repository.map_err(|error| locked(name, error))?;
            self.remember_repository(name, repository.id()).await?;
            self.opened(Some(name), &record, repository).await
        };
        operation.end(accepted.await)
    }

    /// Refuses a repository that is not the one which this storage had; remembers the first.
    async fn is_known(
        &self,
        name: &Name,
        record: &StorageRecord,
        repository: &Repository,
    ) -> Result<()> {
        match record.repository {
            Some(id) if id == repository.id() => Ok(()),
            Some(id) => Err(Error::new(
                ErrorKind::Environment,
                format!("storage {name}"),
                format!(
                    "has another repository than before: {}, not {id}",
                    repository.id()
                ),
            )
            .hinted(format!(
                "mount the disk, or bring the bucket back, that was here; `neon storage init {name}` takes what is here now"
            ))),
            None => self.remember_repository(name, repository.id()).await,
        }
    }

    /// The repository in a storage; nothing if there is none yet.
    ///
    /// # Errors
    /// As [`repository`](Self::repository).
    pub async fn existing_repository(&self, name: &Name) -> Result<Option<StorageRepository>> {
        let record = self.get(name)?;
        let storage = self.open(name).await?;
        let options = match self.open_options(name, &record) {
            Ok(options) => options,
            // Nobody needs the key of what is not there yet.
            Err(_) if record.repository.is_none() && !is_there(&storage).await => return Ok(None),
            Err(error) => return Err(error),
        };
        match Repository::open(storage, options).await {
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {
                match record.repository {
                    Some(_) => Err(missing(name, &record)),
                    None => Ok(None),
                }
            }
            Err(error) => Err(locked(name, error)),
            Ok(repository) => {
                self.is_known(name, &record, &repository).await?;
                self.opened(Some(name), &record, repository).await.map(Some)
            }
        }
    }

    /// The repository at a locator, attached or not; nothing if there is none.
    ///
    /// # Errors
    /// As [`repository`](Self::repository).
    pub async fn repository_at(&self, locator: &Locator) -> Result<Option<StorageRepository>> {
        let locator = &anchored(locator)?;
        if let Some(name) = self.attached_at(locator)? {
            return self.existing_repository(&name).await;
        }
        // Looking into a folder that is not there must not make it.
        if locator.file_path().is_some_and(|path| !path.is_dir()) {
            return Ok(None);
        }
        let registry = &self.0.options().registry;
        let storage = registry
            .open(locator, &self.0.options().context)
            .await
            .map_err(|error| Error::storage(format!("storage {locator}"), error))?;
        let record = StorageRecord::unattached(StorageType::of(locator)?, locator);
        self.at(storage, &record).await
    }

    /// The storage that is attached with this locator, or one that leads to the same folder.
    fn attached_at(&self, locator: &Locator) -> Result<Option<Name>> {
        let folder = |locator: &Locator| locator.file_path()?.canonicalize().ok();
        let asked = folder(locator);
        let known: Vec<(Name, Locator)> = self
            .list()?
            .into_iter()
            .filter_map(|(name, record)| Some((name, Locator::parse(&record.locator).ok()?)))
            .collect();
        // Two may lead to one folder: the one that was meant is the one that is called so.
        let exact = known
            .iter()
            .find(|(_, known)| known.to_string() == locator.to_string());
        let same = || {
            known
                .iter()
                .find(|(_, known)| asked.is_some() && folder(known) == asked)
        };
        Ok(exact.or_else(same).map(|(name, _)| name.clone()))
    }

    /// The repository at a locator, attached or not, made if there is none. One that is made at a locator that is not
    /// attached is not encrypted.
    ///
    /// # Errors
    /// As [`repository`](Self::repository).
    pub async fn repository_made_at(&self, locator: &Locator) -> Result<StorageRepository> {
        if let Some(found) = self.repository_at(locator).await? {
            return Ok(found);
        }
        let locator = &anchored(locator)?;
        if let Some(name) = self.attached_at(locator)? {
            return self.repository(&name).await;
        }
        let registry = &self.0.options().registry;
        let label = format!("storage {locator}");
        let storage = registry
            .open(locator, &self.0.options().context)
            .await
            .map_err(|error| Error::storage(&*label, error))?;
        let record = StorageRecord::unattached(StorageType::of(locator)?, locator);
        let made = Repository::init(Arc::clone(&storage), OpenOptions::new()).await;
        match made {
            Ok(made) => self.opened(None, &record, made).await,
            // Somebody else made it meanwhile.
            Err(error) if error.kind() == neon_pagestore::ErrorKind::Exists => self
                .at(storage, &record)
                .await?
                .ok_or_else(|| Error::new(ErrorKind::Failed, label, "came and went")),
            Err(error) => Err(Error::repository(label, error)),
        }
    }

    async fn at(
        &self,
        storage: Arc<dyn Storage>,
        record: &StorageRecord,
    ) -> Result<Option<StorageRepository>> {
        let label = format!("storage {}", record.locator);
        let mut options = OpenOptions::new();
        options.key = self.key(&label, &StorageOptions::default())?;
        let opened = match Repository::open(Arc::clone(&storage), options).await {
            // A key is at hand that this one does not need.
            Err(error) if error.kind() == neon_pagestore::ErrorKind::Inconsistent => {
                Repository::open(storage, OpenOptions::new()).await
            }
            opened => opened,
        };
        match opened {
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::repository(label, error)),
            Ok(repository) => self.opened(None, record, repository).await.map(Some),
        }
    }

    fn open_options(&self, name: &Name, record: &StorageRecord) -> Result<OpenOptions> {
        let chosen = StorageOptions::of(record.kind, &record.options)?;
        let mut options = OpenOptions::new();
        if let Some(grace) = chosen.grace {
            options.grace = grace;
        }
        if chosen.encrypted || chosen.key_file.is_some() {
            options.key = self.key(&format!("storage {name}"), &chosen)?;
            if options.key.is_none() {
                return Err(Error::new(
                    ErrorKind::Environment,
                    format!("storage {name}"),
                    "is encrypted, and no passphrase was given",
                )
                .hinted("set NEON_PASSPHRASE, or attach it with -c key-file=PATH"));
            }
        }
        Ok(options)
    }

    fn key(&self, subject: &str, chosen: &StorageOptions) -> Result<Option<KeySource>> {
        if let Some(path) = &chosen.key_file {
            let content =
                std::fs::read(path).map_err(|error| Error::io(path, "cannot be read", error))?;
            return KeySource::key_file(&content)
                .map(Some)
                .map_err(|error| Error::repository(subject, error));
        }
        let passphrase = self.0.options().passphrase.as_ref();
        Ok(passphrase.map(|secret| KeySource::passphrase(secret.expose())))
    }

    async fn opened(
        &self,
        name: Option<&Name>,
        record: &StorageRecord,
        repository: Repository,
    ) -> Result<StorageRepository> {
        let chosen = StorageOptions::of(record.kind, &record.options)?;
        let mut options = FrameReaderOptions::default();
        if record.kind != StorageType::Native {
            let folder = self.0.home().cache(&repository.id().to_string());
            options.disk = Some(disk_cache(self.0.home().path(), folder).await?);
        }
        let frames = repository.frames_with(options);
        Ok(StorageRepository {
            name: name.cloned(),
            locator: record.locator.clone(),
            maps: MapReader::new(frames, MAPS),
            repository,
            codec: chosen.codec,
        })
    }
}

async fn disk_cache(home: &Path, folder: PathBuf) -> Result<DiskCache> {
    record::folder(&home.join("cache"), 0o700)?;
    record::folder(&folder, 0o700)?;
    let subject = folder.display().to_string();
    tokio::task::spawn_blocking(move || DiskCache::open(&folder, CACHE))
        .await
        .map_err(|error| {
            Error::new(ErrorKind::Failed, subject.clone(), "could not be opened").caused_by(error)
        })?
        .map_err(|error| Error::repository(subject, error))
}

/// Whether a storage has a repository. If it does not say, it may.
async fn is_there(storage: &Arc<dyn Storage>) -> bool {
    match Key::new(ABOUT) {
        Ok(about) => !matches!(storage.exists(&about).await, Ok(false)),
        Err(_) => true,
    }
}

/// Makes a repository where there is none. Of two first snapshots at once, one makes it.
async fn made(
    storage: &Arc<dyn Storage>,
    options: &OpenOptions,
) -> std::result::Result<Repository, neon_pagestore::Error> {
    match Repository::init(Arc::clone(storage), options.clone()).await {
        Err(error) if error.kind() == neon_pagestore::ErrorKind::Exists => {
            Repository::open(Arc::clone(storage), options.clone()).await
        }
        made => made,
    }
}

/// A storage had a repository, and what is at its place now has none.
pub(crate) fn missing(name: &Name, record: &StorageRecord) -> Error {
    Error::new(
        ErrorKind::Environment,
        format!("storage {name}"),
        format!("its repository is not at {} any more", record.locator),
    )
    .hinted(format!(
        "mount the disk, or bring the bucket back, that it is on; if it is lost for good, `neon storage init {name}` makes an empty one"
    ))
}

fn locked(name: &Name, error: neon_pagestore::Error) -> Error {
    Error::repository(format!("storage {name}"), error)
}

/// `none`, `lz4`, `zstd`, `zstd:LEVEL`, and `on` and `off`.
pub(crate) fn codec(text: &str) -> Option<Codec> {
    Some(match text {
        "off" | "none" => Codec::None,
        "lz4" => Codec::Lz4,
        "on" | "zstd" => Codec::default(),
        _ => {
            let level = text.strip_prefix("zstd:")?.parse().ok()?;
            (1..=22).contains(&level).then_some(Codec::Zstd(level))?
        }
    })
}

/// Seconds, or a number with `s`, `m`, `h`, `d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.as_bytes().last()? {
        b's' => (text.strip_suffix('s')?, 1),
        b'm' => (text.strip_suffix('m')?, 60),
        b'h' => (text.strip_suffix('h')?, 60 * 60),
        b'd' => (text.strip_suffix('d')?, 24 * 60 * 60),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(unit)?))
}
