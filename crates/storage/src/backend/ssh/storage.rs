//! The SSH backend as a [`Storage`].

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::client::Connection;
use super::config::SshConfig;
use super::files::{Failed, File};
use super::list::Walk;
use super::wire::{self, Attrs, Status};
use crate::body::Body;
use crate::capabilities::{Capabilities, Durability};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::{Key, RESERVED};
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::ranges;
use crate::storage::Storage;

/// Bytes per read request, and reads in flight of one body.
const PIECE: u64 = 32 * 1024;
const AT_ONCE: usize = 32;
/// Deletes in flight.
const DELETES: usize = 32;

/// A storage on another machine. Clones share one connection, which is made when it is first
/// needed and again after it broke.
#[derive(Clone)]
pub struct Ssh {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: SshConfig,
    connection: AsyncMutex<Option<Arc<Connection>>>,
    pub(super) prepared: OnceCell<()>,
    known_dirs: Mutex<HashSet<String>>,
    synced: Mutex<bool>,
}

impl fmt::Debug for Ssh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ssh")
            .field("location", &self.shared.config.shown)
            .finish_non_exhaustive()
    }
}

/// When a file was last written, in whole seconds.
pub(super) fn modified(attrs: Attrs) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(attrs.mtime.unwrap_or(0)))
}

impl Ssh {
    /// Connects and checks that SFTP is spoken. Changes nothing on the far side.
    pub async fn open(config: SshConfig) -> Result<Self> {
        let shared = Shared {
            config,
            connection: AsyncMutex::new(None),
            prepared: OnceCell::new(),
            known_dirs: Mutex::new(HashSet::new()),
            synced: Mutex::new(false),
        };
        let ssh = Self {
            shared: Arc::new(shared),
        };
        let connection = ssh
            .connection(Operation::Open, &ssh.shared.config.shown)
            .await?;
        *ssh.shared
            .synced
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = connection.has("fsync@openssh.com");
        Ok(ssh)
    }

    pub(super) async fn connection(
        &self,
        operation: Operation,
        subject: &str,
    ) -> Result<Arc<Connection>> {
        let mut held = self.shared.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| !connection.is_dead()) {
            return Ok(Arc::clone(connection));
        }
        *held = None;
        let connection = Connection::open(&self.shared.config)
            .await
            .map_err(|error| error.during(operation).subject(subject))?;
        Ok(Arc::clone(held.insert(Arc::new(connection))))
    }

    pub(super) fn path(&self, key: &Key) -> String {
        format!("{}/{key}", self.root())
    }

    fn root(&self) -> &str {
        self.shared.config.root.trim_end_matches('/')
    }

    pub(super) fn knows(&self, directory: &str) -> bool {
        let known = self
            .shared
            .known_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.contains(directory)
    }

    pub(super) fn learn(&self, directory: &str) {
        let mut known = self
            .shared
            .known_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert(directory.to_owned());
    }

    /// Forgets every directory: somebody removed one behind our back.
    pub(super) fn forget(&self) {
        let mut known = self
            .shared
            .known_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }

    /// The far side's clock: that which it stamps a new file with. Never told from an earlier look
    /// and a clock of ours, which stands still while this machine sleeps or is paused.
    pub(super) async fn clock(&self, connection: &Arc<Connection>) -> Option<SystemTime> {
        let path = format!(
            "{}/{RESERVED}/tmp/clock-{:032x}",
            self.root(),
            fastrand::u128(..)
        );
        let flags = wire::OPEN_WRITE | wire::OPEN_CREATE | wire::OPEN_EXCLUSIVE;
        let file = connection
            .open_file(&path, flags, self.shared.config.file_mode)
            .await
            .ok()?;
        let attrs = file.stat().await;
        connection.tell(wire::REMOVE, |packet| packet.bytes(path.as_bytes()));
        Some(modified(attrs.ok()?))
    }

    async fn open_object(&self, operation: Operation, key: &Key) -> Result<(File, Attrs)> {
        let subject = key.as_str();
        let lower = |failed: Failed| failed.lower(operation, subject);
        let connection = self.connection(operation, subject).await?;
        let path = self.path(key);
        let file = match connection.open_file(&path, wire::OPEN_READ, 0).await {
            Ok(file) => file,
            // Some servers don't open directories.
            Err(failed) if failed.status() == Some(Status::Failure) => {
                return match connection.lstat(&path).await {
                    Ok(attrs) if !attrs.is_file() => {
                        Err(Error::new(ErrorKind::NotFound, operation).subject(subject))
                    }
                    _ => Err(lower(failed)),
                };
            }
            Err(failed) => return Err(lower(failed)),
        };
        let attrs = file.stat().await.map_err(lower)?;
        if !attrs.is_file() {
            return Err(Error::new(ErrorKind::NotFound, operation).subject(subject));
        }
        Ok((file, attrs))
    }
}

/// One piece of a file, however many answers it takes.
async fn exact(file: &File, piece: Range<u64>) -> Result<Bytes, Failed> {
    let length = u32::try_from(piece.end.saturating_sub(piece.start)).unwrap_or(u32::MAX);
    let first = file.read(piece.start, length).await?;
    if first.len() as u64 == u64::from(length) || first.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(&first[..]);
    while (whole.len() as u64) < u64::from(length) {
        let at = piece.start.saturating_add(whole.len() as u64);
        let rest = u32::try_from(piece.end.saturating_sub(at)).unwrap_or(u32::MAX);
        let more = file.read(at, rest).await?;
        if more.is_empty() {
            break;
        }
        whole.extend_from_slice(&more);
    }
    Ok(whole.freeze())
}

