//! Records that create, cut and remove files: relations, databases, tablespaces, relation maps.

use super::heap::heap_blocks_per_map_block;
use super::{Change, Known};
use crate::cursor::Cursor;
use crate::error::{ErrorKind, Result};
use crate::page::BlockSize;
use crate::relation::{BlockNumber, Fork, RelFileLocator};
use crate::wal::record::Record;

pub(super) fn relation(at: &mut Cursor<'_>) -> Result<RelFileLocator> {
    Ok(RelFileLocator {
        tablespace: at.u32()?,
        database: at.u32()?,
        number: at.u32()?,
    })
}

pub(super) fn storage<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    const CREATE: u8 = 0x10;
    const TRUNCATE: u8 = 0x20;
    let mut at = Cursor::new("storage record", record.main_data());
    match record.header().code() {
        CREATE => {
            let relation = relation(&mut at)?;
            let fork = Fork::from_number(at.u32()?)?;
            visit(Change::ForkCreated { relation, fork });
        }
        TRUNCATE => {
            const MAIN: u32 = 1;
            const VISIBILITY_MAP: u32 = 2;
            const FREE_SPACE_MAP: u32 = 4;
            let blocks = at.u32()?;
            let relation = relation(&mut at)?;
            let flags = at.u32()?;
            let block_size = record.block_size();
            let per_map_block = heap_blocks_per_map_block(block_size);
            for (flag, fork, blocks) in [
                (MAIN, Fork::Main, blocks),
                (
                    VISIBILITY_MAP,
                    Fork::VisibilityMap,
                    blocks.div_ceil(per_map_block),
                ),
                (
                    FREE_SPACE_MAP,
                    Fork::FreeSpaceMap,
                    free_space_map_len(blocks, block_size),
                ),
            ] {
                if flags & flag != 0 {
                    visit(Change::Truncated {
                        relation,
                        fork,
                        blocks,
                    });
                }
            }
            if flags & VISIBILITY_MAP != 0 && !blocks.is_multiple_of(per_map_block) {
                visit(Change::VisibilityMapCleared {
                    relation,
                    block: blocks / per_map_block,
                });
            }
        }
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

/// How many blocks the free space map of a relation of `heap_blocks` blocks keeps when it is cut.
///
/// The map is a tree three pages high, each leaf slot one byte for one heap block, its pages stored
/// in depth-first order (`freespace.c`).
fn free_space_map_len(heap_blocks: BlockNumber, block_size: BlockSize) -> BlockNumber {
    const HEIGHT: u32 = 3;
    let size = block_size.bytes32();
    // Page header, `fp_next_slot`, and half a page less one for the inner nodes of the page's tree.
    let inner = (size / 2).saturating_sub(1);
    let slots = size.saturating_sub(24 + 4 + inner).max(1);
    let leaf = heap_blocks / slots;
    let cut_within = !heap_blocks.is_multiple_of(slots);
    let mut pages: u32 = 0;
    let mut above = leaf;
    for _ in 0..HEIGHT {
        pages = pages.saturating_add(above.saturating_add(1));
        above /= slots;
    }
    if cut_within {
        pages
    } else {
        pages.saturating_sub(1)
    }
}

pub(super) fn database<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    const COPY: u8 = 0x00;
    // 0x10 was the removal before there was a second way of creation.
    const SECOND: u8 = 0x10;
    const THIRD: u8 = 0x20;
    let mut at = Cursor::new("database record", record.main_data());
    let logged_creation = record.layout().has_wal_log_createdb;
    match (record.header().code(), logged_creation) {
        (COPY, _) => visit(Change::DatabaseCopied {
            database: at.u32()?,
            tablespace: at.u32()?,
            source_database: at.u32()?,
            source_tablespace: at.u32()?,
        }),
        (SECOND, true) => visit(Change::DatabaseCreated {
            database: at.u32()?,
            tablespace: at.u32()?,
        }),
        (SECOND, false) | (THIRD, true) => {
            let database = at.u32()?;
            let count = at.i32()?;
            for _ in 0..count {
                let tablespace = at.u32()?;
                visit(Change::DatabaseDropped {
                    database,
                    tablespace,
                });
            }
        }
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

pub(super) fn tablespace<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    const CREATE: u8 = 0x00;
    const DROP: u8 = 0x10;
    let mut at = Cursor::new("tablespace record", record.main_data());
    let tablespace = at.u32()?;
    match record.header().code() {
        CREATE => {
            let path = until_nul(at.take(at.remaining())?);
            visit(Change::TablespaceCreated { tablespace, path });
        }
        DROP => visit(Change::TablespaceDropped { tablespace }),
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

pub(super) fn relation_map<'a>(
    record: &Record<'a>,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<Known> {
    const UPDATE: u8 = 0x00;
    if record.header().code() != UPDATE {
        return Ok(Known::No);
    }
    let mut at = Cursor::new("relation map record", record.main_data());
    let database = at.u32()?;
    let tablespace = at.u32()?;
    let len = at.i32()?;
    let Ok(len) = usize::try_from(len) else {
        return Err(at.error(ErrorKind::Malformed, format!("a map of {len} bytes")));
    };
    let map = at.take(len)?;
    visit(Change::RelationMapUpdated {
        database,
        tablespace,
        map,
    });
    Ok(Known::Yes)
}

/// The bytes of a C string.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_free_space_map_keeps_the_path_to_its_last_leaf() {
        // Pages 0, 1, 2 are the root, its first child, the first leaf; 4069 slots a leaf.
        assert_eq!(free_space_map_len(0, BlockSize::DEFAULT), 2);
        assert_eq!(free_space_map_len(1, BlockSize::DEFAULT), 3);
        assert_eq!(free_space_map_len(4068, BlockSize::DEFAULT), 3);
        assert_eq!(free_space_map_len(4069, BlockSize::DEFAULT), 3);
        assert_eq!(free_space_map_len(4070, BlockSize::DEFAULT), 4);
        assert_eq!(free_space_map_len(u32::MAX, BlockSize::DEFAULT), 1_055_795);
    }
}
