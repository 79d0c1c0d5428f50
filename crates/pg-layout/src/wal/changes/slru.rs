//! Logs of transaction states: files of pages without header or checksum, changed by records that
//! name no block.

use super::{Change, Known};
use crate::cursor::Cursor;
use crate::error::{ErrorKind, Result};
use crate::page::BlockSize;
use crate::slru::Slru;
use crate::version::VersionLayout;
use crate::wal::record::Record;

/// The page that holds the entry of a transaction, multixact or member; none in those of which the log
/// says nothing.
pub(super) const fn page_of(slru: Slru, entry: u32, block_size: BlockSize) -> Option<u64> {
    let size = block_size.bytes32();
    let per_page = match slru {
        // Two bits each.
        Slru::Transactions => size * 4,
        Slru::MultiXactOffsets => size / 4,
        // Groups of four: four bytes of flags, four transaction ids.
        Slru::MultiXactMembers => size / 20 * 4,
        // A timestamp and an origin.
        Slru::CommitTimestamps => size / 10,
        Slru::Subtransactions | Slru::Serializable | Slru::Notifications => return None,
    };
    Some(entry as u64 / per_page as u64)
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
            visit(pages(Slru::MultiXactOffsets, page, page));
        }
        ZERO_MEMBERS_PAGE => {
            let page = page_number(&mut at, record.layout())?;
            visit(pages(Slru::MultiXactMembers, page, page));
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
            visit_entries(Slru::MultiXactOffsets, multi, 1, block_size, visit);
            visit_entries(Slru::MultiXactMembers, offset, last, block_size, visit);
        }
        TRUNCATE => {
            at.skip(8)?;
            let first_offset = at.u32()?;
            at.skip(4)?;
            let first_member = at.u32()?;
            for (slru, entry) in [
                (Slru::MultiXactOffsets, first_offset),
                (Slru::MultiXactMembers, first_member),
            ] {
                if let Some(first_kept) = page_of(slru, entry, block_size) {
                    visit(Change::SlruTruncated { slru, first_kept });
                }
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
    let mut visit_range = |from, to| {
        let page = |entry| page_of(slru, entry, block_size);
        if let (Some(from), Some(to)) = (page(from), page(to)) {
            visit(pages(slru, from, to));
        }
    };
    match first.checked_add(more) {
        Some(last) => visit_range(first, last),
        None => {
            visit_range(first, u32::MAX);
            visit_range(0, first.wrapping_add(more));
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
        let page = |slru, entry| page_of(slru, entry, BlockSize::DEFAULT);
        assert_eq!(page(Slru::Transactions, 32_767), Some(0));
        assert_eq!(page(Slru::Transactions, 32_768), Some(1));
        assert_eq!(page(Slru::MultiXactOffsets, 2048), Some(1));
        assert_eq!(page(Slru::MultiXactMembers, 1635), Some(0));
        assert_eq!(page(Slru::MultiXactMembers, 1636), Some(1));
        assert_eq!(page(Slru::CommitTimestamps, 819), Some(1));
    }

    #[test]
    fn entries_that_wrap_touch_both_ends() {
        let mut seen = Vec::new();
        visit_entries(
            Slru::MultiXactOffsets,
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
                pages(Slru::MultiXactOffsets, end, end),
                pages(Slru::MultiXactOffsets, 0, 0)
            ]
        );
    }
}