fn unversioned(key: &Key) -> Error {
    Error::new(ErrorKind::Unsupported, Operation::Get)
        .subject(key.as_str())
        .detail("SFTP has no versions")
}

#[async_trait]
impl Storage for Ssh {
    fn capabilities(&self) -> Capabilities {
        let synced = *self
            .shared
            .synced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let durability = if synced {
            Durability::ContentSynced
        } else {
            Durability::Acknowledged
        };
        Capabilities {
            compare_and_swap: false,
            versions: false,
            recognises_own_put: false,
            keys_below_keys: false,
            ..Capabilities::full(durability)
        }
    }

    async fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        self.shared.config.shown.clone()
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        self.put_body(key, body, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        options.check(key)?;
        if options.if_version.is_some() {
            return Err(unversioned(key));
        }
        let (file, attrs) = self.open_object(Operation::Get, key).await?;
        let size = attrs.size.unwrap_or(0);
        let range = options.resolve(key, size)?;
        let (file, subject) = (Arc::new(file), key.clone());
        let mut at = range.start;
        let end = range.end;
        let pieces = std::iter::from_fn(move || {
            let piece = at..end.min(at.saturating_add(PIECE));
            at = piece.end;
            (!piece.is_empty()).then_some(piece)
        });
        let body = stream::iter(pieces)
            .map(move |piece| {
                let (file, subject) = (Arc::clone(&file), subject.clone());
                async move {
                    let read = exact(&file, piece).await;
                    read.map_err(|failed| failed.lower(Operation::Get, subject.as_str()))
                }
            })
            .buffered(AT_ONCE)
            .try_take_while(|piece| {
                let more = !piece.is_empty();
                async move { Ok(more) }
            })
            .boxed();
        let meta = ObjectMeta::new(key.clone(), size, None, modified(attrs));
        Ok(GetResult::new(meta, range, body))
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        ranges::check(key, ranges, &options)?;
        if options.if_version.is_some() {
            return Err(unversioned(key));
        }
        // One open file for all of them, so that all are of one version.
        let (file, attrs) = self.open_object(Operation::Get, key).await?;
        let (file, size) = (&file, attrs.size.unwrap_or(0));
        if let Some(range) = ranges.iter().find(|range| range.end > size) {
            return Err(ranges::outside(key, range, size));
        }
        let short = || Error::new(ErrorKind::Corrupt, Operation::Get).subject(key.as_str());
        stream::iter(ranges.iter().cloned())
            .map(|range| async move {
                let mut whole = BytesMut::new();
                let mut at = range.start;
                while at < range.end {
                    let piece = at..range.end.min(at.saturating_add(PIECE));
                    let bytes = exact(file, piece)
                        .await
                        .map_err(|failed| failed.lower(Operation::Get, key.as_str()))?;
                    if bytes.is_empty() {
                        return Err(short());
                    }
                    at = at.saturating_add(bytes.len() as u64);
                    whole.extend_from_slice(&bytes);
                }
                Ok(whole.freeze())
            })
            .buffered(8)
            .try_collect()
            .await
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let connection = self.connection(Operation::Head, key.as_str()).await?;
        let path = self.path(key);
        let (attrs, clock) = tokio::join!(connection.lstat(&path), self.clock(&connection));
        let attrs = attrs.map_err(|failed| failed.lower(Operation::Head, key.as_str()))?;
        if !attrs.is_file() {
            return Err(Error::new(ErrorKind::NotFound, Operation::Head).subject(key.as_str()));
        }
        let meta = ObjectMeta::new(key.clone(), attrs.size.unwrap_or(0), None, modified(attrs));
        Ok(Head::new(meta, clock))
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let ssh = self.clone();
        let prefix = options.prefix.clone();
        let begin = async move {
            let connection = ssh.connection(Operation::List, &options.prefix).await?;
            Ok::<_, Error>(Walk::new(connection, ssh.root().to_owned(), options))
        };
        stream::once(begin)
            .map_ok(move |walk| {
                let prefix = prefix.clone();
                stream::try_unfold(walk, move |mut walk| {
                    let prefix = prefix.clone();
                    async move {
                        match walk.next_chunk().await {
                            Ok(Some(chunk)) => {
                                let chunk = stream::iter(chunk.into_iter().map(Ok));
                                Ok(Some((chunk, walk)))
                            }
                            Ok(None) => Ok(None),
                            Err(failed) => Err(failed.lower(Operation::List, &prefix)),
                        }
                    }
                })
                .try_flatten()
            })
            .try_flatten()
            .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let ssh = self.clone();
        keys.map(move |key| {
            let ssh = ssh.clone();
            async move { ssh.delete_one(key?).await }
        })
        .buffer_unordered(DELETES)
        .boxed()
    }
}

impl Ssh {
    async fn delete_one(&self, key: Key) -> Result<Key> {
        let connection = self.connection(Operation::Delete, key.as_str()).await?;
        let path = self.path(&key);
        match connection.remove(&path).await {
            Ok(()) => Ok(key),
            Err(failed) if failed.status() == Some(Status::NoSuchFile) => Ok(key),
            Err(failed) => match connection.lstat(&path).await {
                // A directory is no object.
                Ok(attrs) if attrs.is_dir() => Ok(key),
                _ => Err(failed.lower(Operation::Delete, key.as_str())),
            },
        }
    }
}
