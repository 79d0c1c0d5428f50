//! The number that every copy and every descendant of one `initdb` shares.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::segment::decimal;

/// A cluster's system identifier.
///
/// `initdb` builds it from the time of day and its process id; standbys, restored backups and clones
/// keep it, `pg_upgrade` makes a new one. It therefore tells unrelated clusters apart and nothing else.
///
/// ```
/// use neon_pg_layout::SystemIdentifier;
/// let id: SystemIdentifier = "7710187071172605999".parse()?;
/// assert_eq!(id.created().as_secs(), 1_795_167_818);
/// assert_eq!(id.to_string(), "7710187071172605999");
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// The identifier with this value.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) for zero, which stands for "none".
    pub fn new(value: u64) -> Result<Self> {
        if value == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "system identifier",
                "0 identifies no cluster",
            ));
        }
        Ok(Self(value))
    }

    /// The value.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// When `initdb` (or `pg_resetwal`) made it, since 1970-01-01 00:00 UTC, to the microsecond.
    #[must_use]
    pub const fn created(self) -> Duration {
        let micros = (self.0 >> 12) & 0xF_FFFF;
        Duration::from_secs(self.0 >> 32).saturating_add(Duration::from_micros(micros))
    }
}

impl fmt::Display for SystemIdentifier {
    /// Decimal, as `IDENTIFY_SYSTEM`, `pg_controldata` and manifests write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemIdentifier {
    type Err = Error;

    /// Parses decimal digits.
    fn from_str(text: &str) -> Result<Self> {
        match decimal(text) {
            Some(value) => Self::new(value),
            None => Err(Error::malformed(
                "system identifier",
                format!("{text:?} is not an unsigned 64-bit number"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_decimal_numbers_are_identifiers() {
        for text in ["", "0", "-1", "+1", " 1", "0x1", "18446744073709551616"] {
            assert!(text.parse::<SystemIdentifier>().is_err(), "{text:?}");
        }
        let largest: SystemIdentifier = u64::MAX.to_string().parse().unwrap();
        assert_eq!(largest.get(), u64::MAX);
        assert!(largest.created() > Duration::ZERO);
    }
}
