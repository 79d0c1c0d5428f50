//! Promises about storing and deleting.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::check::{pattern, refused};
use super::{Case, Failure, Subject, always, writes};
use crate::body::Body;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::ext::StorageExt;
use crate::options::{ListOptions, PutOptions, PutToken};

pub(super) const CASES: &[Case] = &[
    case!(what_is_put_is_read_back, writes),
    case!(a_create_never_replaces, |c| c.create_only),
    case!(an_overwrite_replaces_the_whole_object, writes),
    case!(a_put_under_a_version_needs_that_version, |c| c
        .compare_and_swap),
    case!(a_repeated_put_recognises_its_own_object, |c| c
        .recognises_own_put
        && c.create_only),
    case!(a_stream_of_unknown_length_is_stored_whole, writes),
    case!(a_replayable_body_is_stored_whole, writes),
    case!(a_body_that_fails_leaves_nothing, writes),
    case!(a_body_of_another_length_than_stated_leaves_nothing, writes),
    case!(a_dropped_put_leaves_nothing, writes),
    case!(an_overwrite_that_fails_keeps_the_old_object, writes),
    case!(deleted_objects_are_gone_and_missing_ones_are_deleted, |c| c
        .delete),
    case!(an_error_among_the_keys_to_delete_is_passed_on, |c| c.delete),
    case!(a_storage_that_cannot_write_says_so, |c| !c.write),
    case!(a_condition_that_is_not_enforced_is_refused, always),
];

/// Larger than any part size a test would choose.
pub(super) const LARGE: usize = 11 * 1024 * 1024 + 4321;

fn chunked(bytes: Bytes, size: usize) -> Body {
    let mut rest = bytes;
    let chunks = std::iter::from_fn(move || {
        (!rest.is_empty()).then(|| Ok(rest.split_to(size.min(rest.len()))))
    });
    Body::stream(stream::iter(chunks))
}

/// As [`chunked`], and can be sent again.
fn replayable(bytes: Bytes, size: usize) -> Body {
    Body::replayable(move || chunked(bytes.clone(), size).into_stream())
}

async fn what_is_put_is_read_back(s: Subject) -> Result<(), Failure> {
    for length in [0usize, 1, 8192, 1_000_003] {
        let (key, content) = (s.key(&format!("object-{length}"))?, pattern(length));
        let put = s.put(&key, content.clone()).await?;
        ensure_eq!(put.key, key, "key of the put");
        ensure_eq!(put.size, length as u64, "size of the put");
        ensure!(
            s.reader.read(&key).await? == content,
            "content of {length} bytes differs"
        );
        let head = s.reader.head(&key).await?;
        ensure_eq!(head.meta.size, put.size, "size in head");
        ensure_eq!(head.meta.version, put.version, "version in head");
    }
    Ok(())
}

async fn a_create_never_replaces(s: Subject) -> Result<(), Failure> {
    let key = s.key("dir/once")?;
    s.reader.create(&key, "first").await?;
    for body in [Body::from("second"), replayable(pattern(LARGE), 1 << 20)] {
        let error = refused(
            "second create",
            s.reader.create(&key, body).await,
            ErrorKind::Exists,
        )?;
        ensure_eq!(error.operation(), Operation::Put, "operation");
        ensure_eq!(error.key(), Some(key.as_str()), "key in the error");
        ensure!(
            !error.is_retryable(),
            "an existing object is no matter of trying again"
        );
    }
    ensure_eq!(
        s.reader.read(&key).await?,
        "first",
        "content after a refused create"
    );
    Ok(())
}

async fn an_overwrite_replaces_the_whole_object(s: Subject) -> Result<(), Failure> {
    let key = s.key("twice")?;
    let old = s.reader.overwrite(&key, pattern(100_000)).await?;
    let new = s.reader.overwrite(&key, "short").await?;
    ensure_eq!(
        s.reader.read(&key).await?,
        "short",
        "content after overwrite"
    );
    if s.capabilities().versions {
        ensure!(
            old.version.is_some() && old.version != new.version,
            "the version must change"
        );
    }
    Ok(())
}

async fn a_put_under_a_version_needs_that_version(s: Subject) -> Result<(), Failure> {
    let key = s.key("swap")?;
    let first = s.put(&key, "1").await?;
    let Some(v1) = first.version else {
        return Err(Failure::new("compare-and-swap without versions"));
    };
    let second = s.reader.replace(&key, &v1, "2").await?;
    ensure!(
        second.version.as_ref().is_some_and(|v2| *v2 != v1),
        "the version must change"
    );
    refused(
        "stale version",
        s.reader.replace(&key, &v1, "3").await,
        ErrorKind::Precondition,
    )?;
    ensure_eq!(
        s.reader.read(&key).await?,
        "2",
        "content after a refused swap"
    );
    s.reader.delete(&key).await?;
    refused(
        "no object",
        s.reader.replace(&key, &v1, "4").await,
        ErrorKind::Precondition,
    )?;
    ensure!(
        !s.reader.exists(&key).await?,
        "a refused swap made an object"
    );
    Ok(())
}

