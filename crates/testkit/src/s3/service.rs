//! The verbs of S3 that a storage uses.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::stream;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::bucket::{Bucket, Conditions, Object, Retention, Upload};
use super::content::{Content, base64, hex};

/// What the service and the handle of the test share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) buckets: Mutex<std::collections::HashMap<String, Bucket>>,
    pub(super) conditions: Mutex<Conditions>,
    pub(super) next_upload: std::sync::atomic::AtomicU64,
    pub(super) object_lock: bool,
    pub(super) retention: Retention,
    /// How far its clock is ahead of this machine's.
    pub(super) ahead: Mutex<Duration>,
}

impl State {
    /// What time it is for the server.
    pub(super) fn now(&self) -> SystemTime {
        SystemTime::now() + *self.ahead.lock().unwrap()
    }

    pub(super) fn bucket<T>(&self, name: &str, f: impl FnOnce(&mut Bucket) -> T) -> S3Result<T> {
        let mut buckets: MutexGuard<'_, _> = self.buckets.lock().unwrap();
        buckets
            .get_mut(name)
            .map(f)
            .ok_or_else(|| s3_error!(NoSuchBucket))
    }

    /// Writes an object if its conditions hold, as faithfully as the server is told to be.
    async fn write(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<ETagCondition>,
        if_none_match: Option<ETagCondition>,
        make: impl FnOnce(&mut Bucket) -> S3Result<Object>,
    ) -> S3Result<String> {
        let conditions = *self.conditions.lock().unwrap();
        let conditional = if_match.is_some() || if_none_match.is_some();
        match conditions {
            Conditions::Refused if conditional => return Err(s3_error!(NotImplemented)),
            Conditions::Racy(pause) => {
                self.bucket(bucket, |bucket| {
                    bucket.admits(key, if_match.as_ref(), if_none_match.as_ref())
                })??;
                tokio::time::sleep(pause).await;
            }
            _ => {}
        }
        self.bucket(bucket, |bucket| {
            if conditions == Conditions::Atomic {
                bucket.admits(key, if_match.as_ref(), if_none_match.as_ref())?;
            }
            let object = make(bucket)?;
            let etag = object.etag.clone();
            bucket.store(self.retention, key, object)?;
            Ok(etag)
        })?
    }
}

#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Arc<State>);

fn strong(etag: &str) -> Option<ETag> {
    Some(ETag::Strong(etag.to_owned()))
}

fn length(size: u64) -> Option<i64> {
    i64::try_from(size).ok()
}

/// Checks the digest that an upload carries; with object lock it must carry one.
fn digested(
    lock: bool,
    headers: &http::HeaderMap,
    content_md5: Option<&str>,
    digest: &[u8; 16],
) -> S3Result<()> {
    let summed = headers
        .keys()
        .any(|name| name.as_str().starts_with("x-amz-checksum-"));
    match content_md5 {
        Some(stated) if stated == base64(digest) => Ok(()),
        Some(_) => Err(s3_error!(BadDigest)),
        None if lock && !summed => Err(s3_error!(
            InvalidRequest,
            "Content-MD5 OR x-amz-checksum- HTTP header is required for Put requests with Object \
             Lock parameters"
        )),
        None => Ok(()),
    }
}

