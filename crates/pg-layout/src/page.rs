//! A page of a relation: its header, and whether it can be what the server wrote.
//!
//! Every page of a table, index, sequence, free space map or visibility map starts with the same 24
//! bytes. Transaction status and other SLRU files, `pg_control` and relation maps have no such header.
//! Source: `storage/bufpage.h`; the rules are those of `PageIsVerified` and of the checks that
//! `pg_checksums` and the server's base backup make.

use crate::checksum::page_checksum;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::relation::BlockNumber;

/// The size of a page: a power of two from 1 KiB to 32 KiB, chosen when the server is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 8 KiB, what every common package uses.
    pub const DEFAULT: Self = Self(8192);

    /// The block size of this many bytes.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) unless `bytes` is a power of two from 1 KiB to 32 KiB.
    pub fn new(bytes: u64) -> Result<Self> {
        u32::try_from(bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two() && (1024..=32_768).contains(bytes))
            .map(Self)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::OutOfRange,
                    "block size",
                    format!("{bytes} is not a power of two from 1 KiB to 32 KiB"),
                )
            })
    }

    /// The size of a page held in a slice.
    ///
    /// # Errors
    /// As [`BlockSize::new`] for the slice's length.
    pub fn of(page: &[u8]) -> Result<Self> {
        Self::new(page.len() as u64)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The size in bytes, for arithmetic on block numbers.
    pub(crate) const fn bytes32(self) -> u32 {
        self.0
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The fixed part of a page's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The end of the last WAL record that changed the page.
    pub lsn: Lsn,
    /// The stored checksum; 0 or stale where checksums are off.
    pub checksum: u16,
    /// Flag bits (`PD_HAS_FREE_LINES` and others).
    pub flags: u16,
    /// Where free space starts.
    pub lower: u16,
    /// Where free space ends; 0 in a page that was never initialised.
    pub upper: u16,
    /// Where the access method's own part starts.
    pub special: u16,
    /// Page size and layout version in one word, as stored.
    pub size_and_version: u16,
    /// The oldest transaction whose tuples could be pruned, or 0.
    pub prune_xid: u32,
}

impl PageHeader {
    /// Bytes of the header.
    pub const SIZE: usize = 24;

    /// Flag bits that have a meaning (`PD_VALID_FLAG_BITS`).
    const KNOWN_FLAGS: u16 = 0x0007;

    /// Reads the header of a page.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) below 24 bytes; any 24 bytes are a header, see
    /// [`PageHeader::check`].
    pub fn decode(page: &[u8]) -> Result<Self> {
        let mut at = Cursor::new("page header", page);
        // The position is stored as two words, the high one first, each in the byte order of the host.
        let (high, low) = (at.u32()?, at.u32()?);
        Ok(Self {
            lsn: Lsn(u64::from(high) << 32 | u64::from(low)),
            checksum: at.u16()?,
            flags: at.u16()?,
            lower: at.u16()?,
            upper: at.u16()?,
            special: at.u16()?,
            size_and_version: at.u16()?,
            prune_xid: at.u32()?,
        })
    }

    /// Whether the page was never initialised (`PageIsNew`).
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.upper == 0
    }

    /// The page size that the page claims, in bytes.
    #[must_use]
    pub const fn page_size(&self) -> u16 {
        self.size_and_version & 0xFF00
    }

    /// The layout version; 4 in every supported major.
    #[must_use]
    pub const fn layout_version(&self) -> u16 {
        self.size_and_version & 0x00FF
    }

    /// Whether the server would accept this header in a page of an initialised relation.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) with the rule that is broken.
    pub fn check(&self, size: BlockSize) -> Result<()> {
        let broken = |reason: String| Err(Error::malformed("page header", reason));
        if self.flags & !Self::KNOWN_FLAGS != 0 {
            return broken(format!("unknown flags {:#06x}", self.flags));
        }
        if self.lower > self.upper || self.upper > self.special {
            return broken(format!(
                "lower {}, upper {} and special {} are out of order",
                self.lower, self.upper, self.special
            ));
        }
        if usize::from(self.special) > size.bytes() || !self.special.is_multiple_of(8) {
            return broken(format!("special space starts at {}", self.special));
        }
        Ok(())
    }
}

