//! Reading objects and asking about them.

use std::ops::Range;
use std::time::SystemTime;

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::client::Watch;
use super::error::{lower, status};
use super::put::token_of;
use super::storage::S3;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta, Version};
use crate::options::GetOptions;

pub(super) fn time(moment: Option<&DateTime>) -> SystemTime {
    moment
        .and_then(|moment| SystemTime::try_from(*moment).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn length(count: Option<i64>) -> Option<u64> {
    u64::try_from(count?).ok()
}

impl S3 {
    pub(super) async fn open_object(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        options.check(key)?;
        let outside = || {
            Error::new(ErrorKind::Invalid, Operation::Get)
                .subject(key.as_str())
                .detail("the range begins outside of the object")
        };
        let (algorithm, customer_key, digest) = self.customer_key();
        let answer = self
            .shared
            .client
            .get_object()
            .bucket(self.bucket())
            .key(key.as_str())
            .set_range(options.range.as_ref().map(|range| format!("bytes={range}")))
            .set_if_match(
                options
                    .if_version
                    .as_ref()
                    .map(|version| version.as_str().to_owned()),
            )
            .set_sse_customer_algorithm(algorithm)
            .set_sse_customer_key(customer_key)
            .set_sse_customer_key_md5(digest)
            .send()
            .await
            .map_err(|error| {
                let lowered = lower(Operation::Get, key.as_str(), &error);
                match status(&error) {
                    416 => outside(),
                    _ => lowered,
                }
            })?;
        let corrupt = |detail: &'static str| {
            Error::new(ErrorKind::Corrupt, Operation::Get)
                .subject(key.as_str())
                .detail(detail)
        };
        let (range, size) = match (answer.content_range(), &options.range) {
            // Some providers answer a range of an empty object with a range of no bytes.
            (Some(text), Some(_)) if text.ends_with("/0") => return Err(outside()),
            (Some(text), _) => content_range(text).ok_or_else(|| corrupt("unreadable range"))?,
            (None, None) => {
                let size = length(answer.content_length())
                    .ok_or_else(|| corrupt("an answer without length"))?;
                (0..size, size)
            }
            (None, Some(_)) => {
                return Err(Error::new(ErrorKind::Unsupported, Operation::Get)
                    .subject(key.as_str())
                    .detail("the storage ignores ranges"));
            }
        };
        let meta = ObjectMeta::new(
            key.clone(),
            size,
            answer.e_tag().map(Version::new),
            time(answer.last_modified()),
        );
        Ok(GetResult::new(
            meta,
            range,
            chunks(key.clone(), answer.body),
        ))
    }

    pub(super) async fn head_with_token(&self, key: &Key) -> Result<(Head, Option<String>)> {
        let watch = Watch::default();
        let (algorithm, customer_key, digest) = self.customer_key();
        let answer = self
            .shared
            .client
            .head_object()
            .bucket(self.bucket())
            .key(key.as_str())
            .set_sse_customer_algorithm(algorithm)
            .set_sse_customer_key(customer_key)
            .set_sse_customer_key_md5(digest)
            .customize()
            .interceptor(watch.clone())
            .send()
            .await
            .map_err(|error| lower(Operation::Head, key.as_str(), &error))?;
        let size = length(answer.content_length()).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, Operation::Head)
                .subject(key.as_str())
                .detail("an answer without length")
        })?;
        let version = answer.e_tag().map(Version::new);
        let meta = ObjectMeta::new(key.clone(), size, version, time(answer.last_modified()));
        Ok((Head::new(meta, watch.clock()), token_of(answer.metadata())))
    }
}

/// `bytes FIRST-LAST/SIZE` as range and size.
pub(crate) fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size = size.parse().ok()?;
    let end = last.checked_add(1)?;
    (first < end && end <= size).then_some((first..end, size))
}

fn chunks(key: Key, body: ByteStream) -> BoxStream<'static, Result<bytes::Bytes>> {
    stream::unfold(Some((key, body)), |state| async move {
        let (key, mut body) = state?;
        match body.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some((key, body)))),
            Err(error) => {
                let error = Error::new(ErrorKind::Unavailable, Operation::Get)
                    .subject(key.as_str())
                    .detail("the body broke off")
                    .because(crate::net::NetError::new(crate::net::chain(&error)));
                Some((Err(error), None))
            }
        }
    })
    .boxed()
}
