//! A repository: made, opened, and its small objects read and written.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use neon_snapshot_format::pack::PackId;
use neon_storage::{Body, GetOptions, ObjectMeta, PutOptions, PutToken, Storage, StorageExt};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::catalog::Known;
use crate::crypt::{EpochKey, KeySource, Keyring, enclose, unlock};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, WriterId};
use crate::keys;
use crate::moves::MoveCache;
use crate::object::{Object, ObjectKind};
use crate::read::{FrameReader, FrameReaderOptions};

const FORMAT: &str = "neon repository";
const VERSION: u32 = 1;
/// The most bytes that `neon.json` may have.
const MOST: u64 = 1 << 20;

/// How a repository is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// How long a writer may be silent before it counts as gone, and how long what is doomed stays readable.
    /// Best the same for everybody who works with one repository: nothing is lost when it is not, but a writer may be
    /// told that it was silent for too long, and a reader may lose what was destroyed while it reads.
    pub grace: Duration,
    /// What opens it if it is encrypted; a new one is encrypted if this is given.
    pub key: Option<KeySource>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(60 * 60),
            key: None,
        }
    }
}

impl OpenOptions {
    /// A grace of an hour, no key.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Another grace.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: KeySource) -> Self {
        self.key = Some(key);
        self
    }
}

/// What `neon.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: String,
    version: u32,
    pub(crate) id: RepositoryId,
    pub(crate) encrypted: bool,
    #[serde(default)]
    ignorable: Vec<String>,
    #[serde(default)]
    read_only: Vec<String>,
    #[serde(default)]
    refuse: Vec<String>,
}

/// What comes before the digest, which covers all before itself.
const DIGEST: &[u8] = b",\n  \"digest\": \"";
const END: &[u8] = b"\"\n}\n";

impl Identity {
    fn encode(&self, subject: &str) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::malformed(subject, "cannot be written").caused_by(error))?;
        // The digest takes the place of the closing brace.
        text.truncate(text.len().saturating_sub(2));
        let digest = blake3::hash(&text).to_hex();
        text.extend_from_slice(DIGEST);
        text.extend_from_slice(digest.as_bytes());
        text.extend_from_slice(END);
        Ok(text)
    }

    fn decode(subject: &str, text: &[u8]) -> Result<Self> {
        let covered = text
            .strip_suffix(END)
            .and_then(|text| text.split_last_chunk::<64>())
            .and_then(|(text, digest)| Some((text.strip_suffix(DIGEST)?, digest)))
            .filter(|(text, digest)| blake3::hash(text).to_hex().as_bytes() == digest.as_slice());
        if covered.is_none() {
            return Err(Error::damaged(subject, "does not match its digest"));
        }
        let identity: Self = serde_json::from_slice(text)
            .map_err(|error| Error::malformed(subject, "cannot be read").caused_by(error))?;
        if identity.format != FORMAT {
            return Err(Error::malformed(subject, "is of another program"));
        }
        if identity.version != VERSION || !identity.refuse.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                subject,
                "was made by a newer version of this program",
            ));
        }
        Ok(identity)
    }
}

/// An error unless this is what `neon.json` may hold.
pub(crate) fn check_identity(text: &[u8]) -> Result<()> {
    Identity::decode(keys::REPOSITORY, text).map(drop)
}

