//! Logs of transaction states: files of pages without header or checksum, changed by records that
//! name no block.

use super::{Change, Known};
use crate::cursor::Cursor;
use crate::error::{ErrorKind, Result};
use crate::page::BlockSize;
use crate::version::VersionLayout;
use crate::wal::record::Record;

/// A log of transaction states that is part of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Slru {
    /// Whether transactions were committed: `pg_xact`.
    Transactions,
    /// Where the members of a multixact begin: `pg_multixact/offsets`.
    MultixactOffsets,
    /// Members of multixacts: `pg_multixact/members`.
    MultixactMembers,
    /// When transactions were committed: `pg_commit_ts`. Whether `track_commit_timestamp` is on the
    /// log does not say at each commit; assume it unless [`Parameters`](super::Parameters) or
    /// `pg_control` say otherwise.
    CommitTimestamps,
}

impl Slru {
    /// The directory, below the data directory.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Transactions => "pg_xact",
            Self::MultixactOffsets => "pg_multixact/offsets",
            Self::MultixactMembers => "pg_multixact/members",
            Self::CommitTimestamps => "pg_commit_ts",
        }
    }

    /// Pages of one file.
    pub const PAGES_PER_FILE: u64 = 32;

    /// The page that holds the entry of a transaction, multixact or member.
    pub(super) const fn page_of(self, entry: u32, block_size: BlockSize) -> u64 {
        let size = block_size.bytes32();
        let per_page = match self {
            // Two bits each.
            Self::Transactions => size * 4,
            Self::MultixactOffsets => size / 4,
            // Groups of four: four bytes of flags, four transaction ids.
            Self::MultixactMembers => size / 20 * 4,
            // A timestamp and an origin.
            Self::CommitTimestamps => size / 10,
        };
        entry as u64 / per_page as u64
    }
}

const ZERO_PAGE: u8 = 0x00;
const TRUNCATE: u8 = 0x10;

pub(super) fn clog<'a>(record: &Record<'a>, visit: &mut impl FnMut(Change<'a>)) -> Result<Known> {
    zero_or_truncate(record, Slru::Transactions, visit)
}

pub(super) fn commit_ts<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    zero_or_truncate(record, Slru::CommitTimestamps, visit)
}

fn zero_or_truncate<'a>(
    record: &Record<'a>,
    slru: Slru,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    let mut at = Cursor::new("SLRU record", record.main_data());
    match record.header().code() {
        ZERO_PAGE => {
            let page = page_number(&mut at, record.layout())?;
            visit(pages(slru, page, page));
        }
        TRUNCATE => {
            let first_kept = page_number(&mut at, record.layout())?;
            visit(Change::SlruTruncated { slru, first_kept });
        }
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

pub(super) fn multixact<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    const ZERO_MEMBERS_PAGE: u8 = 0x10;
    const CREATE: u8 = 0x20;
    const TRUNCATE: u8 = 0x30;
    let block_size = record.block_size();
    let mut at = Cursor::new("multixact record", record.main_data());
    match record.header().code() {
        ZERO_PAGE => {
            let page = page_number(&mut at, record.layout())?;
            visit(pages(Slru::MultixactOffsets, page, page));
        }
        ZERO_MEMBERS_PAGE => {
            let page = page_number(&mut at, record.layout())?;
            visit(pages(Slru::MultixactMembers, page, page));
        }
        CREATE => {
            let multi = at.u32()?;
            let offset = at.u32()?;
            let count = at.i32()?;
            let Some(last) = u32::try_from(count)
                .ok()
                .and_then(|count| count.checked_sub(1))
            else {
                return Err(at.error(ErrorKind::Malformed, format!("{count} members")));
            };
            // Newer minors write where the next one begins as well.
            visit_entries(Slru::MultixactOffsets, multi, 1, block_size, visit);
            visit_entries(Slru::MultixactMembers, offset, last, block_size, visit);
        }
        TRUNCATE => {
            at.skip(8)?;
            let first_offset = at.u32()?;
            at.skip(4)?;
            let first_member = at.u32()?;
            for (slru, entry) in [
                (Slru::MultixactOffsets, first_offset),
                (Slru::MultixactMembers, first_member),
            ] {
                let first_kept = slru.page_of(entry, block_size);
                visit(Change::SlruTruncated { slru, first_kept });
            }
        }
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

/// The pages of entries `first` to `first + more`, whose numbers wrap.
fn visit_entries<'a>(
    slru: Slru,
    first: u32,
    more: u32,
    block_size: BlockSize,
    visit: &mut impl FnMut(Change<'a>),
) {
    let start = slru.page_of(first, block_size);
    match first.checked_add(more) {
        Some(last) => visit(pages(slru, start, slru.page_of(last, block_size))),
        None => {
            visit(pages(slru, start, slru.page_of(u32::MAX, block_size)));
            let last = first.wrapping_add(more);
            visit(pages(slru, 0, slru.page_of(last, block_size)));
        }
    }
}

pub(super) fn pages<'a>(slru: Slru, first: u64, last: u64) -> Change<'a> {
    Change::SlruPages { slru, first, last }
}

fn page_number(at: &mut Cursor<'_>, layout: &VersionLayout) -> Result<u64> {
    let number = if layout.has_wide_slru_pages {
        at.i64()?
    } else {
        at.i32()?.into()
    };
    u64::try_from(number).map_err(|_| at.error(ErrorKind::Malformed, format!("page {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_on_the_pages_that_the_headers_of_postgresql_compute() {
        assert_eq!(Slru::Transactions.page_of(32_767, BlockSize::DEFAULT), 0);
        assert_eq!(Slru::Transactions.page_of(32_768, BlockSize::DEFAULT), 1);
        assert_eq!(Slru::MultixactOffsets.page_of(2048, BlockSize::DEFAULT), 1);
        assert_eq!(Slru::MultixactMembers.page_of(1635, BlockSize::DEFAULT), 0);
        assert_eq!(Slru::MultixactMembers.page_of(1636, BlockSize::DEFAULT), 1);
        assert_eq!(Slru::CommitTimestamps.page_of(819, BlockSize::DEFAULT), 1);
    }

    #[test]
    fn entries_that_wrap_touch_both_ends() {
        let mut seen = Vec::new();
        visit_entries(
            Slru::MultixactOffsets,
            u32::MAX,
            1,
            BlockSize::DEFAULT,
            &mut |change| {
                seen.push(change);
            },
        );
        let end = u64::from(u32::MAX) / 2048;
        assert_eq!(
            seen,
            [
                pages(Slru::MultixactOffsets, end, end),
                pages(Slru::MultixactOffsets, 0, 0)
            ]
        );
    }
}
