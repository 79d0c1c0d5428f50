//! Several ranges in one call: what is refused everywhere.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::options::GetOptions;

/// Refuses what no backend would accept: empty ranges and a range in the options.
pub(crate) fn check(key: &Key, ranges: &[Range<u64>], options: &GetOptions) -> Result<()> {
    let invalid = |detail: String| {
        Err(Error::new(ErrorKind::Invalid, Operation::Get)
            .subject(key.as_str())
            .detail(detail))
    };
    if options.range.is_some() {
        return invalid("several ranges and a range in the options".into());
    }
    match ranges.iter().find(|range| range.start >= range.end) {
        Some(range) => invalid(format!("empty range {}..{}", range.start, range.end)),
        None => Ok(()),
    }
}

/// The error for a range that is not wholly inside the object.
pub(crate) fn outside(key: &Key, range: &Range<u64>, size: u64) -> Error {
    Error::new(ErrorKind::Invalid, Operation::Get)
        .subject(key.as_str())
        .detail(format!(
            "range {}..{} of an object of {size} bytes",
            range.start, range.end
        ))
}
