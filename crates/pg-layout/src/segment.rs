//! Names of the files in `pg_wal` and in WAL archives, and their place in the log.
//!
//! A segment's name is three groups of eight hexadecimal digits: timeline, the high half of the
//! segment's place, the low half. Where in the log that is depends on the segment size, which the
//! name does not tell; so a name is kept as written and turned into positions with a
//! [`WalSegmentSize`]. Source: `xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::timeline::TimelineId;

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// 16 MiB, what `initdb` chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);
    /// 1 MiB.
    pub const MIN: Self = Self(1 << 20);
    /// 1 GiB.
    pub const MAX: Self = Self(1 << 30);

    /// The segment size of this many bytes.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self> {
        u32::try_from(bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .map(Self)
            .filter(|size| (Self::MIN..=Self::MAX).contains(size))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::OutOfRange,
                    "WAL segment size",
                    format!("{bytes} is not a power of two from 1 MiB to 1 GiB"),
                )
            })
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// How many segments share the high half of their names (`XLogSegmentsPerXLogId`).
    #[must_use]
    pub const fn segments_per_high(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The number of the segment that holds `lsn`, counted from the start of the log.
    #[must_use]
    pub const fn number_of(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// The number of the segment that holds the byte before `lsn`: where a range that ends at `lsn`
    /// ends, also when `lsn` is the start of the next segment (`XLByteToPrevSeg`).
    #[must_use]
    pub const fn number_before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.bytes()
    }

    /// The first position of a segment, or `None` past the end of the log.
    #[must_use]
    pub const fn start_of(self, number: u64) -> Option<Lsn> {
        match number.checked_mul(self.bytes()) {
            Some(start) => Some(Lsn(start)),
            None => None,
        }
    }
}

impl Default for WalSegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for WalSegmentSize {
    /// As `SHOW wal_segment_size` prints it: `16MB`, `1GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 20 {
            1024 => f.write_str("1GB"),
            megabytes => write!(f, "{megabytes}MB"),
        }
    }
}

impl FromStr for WalSegmentSize {
    type Err = Error;

    /// Parses the answer to `SHOW wal_segment_size`: a number and `MB` or `GB`.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = [("MB", 20), ("GB", 30)]
            .into_iter()
            .find_map(|(unit, bits)| {
                let count: u32 = decimal(text.strip_suffix(unit)?)?;
                Some(u64::from(count) << bits)
            });
        match parsed {
            Some(bytes) => Self::new(bytes),
            None => Err(Error::malformed(
                "WAL segment size",
                format!("{text:?} is not of the form 16MB or 1GB"),
            )),
        }
    }
}

/// The name of one WAL segment file: `000000010000000A000000FE`.
///
/// Names of one segment size sort by timeline, then by position.
///
/// ```
/// use neon_pg_layout::{Lsn, SegmentName, TimelineId, WalSegmentSize};
/// let size = WalSegmentSize::DEFAULT;
/// let name = SegmentName::containing(TimelineId::FIRST, Lsn(0x3_0000_0028), size);
/// assert_eq!(name.to_string(), "000000010000000300000000");
/// assert_eq!(name.start(size)?, Lsn(0x3_0000_0000));
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    high: u32,
    low: u32,
}

impl SegmentName {
    /// The segment of a timeline with this number, counted from the start of the log.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) past the end of the log.
    pub fn new(timeline: TimelineId, number: u64, size: WalSegmentSize) -> Result<Self> {
        match size.start_of(number) {
            Some(start) => Ok(Self::containing(timeline, start, size)),
            None => Err(Error::new(
                ErrorKind::OutOfRange,
                "WAL segment number",
                format!("{number} lies past the end of the log"),
            )),
        }
    }

