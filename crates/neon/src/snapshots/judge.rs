//! The pages of a cluster from outside, judged while they pass as the server would judge them.
//!
//! What decides is often known only at the end: whether the cluster has checksums says its control file, which comes last;
//! which torn pages its own log makes whole says the end of that log. Until then every page that could be bad is kept in
//! mind, by its place and what is wrong with it.

use std::sync::{Mutex, PoisonError};

use neon_pg_layout::{
    BlockSize, ControlFile, Lsn, PageHeader, PgMajor, RelationPath, ReplayedLog, page_checksum,
    page_checksums,
};
use neon_snapshot_format::{BadPage, Chunk, ChunkData, Entry, SnapshotPath};

/// Pages that are kept in mind, 32 bytes each. All pages of a cluster without checksums look as if theirs were wrong, so more
/// are only counted.
const MOST: usize = 1 << 20;

/// What is known of a cluster before its pages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) page_size: BlockSize,
    /// Pages in one file of a relation.
    pub(crate) segment_blocks: u32,
    /// Whether it has page checksums.
    pub(crate) checksums: Option<bool>,
}

impl Shape {
    /// Of a cluster whose control file can be read before.
    pub(crate) fn of(control: &ControlFile) -> Self {
        Self {
            page_size: control.build.block_size,
            segment_blocks: control.build.segment_blocks,
            checksums: Some(control.data_checksums),
        }
    }
}

impl Default for Shape {
    /// Of servers that were not built otherwise.
    fn default() -> Self {
        Self {
            page_size: BlockSize::DEFAULT,
            segment_blocks: 131_072,
            checksums: None,
        }
    }
}

/// What is known when all has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) checksums: bool,
    /// The log that the start of the copy replays.
    pub(crate) replayed: Option<ReplayedLog>,
    /// Copied of a running server: a file may end within a page, and the log knows more.
    pub(crate) bracketed: bool,
}

/// What is wrong with the pages of a copy.
#[derive(Debug, Default)]
pub(crate) struct BadPages {
    pub(crate) pages: Vec<BadPage>,
    /// How many more there are that nobody kept in mind.
    pub(crate) more: u64,
}

/// A page that may be bad.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    /// Its file, by its place among all that have such pages.
    file: u32,
    /// Its number within the file.
    block: u32,
    lsn: Lsn,
    wrong: Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// The checksum, in the page and as it should be; and whether the header is too.
    Checksum {
        stored: u16,
        computed: u16,
        header: bool,
    },
    /// The header alone. Where there are checksums, it was written so.
    Header,
    /// The file ends within it.
    Short,
}