/// What [`PageCheck::judge`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageVerdict {
    /// Header and, where checksums are on, checksum are as the server wrote them.
    Good,
    /// All zero: allocated, never written.
    New,
    /// Torn or damaged, but changed within [`PageCheck::replayed`]: the first record of that log about
    /// the page holds it whole, so replay restores it whatever its bytes are.
    Unsettled {
        /// The page's own position.
        lsn: Lsn,
    },
    /// The stored checksum is not the page's.
    WrongChecksum {
        /// The one in the page.
        stored: u16,
        /// The one computed from its bytes and block number.
        computed: u16,
    },
    /// The header breaks a rule that the server checks when it reads the page.
    WrongHeader,
}

impl PageVerdict {
    /// Whether the page is damaged, or torn by a concurrent write (read it again to tell).
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::WrongChecksum { .. } | Self::WrongHeader)
    }
}

/// The log that will be replayed over pages, from its first to its last position, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayedLog {
    /// Where replay starts: the redo position of the checkpoint.
    pub start: Lsn,
    /// Where it ends at the least: how far a server had written its log when the page was read, or where
    /// the log that goes with a copy ends. No page can have a position beyond it but a damaged one.
    pub end: Lsn,
}

impl ReplayedLog {
    /// Whether a page with this position is restored by the log.
    #[must_use]
    pub fn restores(self, lsn: Lsn) -> bool {
        self.start <= lsn && lsn <= self.end
    }
}

/// How to judge the pages of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCheck {
    /// Whether the cluster has page checksums (`data_checksum_version` of its control file).
    pub checksums: bool,
    /// For pages read while the server runs, or after a crash: the log that will be replayed over them.
    /// Pages with positions within it may be torn. None where every page must be whole.
    pub replayed: Option<ReplayedLog>,
}

