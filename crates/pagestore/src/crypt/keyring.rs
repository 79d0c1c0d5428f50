//! The keys of an encrypted repository: several envelopes at once, added, removed, renewed.

use futures_util::TryStreamExt;
use neon_storage::{Key, ListOptions, Storage, StorageExt};

use crate::bridge::blocking;
use crate::crypt::envelope::{Envelope, Keyring};
use crate::crypt::{KeyKind, KeySource};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, WriterId, from_hex, random};
use crate::keys::{self, KEYS};
use crate::object::{Object, ObjectKind};
use crate::repository::{Repository, create};

/// The identity of a key envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

/// A key that opens a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Which.
    pub id: KeyId,
    /// What sort of key it is.
    pub kind: KeyKind,
    /// When it was added, by the storage's clock.
    pub added: std::time::SystemTime,
}

struct Stored {
    id: KeyId,
    key: Key,
    added: std::time::SystemTime,
    body: Vec<u8>,
}

async fn envelopes(storage: &dyn Storage) -> Result<Vec<Stored>> {
    let listing = storage.list(ListOptions::prefix(KEYS));
    let objects: Vec<_> = listing
        .try_collect()
        .await
        .map_err(|error| Error::storage(KEYS, error))?;
    let mut found = Vec::new();
    for object in objects {
        let Some(id) = object.key.as_str().strip_prefix(KEYS).and_then(from_hex) else {
            continue;
        };
        let bytes = match storage.read(&object.key).await {
            Err(error) if error.kind() == neon_storage::ErrorKind::NotFound => continue,
            bytes => bytes.map_err(|error| Error::storage(object.key.as_str(), error))?,
        };
        found.push(Stored {
            id: KeyId(id),
            body: Object::decode(&object.key, ObjectKind::Key, &bytes, None)?.body,
            key: object.key,
            added: object.modified,
        });
    }
    Ok(found)
}

/// Stores an envelope.
pub(crate) async fn enclose(
    storage: &dyn Storage,
    repository: RepositoryId,
    keyring: &Keyring,
    source: KeySource,
) -> Result<KeyId> {
    let keyring = keyring.clone();
    // Meant to take a while.
    let body = blocking("keys", move || keyring.enclose(repository, &source)).await?;
    let id = KeyId(random()?);
    let key = keys::envelope(id.0)?;
    let object = Object::new(ObjectKind::Key, WriterId::random()?, body);
    create(storage, &key, object.encode(&key, None)?).await?;
    Ok(id)
}

/// Opens the keys of a repository.
pub(crate) async fn unlock(
    storage: &dyn Storage,
    repository: RepositoryId,
    source: Option<KeySource>,
) -> Result<Keyring> {
    let locked = |reason| {
        Error::new(
            ErrorKind::Locked,
            format!("repository at {}", storage.location()),
            reason,
        )
    };
    let source =
        source.ok_or_else(|| locked("is encrypted; a passphrase or a key file is needed"))?;
    let mut damaged = None;
    let stored = match envelopes(storage).await {
        Ok(stored) => stored,
        Err(error) => {
            damaged = Some(error);
            Vec::new()
        }
    };
    let opened = blocking("keys", move || {
        for envelope in stored {
            if let Some(keyring) = Keyring::open(&envelope.body, repository, &source)? {
                return Ok(Some(keyring));
            }
        }
        Ok(None)
    });
    match (opened.await?, damaged) {
        (Some(keyring), _) => Ok(keyring),
        (None, Some(error)) => Err(error),
        (None, None) => Err(locked("is encrypted, and this key does not open it")),
    }
}

impl Repository {
    fn keyring(&self) -> Result<&Keyring> {
        self.shared.keyring.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("repository {}", self.id()),
                "is not encrypted; it has no keys",
            )
        })
    }

    /// The keys that open this repository.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage); [`Damaged`](ErrorKind::Damaged).
    pub async fn keys(&self) -> Result<Vec<KeyInfo>> {
        envelopes(&*self.shared.storage)
            .await?
            .into_iter()
            .map(|stored| {
                Ok(KeyInfo {
                    id: stored.id,
                    kind: Envelope::parse(&stored.body)?.kind,
                    added: stored.added,
                })
            })
            .collect()
    }

    /// Adds a key that opens this repository.
    ///
    /// Dropped: it is added or not.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) when the repository is not encrypted; [`Storage`](ErrorKind::Storage).
    pub async fn add_key(&self, source: KeySource) -> Result<KeyId> {
        enclose(&*self.shared.storage, self.id(), self.keyring()?, source).await
    }

    /// Removes a key. Who had it may have noted what it opens: to shut them out of what is written from now on,
    /// [`rekey`](Self::rekey).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for the last key.
    pub async fn remove_key(&self, id: KeyId) -> Result<()> {
        let keys = self.keys().await?;
        let key = keys::envelope(id.0)?;
        if !keys.iter().any(|key| key.id == id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                key.as_str(),
                "there is no such key",
            ));
        }
        if keys.len() == 1 {
            return Err(Error::new(
                ErrorKind::Invalid,
                key.as_str(),
                "is the last key; nobody could open the repository",
            ));
        }
        let deleted = self.shared.storage.delete(&key).await;
        deleted.map_err(|error| Error::storage(key.as_str(), error))
    }

    /// Begins a new epoch: what is written from now on is sealed with a new key, which only these keys open. All other
    /// keys are removed. What was written before stays sealed as it is, and these keys open it too. Writers at
    /// work go on with the old epoch; the handle that is returned writes in the new one.
    ///
    /// Dropped: old and new keys may both be there.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) without a key, or when the repository is not encrypted;
    /// [`Busy`](ErrorKind::Busy) when somebody else begins the same epoch.
    pub async fn rekey(&self, sources: Vec<KeySource>) -> Result<Self> {
        let Some(first) = sources.first().cloned() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "keys",
                "at least one is needed",
            ));
        };
        let storage = &*self.shared.storage;
        let before = envelopes(storage).await?;
        let mut epoch = self.keyring()?.epochs.last().map_or(0, |key| key.epoch);
        // A number that somebody began and did not end is passed over.
        loop {
            epoch = epoch
                .checked_add(1)
                .ok_or_else(|| Error::new(ErrorKind::Limit, "keys", "were renewed too often"))?;
            match create(storage, &keys::epoch(epoch)?, Vec::new()).await {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
        }
        let renewed = self.keyring()?.renewed(epoch)?;
        for source in sources {
            enclose(storage, self.id(), &renewed, source).await?;
        }
        for stored in before {
            let deleted = storage.delete(&stored.key).await;
            deleted.map_err(|error| Error::storage(stored.key.as_str(), error))?;
        }
        let mut options = self.shared.options.clone();
        options.key = Some(first);
        Self::open(std::sync::Arc::clone(&self.shared.storage), options).await
    }
}
