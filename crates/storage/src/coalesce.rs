//! Reading several ranges in few requests: near ones are fetched together, all are of one version.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::error::{Error, ErrorKind, Operation, Result, Retry};
use crate::key::Key;
use crate::object::Version;
use crate::options::{GetOptions, GetRange};
use crate::ranges::{check, outside};
use crate::storage::Storage;

/// Gaps up to this many bytes are fetched and thrown away rather than paid with a request.
const GAP: u64 = 64 * 1024;
/// A joined fetch doesn't grow beyond this because of its gaps.
const JOINED: u64 = 8 * 1024 * 1024;
/// How many fetches run at once.
const AT_ONCE: usize = 8;

/// The fewest fetches that cover the ranges, each with the indices it serves.
fn plan(ranges: &[Range<u64>]) -> Vec<(Range<u64>, Vec<usize>)> {
    let mut order: Vec<(usize, &Range<u64>)> = ranges.iter().enumerate().collect();
    order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut fetches: Vec<(Range<u64>, Vec<usize>)> = Vec::new();
    for (index, range) in order {
        if let Some((last, served)) = fetches.last_mut() {
            let near = range.start <= last.end.saturating_add(GAP);
            let small = range.end.saturating_sub(last.start) <= JOINED;
            if range.end <= last.end || (near && small) {
                last.end = last.end.max(range.end);
                served.push(index);
                continue;
            }
        }
        fetches.push((range.clone(), vec![index]));
    }
    fetches
}

/// What was fetched: where, of which version, and which ranges it serves.
type Fetched = (Range<u64>, Option<Version>, Bytes, Vec<usize>);

/// [`Storage::get_ranges`] by way of [`Storage::get`], for backends without a better way.
pub(crate) async fn by_get(
    storage: &impl Storage,
    key: &Key,
    ranges: &[Range<u64>],
    options: GetOptions,
) -> Result<Vec<Bytes>> {
    check(key, ranges, &options)?;
    let fetches: Vec<Fetched> = stream::iter(plan(ranges))
        .map(|(range, served)| {
            let options = options.clone().range(GetRange::Bounded(range.clone()));
            async move {
                let got = storage.get(key, options).await?;
                if got.range != range {
                    return Err(outside(key, &range, got.meta.size));
                }
                let version = got.meta.version.clone();
                Ok((range, version, got.bytes().await?, served))
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    // Without versions nothing tells whether two answers are of one: only one answer is.
    if fetches.len() > 1 && fetches.iter().any(|(_, version, _, _)| version.is_none()) {
        return in_one(storage, key, ranges, options).await;
    }
    if let Some((_, first, _, _)) = fetches.first()
        && fetches.iter().any(|(_, version, _, _)| version != first)
    {
        return Err(Error::new(ErrorKind::Precondition, Operation::Get)
            .subject(key.as_str())
            .detail("the object changed between two of the ranges")
            .retry(Retry::MayHelp));
    }
    let mut answers = vec![Bytes::new(); ranges.len()];
    for (fetched, _, bytes, served) in fetches {
        for index in served {
            let (Some(range), Some(answer)) = (ranges.get(index), answers.get_mut(index)) else {
                continue;
            };
            *answer = cut(&bytes, fetched.start, range).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, Operation::Get).subject(key.as_str())
            })?;
        }
    }
    Ok(answers)
}

/// The ranges out of one answer that spans them all, keeping no more than was asked for.
async fn in_one(
    storage: &impl Storage,
    key: &Key,
    ranges: &[Range<u64>],
    options: GetOptions,
) -> Result<Vec<Bytes>> {
    let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
    let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
    let got = storage
        .get(key, options.range(GetRange::Bounded(start..end)))
        .await?;
    if got.range != (start..end) {
        return Err(outside(key, &(start..end), got.meta.size));
    }
    let mut answers = vec![BytesMut::new(); ranges.len()];
    let (mut at, mut body) = (start, got.body);
    while let Some(chunk) = body.try_next().await? {
        let next = at.saturating_add(chunk.len() as u64);
        for (range, answer) in ranges.iter().zip(&mut answers) {
            let wanted = range.start.max(at)..range.end.min(next);
            if !wanted.is_empty()
                && let Some(piece) = cut(&chunk, at, &wanted)
            {
                answer.extend_from_slice(&piece);
            }
        }
        at = next;
    }
    let whole = |(range, answer): (&Range<u64>, BytesMut)| {
        if answer.len() as u64 == range.end.saturating_sub(range.start) {
            return Ok(answer.freeze());
        }
        Err(Error::new(ErrorKind::Corrupt, Operation::Get)
            .subject(key.as_str())
            .detail("the body ended early")
            .retry(Retry::MayHelp))
    };
    ranges.iter().zip(answers).map(whole).collect()
}

fn cut(bytes: &Bytes, origin: u64, range: &Range<u64>) -> Option<Bytes> {
    let start = usize::try_from(range.start.checked_sub(origin)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(origin)?).ok()?;
    (end <= bytes.len()).then(|| bytes.slice(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plan_covers_every_range_once_and_wastes_little(
            starts in proptest::collection::vec((0u64..1 << 26, 1u64..1 << 20), 0..40),
        ) {
            let ranges: Vec<_> = starts.iter().map(|(s, l)| *s..*s + *l).collect();
            let plan = plan(&ranges);
            let mut served: Vec<usize> = plan.iter().flat_map(|(_, s)| s.clone()).collect();
            served.sort_unstable();
            prop_assert_eq!(served, (0..ranges.len()).collect::<Vec<_>>());
            for (fetch, served) in &plan {
                for index in served {
                    prop_assert!(fetch.start <= ranges[*index].start);
                    prop_assert!(fetch.end >= ranges[*index].end);
                }
            }
            let asked: u64 = ranges.iter().map(|r| r.end - r.start).sum();
            let fetched: u64 = plan.iter().map(|(f, _)| f.end - f.start).sum();
            prop_assert!(fetched <= asked + GAP * ranges.len() as u64);
        }
    }
}
