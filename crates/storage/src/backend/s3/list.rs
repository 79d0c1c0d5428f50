//! Listing keys page by page, and the uploads that nobody finished.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::client::Watch;
use super::error::lower;
use super::read::time;
use super::storage::S3;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{ObjectMeta, Version};
use crate::options::ListOptions;

/// Where a listing stands.
enum Next {
    First,
    Page(String),
    End,
}

impl S3 {
    pub(super) fn pages(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut options = options;
        // Providers differ about an offset outside of the prefix (Garage then lists nothing), so it
        // is never sent: before the prefix it changes nothing, after it nothing is left.
        let first = match &options.after {
            Some(after) if after.starts_with(&options.prefix) => Next::First,
            Some(after) if *after > options.prefix => Next::End,
            _ => {
                options.after = None;
                Next::First
            }
        };
        let state = (self.clone(), options, first);
        stream::unfold(state, |(s3, options, next)| async move {
            let token = match next {
                Next::End => return None,
                Next::First => None,
                Next::Page(token) => Some(token),
            };
            match s3.page(&options, token).await {
                Ok((objects, next)) => {
                    let objects = stream::iter(objects.into_iter().map(Ok)).boxed();
                    Some((objects, (s3, options, next)))
                }
                Err(error) => {
                    let failed = stream::iter([Err(error)]).boxed();
                    Some((failed, (s3, options, Next::End)))
                }
            }
        })
        .flatten()
        .boxed()
    }

    async fn page(
        &self,
        options: &ListOptions,
        token: Option<String>,
    ) -> Result<(Vec<ObjectMeta>, Next)> {
        let after = options
            .after
            .clone()
            .filter(|after| !after.is_empty() && token.is_none());
        let answer = self
            .shared
            .client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(&options.prefix)
            .max_keys(i32::from(self.shared.config.list_page.clamp(1, 1000)))
            .set_start_after(after)
            .set_continuation_token(token)
            .send()
            .await
            .map_err(|error| lower(Operation::List, &options.prefix, &error))?;
        let mut objects = Vec::with_capacity(answer.contents().len());
        for object in answer.contents() {
            // Names that are no keys, such as the folders that consoles make, are somebody else's.
            let Some(Ok(key)) = object.key().map(Key::new) else {
                continue;
            };
            let Some(size) = object.size().and_then(|size| u64::try_from(size).ok()) else {
                return Err(Error::new(ErrorKind::Corrupt, Operation::List)
                    .subject(key.as_str())
                    .detail("listed without a size"));
            };
            let version = object.e_tag().map(Version::new);
            objects.push(ObjectMeta::new(
                key,
                size,
                version,
                time(object.last_modified()),
            ));
        }
        let next = match (answer.is_truncated(), answer.next_continuation_token()) {
            (Some(true), Some(token)) => Next::Page(token.to_owned()),
            (Some(true), None) => {
                return Err(Error::new(ErrorKind::Corrupt, Operation::List)
                    .subject(&options.prefix)
                    .detail("the listing goes on but the storage does not say where"));
            }
            _ => Next::End,
        };
        Ok((objects, next))
    }

    /// How many uploads below a prefix, of keys in the bucket that `which` accepts, began longer ago than
    /// `age` by the storage's clock: what [`expire_uploads`](Self::expire_uploads) would abort.
    ///
    /// Dropped: nothing is changed.
    pub async fn stale_uploads(
        &self,
        prefix: &str,
        age: Duration,
        which: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<u64> {
        self.old_uploads(prefix, age, &which, false).await
    }

    /// Aborts uploads below a prefix, of keys in the bucket that `which` accepts, that began longer ago
    /// than `age` by the storage's clock, and returns how many. What writers leave that died; a lifecycle
    /// rule of the bucket does the same.
    ///
    /// Dropped: some may be aborted.
    pub async fn expire_uploads(
        &self,
        prefix: &str,
        age: Duration,
        which: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<u64> {
        self.old_uploads(prefix, age, &which, true).await
    }

    async fn old_uploads(
        &self,
        prefix: &str,
        age: Duration,
        which: &(dyn Fn(&str) -> bool + Send + Sync),
        abort: bool,
    ) -> Result<u64> {
        let mut found = 0u64;
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let watch = Watch::default();
            let answer = self
                .shared
                .client
                .list_multipart_uploads()
                .bucket(self.bucket())
                .prefix(prefix)
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker)
                .customize()
                .interceptor(watch.clone())
                .send()
                .await
                .map_err(|error| lower(Operation::List, prefix, &error))?;
            let now = watch.clock().ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, Operation::List)
                    .subject(prefix)
                    .detail("the storage shows no clock to judge ages by")
            })?;
            for upload in answer.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
                    continue;
                };
                // Not every relative of S3 heeds the prefix.
                if !(key.starts_with(prefix) && which(key)) {
                    continue;
                }
                let began = upload.initiated().map(|began| time(Some(began)));
                let old = began.and_then(|began| now.duration_since(began).ok());
                if old.is_some_and(|old| old > age) {
                    if abort {
                        self.abort(key, id).await?;
                    }
                    found = found.saturating_add(1);
                }
            }
            if answer.is_truncated() != Some(true) {
                return Ok(found);
            }
            key_marker = answer.next_key_marker().map(str::to_owned);
            id_marker = answer.next_upload_id_marker().map(str::to_owned);
        }
    }
}