async fn a_repeated_put_recognises_its_own_object(s: Subject) -> Result<(), Failure> {
    for (name, length) in [("small", 10), ("large", LARGE)] {
        let (key, content) = (s.key(name)?, pattern(length));
        let options = PutOptions::create().with_token(PutToken::random());
        let body = || chunked(content.clone(), 1 << 20);
        let first = s.reader.put(&key, body(), options.clone()).await?;
        let again = s.reader.put(&key, body(), options.clone()).await?;
        ensure_eq!(
            first.version,
            again.version,
            "version of the object met again"
        );
        let other = PutOptions::create().with_token(PutToken::random());
        refused(
            "another put",
            s.reader.put(&key, body(), other).await,
            ErrorKind::Exists,
        )?;
        refused(
            "no token",
            s.reader.create(&key, body()).await,
            ErrorKind::Exists,
        )?;
    }
    if s.capabilities().compare_and_swap {
        let key = s.key("swap")?;
        let Some(v1) = s.reader.create(&key, "1").await?.version else {
            return Ok(());
        };
        let options = PutOptions::if_version(v1).with_token(PutToken::random());
        let first = s.reader.put(&key, "2".into(), options.clone()).await?;
        let again = s.reader.put(&key, "2".into(), options).await?;
        ensure_eq!(
            first.version,
            again.version,
            "version after a swap met again"
        );
    }
    Ok(())
}

async fn a_stream_of_unknown_length_is_stored_whole(s: Subject) -> Result<(), Failure> {
    for (length, size) in [(0usize, 1usize), (70_001, 977), (LARGE, 1_000_003)] {
        let (key, content) = (s.key(&format!("stream-{length}"))?, pattern(length));
        let put = s.put(&key, chunked(content.clone(), size)).await?;
        ensure_eq!(put.size, length as u64, "size of the put");
        ensure!(
            s.reader.read(&key).await? == content,
            "content of {length} bytes differs"
        );
        ensure_eq!(
            s.reader.head(&key).await?.meta.version,
            put.version,
            "version"
        );
    }
    Ok(())
}

async fn a_replayable_body_is_stored_whole(s: Subject) -> Result<(), Failure> {
    let (key, content) = (s.key("replay")?, pattern(300_000));
    let body = {
        let content = content.clone();
        Body::replayable(move || chunked(content.clone(), 10_000).into_stream())
    };
    s.put(&key, body.with_length(300_000)).await?;
    ensure!(s.reader.read(&key).await? == content, "content differs");
    Ok(())
}

/// A body that gives `good` bytes and then fails.
fn failing(good: usize) -> Body {
    let error = || io::Error::other("the source broke");
    Body::stream(
        chunked(pattern(good), 100_000)
            .into_stream()
            .chain(stream::iter([Err(error())])),
    )
}

async fn nothing_is_there(s: &Subject, name: &str) -> Result<(), Failure> {
    let key = s.key(name)?;
    ensure!(
        !s.reader.exists(&key).await?,
        "{name}: something was stored"
    );
    if s.capabilities().list {
        let listed = s.reader.list_all(&s.prefix).await?;
        ensure!(
            listed.iter().all(|object| object.key != key),
            "{name}: something is listed"
        );
    }
    Ok(())
}

async fn a_body_that_fails_leaves_nothing(s: Subject) -> Result<(), Failure> {
    for (name, good) in [("at-once", 0usize), ("early", 150_000), ("late", LARGE)] {
        let key = s.key(name)?;
        let error = refused(name, s.put(&key, failing(good)).await, ErrorKind::Body)?;
        ensure!(
            !error.is_retryable(),
            "a broken source is the caller's matter"
        );
        nothing_is_there(&s, name).await?;
        s.put(&key, "whole").await?;
    }
    Ok(())
}

async fn a_body_of_another_length_than_stated_leaves_nothing(s: Subject) -> Result<(), Failure> {
    for (name, stated) in [("short", 100_001u64), ("long", 99_999)] {
        let body = chunked(pattern(100_000), 10_000).with_length(stated);
        refused(name, s.put(&s.key(name)?, body).await, ErrorKind::Body)?;
        nothing_is_there(&s, name).await?;
    }
    Ok(())
}

