//! PostgreSQL's own checks of pages, on the way out and in a check.

use neon_pg_layout::{DataFile, PageCheck, PageVerdict, PgMajor, ReplayedLog};
use neon_snapshot_format::{BadPage, Chunk, ChunkData, SnapshotPath};

use crate::facts::Facts;

/// How the pages of a snapshot are judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageChecks {
    major: PgMajor,
    segment_blocks: u32,
    page_size: u32,
    check: PageCheck,
}

/// How those of one file are; `first` is the number of its first block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileChecks {
    checks: PageChecks,
    first: u32,
}

impl PageChecks {
    /// Pages that the snapshot's own log restores may be torn.
    pub(crate) fn of(facts: &Facts) -> Self {
        let start = facts.log.redo.or(facts.log.start);
        let replayed = start
            .zip(facts.log.stop)
            .filter(|_| facts.kind != neon_snapshot_format::SnapshotKind::Cold)
            .map(|(start, end)| ReplayedLog { start, end });
        Self {
            major: facts.cluster.major,
            segment_blocks: facts.cluster.segment_blocks,
            page_size: facts.cluster.block_size,
            check: PageCheck {
                checksums: facts.cluster.checksum_version != 0,
                replayed,
            },
        }
    }

    /// None for files whose pages have no header.
    pub(crate) fn file(self, path: &SnapshotPath) -> Option<FileChecks> {
        match DataFile::of(path.as_str()?, self.major.layout()) {
            DataFile::Relation(relation) => Some(FileChecks {
                checks: self,
                first: relation.first_block(self.segment_blocks)?,
            }),
            _ => None,
        }
    }
}

impl FileChecks {
    /// What is wrong with a page of the file, which is whole; of one that is not nothing is said.
    pub(crate) fn judge(&self, page: &[u8], block: u64) -> Option<String> {
        if page.len() != self.checks.page_size as usize {
            return None;
        }
        let number = u32::try_from(block)
            .ok()
            .and_then(|block| self.first.checked_add(block));
        Some(
            match number.map(|number| self.checks.check.judge(page, number)) {
                Some(Ok(verdict)) if !verdict.is_bad() => return None,
                Some(Ok(PageVerdict::WrongChecksum { stored, computed })) => {
                    format!("checksum {stored:04x} instead of {computed:04x}")
                }
                Some(Ok(_)) => "no header that the server would accept".to_owned(),
                Some(Err(error)) => error.to_string(),
                None => "no relation has so many pages".to_owned(),
            },
        )
    }

    /// Judges the whole pages of a chunk that begins with one.
    pub(crate) fn judge_chunk(
        &self,
        path: &SnapshotPath,
        chunk: &Chunk<'_>,
        bad: &mut Vec<BadPage>,
    ) {
        let ChunkData::Bytes(bytes) = chunk.data else {
            return;
        };
        let size = u64::from(self.checks.page_size);
        let first = chunk.offset / size;
        for (block, page) in (first..).zip(bytes.chunks_exact(self.checks.page_size as usize)) {
            bad.extend(self.judge(page, block).map(|reason| BadPage {
                path: path.clone(),
                block,
                reason,
            }));
        }
    }
}
