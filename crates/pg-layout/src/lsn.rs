//! A position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A log sequence number: a byte position in the write-ahead log of one lineage.
///
/// Written as two hexadecimal halves, `16/B374D848`. [`Lsn::INVALID`] (zero) stands for "none"
/// wherever PostgreSQL stores a position it does not have.
///
/// ```
/// use neon_pg_layout::Lsn;
/// let lsn: Lsn = "16/B374D848".parse()?;
/// assert_eq!(lsn, Lsn(0x16_B374_D848));
/// assert_eq!(lsn.to_string(), "16/B374D848");
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Zero, PostgreSQL's "no position" (`InvalidXLogRecPtr`).
    pub const INVALID: Self = Self(0);
    /// The largest position.
    pub const MAX: Self = Self(u64::MAX);

    /// Whether this is a position at all, that is, not zero.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// This position moved forward, or `None` past the end of the log.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// This position moved forward, stopping at [`Lsn::MAX`].
    #[must_use]
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// How many bytes of log lie from `earlier` to here, or `None` if `earlier` is later.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// The next multiple of `alignment` at or after this position; `alignment` is a power of two.
    ///
    /// `None` past the end of the log or when `alignment` is not a power of two.
    #[must_use]
    pub const fn align_up(self, alignment: u64) -> Option<Self> {
        if !alignment.is_power_of_two() {
            return None;
        }
        match self.0.checked_next_multiple_of(alignment) {
            Some(aligned) => Some(Self(aligned)),
            None => None,
        }
    }

    /// The offset within a unit of `size` bytes (a page or a segment); `size` is a power of two.
    #[must_use]
    pub const fn offset_in(self, size: u64) -> u64 {
        self.0 & size.wrapping_sub(1)
    }

    /// The start of the unit of `size` bytes (a page or a segment) that holds this position.
    #[must_use]
    pub const fn start_of(self, size: u64) -> Self {
        Self(self.0 - self.offset_in(size))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// Parses `X/X`, each half one to eight hexadecimal digits, as `pg_lsn` does.
    fn from_str(text: &str) -> Result<Self> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        let halves = text
            .split_once('/')
            .and_then(|(high, low)| half(high).zip(half(low)));
        match halves {
            Some((high, low)) => Ok(Self(high << 32 | low)),
            None => Err(Error::malformed(
                "LSN",
                format!("{text:?} is not of the form 16/B374D848"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_lsn_refuses_is_refused() {
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "G/0",
            "0/123456789",
            "+1/0",
            " 1/0",
            "1/0 ",
            "0x1/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn text_and_value_round_trip() {
        for value in [0, 1, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX] {
            assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }
        assert_eq!(
            "ffffffff/a".parse::<Lsn>().unwrap(),
            Lsn(0xFFFF_FFFF_0000_000A)
        );
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Lsn::MAX.checked_add(1), None);
        assert_eq!(Lsn::MAX.align_up(8), None);
        assert_eq!(Lsn(9).align_up(8), Some(Lsn(16)));
        assert_eq!(Lsn(9).align_up(3), None);
        assert_eq!(Lsn(1).bytes_since(Lsn(2)), None);
        assert_eq!(Lsn(0x2000_0010).start_of(0x1000_0000), Lsn(0x2000_0000));
    }
}