async fn a_dropped_put_leaves_nothing(s: Subject) -> Result<(), Failure> {
    for (name, good) in [("empty", 0usize), ("early", 150_000), ("late", LARGE)] {
        let key = s.key(name)?;
        let (reached, waits) = tokio::sync::oneshot::channel();
        let mut reached = Some(reached);
        let endless = chunked(pattern(good), 100_000)
            .into_stream()
            .chain(stream::poll_fn(move |_| {
                if let Some(reached) = reached.take() {
                    let _gone = reached.send(());
                }
                std::task::Poll::Pending
            }));
        let put = s.put(&key, Body::stream(endless));
        tokio::pin!(put);
        tokio::select! {
            put = &mut put => {
                return Err(Failure::new(format!("{name}: an endless body ended: {put:?}")));
            }
            _ = waits => {}
        }
        // A little longer, so that what is in flight arrives.
        let _pending = tokio::time::timeout(Duration::from_millis(20), put).await;
        nothing_is_there(&s, name).await?;
        s.put(&key, "whole").await?;
        ensure_eq!(s.reader.read(&key).await?, "whole", "{name}: content");
    }
    Ok(())
}

async fn an_overwrite_that_fails_keeps_the_old_object(s: Subject) -> Result<(), Failure> {
    let key = s.key("kept")?;
    s.put(&key, "old").await?;
    refused(
        "overwrite",
        s.reader.overwrite(&key, failing(200_000)).await,
        ErrorKind::Body,
    )?;
    ensure_eq!(
        s.reader.read(&key).await?,
        "old",
        "content after a failed overwrite"
    );
    Ok(())
}

async fn deleted_objects_are_gone_and_missing_ones_are_deleted(s: Subject) -> Result<(), Failure> {
    let mut keys = Vec::new();
    for number in 0..30 {
        let key = s.key(&format!("d{}/object {number}", number % 3))?;
        if number % 5 != 0 {
            s.put(&key, "x").await?;
        }
        keys.push(key);
    }
    let keep = s.key("d0/kept")?;
    s.put(&keep, "kept").await?;
    let deleted: Vec<Result<_>> = s
        .reader
        .delete_many(stream::iter(keys.clone().into_iter().map(Ok)).boxed())
        .collect()
        .await;
    let mut back = deleted.into_iter().collect::<Result<Vec<_>>>()?;
    back.sort();
    keys.sort();
    ensure_eq!(back, keys, "keys given back");
    for key in &keys {
        refused("get", s.reader.read(key).await, ErrorKind::NotFound)?;
    }
    ensure_eq!(s.reader.read(&keep).await?, "kept", "another object");
    s.put(s.reader_key(&keys)?, "again").await?;
    Ok(())
}

impl Subject {
    fn reader_key<'k>(&self, keys: &'k [crate::Key]) -> Result<&'k crate::Key, Failure> {
        keys.first().ok_or_else(|| Failure::new("no key"))
    }
}

async fn an_error_among_the_keys_to_delete_is_passed_on(s: Subject) -> Result<(), Failure> {
    let (one, two) = (s.key("one")?, s.key("two")?);
    s.put(&one, "1").await?;
    s.put(&two, "2").await?;
    let broken = Error::new(ErrorKind::Corrupt, Operation::List).retry(crate::Retry::Never);
    let keys = stream::iter([Ok(one.clone()), Err(broken), Ok(two.clone())]).boxed();
    let outcomes: Vec<_> = s.reader.delete_many(keys).collect().await;
    ensure_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 2, "deleted");
    ensure_eq!(outcomes.len(), 3, "answers");
    ensure!(
        !s.reader.exists(&one).await? && !s.reader.exists(&two).await?,
        "both are gone"
    );
    Ok(())
}

async fn a_storage_that_cannot_write_says_so(s: Subject) -> Result<(), Failure> {
    let key = s.key("unwritten")?;
    s.prepare(&key, "there").await?;
    for options in [PutOptions::create(), PutOptions::overwrite()] {
        let put = s.reader.put(&s.key("new")?, "x".into(), options).await;
        refused("put", put, ErrorKind::Unsupported)?;
    }
    refused(
        "delete",
        s.reader.delete(&key).await,
        ErrorKind::Unsupported,
    )?;
    ensure_eq!(s.reader.read(&key).await?, "there", "content");
    ensure!(
        !s.writer.exists(&s.key("new")?).await?,
        "something was written"
    );
    Ok(())
}

async fn a_condition_that_is_not_enforced_is_refused(s: Subject) -> Result<(), Failure> {
    let (can, key) = (s.capabilities(), s.key("conditional")?);
    if can.write && !can.create_only {
        refused(
            "create",
            s.reader.create(&key, "x").await,
            ErrorKind::Unsupported,
        )?;
    }
    if can.write && !can.compare_and_swap {
        let put = s.reader.replace(&key, &crate::Version::new("1"), "x").await;
        refused("swap", put, ErrorKind::Unsupported)?;
    }
    let listed = s
        .reader
        .list(ListOptions::prefix(s.prefix.clone()))
        .next()
        .await;
    match listed {
        None => {}
        Some(Err(error)) if !can.list && error.kind() == ErrorKind::Unsupported => {}
        Some(other) => return Err(Failure::new(format!("listed {other:?}"))),
    }
    ensure!(
        can.list || s.reader.list(ListOptions::all()).next().await.is_some(),
        "no refusal"
    );
    Ok(())
}
