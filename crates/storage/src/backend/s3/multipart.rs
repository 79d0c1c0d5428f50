//! A put in parts: for bodies longer than one part, of known length or not.
//!
//! The object appears when the upload is completed and not before. An upload that fails or whose
//! future is dropped is aborted by a task of its own; if the process dies first, the parts stay
//! unseen until the bucket's lifecycle rule or [`S3::expire_uploads`](super::S3::expire_uploads)
//! removes them.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass,
};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt};

use super::client::Watch;
use super::config::Encryption;
use super::error::{lower, status};
use super::parts::{Cutter, Sizes};
use super::put::{Put, Verdict, pause, truthful};
use super::storage::S3;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::ObjectMeta;

/// How often completing is tried again after a collision with another writer.
const COLLISIONS: u32 = 8;

/// An upload that is aborted unless it was completed.
struct Upload {
    s3: S3,
    key: Key,
    id: String,
    armed: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // Without a runtime nothing can be sent; the upload expires.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (s3, key, id) = (
            self.s3.clone(),
            self.key.clone(),
            std::mem::take(&mut self.id),
        );
        let _detached = runtime.spawn(async move {
            if let Err(error) = s3.abort(key.as_str(), &id).await {
                tracing::warn!(%key, kind = ?error.kind(), "an upload could not be aborted");
            }
        });
    }
}

impl S3 {
    /// Aborts an upload. A part in flight may arrive after the first abort and be kept, so it is
    /// said until the storage no longer knows the upload.
    pub(super) async fn abort(&self, key: &str, id: &str) -> Result<()> {
        for attempt in 0..5 {
            let aborted = self
                .shared
                .client
                .abort_multipart_upload()
                .bucket(self.bucket())
                .key(key)
                .upload_id(id)
                .send()
                .await;
            match aborted {
                Ok(_) if attempt > 0 => return Ok(()),
                Ok(_) => pause(attempt).await,
                Err(error) => {
                    let error = lower(Operation::Put, key, &error);
                    if error.kind() == ErrorKind::NotFound {
                        return Ok(());
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Put<'_> {
    pub(super) async fn multipart(
        &self,
        first: Bytes,
        second: Bytes,
        cutter: Cutter,
        sizes: Sizes,
    ) -> Result<ObjectMeta> {
        let mut upload = self.begin().await.map_err(Error::without_effect)?;
        let (parts, size) = self
            .parts(&upload.id, vec![second, first], cutter, sizes)
            .await
            // Parts that were not put together are no object.
            .map_err(Error::without_effect)?;
        self.complete(&mut upload, parts, size).await
    }

    /// Uploads every part; `ready` has the first ones, in reverse.
    async fn parts(
        &self,
        upload: &str,
        mut ready: Vec<Bytes>,
        mut cutter: Cutter,
        sizes: Sizes,
    ) -> Result<(Vec<CompletedPart>, u64)> {
        let concurrency = self.s3.shared.config.upload_concurrency.max(1);
        let mut size = 0u64;
        let mut done: Vec<CompletedPart> = Vec::new();
        let mut flying = FuturesUnordered::new();
        let mut number = 0u32;
        loop {
            number = number.saturating_add(1);
            let Some(length) = sizes.of(number) else {
                if cutter.is_done() || cutter.next(self.key, 1).await?.is_empty() {
                    break;
                }
                return Err(Error::new(ErrorKind::Invalid, Operation::Put)
                    .subject(self.key.as_str())
                    .detail(format!(
                        "larger than {} bytes, the most that the configured parts can hold",
                        sizes.maximum()
                    )));
            };
            let bytes = match ready.pop() {
                Some(bytes) => bytes,
                None => {
                    // Parts in flight move on while the next one is gathered.
                    let gather = cutter.next(self.key, length);
                    tokio::pin!(gather);
                    loop {
                        tokio::select! {
                            Some(part) = flying.next(), if !flying.is_empty() => done.push(part?),
                            bytes = &mut gather => break bytes?,
                        }
                    }
                }
            };
            if bytes.is_empty() {
                break;
            }
            size = size.saturating_add(bytes.len() as u64);
            flying.push(self.part(upload, number, bytes));
            // What is in memory is bounded by the parts in flight and the one being gathered.
            if flying.len() >= concurrency {
                done.extend(flying.try_next().await?);
            }
        }
        while let Some(part) = flying.next().await {
            done.push(part?);
        }
        drop(flying);
        done.sort_by_key(CompletedPart::part_number);
        Ok((done, size))
    }

    async fn begin(&self) -> Result<Upload> {
        let (name, token) = self.metadata();
        let config = &self.s3.shared.config;
        let mut request = self
            .s3
            .shared
            .client
            .create_multipart_upload()
            .bucket(self.s3.bucket())
            .key(self.key.as_str())
            .metadata(name, token)
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
        let answer = request
            .send()
            .await
            .map_err(|error| lower(Operation::Put, self.key.as_str(), &error))?;
        let id = answer.upload_id().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, Operation::Put)
                .subject(self.key.as_str())
                .detail("the storage began an upload without naming it")
        })?;
        Ok(Upload {
            s3: self.s3.clone(),
            key: self.key.clone(),
            id: id.to_owned(),
            armed: true,
        })
    }

    async fn part(&self, id: &str, number: u32, bytes: Bytes) -> Result<CompletedPart> {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let (algorithm, key, digest) = self.s3.customer_key();
        let patience = self.s3.patience(bytes.len());
        let content_md5 = self.s3.content_md5(&bytes).await;
        let answer = self
            .s3
            .shared
            .client
            .upload_part()
            .bucket(self.s3.bucket())
            .key(self.key.as_str())
            .upload_id(id)
            .part_number(number)
            .set_sse_customer_algorithm(algorithm)
            .set_sse_customer_key(key)
            .set_sse_customer_key_md5(digest)
            .set_content_md5(content_md5)
            .body(ByteStream::from(bytes))
            .customize()
            .config_override(patience)
            .send()
            .await
            .map_err(|error| self.lost_upload(lower(Operation::Put, self.key.as_str(), &error)))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag().map(str::to_owned))
            .build())
    }

