//! The key of one pack.

use std::fmt;

use crate::error::Result;
use crate::id::random;

/// The key that the frames of one pack are sealed with. Random, and never used for another pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataKey(pub(crate) [u8; 32]);

impl DataKey {
    /// A new one.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when the system has no randomness to give.
    pub fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}
