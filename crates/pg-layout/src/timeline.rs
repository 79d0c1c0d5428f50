//! Timelines: the branches that promotion makes of a cluster's write-ahead log.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// The number of a timeline; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(u32);

impl TimelineId {
    /// The timeline that `initdb` starts.
    pub const FIRST: Self = Self(1);

    /// The timeline with this number.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) for zero, which PostgreSQL uses for "none".
    pub fn new(number: u32) -> Result<Self> {
        if number == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "timeline",
                "0 is not a timeline",
            ));
        }
        Ok(Self(number))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for TimelineId {
    /// Decimal, as SQL, logs and `recovery_target_timeline` write it; file names use `%08X`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimelineId({})", self.0)
    }
}