    /// Only a plain success disarms the upload. Aborting one that was completed after all does no
    /// harm; keeping one because an earlier attempt's object was met would.
    async fn complete(
        &self,
        pending: &mut Upload,
        parts: Vec<CompletedPart>,
        size: u64,
    ) -> Result<ObjectMeta> {
        let (any, etag) = self.condition();
        let (algorithm, key, digest) = self.s3.customer_key();
        let upload = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let watch = Watch::default();
        for attempt in 0..COLLISIONS {
            let answer = self
                .s3
                .shared
                .client
                .complete_multipart_upload()
                .bucket(self.s3.bucket())
                .key(self.key.as_str())
                .upload_id(&pending.id)
                .multipart_upload(upload.clone())
                .set_if_none_match(any.clone())
                .set_if_match(etag.clone())
                .set_sse_customer_algorithm(algorithm.clone())
                .set_sse_customer_key(key.clone())
                .set_sse_customer_key_md5(digest.clone())
                .customize()
                .interceptor(watch.clone())
                .send()
                .await;
            let error = match answer {
                Ok(answer) => {
                    pending.armed = false;
                    return Ok(self.made(size, answer.e_tag(), &watch));
                }
                Err(error) => error,
            };
            let lowered = lower(Operation::Put, self.key.as_str(), &error);
            let unknown_upload = lowered.kind() == ErrorKind::NotFound;
            if unknown_upload || lowered.kind() == ErrorKind::Unavailable && status(&error) != 409 {
                // The first attempt may have completed it and its answer got lost.
                if let Ok(Some((meta, true))) = self.present().await {
                    return Ok(meta);
                }
                if !(unknown_upload && etag.is_some()) {
                    return Err(truthful(self.lost_upload(lowered), &watch));
                }
            }
            match self.judge(status(&error), lowered, &watch).await {
                Verdict::Own(meta) => return Ok(meta),
                Verdict::Failed(error) | Verdict::Contradicted(error) => return Err(error),
                Verdict::Again => pause(attempt).await,
            }
        }
        Err(self.collided(&watch))
    }

    /// That the storage forgot the upload says nothing about the object.
    fn lost_upload(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        Error::new(ErrorKind::Unavailable, Operation::Put)
            .subject(self.key.as_str())
            .detail("the storage no longer knows the upload")
            .because(error)
    }
}
