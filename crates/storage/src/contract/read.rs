//! Promises about reading.

use futures_util::StreamExt;

use super::check::{pattern, refused};
use super::put::LARGE;
use super::{Case, Failure, Subject, always, writes};
use crate::error::{ErrorKind, Operation, Result};
use crate::ext::StorageExt;
use crate::object::Version;
use crate::options::{GetOptions, GetRange};

pub(super) const CASES: &[Case] = &[
    case!(a_missing_object_is_reported_with_its_key, always),
    case!(a_range_is_read_exactly, always),
    case!(a_range_that_begins_outside_is_invalid, always),
    case!(several_ranges_come_in_their_order, always),
    case!(several_ranges_must_lie_inside, always),
    case!(a_read_can_be_bound_to_a_version, |c| c.versions),
    case!(a_reader_never_sees_two_versions, writes),
    case!(a_large_object_is_read_in_pieces, always),
    case!(a_dropped_read_disturbs_nothing, always),
    case!(the_age_is_judged_by_the_storages_clock, |c| c.clock),
];

async fn a_missing_object_is_reported_with_its_key(s: Subject) -> Result<(), Failure> {
    s.prepare(&s.key("dir/present")?, "x").await?;
    for name in ["missing", "dir", "dir/present/below", "no/such/dir"] {
        let key = s.key(name)?;
        let get = refused(name, s.reader.read(&key).await, ErrorKind::NotFound)?;
        ensure_eq!(get.operation(), Operation::Get, "operation of get");
        ensure_eq!(get.key(), Some(key.as_str()), "key in the error");
        ensure!(
            !get.is_retryable(),
            "a missing object is no matter of trying again"
        );
        let head = refused(name, s.reader.head(&key).await, ErrorKind::NotFound)?;
        ensure_eq!(head.operation(), Operation::Head, "operation of head");
        let ranges = s
            .reader
            .get_ranges(&key, &[0..1, 5..6], GetOptions::new())
            .await;
        refused(name, ranges, ErrorKind::NotFound)?;
        ensure!(!s.reader.exists(&key).await?, "{name} exists");
    }
    Ok(())
}

async fn a_range_is_read_exactly(s: Subject) -> Result<(), Failure> {
    let (key, content) = (s.key("ranged")?, pattern(100_000));
    s.prepare(&key, content.clone()).await?;
    for (range, expected) in [
        (GetRange::Bounded(0..1), 0..1),
        (GetRange::Bounded(0..100_000), 0..100_000),
        (GetRange::Bounded(99_999..100_000), 99_999..100_000),
        (GetRange::Bounded(50_000..70_000), 50_000..70_000),
        (GetRange::Bounded(90_000..1_000_000), 90_000..100_000),
        (GetRange::From(0), 0..100_000),
        (GetRange::From(99_990), 99_990..100_000),
        (GetRange::Last(1), 99_999..100_000),
        (GetRange::Last(100_000), 0..100_000),
        (GetRange::Last(1_000_000), 0..100_000),
    ] {
        let got = s
            .reader
            .get(&key, GetOptions::new().range(range.clone()))
            .await?;
        ensure_eq!(
            got.range,
            (expected.start as u64..expected.end as u64),
            "range of {range}"
        );
        ensure_eq!(got.meta.size, 100_000, "size of the whole for {range}");
        ensure!(
            got.bytes().await? == content.slice(expected),
            "content of {range}"
        );
    }
    Ok(())
}

#[expect(clippy::reversed_empty_ranges, reason = "they must be refused")]
async fn a_range_that_begins_outside_is_invalid(s: Subject) -> Result<(), Failure> {
    let (key, empty) = (s.key("short")?, s.key("empty")?);
    s.prepare(&key, "0123456789").await?;
    s.prepare(&empty, "").await?;
    for (key, range) in [
        (&key, GetRange::Bounded(10..11)),
        (&key, GetRange::Bounded(5..5)),
        (&key, GetRange::Bounded(7..3)),
        (&key, GetRange::From(10)),
        (&key, GetRange::From(11)),
        (&key, GetRange::Last(0)),
        (&empty, GetRange::Bounded(0..1)),
        (&empty, GetRange::From(0)),
        (&empty, GetRange::Last(1)),
    ] {
        let got = s
            .reader
            .get(key, GetOptions::new().range(range.clone()))
            .await;
        refused(
            &format!("range {range:?} of {key}"),
            got,
            ErrorKind::Invalid,
        )?;
    }
    Ok(())
}

async fn several_ranges_come_in_their_order(s: Subject) -> Result<(), Failure> {
    let (key, content) = (s.key("many")?, pattern(3_000_000));
    let meta = s.prepare(&key, content.clone()).await?;
    let ranges = [
        2_999_990u64..3_000_000,
        0..10,
        5..15,
        0..10,
        200_000..200_001,
        1_000_000..2_000_000,
    ];
    let mut options = GetOptions::new();
    if s.capabilities().versions && s.capabilities().write {
        options.if_version = meta.version;
    }
    let got = s.reader.get_ranges(&key, &ranges, options).await?;
    ensure_eq!(got.len(), ranges.len(), "answers");
    for (range, bytes) in ranges.iter().zip(&got) {
        let expected = usize::try_from(range.start)?..usize::try_from(range.end)?;
        ensure!(*bytes == content.slice(expected), "content of {range:?}");
    }
    let none = s.reader.get_ranges(&key, &[], GetOptions::new()).await?;
    ensure!(none.is_empty(), "answers to no ranges");
    Ok(())
}

