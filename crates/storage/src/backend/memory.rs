//! Objects in this process: for tests, for examples, and as the plainest reading of the contract.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use crate::body::Body;
use crate::capabilities::{Capabilities, Durability};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta, Version};
use crate::options::{GetOptions, ListOptions, PutMode, PutOptions, PutToken};
use crate::ranges;
use crate::storage::Storage;

/// How many entries a listing copies per turn of the lock.
const PAGE: usize = 1000;

/// A storage in memory. Clones share their objects.
#[derive(Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Object>,
    last_version: u64,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    version: u64,
    modified: SystemTime,
    token: Option<PutToken>,
}

impl Object {
    fn meta(&self, key: &Key) -> ObjectMeta {
        let version = Version::new(self.version.to_string());
        ObjectMeta::new(
            key.clone(),
            self.bytes.len() as u64,
            Some(version),
            self.modified,
        )
    }

    fn is_version(&self, version: &Version) -> bool {
        self.version.to_string() == version.as_str()
    }
}

impl Memory {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one insert or remove, so a panic elsewhere leaves the map whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, operation: Operation, key: &Key) -> Result<Object> {
        self.state()
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, operation).subject(key.as_str()))
    }

    fn find_version(&self, key: &Key, options: &GetOptions) -> Result<Object> {
        let object = self.find(Operation::Get, key)?;
        match &options.if_version {
            Some(version) if !object.is_version(version) => {
                Err(Error::new(ErrorKind::Precondition, Operation::Get).subject(key.as_str()))
            }
            _ => Ok(object),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("objects", &self.state().objects.len())
            .finish()
    }
}

fn slice(bytes: &Bytes, range: &Range<u64>) -> Option<Bytes> {
    let (start, end) = (
        usize::try_from(range.start).ok()?,
        usize::try_from(range.end).ok()?,
    );
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}

/// Chunks as one: copied once, whatever their number.
fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    match chunks.len() {
        0 | 1 => chunks.pop().unwrap_or_default(),
        _ => chunks.concat().into(),
    }
}

#[async_trait]
impl Storage for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full(Durability::Process)
    }

    async fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        "memory:".to_owned()
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        let bytes = match body.as_bytes() {
            Some(bytes) => bytes.clone(),
            None => body
                .into_stream()
                .try_collect::<Vec<Bytes>>()
                .await
                .map_err(|error| {
                    Error::new(ErrorKind::Body, Operation::Put)
                        .subject(key.as_str())
                        .because(error)
                })
                .map(joined)?,
        };
        let mut state = self.state();
        let present = state.objects.get(key);
        if let (Some(object), Some(token)) = (present, &options.token)
            && object.token.as_ref() == Some(token)
        {
            return Ok(object.meta(key));
        }
        let failed = |kind| Err(Error::new(kind, Operation::Put).subject(key.as_str()));
        match (&options.mode, present) {
            (PutMode::Create, Some(_)) => return failed(ErrorKind::Exists),
            (PutMode::IfVersion(version), present)
                if !present.is_some_and(|object| object.is_version(version)) =>
            {
                return failed(ErrorKind::Precondition);
            }
            _ => {}
        }
        state.last_version = state.last_version.saturating_add(1);
        let object = Object {
            bytes,
            version: state.last_version,
            modified: SystemTime::now(),
            token: options.token,
        };
        let meta = object.meta(key);
        state.objects.insert(key.clone(), object);
        Ok(meta)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        options.check(key)?;
        let object = self.find_version(key, &options)?;
        let meta = object.meta(key);
        let range = options.resolve(key, meta.size)?;
        let bytes =
            slice(&object.bytes, &range).ok_or_else(|| ranges::outside(key, &range, meta.size))?;
        Ok(GetResult::new(
            meta,
            range,
            stream::iter([Ok(bytes)]).boxed(),
        ))
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        ranges::check(key, ranges, &options)?;
        let object = self.find_version(key, &options)?;
        let size = object.bytes.len() as u64;
        ranges
            .iter()
            .map(|range| {
                slice(&object.bytes, range).ok_or_else(|| ranges::outside(key, range, size))
            })
            .collect()
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let object = self.find(Operation::Head, key)?;
        Ok(Head::new(object.meta(key), Some(SystemTime::now())))
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let storage = self.clone();
        stream::unfold(Some(options), move |options| {
            let storage = storage.clone();
            async move {
                let options = options?;
                let page: Vec<ObjectMeta> = {
                    let state = storage.state();
                    let from = match &options.after {
                        Some(after) if *after >= options.prefix => Bound::Excluded(after.as_str()),
                        _ => Bound::Included(options.prefix.as_str()),
                    };
                    state
                        .objects
                        .range::<str, _>((from, Bound::Unbounded))
                        .take_while(|(key, _)| key.as_str().starts_with(&options.prefix))
                        .take(PAGE)
                        .map(|(key, object)| object.meta(key))
                        .collect()
                };
                let last = page.last()?.key.to_string();
                Some((
                    stream::iter(page.into_iter().map(Ok)),
                    Some(options.after(last)),
                ))
            }
        })
        .flatten()
        .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let storage = self.clone();
        keys.map_ok(move |key| {
            storage.state().objects.remove(&key);
            key
        })
        .boxed()
    }
}