/// An open repository. Cheap to clone; clones share caches.
#[derive(Clone)]
pub struct Repository {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) identity: Identity,
    pub(crate) keyring: Option<Keyring>,
    pub(crate) name_key: Zeroizing<[u8; 32]>,
    /// Who writes what belongs to no snapshot.
    pub(crate) me: WriterId,
    pub(crate) options: OpenOptions,
    /// What listings have read.
    pub(crate) known: tokio::sync::Mutex<Known>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .field("location", &self.shared.storage.location())
            .field("encrypted", &self.is_encrypted())
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in a storage and opens it. It exists, durably, when this returns.
    ///
    /// Dropped: there is a whole repository or none.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when there is one.
    pub async fn init(storage: Arc<dyn Storage>, options: OpenOptions) -> Result<Self> {
        let identity = Identity {
            format: FORMAT.to_owned(),
            version: VERSION,
            id: RepositoryId::random()?,
            encrypted: options.key.is_some(),
            ignorable: Vec::new(),
            read_only: Vec::new(),
            refuse: Vec::new(),
        };
        let key = keys::repository()?;
        let body = identity.encode(key.as_str())?;
        if let Some(source) = options.key.clone() {
            let there = storage.exists(&key).await;
            if there.map_err(|error| Error::storage(key.as_str(), error))? {
                return Err(Error::new(
                    ErrorKind::Exists,
                    key.as_str(),
                    "there is a repository here already",
                ));
            }
            // Before the repository, so that it never is without. An envelope says which repository it is of.
            enclose(&*storage, identity.id, &Keyring::new()?, source).await?;
        }
        create(&*storage, &key, body).await?;
        // Where a create does not mind what is there, the last one holds.
        let opened = Self::open(storage, options).await?;
        if opened.id() != identity.id {
            return Err(Error::new(
                ErrorKind::Exists,
                key.as_str(),
                "somebody else made a repository at the same time",
            ));
        }
        Ok(opened)
    }

    /// Opens the repository of a storage.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is none; [`Unsupported`](ErrorKind::Unsupported) when a newer
    /// version made it; [`Locked`](ErrorKind::Locked) when it is encrypted and the key does not open it;
    /// [`Inconsistent`](ErrorKind::Inconsistent) when it is not encrypted and a key was given.
    pub async fn open(storage: Arc<dyn Storage>, options: OpenOptions) -> Result<Self> {
        let key = keys::repository()?;
        let bytes =
            read_small(&*storage, &key, MOST)
                .await
                .map_err(|error| match error.kind() {
                    ErrorKind::Damaged | ErrorKind::Limit => error,
                    kind => Error::new(
                        kind,
                        format!("repository at {}", storage.location()),
                        error.reason().to_owned(),
                    )
                    .caused_by(error),
                })?;
        let identity = Identity::decode(key.as_str(), &bytes)?;
        let keyring = match (identity.encrypted, options.key.clone()) {
            (true, source) => Some(unlock(&*storage, identity.id, source).await?),
            (false, None) => None,
            (false, Some(_)) => {
                return Err(Error::new(
                    ErrorKind::Inconsistent,
                    format!("repository at {}", storage.location()),
                    "is not encrypted, and a key was given",
                ));
            }
        };
        let name_key = match &keyring {
            Some(keyring) => keyring.name_key.clone(),
            None => Zeroizing::new(blake3::derive_key("neon pagestore 1 names", &identity.id.0)),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                name_key,
                identity,
                keyring,
                me: WriterId::random()?,
                options,
                known: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// A reader of frames that finds those that moved. Every call makes one with a cache of its own.
    #[must_use]
    pub fn frames(&self) -> FrameReader {
        self.frames_with(FrameReaderOptions::default())
    }

    /// As [`frames`](Self::frames), with other options.
    #[must_use]
    pub fn frames_with(&self, options: FrameReaderOptions) -> FrameReader {
        let moved = Arc::new(MoveCache::new(self.clone()));
        FrameReader::new(Arc::clone(&self.shared.storage), moved, options)
    }

    /// What time it is for the storage.
    pub(crate) async fn storage_time(&self) -> Result<SystemTime> {
        let key = keys::repository()?;
        let head = self.shared.storage.head(&key).await;
        let head = head.map_err(|error| Error::storage(key.as_str(), error))?;
        match head.clock {
            Some(now) => Ok(now),
            // It does not show its clock, but dates what it stores.
            None => {
                let lease = self.lease(&[]).await?;
                let now = lease.prove().await;
                lease.release().await;
                now
            }
        }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.shared.identity.id
    }

    /// Whether everything in it is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.shared.identity.encrypted
    }

    /// How it was opened.
    #[must_use]
    pub fn options(&self) -> &OpenOptions {
        &self.shared.options
    }

    /// Where it is stored.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.shared.storage
    }

    /// The key of a pack's object.
    ///
    /// # Errors
    /// None in practice: every pack has a key.
    pub fn pack_key(id: PackId) -> Result<neon_storage::Key> {
        keys::pack(id)
    }

    pub(crate) async fn put_object(
        &self,
        key: &neon_storage::Key,
        object: &Object,
    ) -> Result<ObjectMeta> {
        self.require_writable()?;
        let seal = self.epochs().and_then(<[EpochKey]>::last);
        let bytes = object.encode(key, seal)?;
        if bytes.len() as u64 > object.kind.most() {
            return Err(too_large(key));
        }
        create(&*self.shared.storage, key, bytes).await
    }

    /// Whether its storage lists objects. Behind plain HTTP only those are found whose keys are known.
    pub(crate) fn lists(&self) -> bool {
        self.shared.storage.capabilities().list
    }

    /// Whether this program may write here: the storage takes it, and no addition forbids it.
    pub(crate) fn may_write(&self) -> bool {
        self.shared.storage.capabilities().write && self.require_writable().is_ok()
    }

    /// An error when the repository uses an addition with which this version may read it only.
    pub(crate) fn require_writable(&self) -> Result<()> {
        match self.shared.identity.read_only.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unsupported,
                keys::REPOSITORY,
                "uses additions of a newer version of this program, which can be read and not written",
            )),
        }
    }

    fn epochs(&self) -> Option<&[EpochKey]> {
        let keyring = self.shared.keyring.as_ref()?;
        Some(&keyring.epochs)
    }

    pub(crate) async fn put_json<T: Serialize + Sync>(
        &self,
        key: &neon_storage::Key,
        kind: ObjectKind,
        writer: WriterId,
        body: &T,
    ) -> Result<ObjectMeta> {
        let body = serde_json::to_vec(body).map_err(|error| {
            Error::malformed(key.as_str(), "cannot be written").caused_by(error)
        })?;
        self.put_object(key, &Object::new(kind, writer, body)).await
    }

    pub(crate) async fn get_json<T: for<'de> Deserialize<'de>>(
        &self,
        key: &neon_storage::Key,
        kind: ObjectKind,
    ) -> Result<(WriterId, T)> {
        let object = self.get_object(key, kind).await?;
        let body = serde_json::from_slice(&object.body)
            .map_err(|error| Error::malformed(key.as_str(), "cannot be read").caused_by(error))?;
        Ok((object.writer, body))
    }

    pub(crate) async fn get_object(
        &self,
        key: &neon_storage::Key,
        kind: ObjectKind,
    ) -> Result<Object> {
        let bytes = read_small(&*self.shared.storage, key, kind.most()).await?;
        Object::decode(key, kind, &bytes, self.epochs())
    }
}

