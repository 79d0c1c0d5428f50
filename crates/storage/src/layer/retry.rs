//! Tries again what may help: jittered, growing pauses under one deadline.
//!
//! A put is repeated if its body can be produced again, under one token, so that a repetition
//! recognises an object whose answer was lost. Where it meets another's object instead, the first
//! attempt may have taken effect and been replaced since: that outcome is unknown, and said to be
//! ([`Error::outcome_unknown`]). A read goes on where it broke off, bound to the
//! version it began with. A listing goes on after the last key it gave out.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::attempts::{Attempts, Progress, watched};
use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result, Retry};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, GetRange, ListOptions, PutOptions, PutToken};
use crate::storage::Storage;

/// How long to go on, and how long to pause between.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The longest first pause; 100 ms. Every pause is drawn between nothing and its longest.
    pub first_pause: Duration,
    /// The longest pause of all, doubled towards from the first; 20 s.
    pub longest_pause: Duration,
    /// From the first attempt of an operation to giving up, also on an attempt that hangs; 3 min.
    /// A body being read or a listing has it anew after every answer. Of a put it is the time in
    /// which nothing moves: while its body is taken, however slowly and however long it is, no
    /// time counts, and what a backend may hold unsent has a second more for every 128 KiB.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(20),
            deadline: Duration::from_secs(180),
        }
    }
}

/// Retries the operations of a storage.
#[derive(Debug, Clone)]
pub struct RetryLayer {
    inner: Arc<dyn Storage>,
    policy: RetryPolicy,
}

impl RetryLayer {
    /// Retries by this policy.
    pub fn new(inner: Arc<dyn Storage>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }
}

impl RetryLayer {
    async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        operation: Operation,
        subject: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        let mut attempts = Attempts::new(&self.policy);
        loop {
            match attempts.attempt(operation, subject, attempt()).await {
                Ok(value) => return Ok(value),
                Err(error) => attempts.pause(error).await?,
            }
        }
    }
}

/// A body that is opened again where it broke off.
struct Resumed {
    layer: RetryLayer,
    meta: ObjectMeta,
    body: BoxStream<'static, Result<Bytes>>,
    left: Range<u64>,
}

impl Resumed {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.left.is_empty() {
            return None;
        }
        let policy = self.layer.policy.clone();
        let mut attempts = Attempts::new(&policy);
        let subject = self.meta.key.to_string();
        loop {
            let chunk = async {
                self.body
                    .next()
                    .await
                    .unwrap_or_else(|| Err(ended(&subject)))
            };
            let error = match attempts.attempt(Operation::Get, &subject, chunk).await {
                Ok(chunk) => {
                    self.left.start = self.left.start.saturating_add(chunk.len() as u64);
                    return Some(Ok(chunk));
                }
                Err(error) => error,
            };
            // Without a version there is no telling whether the rest belongs to the same object.
            let Some(version) = self.meta.version.clone() else {
                self.left = 0..0;
                return Some(Err(error));
            };
            if let Err(error) = attempts.pause(error).await {
                self.left = 0..0;
                return Some(Err(error));
            }
            let rest = GetOptions::new()
                .range(GetRange::Bounded(self.left.clone()))
                .if_version(version);
            let again = self.layer.inner.get(&self.meta.key, rest);
            self.body = match attempts.attempt(Operation::Get, &subject, again).await {
                Ok(got) => got.body,
                Err(error) if error.kind() == ErrorKind::Precondition => {
                    self.left = 0..0;
                    return Some(Err(error
                        .detail("the object changed while it was read")
                        .retry(Retry::MayHelp)));
                }
                Err(error) => stream::iter([Err(error)]).boxed(),
            };
        }
    }
}

fn ended(subject: &str) -> Error {
    Error::new(ErrorKind::Corrupt, Operation::Get)
        .subject(subject)
        .detail("the body ended early")
        .retry(Retry::MayHelp)
}