impl Suspect {
    /// What is wrong with it, after all.
    fn reason(&self, known: &Known) -> Option<String> {
        let excused = || known.replayed.is_some_and(|log| log.restores(self.lsn));
        let header = || Some("no header that the server would accept".to_owned());
        match self.wrong {
            Wrong::Short if known.bracketed => None,
            Wrong::Short => Some("the file ends within it".to_owned()),
            Wrong::Checksum { .. } if known.checksums && excused() => None,
            Wrong::Checksum {
                stored, computed, ..
            } if known.checksums => {
                Some(format!("checksum {stored:04x} instead of {computed:04x}"))
            }
            Wrong::Checksum { header: false, .. } => None,
            Wrong::Header if known.checksums => header(),
            Wrong::Checksum { .. } | Wrong::Header if excused() => None,
            Wrong::Checksum { .. } | Wrong::Header => header(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Judge {
    shape: Shape,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    files: Vec<SnapshotPath>,
    suspects: Vec<Suspect>,
    /// Of which only the checksum is wrong, and which are not among the suspects.
    beyond: u64,
    /// Wrong for other reasons, too.
    beyond_header: u64,
}

impl Judge {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            found: Mutex::default(),
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The pages of a file, if it has any that can be judged.
    pub(crate) fn file(&self, entry: &Entry) -> Option<Pages> {
        let path = entry.path.as_str()?;
        // Names of relations are the same in every major but for those of their tablespaces' directories.
        let mut layouts = PgMajor::ALL.iter().map(|major| major.layout());
        let relation = layouts.find_map(|layout| RelationPath::parse(path, layout))?;
        Some(Pages {
            path: entry.path.clone(),
            size: entry.size(),
            first: relation.first_block(self.shape.segment_blocks)?,
            shape: self.shape,
            suspects: Vec::new(),
        })
    }

    /// Keeps in mind what was found in a file, or a part of it.
    pub(crate) fn keep(&self, pages: Pages) {
        if pages.suspects.is_empty() {
            return;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(file) = u32::try_from(found.files.len()) else {
            return;
        };
        found.files.push(pages.path);
        for suspect in pages.suspects {
            let bare = matches!(suspect.wrong, Wrong::Checksum { header: false, .. });
            if found.suspects.len() < MOST {
                found.suspects.push(Suspect { file, ..suspect });
            } else if bare {
                found.beyond = found.beyond.saturating_add(1);
            } else {
                found.beyond_header = found.beyond_header.saturating_add(1);
            }
        }
    }

    /// What is wrong, in the order of paths.
    pub(crate) fn bad_pages(&self, known: &Known) -> BadPages {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pages: Vec<BadPage> = found
            .suspects
            .iter()
            .filter_map(|suspect| {
                let path = usize::try_from(suspect.file).ok()?;
                Some(BadPage {
                    path: found.files.get(path)?.clone(),
                    block: suspect.block.into(),
                    reason: suspect.reason(known)?,
                })
            })
            .collect();
        pages.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        let bare = if known.checksums { found.beyond } else { 0 };
        BadPages {
            pages,
            more: bare.saturating_add(found.beyond_header),
        }
    }
}

/// The pages of one file, or of a part of it.
#[derive(Debug)]
pub(crate) struct Pages {
    path: SnapshotPath,
    size: u64,
    /// The number that its first page has among all files of the fork.
    first: u32,
    shape: Shape,
    suspects: Vec<Suspect>,
}

impl Pages {
    /// Looks at what came. Chunks begin with a page.
    pub(crate) fn look_at(&mut self, chunk: &Chunk<'_>) {
        let ChunkData::Bytes(bytes) = chunk.data else {
            return;
        };
        let size = self.shape.page_size;
        let Ok(first) = u32::try_from(chunk.offset / size.bytes() as u64) else {
            return;
        };
        let pages = bytes.chunks_exact(size.bytes());
        let rest = pages.remainder();
        // Of several pages at a time checksums cost less, and nearly all are sound.
        let sound = self.shape.checksums != Some(false)
            && page_checksums(bytes, size, self.first.wrapping_add(first))
                .zip(pages.clone())
                .all(|(sum, page)| {
                    PageHeader::decode(page).is_ok_and(|header| {
                        header.checksum == sum && !header.is_new() && header.check(size).is_ok()
                    })
                });
        if !sound {
            for (block, page) in (first..).zip(pages) {
                self.judge(block, page);
            }
        }
        let end = chunk.offset.saturating_add(bytes.len() as u64);
        if !rest.is_empty() && end == self.size && rest.iter().any(|byte| *byte != 0) {
            let whole = u32::try_from(bytes.len() / size.bytes()).unwrap_or(u32::MAX);
            self.suspects.push(Suspect {
                file: 0,
                block: first.saturating_add(whole),
                lsn: Lsn(0),
                wrong: Wrong::Short,
            });
        }
    }

    fn judge(&mut self, block: u32, page: &[u8]) {
        let Ok(header) = PageHeader::decode(page) else {
            return;
        };
        if header.is_new() && page.iter().all(|byte| *byte == 0) {
            return;
        }
        let broken = header.is_new() || header.check(self.shape.page_size).is_err();
        let number = self.first.wrapping_add(block);
        let computed = match self.shape.checksums {
            Some(false) => header.checksum,
            _ => page_checksum(page, number).unwrap_or(header.checksum),
        };
        let wrong = match (computed == header.checksum, broken) {
            (true, false) => return,
            (true, true) => Wrong::Header,
            (false, header_too) => Wrong::Checksum {
                stored: header.checksum,
                computed,
                header: header_too,
            },
        };
        self.suspects.push(Suspect {
            file: 0,
            block,
            lsn: header.lsn,
            wrong,
        });
    }
}

#[cfg(test)]
mod tests {
    use neon_pg_layout::{PageCheck, PageVerdict, tablespace_version_directory};
    use neon_snapshot_format::EntryKind;
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, pages: u64) -> Entry {
        Entry {
            path: SnapshotPath::new(path).unwrap(),
            kind: EntryKind::File { size: pages * 8192 },
            mode: 0o600,
            owner: None,
            modified: 0,
        }
    }

    fn page(number: u32, lsn: u32) -> Vec<u8> {
        let mut page = vec![0; 8192];
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        for (offset, value) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 0x2004)] {
            page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = page_checksum(&page, number).unwrap();
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn judged(shape: Shape, path: &str, bytes: &[u8], known: &Known) -> BadPages {
        let judge = Judge::new(shape);
        let mut pages = judge.file(&file(path, bytes.len() as u64 / 8192)).unwrap();
        pages.look_at(&Chunk {
            offset: 0,
            data: ChunkData::Bytes(bytes),
        });
        judge.keep(pages);
        judge.bad_pages(known)
    }

    const KNOWN: Known = Known {
        checksums: true,
        replayed: None,
        bracketed: false,
    };

    #[test]
    fn pages_of_later_files_of_a_relation_are_counted_on() {
        let bytes = page(131_072, 7);
        let sound = judged(Shape::default(), "base/5/16384.1", &bytes, &KNOWN);
        assert!(sound.pages.is_empty());
        let bad = judged(Shape::default(), "base/5/16384", &bytes, &KNOWN);
        assert_eq!((bad.pages.len(), bad.pages[0].block), (1, 0));
        assert!(
            Judge::new(Shape::default())
                .file(&file("pg_xact/0000", 1))
                .is_none()
        );
        for major in PgMajor::ALL {
            let folder = tablespace_version_directory(major.layout());
            let path = format!("pg_tblspc/16390/{folder}/5/16384_fsm");
            assert!(Judge::new(Shape::default()).file(&file(&path, 1)).is_some());
        }
    }

    #[test]
    fn more_pages_than_are_kept_in_mind_are_counted() {
        let judge = Judge::new(Shape::default());
        for number in 0..3_u32 {
            let mut pages = judge.file(&file("base/5/16384", 1)).unwrap();
            let suspect = Suspect {
                file: 0,
                block: number,
                lsn: Lsn(1),
                wrong: Wrong::Checksum {
                    stored: 0,
                    computed: 1,
                    header: false,
                },
            };
            pages.suspects = vec![suspect; MOST / 2];
            judge.keep(pages);
        }
        let bad = judge.bad_pages(&KNOWN);
        assert_eq!((bad.pages.len(), bad.more), (MOST, MOST as u64 / 2));
        let none = judge.bad_pages(&Known {
            checksums: false,
            ..KNOWN
        });
        assert_eq!((none.pages.len(), none.more), (0, 0));
    }

    proptest! {
        /// Whenever it is known what decides, and in whatever order.
        #[test]
        fn pages_are_judged_as_everywhere_else(
            changes in proptest::collection::vec((0_usize..8192, any::<u8>()), 0..4),
            header in proptest::option::of((0_usize..24, any::<u8>())),
            sealed in any::<bool>(),
            lsn in 0_u32..40,
            log in proptest::option::of((0_u64..40, 0_u64..40)),
            checksums in any::<bool>(),
            early in any::<bool>(),
        ) {
            let mut bytes = page(0, lsn);
            for (at, value) in changes.into_iter().chain(header) {
                bytes[at] = value;
            }
            if sealed {
                let sum = page_checksum(&bytes, 0).unwrap();
                bytes[8..10].copy_from_slice(&sum.to_le_bytes());
            }
            let replayed = log.map(|(start, end)| ReplayedLog { start: Lsn(start), end: Lsn(end) });
            let known = Known { checksums, replayed, bracketed: false };
            let shape = Shape { checksums: early.then_some(checksums), ..Shape::default() };
            let bad = judged(shape, "base/5/16384", &bytes, &known);
            let verdict = PageCheck { checksums, replayed }.judge(&bytes, 0).unwrap();
            prop_assert_eq!(bad.pages.len(), usize::from(verdict.is_bad()), "{:?}", verdict);
            prop_assert!(bad.pages.is_empty() || !matches!(verdict, PageVerdict::Good));
        }
    }
}
