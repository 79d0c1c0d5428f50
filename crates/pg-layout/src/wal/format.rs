//! What a reader must know of a cluster before it can read its log.

use crate::error::{Error, ErrorKind, Result};
use crate::page::BlockSize;
use crate::segment::WalSegmentSize;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::version::{PgMajor, VersionLayout};
use crate::wal::page::WalPageHeader;
use crate::wal::record::RecordFormat;

/// The log of one cluster: its major version, its sizes, and what else its pages must agree with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFormat {
    layout: &'static VersionLayout,
    segment_size: WalSegmentSize,
    page_size: u32,
    block_size: BlockSize,
    system_identifier: Option<SystemIdentifier>,
    timeline: Option<TimelineId>,
}

impl WalFormat {
    /// A log with the usual sizes (pages and blocks of 8 KiB), of any cluster and timeline.
    #[must_use]
    pub fn new(major: PgMajor, segment_size: WalSegmentSize) -> Self {
        Self {
            layout: major.layout(),
            segment_size,
            page_size: 8192,
            block_size: BlockSize::DEFAULT,
            system_identifier: None,
            timeline: None,
        }
    }

    /// What the beginning of any segment file says: major, sizes and system identifier.
    ///
    /// The block size of relations is not in the log; 8 KiB is assumed.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) with fewer than [`WalPageHeader::LONG`] bytes;
    /// [`Unsupported`](ErrorKind::Unsupported) for the log of another major;
    /// [`Malformed`](ErrorKind::Malformed) and [`OutOfRange`](ErrorKind::OutOfRange) when the bytes
    /// are not the start of a segment.
    pub fn of_segment(bytes: &[u8]) -> Result<Self> {
        let header = WalPageHeader::decode(bytes)?;
        let major = PgMajor::from_wal_page_magic(header.magic)?;
        let Some(long) = header.long else {
            return Err(Error::malformed(
                "WAL segment",
                "its first page has no long header",
            ));
        };
        let format = Self::new(major, WalSegmentSize::new(long.segment_size.into())?)
            .with_page_size(long.page_size)?;
        Ok(format.of_system(long.system_identifier))
    }

    /// The same with the block size of relations, as `pg_control` records it.
    #[must_use]
    pub fn with_block_size(self, block_size: BlockSize) -> Self {
        Self { block_size, ..self }
    }

    /// The same with the size of the log's own pages, as `pg_control` records it.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) unless it is a power of two from 1 to 64 KiB.
    pub fn with_page_size(self, page_size: u32) -> Result<Self> {
        if !page_size.is_power_of_two() || !(1 << 10..=64 << 10).contains(&page_size) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "WAL page size",
                format!("{page_size} is not a power of two from 1 to 64 KiB"),
            ));
        }
        Ok(Self { page_size, ..self })
    }

    /// The same, refusing pages of any other cluster. Without it, that of the first segment's
    /// header is taken.
    #[must_use]
    pub fn of_system(self, system_identifier: SystemIdentifier) -> Self {
        Self {
            system_identifier: Some(system_identifier),
            ..self
        }
    }

    /// The same, refusing pages of timelines after this one.
    ///
    /// Pages of earlier timelines are always allowed, in ascending order: the first segment of a
    /// new timeline begins with a copy of the old one.
    #[must_use]
    pub fn up_to_timeline(self, timeline: TimelineId) -> Self {
        Self {
            timeline: Some(timeline),
            ..self
        }
    }

    /// The layout of the major version.
    #[must_use]
    pub const fn layout(&self) -> &'static VersionLayout {
        self.layout
    }

    /// The size of a segment file.
    #[must_use]
    pub const fn segment_size(&self) -> WalSegmentSize {
        self.segment_size
    }

    /// Bytes of a page of the log (`XLOG_BLCKSZ`).
    #[must_use]
    pub const fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Bytes of a block of a relation (`BLCKSZ`).
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The system identifier that pages must carry, when one was given or found.
    #[must_use]
    pub const fn system_identifier(&self) -> Option<SystemIdentifier> {
        self.system_identifier
    }

    /// The newest timeline that pages may belong to.
    #[must_use]
    pub const fn timeline(&self) -> Option<TimelineId> {
        self.timeline
    }

    pub(super) fn adopt(&mut self, system_identifier: SystemIdentifier) {
        self.system_identifier.get_or_insert(system_identifier);
    }

    pub(super) const fn record(&self) -> RecordFormat {
        RecordFormat {
            layout: self.layout,
            block_size: self.block_size,
        }
    }
}
