//! Points in time as PostgreSQL stores them.

/// A time as stored in WAL and in data: microseconds since 2000-01-01 00:00 UTC (`TimestampTz`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Seconds from 1970-01-01 to 2000-01-01.
    const EPOCH: i64 = 946_684_800;

    /// Whole seconds since 1970-01-01 UTC, rounded down, and the microseconds on top of them.
    ///
    /// ```
    /// use neon_pg_layout::Timestamp;
    /// assert_eq!(Timestamp(1_500_000).unix(), (946_684_801, 500_000));
    /// assert_eq!(Timestamp(-1).unix(), (946_684_799, 999_999));
    /// ```
    #[must_use]
    pub const fn unix(self) -> (i64, u32) {
        let micros = self.0.rem_euclid(1_000_000);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a remainder of division by a million"
        )]
        let micros = micros as u32;
        (Self::EPOCH + self.0.div_euclid(1_000_000), micros)
    }
}
