//! Deleting, a thousand objects to a request where the provider can.

use std::collections::{HashMap, HashSet};

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::error::lower;
use super::storage::S3;
use crate::error::{Error, ErrorKind, Operation, Result, Retry};
use crate::key::Key;

/// What S3 takes in one request.
const BATCH: usize = 1000;
/// Requests in flight when objects are deleted one by one.
const AT_ONCE: usize = 16;

impl S3 {
    pub(super) fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let s3 = self.clone();
        if !self.shared.config.bulk_delete {
            return keys
                .map(move |key| {
                    let s3 = s3.clone();
                    async move { s3.delete_one(key?).await }
                })
                .buffer_unordered(AT_ONCE)
                .boxed();
        }
        keys.ready_chunks(BATCH)
            .map(move |batch| {
                let s3 = s3.clone();
                async move { stream::iter(s3.delete_batch(batch).await) }
            })
            .buffer_unordered(2)
            .flatten()
            .boxed()
    }

    async fn delete_one(&self, key: Key) -> Result<Key> {
        let request = self
            .shared
            .client
            .delete_object()
            .bucket(self.bucket())
            .key(key.as_str());
        match request.send().await {
            Ok(_) => Ok(key),
            Err(error) => match lower(Operation::Delete, key.as_str(), &error) {
                error if error.kind() == ErrorKind::NotFound => Ok(key),
                error => Err(error),
            },
        }
    }

    async fn delete_batch(&self, batch: Vec<Result<Key>>) -> Vec<Result<Key>> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut keys = Vec::with_capacity(batch.len());
        for key in batch {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => outcomes.push(Err(error)),
            }
        }
        if keys.is_empty() {
            return outcomes;
        }
        let failed = |key: &Key, detail: &str| {
            Error::new(ErrorKind::Invalid, Operation::Delete)
                .subject(key.as_str())
                .detail(detail.to_owned())
        };
        let objects: Result<Vec<ObjectIdentifier>, _> = keys
            .iter()
            .map(|key| ObjectIdentifier::builder().key(key.as_str()).build())
            .collect();
        let delete = objects.and_then(|objects| {
            Delete::builder()
                .set_objects(Some(objects))
                .quiet(true)
                .build()
        });
        let delete = match delete {
            Ok(delete) => delete,
            Err(error) => {
                let text = error.to_string();
                outcomes.extend(keys.iter().map(|key| Err(failed(key, &text))));
                return outcomes;
            }
        };
        let request = self
            .shared
            .client
            .delete_objects()
            .bucket(self.bucket())
            .delete(delete);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                outcomes.extend(
                    keys.iter()
                        .map(|key| Err(lower(Operation::Delete, key.as_str(), &error))),
                );
                return outcomes;
            }
        };
        let asked: HashSet<&str> = keys.iter().map(Key::as_str).collect();
        let mut refused: HashMap<&str, &aws_sdk_s3::types::Error> = HashMap::new();
        // An error about no key of ours may be about any that the quiet answer doesn't mention.
        let mut any = None;
        for error in answer.errors() {
            match error.key() {
                _ if error.code() == Some("NoSuchKey") => {}
                Some(key) if asked.contains(key) => {
                    refused.insert(key, error);
                }
                _ => any = Some(error),
            }
        }
        for key in &keys {
            outcomes.push(match refused.remove(key.as_str()).or(any) {
                None => Ok(key.clone()),
                Some(error) => Err(refusal(key, error)),
            });
        }
        outcomes
    }
}

fn refusal(key: &Key, error: &aws_sdk_s3::types::Error) -> Error {
    let code = error.code().unwrap_or("(no code)");
    let kind = match code {
        "AccessDenied" => ErrorKind::Denied,
        "InternalError" | "SlowDown" | "ServiceUnavailable" => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    };
    let retry = if kind == ErrorKind::Unavailable {
        Retry::MayHelp
    } else {
        Retry::Never
    };
    Error::new(kind, Operation::Delete)
        .subject(key.as_str())
        .detail(code.to_owned())
        .retry(retry)
}
