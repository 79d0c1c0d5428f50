//! The native backend as a [`Storage`].

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::commit::{Writer, parent_of};
use super::disk::{Disk, Place, RealDisk};
use super::list::Walk;
use super::read::{self, blocking};
use super::version;
use crate::body::Body;
use crate::capabilities::{Capabilities, Durability};
use crate::error::{Error, ErrorKind, Operation, Result, from_io};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::ranges;
use crate::storage::Storage;

/// How much of a body is gathered before it is written.
const WRITE: usize = 1024 * 1024;
/// How many objects a listing looks up, and a delete removes, per turn on a blocking thread.
const PAGE: usize = 1000;

/// How a [`Native`] storage makes files and directories.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NativeOptions {
    /// Mode of new files before the umask; 0600.
    pub file_mode: u32,
    /// Mode of new directories before the umask; 0700.
    pub dir_mode: u32,
    /// Whether a missing root is made; true. Its parent must exist.
    pub create_root: bool,
}

impl Default for NativeOptions {
    fn default() -> Self {
        Self {
            file_mode: 0o600,
            dir_mode: 0o700,
            create_root: true,
        }
    }
}

/// A storage in a directory of this machine. Clones share it, also a refusal after a failed fsync.
///
/// Needs a tokio runtime; all file work happens on its blocking threads.
#[derive(Debug, Clone)]
pub struct Native {
    writer: Arc<Writer>,
    tokens: bool,
}

impl Native {
    /// Opens a directory, making it if it is not there. Nothing else is written before the first
    /// put. Blocks shortly.
    pub fn open(root: impl Into<PathBuf>, options: NativeOptions) -> Result<Self> {
        Self::open_on(Arc::new(RealDisk), root, options)
    }

    /// The same on another disk; for tests of what crashes and errors leave behind.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        root: impl Into<PathBuf>,
        options: NativeOptions,
    ) -> Result<Self> {
        let root = root.into();
        let failed = |error| from_io(Operation::Open, &root.display().to_string(), error);
        // Whether this handle knows the root's own name to be durable.
        let mut rooted = false;
        match fs::metadata(&root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.create_root => {
                let parent = parent_of(&root);
                let directory = disk.open_dir(&parent, Path::new("")).map_err(failed)?;
                match disk.make_dir(Place::new(&directory, &root), options.dir_mode) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
                disk.sync_dir(&directory, &parent).map_err(failed)?;
                rooted = true;
            }
            Err(error) => return Err(failed(error)),
        }
        let tokens = fs::File::open(&root).is_ok_and(|root| version::tokens_are_kept(&root));
        Ok(Self {
            writer: Arc::new(Writer::new(root, disk, options, rooted)),
            tokens,
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.writer.root
    }
}

#[async_trait]
impl Storage for Native {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            recognises_own_put: self.tokens,
            keys_below_keys: false,
            ..Capabilities::full(Durability::Synced)
        }
    }

    async fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        self.writer.root.display().to_string()
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        let subject = key.as_str();
        let (writer, name) = (Arc::clone(&self.writer), key.clone());
        let mut temp = blocking(Operation::Put, subject, move || writer.temp(&name))
            .await?
            .map_err(Error::without_effect)?;
        let mut body = body.into_stream();
        let mut ended = false;
        while !ended {
            let mut gathered: Vec<Bytes> = Vec::new();
            let mut length = 0usize;
            while length < WRITE {
                match body.next().await {
                    Some(Ok(chunk)) => {
                        length = length.saturating_add(chunk.len());
                        gathered.push(chunk);
                    }
                    Some(Err(error)) => {
                        return Err(Error::new(ErrorKind::Body, Operation::Put)
                            .subject(subject)
                            .because(error));
                    }
                    None => {
                        ended = true;
                        break;
                    }
                }
            }
            if length == 0 {
                continue;
            }
            temp = blocking(Operation::Put, subject, move || {
                gathered
                    .iter()
                    .try_for_each(|chunk| temp.write(chunk))
                    .map(|()| temp)
            })
            .await?
            .map_err(|error| from_io(Operation::Put, subject, error).without_effect())?;
        }
        let (writer, name) = (Arc::clone(&self.writer), key.clone());
        blocking(Operation::Put, subject, move || {
            writer.commit(&name, temp, &options)
        })
        .await?
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        options.check(key)?;
        let (file, meta) = self.open_version(key, &options).await?;
        let range = options.resolve(key, meta.size)?;
        let body = read::chunks(key.clone(), file, range.clone());
        Ok(GetResult::new(meta, range, body))
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        ranges::check(key, ranges, &options)?;
        let (file, meta) = self.open_version(key, &options).await?;
        if let Some(range) = ranges.iter().find(|range| range.end > meta.size) {
            return Err(ranges::outside(key, range, meta.size));
        }
        let (ranges, name) = (ranges.to_vec(), key.clone());
        blocking(Operation::Get, key.as_str(), move || {
            ranges
                .into_iter()
                .map(|range| read::exact(&file, &name, range))
                .collect()
        })
        .await?
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let (writer, name) = (Arc::clone(&self.writer), key.clone());
        blocking(Operation::Head, key.as_str(), move || {
            let failed = |error| from_io(Operation::Head, name.as_str(), error);
            let file = writer.open(&name).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            Ok(Head::new(
                version::object(name.clone(), &meta),
                writer.clock(),
            ))
        })
        .await?
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let walk = Walk::new(self.writer.root.clone(), options);
        stream::unfold(Some(walk), |walk| async move {
            let mut walk = walk?;
            let chunk = blocking(Operation::List, "", move || {
                let chunk = walk.next_chunk(PAGE);
                (walk, chunk)
            })
            .await;
            match chunk {
                Ok((_, Ok(chunk))) if chunk.is_empty() => None,
                Ok((walk, Ok(chunk))) => Some((stream::iter(chunk).map(Ok).boxed(), Some(walk))),
                Ok((_, Err(error))) | Err(error) => {
                    Some((stream::iter([Err(error)]).boxed(), None))
                }
            }
        })
        .flatten()
        .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let writer = Arc::clone(&self.writer);
        keys.ready_chunks(PAGE)
            .then(move |batch| {
                let writer = Arc::clone(&writer);
                async move {
                    let (mut keys, mut outcomes) = (Vec::new(), Vec::new());
                    for key in batch {
                        match key {
                            Ok(key) => keys.push(key),
                            Err(error) => outcomes.push(Err(error)),
                        }
                    }
                    match blocking(Operation::Delete, "", move || writer.delete(keys)).await {
                        Ok(deleted) => outcomes.extend(deleted),
                        Err(error) => outcomes.push(Err(error)),
                    }
                    stream::iter(outcomes)
                }
            })
            .flatten()
            .boxed()
    }
}

impl Native {
    /// Opens an object and checks that it is at the wanted version.
    async fn open_version(
        &self,
        key: &Key,
        options: &GetOptions,
    ) -> Result<(fs::File, ObjectMeta)> {
        let (writer, name, options) = (Arc::clone(&self.writer), key.clone(), options.clone());
        blocking(Operation::Get, key.as_str(), move || {
            let failed = |error| from_io(Operation::Get, name.as_str(), error);
            let file = writer.open(&name).map_err(failed)?;
            let meta = version::object(name.clone(), &file.metadata().map_err(failed)?);
            match options.if_version {
                Some(version) if meta.version.as_ref() != Some(&version) => {
                    Err(Error::new(ErrorKind::Precondition, Operation::Get).subject(name.as_str()))
                }
                _ => Ok((file, meta)),
            }
        })
        .await?
    }
}