#[expect(clippy::reversed_empty_ranges, reason = "they must be refused")]
#[expect(clippy::single_range_in_vec_init, reason = "several ranges may be one")]
async fn several_ranges_must_lie_inside(s: Subject) -> Result<(), Failure> {
    let key = s.key("ten")?;
    s.prepare(&key, "0123456789").await?;
    for ranges in [&[0u64..11][..], &[0..1, 10..11], &[3..3], &[0..1, 5..2]] {
        let got = s.reader.get_ranges(&key, ranges, GetOptions::new()).await;
        refused(&format!("{ranges:?}"), got, ErrorKind::Invalid)?;
    }
    Ok(())
}

async fn a_read_can_be_bound_to_a_version(s: Subject) -> Result<(), Failure> {
    let key = s.key("versioned")?;
    s.prepare(&key, "first").await?;
    let Some(first) = s.reader.head(&key).await?.meta.version else {
        return Err(Failure::new("versions are claimed and head has none"));
    };
    let bound = || GetOptions::new().if_version(first.clone());
    ensure_eq!(
        s.reader.get(&key, bound()).await?.bytes().await?,
        "first",
        "content"
    );
    let ranges = s.reader.get_ranges(&key, &[1..3, 4..5], bound()).await?;
    ensure_eq!(ranges.concat(), b"irt", "ranges");
    s.writer.overwrite(&key, "second").await?;
    refused(
        "get",
        s.reader.get(&key, bound()).await,
        ErrorKind::Precondition,
    )?;
    let ranged = bound().range(GetRange::Bounded(1..3));
    refused(
        "range",
        s.reader.get(&key, ranged).await,
        ErrorKind::Precondition,
    )?;
    let ranges = s.reader.get_ranges(&key, &[1..3, 4..5], bound()).await;
    refused("ranges", ranges, ErrorKind::Precondition)?;
    let never = GetOptions::new().if_version(Version::new("\"never\""));
    refused(
        "never",
        s.reader.get(&key, never).await,
        ErrorKind::Precondition,
    )?;
    Ok(())
}

async fn a_reader_never_sees_two_versions(s: Subject) -> Result<(), Failure> {
    let key = s.key("replaced")?;
    let old = pattern(LARGE);
    s.reader.overwrite(&key, old.clone()).await?;
    let mut got = s.reader.get(&key, GetOptions::new()).await?;
    let mut seen = Vec::new();
    if let Some(chunk) = got.body.next().await {
        seen.extend_from_slice(&chunk?);
    }
    s.reader.overwrite(&key, vec![7u8; LARGE]).await?;
    loop {
        match got.body.next().await {
            Some(Ok(chunk)) => seen.extend_from_slice(&chunk),
            Some(Err(_)) => {
                ensure!(
                    old.starts_with(&seen),
                    "bytes of two versions before the error"
                );
                return Ok(());
            }
            None => break,
        }
    }
    ensure!(seen == old, "bytes of two versions");
    Ok(())
}

async fn a_large_object_is_read_in_pieces(s: Subject) -> Result<(), Failure> {
    let (key, content) = (s.key("large")?, pattern(LARGE));
    s.prepare(&key, content.clone()).await?;
    let mut got = s.reader.get(&key, GetOptions::new()).await?;
    let (mut seen, mut pieces) = (0usize, 0usize);
    while let Some(chunk) = got.body.next().await {
        let chunk = chunk?;
        let end = seen.saturating_add(chunk.len());
        ensure!(
            end <= LARGE && chunk == content.slice(seen..end),
            "content at {seen}"
        );
        (seen, pieces) = (end, pieces.saturating_add(1));
    }
    ensure_eq!(seen, LARGE, "bytes read");
    ensure!(pieces > 0, "no pieces");
    Ok(())
}

async fn a_dropped_read_disturbs_nothing(s: Subject) -> Result<(), Failure> {
    let (key, content) = (s.key("dropped")?, pattern(2_000_000));
    s.prepare(&key, content.clone()).await?;
    for _ in 0..5 {
        let mut got = s.reader.get(&key, GetOptions::new()).await?;
        let _first = got.body.next().await;
        drop(got);
        drop(s.reader.get(&key, GetOptions::new()));
        drop(s.reader.head(&key));
    }
    ensure!(
        s.reader.read(&key).await? == content,
        "content after dropped reads"
    );
    Ok(())
}

async fn the_age_is_judged_by_the_storages_clock(s: Subject) -> Result<(), Failure> {
    let key = s.key("aged")?;
    s.prepare(&key, "x").await?;
    let head = s.reader.head(&key).await?;
    let Some(clock) = head.clock else {
        return Err(Failure::new("no clock"));
    };
    // Whole seconds on some storages, and stamped a moment apart.
    let slack = std::time::Duration::from_secs(3);
    ensure!(
        head.meta.modified <= clock + slack,
        "{:?} after {clock:?}",
        head.meta.modified
    );
    let age = head.age().unwrap_or_default();
    ensure!(
        age < std::time::Duration::from_secs(120),
        "age of a new object is {age:?}"
    );
    Ok(())
}
