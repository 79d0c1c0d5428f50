//! A put in one request, and the questions that conditions raise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use bytes::Bytes;

use super::client::Watch;
use super::config::Encryption;
use super::error::{lower, status};
use super::parts::{Cutter, Sizes};
use super::storage::S3;
use crate::body::Body;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{ObjectMeta, Version};
use crate::options::{PutMode, PutOptions, PutToken};

/// The metadata that names the put which made an object.
const TOKEN: &str = "neon-put";
/// How often a write that collided with another is tried again.
const COLLISIONS: u32 = 8;
/// About a provider that contradicts what was found out of it.
const CHANGED: &str =
    "the provider has no conditional writes any more; what is written from now on goes without";

/// A put under way: what every request of it needs.
pub(super) struct Put<'a> {
    pub(super) s3: &'a S3,
    pub(super) key: &'a Key,
    pub(super) mode: PutMode,
    pub(super) first_hand: bool,
    /// The provider was asked again what it can do, because it contradicted.
    contradicted: AtomicBool,
    pub(super) token: PutToken,
}

/// What is to be done about a write that failed under its condition.
pub(super) enum Verdict {
    /// It had succeeded before: this is its object.
    Own(ObjectMeta),
    /// Another write got in the way and is over: again.
    Again,
    /// The storage says that it has no such writes: it did nothing.
    Contradicted(Error),
    /// This is the answer.
    Failed(Error),
}

impl S3 {
    pub(super) async fn put_body(
        &self,
        key: &Key,
        body: Body,
        options: PutOptions,
    ) -> Result<ObjectMeta> {
        self.check_condition(key, &options.mode, options.first_hand)
            .await?;
        let token = options.token.unwrap_or_else(PutToken::random);
        let put = Put {
            s3: self,
            key,
            mode: options.mode,
            first_hand: options.first_hand,
            contradicted: AtomicBool::new(false),
            token,
        };
        let sizes = Sizes::new(&self.shared.config);
        let first = sizes.of(1).unwrap_or_default();
        let mut cutter = Cutter::new(body);
        let head = cutter.next(key, first).await?;
        // A full first part may be the whole body; only the next byte tells.
        let more = if (head.len() as u64) < first || cutter.is_done() {
            Bytes::new()
        } else {
            cutter.next(key, sizes.of(2).unwrap_or_default()).await?
        };
        if more.is_empty() {
            put.single(head).await
        } else {
            put.multipart(head, more, cutter, sizes).await
        }
    }
}

