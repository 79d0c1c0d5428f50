//! What of a data directory is wanted.
//!
//! A snapshot that shares pages with a parent reads what has changed since, and must still learn of every
//! file that is there. So the whole directory is listed, each file is put to a [`Select`], and only what
//! that wants is read.

use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Entry, Wanted};

/// Says what of each file is wanted.
///
/// A file that a parent does not have is best wanted whole, also when it is empty: only of files that are
/// opened is it noticed that they belong to an unlogged relation that is just being made, and do not
/// belong into the snapshot of a running server.
pub trait Select: Sync {
    /// What is wanted of a file as it was listed. Asked once per file, in the order in which they are
    /// copied, from one thread; never for `global/pg_control`, which is always wanted whole.
    ///
    /// # Errors
    /// When it cannot be known; that ends the copy.
    fn wanted(&self, entry: &Entry) -> Result<Wanted>;
}

/// Wants everything.
pub(crate) struct Everything;

impl Select for Everything {
    fn wanted(&self, _: &Entry) -> Result<Wanted> {
        Ok(Wanted::Whole)
    }
}

/// Refuses what no selection may want.
pub(crate) fn check(entry: &Entry, wanted: &Wanted, page: u64) -> Result<()> {
    let Wanted::Ranges(ranges) = wanted else {
        return Ok(());
    };
    let mut last = 0;
    for range in ranges {
        let aligned = range.start.is_multiple_of(page)
            && (range.end.is_multiple_of(page) || range.end == entry.size());
        if !aligned || range.start < last || range.end <= range.start || range.end > entry.size() {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                entry.path.to_string(),
                format!(
                    "bytes {} to {} are wanted of {}: not whole pages in order",
                    range.start,
                    range.end,
                    entry.size()
                ),
            ));
        }
        last = range.end;
    }
    Ok(())
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are what is tested"
)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::path::SnapshotPath;
    use crate::stream::EntryKind;

    const PAGE: u64 = 8192;

    #[test]
    fn only_whole_pages_in_order_may_be_wanted() {
        let odd = Entry {
            path: SnapshotPath::new("base/5/16384").unwrap(),
            kind: EntryKind::File {
                size: 10 * PAGE + 100,
            },
            mode: 0o600,
            owner: None,
            modified: 0,
        };
        let good = [
            vec![0..PAGE],
            vec![0..PAGE, PAGE..2 * PAGE],
            vec![9 * PAGE..10 * PAGE + 100],
        ];
        for ranges in good {
            check(&odd, &Wanted::Ranges(ranges), PAGE).unwrap();
        }
        let bad = [
            vec![1..PAGE],
            vec![0..PAGE - 1],
            vec![PAGE..PAGE],
            vec![Range {
                start: 2 * PAGE,
                end: PAGE,
            }],
            vec![0..2 * PAGE, PAGE..3 * PAGE],
            vec![PAGE..2 * PAGE, 0..PAGE],
            vec![0..11 * PAGE],
            vec![10 * PAGE..10 * PAGE + 101],
        ];
        for ranges in bad {
            let error = check(&odd, &Wanted::Ranges(ranges.clone()), PAGE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Inconsistent, "{ranges:?}");
        }
    }
}
