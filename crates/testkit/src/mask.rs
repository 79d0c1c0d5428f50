//! What a server may change on a page without writing it to the log.
//!
//! Hints: outcomes of transactions that a row's header repeats, line pointers and flags that say a
//! row is dead to everybody, advice about free space and pruning. Sources: `storage/bufpage.h`,
//! `access/htup_details.h`, `access/common/bufmask.c`, `nbtree.h`, `hash.h`, `gist.h`.

use neon_pg_layout::PageHeader;
use neon_pg_layout::wal::changes::may_be_spgist_metapage;

/// `HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID`
const INFOMASK_HINTS: u16 = 0x0F00;
/// `PD_HAS_FREE_LINES | PD_PAGE_FULL`
const PAGE_HINTS: u16 = 0x0003;
const LP_NORMAL: u32 = 1;
const LP_DEAD: u32 = 3;

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(page[at..at + 2].try_into().unwrap())
}

fn clear(page: &mut [u8], at: usize, bits: u16) {
    let value = u16_at(page, at) & !bits;
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// The page without its hints and checksum: what is left must be equal in two copies of a page of
/// which one is older by hints alone.
///
/// # Panics
/// When the bytes are no page.
#[must_use]
pub fn without_hints(page: &[u8]) -> Vec<u8> {
    let mut masked = page.to_vec();
    let header = PageHeader::decode(page).unwrap();
    if header.is_new() {
        return masked;
    }
    masked[8..10].fill(0);
    clear(&mut masked, 10, PAGE_HINTS);
    masked[20..24].fill(0);
    let special = usize::from(header.special);
    // Pages of indexes end in a special area; its last two bytes tell hash and GiST from B-trees.
    let index_flags = match page.len() - special {
        16 => match u16_at(page, page.len() - 2) {
            // LH_PAGE_HAS_DEAD_TUPLES
            0xFF80 => Some((special + 12, 0x80)),
            // F_HAS_GARBAGE
            0xFF81 => Some((special + 12, 0x10)),
            // BTP_HAS_GARBAGE
            _ => Some((special + 12, 0x40)),
        },
        _ => None,
    };
    if let Some((at, bits)) = index_flags {
        clear(&mut masked, at, bits);
    }
    for at in (24..usize::from(header.lower)).step_by(4) {
        let pointer = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let (offset, flags) = ((pointer & 0x7FFF) as usize, pointer >> 15 & 3);
        if flags == LP_NORMAL && special == page.len() {
            clear(&mut masked, offset + 20, INFOMASK_HINTS);
        }
        if flags == LP_DEAD && index_flags.is_some() {
            let alive = pointer & !(3 << 15) | LP_NORMAL << 15;
            masked[at..at + 4].copy_from_slice(&alive.to_le_bytes());
        }
    }
    masked
}

/// The metapage of an SP-GiST index without its cache of recently used pages, if it is one.
///
/// Inserts and vacuums write that cache back whenever they get the lock on the page, and never log
/// it (`SpGistUpdateMetaPage` in `spgutils.c`), with checksums or without.
#[must_use]
pub fn without_spgist_cache(page: &[u8]) -> Option<Vec<u8>> {
    may_be_spgist_metapage(page, 0).then(|| {
        let mut masked = page.to_vec();
        masked[8..10].fill(0);
        // Eight pages, each with its number and its free space.
        masked[28..28 + 8 * 8].fill(0);
        masked
    })
}