    /// The segment of a timeline that holds `lsn`.
    #[must_use]
    pub const fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        let [b7, b6, b5, b4, b3, b2, b1, b0] = lsn.0.to_be_bytes();
        Self {
            timeline,
            high: u32::from_be_bytes([b7, b6, b5, b4]),
            low: u32::from_be_bytes([b3, b2, b1, b0]) / size.0,
        }
    }

    /// The segment of a timeline that holds the byte before `lsn`.
    #[must_use]
    pub const fn ending_at(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self::containing(timeline, Lsn(lsn.0.saturating_sub(1)), size)
    }

    /// The timeline.
    #[must_use]
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The segment's number, counted from the start of the log.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) when no segment of this size can have this name.
    pub fn number(self, size: WalSegmentSize) -> Result<u64> {
        if u64::from(self.low) >= size.segments_per_high() {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "WAL segment name",
                format!("{self} does not exist with segments of {size}"),
            ));
        }
        Ok(u64::from(self.high) * size.segments_per_high() + u64::from(self.low))
    }

    /// The first position in the segment.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) when no segment of this size can have this name.
    pub fn start(self, size: WalSegmentSize) -> Result<Lsn> {
        self.number(size).map(|number| Lsn(number * size.bytes()))
    }

    /// The position after the last byte of the segment; [`Lsn::MAX`] for the last of all.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) when no segment of this size can have this name.
    pub fn end(self, size: WalSegmentSize) -> Result<Lsn> {
        self.start(size)
            .map(|start| start.saturating_add(size.bytes()))
    }

    /// The segment after this one on the same timeline, or `None` at the end of the log.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) when no segment of this size can have this name.
    pub fn next(self, size: WalSegmentSize) -> Result<Option<Self>> {
        let next = self.number(size)?.checked_add(1);
        Ok(next.and_then(|number| Self::new(self.timeline, number, size).ok()))
    }

    /// The same place on another timeline.
    #[must_use]
    pub const fn on(self, timeline: TimelineId) -> Self {
        Self { timeline, ..self }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            timeline,
            high,
            low,
        } = self;
        write!(f, "{:08X}{high:08X}{low:08X}", timeline.get())
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    /// Parses 24 upper-case hexadecimal digits; timeline 0 is refused.
    fn from_str(text: &str) -> Result<Self> {
        let field = |at: usize| hex32(text.get(at..at + 8)?);
        let parsed = (text.len() == 24)
            .then(|| {
                Some(Self {
                    timeline: TimelineId::new(field(0)?).ok()?,
                    high: field(8)?,
                    low: field(16)?,
                })
            })
            .flatten();
        parsed.ok_or_else(|| {
            Error::malformed(
                "WAL segment name",
                format!("{text:?} is not 24 upper-case hexadecimal digits with a timeline"),
            )
        })
    }
}

/// The name of any file that belongs to the log, in `pg_wal` and in archives.
///
/// ```
/// use neon_pg_layout::WalFileName;
/// let name: WalFileName = "000000020000000000000007.00000028.backup".parse()?;
/// assert!(matches!(name, WalFileName::Backup { offset: 0x28, .. }));
/// assert_eq!("00000003.history".parse::<WalFileName>()?.timeline().get(), 3);
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last segment of a timeline that was left in its middle, or one being received:
    /// `<segment>.partial`.
    Partial(SegmentName),
    /// A backup history file: `<segment>.<offset in it>.backup`.
    Backup {
        /// The segment in which the backup's WAL starts.
        segment: SegmentName,
        /// The offset in that segment of the start position.
        offset: u32,
    },
    /// The history of a timeline: `<timeline>.history`.
    History(TimelineId),
}

impl WalFileName {
    /// The backup history file of a backup whose WAL starts at `start`.
    #[must_use]
    pub fn backup(timeline: TimelineId, start: Lsn, size: WalSegmentSize) -> Self {
        let segment = SegmentName::containing(timeline, start, size);
        let [.., b3, b2, b1, b0] = start.offset_in(size.bytes()).to_be_bytes();
        Self::Backup {
            segment,
            offset: u32::from_be_bytes([b3, b2, b1, b0]),
        }
    }

    /// The timeline the file belongs to.
    #[must_use]
    pub const fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup { segment, .. } => {
                segment.timeline()
            }
            Self::History(timeline) => timeline,
        }
    }

    /// The segment named, unless this is a timeline history.
    #[must_use]
    pub const fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup { segment, .. } => {
                Some(segment)
            }
            Self::History(_) => None,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.get()),
        }
    }
}

impl FromStr for WalFileName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || {
            Error::malformed(
                "WAL file name",
                format!("{text:?} names no segment, backup or timeline history"),
            )
        };
        let Some((stem, suffix)) = text.split_once('.') else {
            return text.parse().map(Self::Segment).map_err(|_| malformed());
        };
        if suffix == "history" {
            let timeline = hex32(stem).and_then(|number| TimelineId::new(number).ok());
            return timeline.map(Self::History).ok_or_else(malformed);
        }
        let segment = stem.parse().map_err(|_| malformed())?;
        if suffix == "partial" {
            return Ok(Self::Partial(segment));
        }
        let offset = suffix.strip_suffix(".backup").and_then(hex32);
        offset
            .map(|offset| Self::Backup { segment, offset })
            .ok_or_else(malformed)
    }
}