impl Put<'_> {
    async fn single(&self, bytes: Bytes) -> Result<ObjectMeta> {
        let size = bytes.len() as u64;
        let watch = Watch::default();
        let digest = self.s3.content_md5(&bytes).await;
        for attempt in 0..COLLISIONS {
            let request = self.describe(
                self.s3
                    .shared
                    .client
                    .put_object()
                    .bucket(self.s3.bucket())
                    .key(self.key.as_str())
                    .set_content_md5(digest.clone())
                    .body(ByteStream::from(bytes.clone())),
            );
            let error = match request
                .customize()
                .interceptor(watch.clone())
                .config_override(self.s3.patience(bytes.len()))
                .send()
                .await
            {
                Ok(answer) => {
                    return Ok(self.made(size, answer.e_tag(), &watch));
                }
                Err(error) => error,
            };
            let lowered = lower(Operation::Put, self.key.as_str(), &error);
            match self.judge(status(&error), lowered, &watch).await {
                Verdict::Own(meta) => return Ok(meta),
                Verdict::Failed(error) | Verdict::Contradicted(error) => return Err(error),
                Verdict::Again => pause(attempt).await,
            }
        }
        Err(self.collided(&watch))
    }

    fn describe(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        let (any, etag) = self.condition();
        let config = &self.s3.shared.config;
        let mut request = request
            .set_if_none_match(any)
            .set_if_match(etag)
            .metadata(TOKEN, self.token.as_str())
            .set_storage_class(config.storage_class.as_deref().map(StorageClass::from));
        match &config.encryption {
            None => {}
            Some(Encryption::Provider) => {
                request = request.server_side_encryption(ServerSideEncryption::Aes256);
            }
            Some(Encryption::Kms(key)) => {
                request = request
                    .server_side_encryption(ServerSideEncryption::AwsKms)
                    .set_ssekms_key_id(key.clone());
            }
            Some(Encryption::Customer(_)) => {
                let (algorithm, key, digest) = self.s3.customer_key();
                request = request
                    .set_sse_customer_algorithm(algorithm)
                    .set_sse_customer_key(key)
                    .set_sse_customer_key_md5(digest);
            }
        }
        request
    }

    /// The headers `If-None-Match` and `If-Match`.
    pub(super) fn condition(&self) -> (Option<String>, Option<String>) {
        match &self.mode {
            PutMode::Create => (Some("*".to_owned()), None),
            PutMode::Overwrite => (None, None),
            PutMode::IfVersion(version) => (None, Some(version.as_str().to_owned())),
        }
    }

    pub(super) fn metadata(&self) -> (&'static str, &str) {
        (TOKEN, self.token.as_str())
    }

    pub(super) fn made(&self, size: u64, etag: Option<&str>, watch: &Watch) -> ObjectMeta {
        let modified = watch.clock().unwrap_or_else(std::time::SystemTime::now);
        ObjectMeta::new(self.key.clone(), size, etag.map(Version::new), modified)
    }

    /// Decides about a write that the storage refused or did not answer.
    pub(super) async fn judge(&self, status: u16, error: Error, watch: &Watch) -> Verdict {
        match self.verdict(status, error).await {
            Verdict::Failed(error) => Verdict::Failed(truthful(error, watch)),
            Verdict::Contradicted(error) => {
                let error = truthful(error, watch);
                if !self.s3.contradicted().await {
                    return Verdict::Failed(
                        error.detail("the provider has no conditional writes, though it is configured to have them"),
                    );
                }
                if watch.unclear() || self.contradicted.swap(true, Ordering::Relaxed) {
                    return Verdict::Failed(error.detail(CHANGED));
                }
                // As one of which nothing was known.
                let asked = self
                    .s3
                    .check_condition(self.key, &self.mode, self.first_hand);
                match Box::pin(asked).await {
                    Ok(()) => Verdict::Again,
                    Err(again) if again.kind() == ErrorKind::Unsupported => {
                        Verdict::Failed(again.detail(CHANGED).because(error))
                    }
                    Err(again) => Verdict::Failed(again),
                }
            }
            other => other,
        }
    }

    async fn verdict(&self, status: u16, error: Error) -> Verdict {
        let refused = match (&self.mode, status) {
            (PutMode::Overwrite, 409) => return Verdict::Again,
            (PutMode::Overwrite, _) => return Verdict::Failed(error),
            // Nothing there to be at a version.
            (PutMode::IfVersion(_), 404) => true,
            (_, 412) => true,
            (_, 409) => false,
            (_, 501) => {
                return Verdict::Contradicted(error);
            }
            _ => return Verdict::Failed(error),
        };
        let kind = match self.mode {
            PutMode::Create => ErrorKind::Exists,
            _ => ErrorKind::Precondition,
        };
        let refusal = || Error::new(kind, Operation::Put).subject(self.key.as_str());
        match self.present().await {
            Ok(Some((meta, true))) => Verdict::Own(meta),
            Ok(Some((meta, false))) => match &self.mode {
                PutMode::IfVersion(version) if meta.version.as_ref() == Some(version) => {
                    Verdict::Again
                }
                _ => Verdict::Failed(refusal()),
            },
            // Refused because of an object that is gone by now.
            Ok(None) if refused && self.mode == PutMode::Create => Verdict::Again,
            Ok(None) if self.mode == PutMode::Create => Verdict::Again,
            Ok(None) => Verdict::Failed(refusal()),
            // What is there can't be seen; the storage's own word stands.
            Err(_) if refused => Verdict::Failed(refusal()),
            Err(error) => Verdict::Failed(error.during(Operation::Put)),
        }
    }

    /// The object under the key, and whether this very put made it.
    pub(super) async fn present(&self) -> Result<Option<(ObjectMeta, bool)>> {
        match self.s3.head_with_token(self.key).await {
            Ok((head, token)) => Ok(Some((
                head.meta,
                token.as_deref() == Some(self.token.as_str()),
            ))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn collided(&self, watch: &Watch) -> Error {
        let error = Error::new(ErrorKind::Unavailable, Operation::Put)
            .subject(self.key.as_str())
            .detail("other writers kept getting in the way");
        truthful(error, watch)
    }
}

/// Says whether the put may have taken effect all the same. The SDK repeats requests too: where an
/// earlier one may have succeeded, another object in its place does not mean that it did not.
pub(super) fn truthful(error: Error, watch: &Watch) -> Error {
    if watch.unclear() {
        error.after_a_lost_answer(true)
    } else {
        error.without_effect()
    }
}

/// The metadata of an object that names the put which made it.
pub(super) fn token_of(
    metadata: Option<&std::collections::HashMap<String, String>>,
) -> Option<String> {
    metadata?.get(TOKEN).cloned()
}

/// Lets the other writer finish.
pub(super) async fn pause(attempt: u32) {
    let longest = Duration::from_millis(20).saturating_mul(1 << attempt.min(6));
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
}
