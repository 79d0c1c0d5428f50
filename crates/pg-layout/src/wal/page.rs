//! The header of a page of the log.
//!
//! 24 bytes, or 40 on the first page of a segment, little-endian (`XLogPageHeaderData`,
//! `XLogLongPageHeaderData` in `access/xlog_internal.h`); the same in every supported major but for
//! the magic number.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::wal::format::WalFormat;

/// The header of a page of the log, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalPageHeader {
    /// Which major wrote it ([`PgMajor::from_wal_page_magic`](crate::PgMajor::from_wal_page_magic)).
    pub magic: u16,
    /// What the page begins with.
    pub flags: PageFlags,
    /// The timeline of the first record that begins on the page.
    pub timeline: TimelineId,
    /// Where in the log the page is.
    pub address: Lsn,
    /// How many bytes are still missing of a record that began on an earlier page.
    pub remaining: u32,
    /// What the first page of a segment says about the cluster.
    pub long: Option<LongWalPageHeader>,
}

/// The additional fields on the first page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LongWalPageHeader {
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// Bytes of a segment.
    pub segment_size: u32,
    /// Bytes of a page of the log.
    pub page_size: u32,
}

/// The flag bits of a page header (`xlp_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageFlags(pub u16);

impl PageFlags {
    /// The page begins with the rest of a record (`XLP_FIRST_IS_CONTRECORD`).
    pub const CONTINUES: Self = Self(1);
    /// The header is a long one (`XLP_LONG_HEADER`).
    pub const LONG: Self = Self(2);
    /// Block images that begin on this page may be left out (`XLP_BKP_REMOVABLE`).
    pub const REMOVABLE: Self = Self(4);
    /// The rest of a record should be here but was lost in a crash; another record begins instead
    /// (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
    pub const OVERWRITES: Self = Self(8);

    const ALL: u16 = 15;

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl WalPageHeader {
    /// Bytes of a short header.
    pub const SHORT: usize = 24;
    /// Bytes of a long header.
    pub const LONG: usize = 40;

    /// How many bytes the header has.
    #[must_use]
    pub const fn size(&self) -> usize {
        if self.flags.has(PageFlags::LONG) {
            Self::LONG
        } else {
            Self::SHORT
        }
    }

    /// Reads a header of any major; [`WalReader`](crate::wal::WalReader) checks it against its place.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) when there are fewer bytes than the header has;
    /// [`Malformed`](ErrorKind::Malformed) for unknown flags or timeline 0.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut at = Cursor::new("WAL page header", bytes);
        let magic = at.u16()?;
        let flags = PageFlags(at.u16()?);
        if flags.0 & !PageFlags::ALL != 0 {
            return Err(at.error(
                ErrorKind::Malformed,
                format!("unknown flag bits {:04X}", flags.0),
            ));
        }
        let timeline = at.u32()?;
        let Ok(timeline) = TimelineId::new(timeline) else {
            return Err(at.error(ErrorKind::Malformed, "timeline 0"));
        };
        let address = Lsn(at.u64()?);
        let remaining = at.u32()?;
        at.skip(4)?;
        let long = if flags.has(PageFlags::LONG) {
            Some(LongWalPageHeader {
                system_identifier: SystemIdentifier::new(at.u64()?)?,
                segment_size: at.u32()?,
                page_size: at.u32()?,
            })
        } else {
            None
        };
        Ok(Self {
            magic,
            flags,
            timeline,
            address,
            remaining,
            long,
        })
    }

    /// Whether the header agrees with the cluster and with its place, all but the page address and
    /// the order of timelines, which depend on the pages before.
    pub(super) fn check(&self, place: Lsn, format: &WalFormat) -> Result<()> {
        let wrong = |kind, reason: String| Err(Error::new(kind, "WAL page", reason).at_lsn(place));
        let expected = format.layout().wal_page_magic;
        if self.magic != expected {
            let kind = match crate::PgMajor::from_wal_page_magic(self.magic) {
                Ok(_) => ErrorKind::Inconsistent,
                Err(_) => ErrorKind::Malformed,
            };
            let (magic, major) = (self.magic, format.layout().major);
            return wrong(
                kind,
                format!(
                    "magic number {magic:04X}, which is not that of PostgreSQL {major}, {expected:04X}"
                ),
            );
        }
        match self.long {
            None if place.offset_in(format.segment_size().bytes()) == 0 => {
                return wrong(
                    ErrorKind::Malformed,
                    "the first page of a segment has no long header".into(),
                );
            }
            Some(long) => {
                if let Some(expected) = format.system_identifier()
                    && long.system_identifier != expected
                {
                    return wrong(
                        ErrorKind::Inconsistent,
                        format!(
                            "it belongs to the cluster with system identifier {}, not {expected}",
                            long.system_identifier
                        ),
                    );
                }
                if u64::from(long.segment_size) != format.segment_size().bytes() {
                    return wrong(
                        ErrorKind::Inconsistent,
                        format!(
                            "segments of {} bytes, not {}",
                            long.segment_size,
                            format.segment_size().bytes()
                        ),
                    );
                }
                if long.page_size != format.page_size() {
                    return wrong(
                        ErrorKind::Inconsistent,
                        format!(
                            "pages of {} bytes, not {}",
                            long.page_size,
                            format.page_size()
                        ),
                    );
                }
            }
            None => {}
        }
        if let Some(newest) = format.timeline()
            && self.timeline > newest
        {
            return wrong(
                ErrorKind::Inconsistent,
                format!("it belongs to timeline {}, after {newest}", self.timeline),
            );
        }
        Ok(())
    }
}