/// Exactly eight upper-case hexadecimal digits.
pub(crate) fn hex32(text: &str) -> Option<u32> {
    let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    (text.len() == 8 && text.bytes().all(plain))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

/// Decimal digits and nothing else: no sign, no blanks.
pub(crate) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn every_size() -> impl Iterator<Item = WalSegmentSize> {
        (20..=30).map(|bits| WalSegmentSize::new(1 << bits).unwrap())
    }

    #[test]
    fn only_powers_of_two_in_range_are_segment_sizes() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert_eq!(
                WalSegmentSize::new(bytes).unwrap_err().kind(),
                ErrorKind::OutOfRange
            );
        }
        for size in every_size() {
            assert_eq!(size.to_string().parse::<WalSegmentSize>().unwrap(), size);
            assert_eq!(size.segments_per_high() * size.bytes(), 1 << 32);
        }
        for text in [
            "",
            "16",
            "MB",
            "16kB",
            "-1MB",
            "+16MB",
            "17MB",
            "99999999999GB",
        ] {
            assert!(text.parse::<WalSegmentSize>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn positions_and_names_agree_at_every_segment_size() {
        for size in every_size() {
            for lsn in [0, 1, size.bytes() - 1, size.bytes(), 1 << 32, u64::MAX] {
                let lsn = Lsn(lsn);
                let name = SegmentName::containing(timeline(7), lsn, size);
                assert_eq!(name.number(size).unwrap(), size.number_of(lsn));
                assert_eq!(name.start(size).unwrap(), lsn.start_of(size.bytes()));
                assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
                let again = SegmentName::new(timeline(7), size.number_of(lsn), size);
                assert_eq!(again.unwrap(), name);
            }
            assert!(SegmentName::new(timeline(1), u64::MAX, size).is_err());
            let last = SegmentName::containing(timeline(1), Lsn::MAX, size);
            assert_eq!(last.next(size).unwrap(), None);
            assert_eq!(last.end(size).unwrap(), Lsn::MAX);
        }
    }

    #[test]
    fn the_low_half_of_a_name_wraps_where_the_size_says() {
        let name: SegmentName = "0000000100000000000000FF".parse().unwrap();
        let next = name.next(WalSegmentSize::DEFAULT).unwrap().unwrap();
        assert_eq!(next.to_string(), "000000010000000100000000");
        assert_eq!(next.on(timeline(2)).to_string(), "000000020000000100000000");
        let error = name.number(WalSegmentSize::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        let next = name.next(WalSegmentSize::MIN).unwrap().unwrap();
        assert_eq!(next.to_string(), "000000010000000000000100");
    }

    #[test]
    fn a_range_that_ends_on_a_boundary_ends_in_the_segment_before() {
        let size = WalSegmentSize::DEFAULT;
        let name = SegmentName::ending_at(timeline(1), Lsn(0x200_0000), size);
        assert_eq!(name.to_string(), "000000010000000000000001");
        assert_eq!(size.number_before(Lsn(0x200_0000)), 1);
        assert_eq!(size.number_of(Lsn(0x200_0000)), 2);
    }

    #[test]
    fn every_kind_of_wal_file_name_round_trips() {
        for text in [
            "000000010000000A000000FE",
            "000000010000000A000000FE.partial",
            "000000010000000A000000FE.00000028.backup",
            "0000000A.history",
        ] {
            assert_eq!(text.parse::<WalFileName>().unwrap().to_string(), text);
        }
        let name = WalFileName::backup(timeline(1), Lsn(0xE00_0028), WalSegmentSize::DEFAULT);
        assert_eq!(name.to_string(), "00000001000000000000000E.00000028.backup");
    }

    #[test]
    fn names_that_no_server_writes_are_refused() {
        for text in [
            "",
            "00000000.history",
            "0000000a.history",
            "000000010.history",
            "000000000000000000000001",
            "00000001000000000000000",
            "0000000100000000000000010",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "000000010000000000000001.",
            "000000010000000000000001.Partial",
            "000000010000000000000001.partial.partial",
            "000000010000000000000001.28.backup",
            "000000010000000000000001.00000028.backup.gz",
            "000000010000000000000001.ready",
            "00000001é000000000000001",
        ] {
            assert!(text.parse::<WalFileName>().is_err(), "{text:?}");
        }
    }
}