impl fmt::Debug for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumed")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Storage for RetryLayer {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Result<Capabilities> {
        self.inner.probe().await
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        let mut options = options;
        options.token.get_or_insert_with(PutToken::random);
        let mut attempts = Attempts::new(&self.policy);
        let mut body = body;
        // Whether an attempt so far may have taken effect.
        let mut unknown = false;
        loop {
            let next = body.try_clone();
            let progress = Progress::begin();
            let body_now = match body.as_bytes() {
                Some(bytes) => {
                    progress.taken(bytes.len());
                    body
                }
                None => watched(body, progress.clone()),
            };
            let attempt = self.inner.put(key, body_now, options.clone());
            // A stream that comes once is as slow as its producer: no deadline cuts it.
            let result = match &next {
                Some(_) => attempts.moving(key.as_str(), &progress, attempt).await,
                None => attempt.await,
            };
            match (result, next) {
                (Ok(meta), _) => return Ok(meta),
                (Err(error), None) => return Err(error),
                (Err(error), Some(next)) => {
                    let error = if unknown {
                        error.after_a_lost_answer(self.inner.capabilities().recognises_own_put)
                    } else {
                        error
                    };
                    unknown |= error.outcome_unknown();
                    attempts.pause(error).await?;
                    body = next;
                }
            }
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let mut got = self
            .retry(Operation::Get, key.as_str(), || {
                self.inner.get(key, options.clone())
            })
            .await?;
        let resumed = Resumed {
            layer: self.clone(),
            meta: got.meta.clone(),
            body: got.body,
            left: got.range.clone(),
        };
        got.body = stream::unfold(resumed, |mut resumed| async move {
            let chunk = resumed.next().await?;
            Some((chunk, resumed))
        })
        .boxed();
        Ok(got)
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        self.retry(Operation::Get, key.as_str(), || {
            self.inner.get_ranges(key, ranges, options.clone())
        })
        .await
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        self.retry(Operation::Head, key.as_str(), || self.inner.head(key))
            .await
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let layer = self.clone();
        let answers = layer.inner.list(options.clone());
        stream::unfold(Some((layer, options, answers)), |state| async move {
            let (layer, mut options, mut answers) = state?;
            let policy = layer.policy.clone();
            let mut attempts = Attempts::new(&policy);
            loop {
                let next = async { answers.next().await.transpose() };
                let subject = options.prefix.clone();
                match attempts.attempt(Operation::List, &subject, next).await {
                    Ok(None) => return None,
                    Ok(Some(object)) => {
                        options.after = Some(object.key.to_string());
                        return Some((Ok(object), Some((layer, options, answers))));
                    }
                    Err(error) => match attempts.pause(error).await {
                        Ok(()) => answers = layer.inner.list(options.clone()),
                        Err(error) => return Some((Err(error), None)),
                    },
                }
            }
        })
        .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let layer = self.clone();
        keys.ready_chunks(1000)
            .then(move |batch| {
                let layer = layer.clone();
                async move { stream::iter(layer.delete_batch(batch).await) }
            })
            .flatten()
            .boxed()
    }
}

impl RetryLayer {
    async fn delete_batch(&self, batch: Vec<Result<Key>>) -> Vec<Result<Key>> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut left = BTreeSet::new();
        for key in batch {
            match key {
                Ok(key) => drop(left.insert(key)),
                Err(error) => answers.push(Err(error)),
            }
        }
        let mut attempts = Attempts::new(&self.policy);
        while !left.is_empty() {
            let keys: Vec<Result<Key>> = left.iter().cloned().map(Ok).collect();
            let mut deletes = self.inner.delete_many(stream::iter(keys).boxed());
            let (mut last, mut all) = (None, None);
            loop {
                let next = async { Ok(deletes.next().await) };
                match attempts.attempt(Operation::Delete, "", next).await {
                    Ok(None) => break,
                    Ok(Some(Ok(key))) => {
                        if left.remove(&key) {
                            answers.push(Ok(key));
                        }
                    }
                    Ok(Some(Err(error))) if error.is_retryable() => last = Some(error),
                    Ok(Some(Err(error))) => {
                        let named = error.key().and_then(|key| left.take(key));
                        match named {
                            Some(_) => answers.push(Err(error)),
                            // About no key of ours, so about all that get no answer of their own.
                            None => all = Some(error),
                        }
                    }
                    Err(error) => {
                        last = Some(error);
                        break;
                    }
                }
            }
            if let Some(error) = all {
                answers.extend(each(&mut left, error));
            }
            if left.is_empty() {
                break;
            }
            let error = last.unwrap_or_else(|| {
                Error::new(ErrorKind::Unavailable, Operation::Delete)
                    .detail("the storage said nothing about this key")
            });
            if let Err(error) = attempts.pause(error).await {
                answers.extend(each(&mut left, error));
            }
        }
        answers
    }
}

/// The error for every key that is left: with its cause for the first, its kind for the others.
fn each(left: &mut BTreeSet<Key>, error: Error) -> Vec<Result<Key>> {
    let (kind, retry) = (error.kind(), error.retry_hint());
    let mut cause = Some(error);
    std::mem::take(left)
        .into_iter()
        .map(|key| {
            let failed = match cause.take() {
                Some(first) => first,
                None => Error::new(kind, Operation::Delete).retry(retry),
            };
            Err(failed.subject(key.to_string()))
        })
        .collect()
}
