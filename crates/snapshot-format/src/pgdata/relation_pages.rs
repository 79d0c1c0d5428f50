//! Judging the pages of relations while they are copied.
//!
//! A page with a wrong checksum or header is read again: a server that writes it while we read makes it
//! look torn for a moment. Still bad, it is taken only if its position lies in the log that the snapshot
//! replays, between the start of the backup and what the server has written by now: then the log holds the
//! whole page. Anything else is damage and is reported.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use neon_pg_layout::{DataFile, PageCheck, PageHeader, PageVerdict, page_checksums};

use crate::error::{Error, ErrorKind, Result};
use crate::pgdata::read::PgData;
use crate::stream::{BadPage, Entry};

const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(2);

/// The pages of one file.
pub(crate) struct RelationPages<'a> {
    source: &'a PgData,
    entry: &'a Entry,
    first_block: u32,
}

impl<'a> RelationPages<'a> {
    /// None for files that have no pages with headers.
    pub(crate) fn of(source: &'a PgData, entry: &'a Entry) -> Option<Self> {
        let control = source.control();
        match DataFile::of(entry.path.as_str()?, control.major.layout()) {
            DataFile::Relation(relation) => Some(Self {
                source,
                entry,
                first_block: relation.first_block(control.build.segment_blocks)?,
            }),
            _ => None,
        }
    }

    /// Judges the pages in `bytes`, read at `offset`, and puts better copies into it where a second look
    /// gives them. Damaged pages go into `bad`. Returns how many were taken because the log holds them.
    pub(crate) fn judge(
        &self,
        file: &File,
        offset: u64,
        bytes: &mut [u8],
        bad: &mut Vec<BadPage>,
    ) -> Result<u64> {
        let control = self.source.control();
        let size = control.build.block_size.bytes();
        let check = PageCheck {
            checksums: control.data_checksums,
            replayed: None,
        };
        let mut settled_by_log = 0;
        let first = offset / size as u64;
        if self.all_sound(first, bytes) {
            return Ok(0);
        }
        for (index, page) in (first..).zip(bytes.chunks_mut(size)) {
            if page.len() < size {
                if !self.source.kind().is_bracketed() {
                    bad.push(self.bad(index, "the file ends within it".to_owned()));
                }
                break;
            }
            let block = u32::try_from(index)
                .ok()
                .and_then(|index| self.first_block.checked_add(index));
            let Some(block) = block else {
                bad.push(self.bad(index, "no relation has so many pages".to_owned()));
                continue;
            };
            let judged = |check: PageCheck, page: &[u8]| {
                check
                    .judge(page, block)
                    .map_err(|error| Error::layout(self.entry.path.to_string(), error))
            };
            let mut verdict = judged(check, page)?;
            let mut attempts = 0;
            while verdict.is_bad() && self.source.kind().is_bracketed() && attempts < ATTEMPTS {
                attempts += 1;
                std::thread::sleep(PAUSE);
                let again = file.read_exact_at(page, index * size as u64);
                match again {
                    Ok(()) => verdict = judged(check, page)?,
                    // Truncated meanwhile; the log knows.
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        page.fill(0);
                        verdict = PageVerdict::New;
                    }
                    Err(error) => {
                        return Err(Error::io(
                            self.entry.path.to_string(),
                            "cannot be read",
                            error,
                        ));
                    }
                }
            }
            if verdict.is_bad() {
                let replayed = self.source.replayed_log()?;
                match judged(PageCheck { replayed, ..check }, page)? {
                    PageVerdict::Unsettled { .. } => settled_by_log += 1,
                    verdict => bad.push(self.bad(index, describe(verdict))),
                }
            }
        }
        Ok(settled_by_log)
    }

    /// Whether every page is beyond doubt, which nearly all are: checksums of several pages at a time are
    /// cheaper than one by one. What is not is looked at page by page.
    fn all_sound(&self, first: u64, bytes: &[u8]) -> bool {
        let control = self.source.control();
        let size = control.build.block_size;
        let pages = bytes.chunks_exact(size.bytes());
        let block = u32::try_from(first)
            .ok()
            .and_then(|first| self.first_block.checked_add(first))
            .filter(|first| {
                u32::try_from(pages.len()).is_ok_and(|count| first.checked_add(count).is_some())
            });
        let Some(block) = block.filter(|_| pages.remainder().is_empty()) else {
            return false;
        };
        if !control.data_checksums {
            return false;
        }
        page_checksums(bytes, size, block)
            .zip(pages)
            .all(|(checksum, page)| {
                PageHeader::decode(page).is_ok_and(|header| {
                    header.checksum == checksum && !header.is_new() && header.check(size).is_ok()
                })
            })
    }

    fn bad(&self, block: u64, reason: String) -> BadPage {
        BadPage {
            path: self.entry.path.clone(),
            block,
            reason,
        }
    }
}

fn describe(verdict: PageVerdict) -> String {
    match verdict {
        PageVerdict::WrongChecksum { stored, computed } => {
            format!("checksum {stored:04x} instead of {computed:04x}")
        }
        _ => "no header that the server would accept".to_owned(),
    }
}

/// The error for damaged pages that were not allowed.
pub(crate) fn refuse(bad: &[BadPage]) -> Result<()> {
    let Some(first) = bad.first() else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Damaged,
        format!("{}, page {}", first.path, first.block),
        format!("{} (damaged pages in all: {})", first.reason, bad.len()),
    ))
}