/// Whether the conditions of a read hold.
fn readable(object: &Object, if_match: Option<&ETagCondition>) -> S3Result<()> {
    match if_match {
        Some(ETagCondition::ETag(etag)) if etag.value() != object.etag => {
            Err(s3_error!(PreconditionFailed))
        }
        _ => Ok(()),
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let headers = req.headers;
        let input = req.input;
        let (content, digest) = match input.body {
            Some(body) => Content::receive(SyncError(body)).await,
            None => Content::receive(stream::empty::<Result<bytes::Bytes, std::io::Error>>()).await,
        }
        .map_err(|_| s3_error!(IncompleteBody))?;
        let lock = self.0.object_lock;
        digested(lock, &headers, input.content_md5.as_deref(), &digest)?;
        let object = Object {
            content,
            etag: hex(&digest),
            modified: self.0.now(),
            metadata: input.metadata,
            storage_class: input.storage_class,
            sse: input
                .server_side_encryption
                .map(|sse| sse.as_str().to_owned()),
        };
        let etag = self
            .0
            .write(
                &input.bucket,
                &input.key,
                input.if_match,
                input.if_none_match,
                |_| Ok(object),
            )
            .await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: strong(&etag),
            ..Default::default()
        }))
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self
            .0
            .bucket(&input.bucket, |bucket| {
                bucket.objects.get(&input.key).cloned()
            })?
            .ok_or_else(|| s3_error!(NoSuchKey))?;
        readable(&object, input.if_match.as_ref())?;
        let size = object.content.len();
        let (range, content_range) = match &input.range {
            None => (0..size, None),
            Some(range) => {
                let range = range.check(size)?;
                if range.is_empty() {
                    return Err(s3_error!(InvalidRange));
                }
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (range, Some(text))
            }
        };
        let output = GetObjectOutput {
            content_length: length(range.end - range.start),
            body: Some(StreamingBlob::wrap(stream::iter(
                object.content.chunks(range),
            ))),
            content_range,
            e_tag: strong(&object.etag),
            last_modified: Some(object.modified.into()),
            metadata: object.metadata,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self
            .0
            .bucket(&input.bucket, |bucket| {
                bucket.objects.get(&input.key).cloned()
            })?
            .ok_or_else(|| s3_error!(NoSuchKey))?;
        readable(&object, input.if_match.as_ref())?;
        let output = HeadObjectOutput {
            content_length: length(object.content.len()),
            e_tag: strong(&object.etag),
            last_modified: Some(object.modified.into()),
            metadata: object.metadata,
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.0.bucket(&req.input.bucket, |_| ())?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = req.input;
        let retention = self.0.retention;
        self.0
            .bucket(&input.bucket, |bucket| bucket.delete(retention, &input.key))??;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = req.input;
        if input.delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML));
        }
        let retention = self.0.retention;
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        self.0.bucket(&input.bucket, |bucket| {
            for object in input.delete.objects {
                match bucket.delete(retention, &object.key) {
                    Ok(()) => deleted.push(DeletedObject {
                        key: Some(object.key),
                        ..Default::default()
                    }),
                    Err(error) => errors.push(s3s::dto::Error {
                        code: Some(error.code().as_str().to_owned()),
                        key: Some(object.key),
                        ..Default::default()
                    }),
                }
            }
        })?;
        let quiet = input.delete.quiet == Some(true);
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after);
        let page = usize::try_from(input.max_keys.unwrap_or(1000))
            .unwrap_or(0)
            .min(1000);
        let delimiter = input.delimiter.clone().filter(|text| !text.is_empty());
        // What a key shows as, if keys below a delimiter show as one.
        let folded = |key: &str| {
            let rest = key.strip_prefix(prefix.as_str())?;
            let (name, _) = rest.split_once(delimiter.as_deref()?)?;
            Some(format!("{prefix}{name}{}", delimiter.as_deref()?))
        };
        let (mut contents, mut folders): (Vec<s3s::dto::Object>, Vec<String>) = Default::default();
        let (more, last) = self.0.bucket(&input.bucket, |bucket| {
            use std::ops::Bound;
            let from = match &after {
                Some(after) if *after >= prefix => Bound::Excluded(after.as_str()),
                _ => Bound::Included(prefix.as_str()),
            };
            let objects = bucket
                .objects
                .range::<str, _>((from, Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(&prefix));
            let mut last = None;
            for (key, object) in objects {
                let folder = folded(key);
                // One of those that a former page ended with.
                let told = |folder: &String| {
                    folders.last() == Some(folder)
                        || after
                            .as_ref()
                            .is_some_and(|after| after.starts_with(folder))
                };
                if !folder.as_ref().is_some_and(told) {
                    if contents.len() + folders.len() >= page {
                        return (true, last);
                    }
                    match folder {
                        Some(folder) => folders.push(folder),
                        None => contents.push(s3s::dto::Object {
                            key: Some(key.clone()),
                            size: length(object.content.len()),
                            e_tag: strong(&object.etag),
                            last_modified: Some(object.modified.into()),
                            ..Default::default()
                        }),
                    }
                }
                last = Some(key.clone());
            }
            (false, last)
        })?;
        let folders: Vec<CommonPrefix> = folders
            .into_iter()
            .map(|prefix| CommonPrefix {
                prefix: Some(prefix),
            })
            .collect();
        let output = ListObjectsV2Output {
            key_count: i32::try_from(contents.len() + folders.len()).ok(),
            common_prefixes: Some(folders),
            delimiter: input.delimiter,
            max_keys: input.max_keys,
            is_truncated: Some(more),
            next_continuation_token: if more { last } else { None },
            continuation_token: input.continuation_token,
            contents: Some(contents),
            prefix: Some(prefix),
            name: Some(input.bucket),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let number = self
            .0
            .next_upload
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let id = format!("upload-{number}");
        let upload = Upload {
            key: input.key.clone(),
            began: self.0.now(),
            metadata: input.metadata,
            storage_class: input.storage_class,
            sse: input
                .server_side_encryption
                .map(|sse| sse.as_str().to_owned()),
            parts: std::collections::BTreeMap::new(),
        };
        self.0.bucket(&input.bucket, |bucket| {
            bucket.uploads.insert(id.clone(), upload)
        })?;
        let output = CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let headers = req.headers;
        let input = req.input;
        let known = |bucket: &mut Bucket| bucket.uploads.contains_key(&input.upload_id);
        if !self.0.bucket(&input.bucket, known)? {
            return Err(s3_error!(NoSuchUpload));
        }
        if !(1..=10_000).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument));
        }
        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let (content, digest) = Content::receive(SyncError(body))
            .await
            .map_err(|_| s3_error!(IncompleteBody))?;
        let lock = self.0.object_lock;
        digested(lock, &headers, input.content_md5.as_deref(), &digest)?;
        self.0.bucket(&input.bucket, |bucket| {
            let upload = bucket.uploads.get_mut(&input.upload_id);
            let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
            upload.parts.insert(input.part_number, (content, digest));
            Ok(S3Response::new(UploadPartOutput {
                e_tag: strong(&hex(&digest)),
                ..Default::default()
            }))
        })?
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let parts: Vec<(i32, Option<ETag>)> = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default()
            .into_iter()
            .map(|part| (part.part_number.unwrap_or(0), part.e_tag))
            .collect();
        let (id, now) = (input.upload_id, self.0.now());
        // An unknown upload is reported before its conditions are.
        self.0
            .bucket(&input.bucket, |bucket| bucket.assemble(&id, &parts, now))??;
        let etag = self
            .0
            .write(
                &input.bucket,
                &input.key,
                input.if_match,
                input.if_none_match,
                |bucket| {
                    let object = bucket.assemble(&id, &parts, now)?;
                    bucket.uploads.remove(&id);
                    Ok(object)
                },
            )
            .await?;
        let output = CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: strong(&etag),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let removed = self.0.bucket(&input.bucket, |bucket| {
            bucket.uploads.remove(&input.upload_id)
        })?;
        removed.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let prefix = input.prefix.unwrap_or_default();
        let marker = (
            input.key_marker.clone().unwrap_or_default(),
            input.upload_id_marker.clone().unwrap_or_default(),
        );
        let page = usize::try_from(input.max_uploads.unwrap_or(1000)).unwrap_or(1000);
        let mut all = self.0.bucket(&input.bucket, |bucket| {
            let uploads = bucket.uploads.iter();
            uploads
                .map(|(id, upload)| (upload.key.clone(), id.clone(), upload.began))
                .filter(|(key, id, _)| {
                    key.starts_with(&prefix) && (key, id) > (&marker.0, &marker.1)
                })
                .collect::<Vec<_>>()
        })?;
        all.sort();
        let more = all.len() > page;
        all.truncate(page);
        let last = all.last().cloned();
        let uploads = all.into_iter().map(|(key, id, began)| MultipartUpload {
            key: Some(key),
            upload_id: Some(id),
            initiated: Some(began.into()),
            ..Default::default()
        });
        let output = ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            uploads: Some(uploads.collect()),
            is_truncated: Some(more),
            next_key_marker: last
                .as_ref()
                .filter(|_| more)
                .map(|(key, _, _)| key.clone()),
            next_upload_id_marker: last.filter(|_| more).map(|(_, id, _)| id),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}

/// A body whose boxed error can be passed on.
struct SyncError(StreamingBlob);

impl futures_util::Stream for SyncError {
    type Item = std::io::Result<bytes::Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let chunk = std::pin::Pin::new(&mut self.0).poll_next(cx);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map_err(std::io::Error::other)))
    }
}