fn too_large(key: &neon_storage::Key) -> Error {
    let reason = "is larger than an object of its kind may be";
    Error::new(ErrorKind::Limit, key.as_str(), reason)
}

/// Reads a whole object, unless it is larger than this.
pub(crate) async fn read_small(
    storage: &dyn Storage,
    key: &neon_storage::Key,
    most: u64,
) -> Result<Bytes> {
    let failed = |error| Error::storage(key.as_str(), error);
    let found = storage.get(key, GetOptions::new()).await.map_err(failed)?;
    if found.meta.size > most {
        return Err(too_large(key));
    }
    found.bytes().await.map_err(failed)
}

/// Creates an object; sent again by a layer below, it recognises its own.
pub(crate) async fn create(
    storage: &dyn Storage,
    key: &neon_storage::Key,
    body: Vec<u8>,
) -> Result<ObjectMeta> {
    create_from(storage, key, Bytes::from(body).into()).await
}

/// As [`create`], of what need not be in memory.
pub(crate) async fn create_from(
    storage: &dyn Storage,
    key: &neon_storage::Key,
    body: Body,
) -> Result<ObjectMeta> {
    put_new(storage, key, body)
        .await
        .map_err(|error| Error::storage(key.as_str(), error))
}

/// Creates an object. Where the storage refuses to replace what is there, it does; where it cannot, what is there is looked
/// for first, and only two who create the same key at the same time replace each other's: that names, and nothing else,
/// would mind.
pub(crate) async fn put_new(
    storage: &dyn Storage,
    key: &neon_storage::Key,
    body: Body,
) -> neon_storage::Result<ObjectMeta> {
    let can = storage.capabilities();
    let refuses = can.create_only || !can.write || storage.probe().await?.create_only;
    let options = if refuses {
        PutOptions::create()
    } else if storage.exists(key).await? {
        return Err(neon_storage::Error::new(
            neon_storage::ErrorKind::Exists,
            neon_storage::Operation::Put,
        )
        .subject(key.as_str()));
    } else {
        PutOptions::overwrite()
    };
    let options = options.with_token(PutToken::random());
    storage.put(key, body, options).await
}

/// Creates an object that only one may create: refused where the storage lets two.
pub(crate) async fn create_alone(storage: &dyn Storage, key: &neon_storage::Key) -> Result<()> {
    // A storage that lets two is noticed by nothing afterwards: what a program remembers of it is not enough.
    let options = PutOptions::create()
        .with_token(PutToken::random())
        .at_first_hand();
    let put = storage.put(key, Bytes::new().into(), options).await;
    put.map(drop)
        .map_err(|error| Error::storage(key.as_str(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format_tests::keep;

    fn identity() -> Identity {
        Identity {
            format: FORMAT.to_owned(),
            version: VERSION,
            id: RepositoryId([7; 16]),
            encrypted: false,
            ignorable: Vec::new(),
            read_only: Vec::new(),
            refuse: Vec::new(),
        }
    }

    #[test]
    fn the_identity_vouches_for_itself() {
        let identity = identity();
        let text = identity.encode("neon.json").unwrap();
        let shown = String::from_utf8(text.clone()).unwrap();
        assert_eq!(
            Identity::decode("neon.json", &text).unwrap().id,
            identity.id,
            "{shown}"
        );
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert!(Identity::decode("neon.json", &changed).is_err(), "{at}");
        }
    }

    #[test]
    fn identities_of_version_1_are_written_and_read_as_ever() {
        let encrypted = Identity {
            encrypted: true,
            ..identity()
        };
        let additions = Identity {
            ignorable: vec!["hints".to_owned()],
            read_only: vec!["areas".to_owned(), "marks".to_owned()],
            ..identity()
        };
        for (name, identity) in [
            ("neon-v1.json", identity()),
            ("neon-v1-encrypted.json", encrypted),
            ("neon-v1-additions.json", additions),
        ] {
            let text = identity.encode("neon.json").unwrap();
            let kept = keep(name, &text);
            assert_eq!(String::from_utf8(kept.clone()), String::from_utf8(text));
            assert_eq!(Identity::decode("neon.json", &kept).unwrap(), identity);
        }
        let refused = Identity {
            refuse: vec!["folding".to_owned()],
            ..identity()
        };
        let newer = Identity {
            version: VERSION + 1,
            ..identity()
        };
        for identity in [refused, newer] {
            let text = identity.encode("neon.json").unwrap();
            let error = Identity::decode("neon.json", &text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{identity:?}");
        }
    }
}