impl PageCheck {
    /// Judges one page at `block` of its fork, counted over all segment files.
    ///
    /// A page without any byte set is new. Of others the checksum is looked at first, then the header:
    /// the page's position is believed only to excuse what fails, and only within the log that is
    /// replayed. A header that is wrong under a right checksum was written so and is never excused. A
    /// page whose `upper` is zero though others of its bytes are not is a wrong header, which
    /// `pg_checksums` passes over and the server refuses to read.
    ///
    /// # Errors
    /// [`OutOfRange`](ErrorKind::OutOfRange) unless the page's length is a [`BlockSize`].
    pub fn judge(self, page: &[u8], block: BlockNumber) -> Result<PageVerdict> {
        let size = BlockSize::of(page)?;
        let header = PageHeader::decode(page)?;
        if header.is_new() && page.iter().all(|byte| *byte == 0) {
            return Ok(PageVerdict::New);
        }
        let mut whole = false;
        let mut verdict = PageVerdict::Good;
        if self.checksums {
            let (stored, computed) = (header.checksum, page_checksum(page, block)?);
            whole = stored == computed;
            if !whole {
                verdict = PageVerdict::WrongChecksum { stored, computed };
            }
        }
        if header.is_new() || verdict == PageVerdict::Good && header.check(size).is_err() {
            verdict = PageVerdict::WrongHeader;
        }
        let lsn = header.lsn;
        let excused = !whole && self.replayed.is_some_and(|log| log.restores(lsn));
        Ok(if verdict.is_bad() && excused {
            PageVerdict::Unsettled { lsn }
        } else {
            verdict
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: PageCheck = PageCheck {
        checksums: true,
        replayed: None,
    };

    /// An empty heap page at LSN 1/2 with its checksum for block 5.
    fn page() -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[0] = 1;
        page[4] = 2;
        for (offset, value) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 0x2004)] {
            page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
        let checksum = page_checksum(&page, 5).unwrap();
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn a_header_is_read_with_the_high_half_of_its_position_first() {
        let header = PageHeader::decode(&page()).unwrap();
        assert_eq!(header.lsn, Lsn(0x1_0000_0002));
        assert_eq!((header.page_size(), header.layout_version()), (8192, 4));
        assert_eq!(
            (header.lower, header.upper, header.special),
            (24, 8192, 8192)
        );
        assert!(!header.is_new());
        assert!(PageHeader::decode(&[0; 23]).is_err());
    }

    #[test]
    fn good_new_misplaced_and_damaged_pages_are_told_apart() {
        assert_eq!(CHECK.judge(&page(), 5).unwrap(), PageVerdict::Good);
        assert_eq!(CHECK.judge(&[0; 8192], 5).unwrap(), PageVerdict::New);
        assert!(CHECK.judge(&page(), 6).unwrap().is_bad());
        let mut damaged = page();
        damaged[5000] ^= 1;
        assert!(CHECK.judge(&damaged, 5).unwrap().is_bad());
        let unchecked = PageCheck {
            checksums: false,
            ..CHECK
        };
        assert_eq!(unchecked.judge(&damaged, 5).unwrap(), PageVerdict::Good);
        assert!(CHECK.judge(&damaged[..100], 5).is_err());
    }

    #[test]
    fn a_torn_page_is_excused_only_within_the_log_that_restores_it() {
        let mut torn = page();
        torn[5000] ^= 1;
        let lsn = Lsn(0x1_0000_0002);
        let within = |start, end| PageCheck {
            replayed: Some(ReplayedLog {
                start: Lsn(start),
                end: Lsn(end),
            }),
            ..CHECK
        };
        let unsettled = PageVerdict::Unsettled { lsn };
        for (start, end) in [(lsn.0, lsn.0), (lsn.0 - 9, lsn.0 + 9), (0, u64::MAX)] {
            let check = within(start, end);
            assert_eq!(check.judge(&torn, 5).unwrap(), unsettled);
            assert_eq!(check.judge(&page(), 5).unwrap(), PageVerdict::Good);
        }
        for (start, end) in [(lsn.0 + 1, lsn.0 + 9), (lsn.0 - 9, lsn.0 - 1), (0, 0)] {
            assert!(within(start, end).judge(&torn, 5).unwrap().is_bad());
        }
        let mut half_header = page();
        half_header[14] = 0;
        half_header[15] = 0;
        let check = within(lsn.0, lsn.0);
        assert_eq!(check.judge(&half_header, 5).unwrap(), unsettled);
        let unchecked = PageCheck {
            checksums: false,
            ..check
        };
        assert_eq!(unchecked.judge(&half_header, 5).unwrap(), unsettled);
        assert_eq!(unchecked.judge(&torn, 5).unwrap(), PageVerdict::Good);
    }

    #[test]
    fn no_position_excuses_a_page_that_no_server_wrote() {
        let log = ReplayedLog {
            start: Lsn(0x1_0000_0000),
            end: Lsn(0x2_0000_0000),
        };
        for checksums in [true, false] {
            let check = PageCheck {
                checksums,
                replayed: Some(log),
            };
            assert!(check.judge(&[0xFF; 8192], 5).unwrap().is_bad());
        }
        let mut sealed = page();
        sealed[10] = 8;
        let checksum = page_checksum(&sealed, 5).unwrap();
        sealed[8..10].copy_from_slice(&checksum.to_le_bytes());
        let check = PageCheck {
            replayed: Some(log),
            ..CHECK
        };
        assert_eq!(check.judge(&sealed, 5).unwrap(), PageVerdict::WrongHeader);
    }

    #[test]
    fn a_header_the_server_refuses_is_wrong_under_a_right_checksum() {
        let wrong: [(usize, u16); 5] = [(10, 8), (12, 8193), (14, 0), (14, 16), (16, 8190)];
        for (offset, value) in wrong {
            let mut page = page();
            page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
            let checksum = page_checksum(&page, 5).unwrap();
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
            let verdict = CHECK.judge(&page, 5).unwrap();
            assert_eq!(verdict, PageVerdict::WrongHeader, "offset {offset}");
        }
    }
}
