//! Heap records: which visibility map blocks they clear without naming them.

use super::{Change, Known};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::page::BlockSize;
use crate::relation::{BlockNumber, Fork};
use crate::wal::record::{BlockRef, Record};

/// The codes without `XLOG_HEAP_INIT_PAGE`.
const CODES: u8 = 0x70;

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const LOCK: u8 = 0x60;
const MULTI_INSERT: u8 = 0x50;
const LOCK_UPDATED: u8 = 0x60;

/// Bits were cleared for the page of block 0: of an insert, a delete, a lock, the new page of an
/// update when it has bit 1, the old page when it is the same.
const CLEARED: u8 = 1;
/// Of an update, for the new page.
const NEW_CLEARED: u8 = 2;

/// `flags` stands at a fixed place of each record's data.
fn flags_at(record: &Record<'_>, offset: usize) -> Result<u8> {
    let mut at = Cursor::new("heap record", record.main_data());
    at.skip(offset)?;
    at.u8()
}

pub(super) fn heap<'a>(record: &Record<'a>, visit: &mut impl FnMut(Change<'a>)) -> Result<Known> {
    match record.header().code() & CODES {
        INSERT => one_page(record, flags_at(record, 2)?, visit),
        DELETE | LOCK => one_page(record, flags_at(record, 7)?, visit),
        UPDATE | HOT_UPDATE => update(record, flags_at(record, 7)?, visit),
        _ => {}
    }
    Ok(Known::Yes)
}

pub(super) fn heap2<'a>(record: &Record<'a>, visit: &mut impl FnMut(Change<'a>)) -> Result<Known> {
    match record.header().code() & CODES {
        MULTI_INSERT => one_page(record, flags_at(record, 0)?, visit),
        LOCK_UPDATED => one_page(record, flags_at(record, 7)?, visit),
        _ => {}
    }
    Ok(Known::Yes)
}

fn one_page<'a>(record: &Record<'a>, flags: u8, visit: &mut impl FnMut(Change<'a>)) {
    if flags & CLEARED != 0
        && let Some(page) = record.blocks().find(|block| block.id == 0)
    {
        cleared(record, &page, visit);
    }
}

/// Block 0 is the new page; block 1 the old one, when it is another.
fn update<'a>(record: &Record<'a>, flags: u8, visit: &mut impl FnMut(Change<'a>)) {
    if flags & (CLEARED | NEW_CLEARED) == 0 {
        return;
    }
    let mut pages = record.blocks().filter(|block| block.fork == Fork::Main);
    let Some(new) = pages.next() else { return };
    let old = pages.next().unwrap_or(new);
    if flags & CLEARED != 0 {
        cleared(record, &old, visit);
    }
    if flags & NEW_CLEARED != 0 {
        cleared(record, &new, visit);
    }
}

fn cleared<'a>(record: &Record<'a>, page: &BlockRef<'a>, visit: &mut impl FnMut(Change<'a>)) {
    visit(Change::VisibilityMapCleared {
        relation: page.relation,
        block: page.block / heap_blocks_per_map_block(record.block_size()),
    });
}

/// Two bits for each heap block, behind the page header.
pub(super) fn heap_blocks_per_map_block(block_size: BlockSize) -> BlockNumber {
    const PAGE_HEADER: u32 = 24;
    block_size.bytes32().saturating_sub(PAGE_HEADER).max(1) * 4
}
