//! The files of a stopped cluster, held in memory, and what they become when only what a change set names
//! is read anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use neon_pagestore::changes::{
    ChangeSet, FileChange, FileFacts, Hints, ParentFile, ParentPage, ParentPages, ScanFile,
    ScanFiles, UnloggedRelations, WholeReason,
};
use neon_pagestore::{CommitId, Result};
use neon_pg_layout::PgMajor;
use neon_snapshot_format::SnapshotPath;
use neon_testkit::mask::{without_hints, without_spgist_cache};

pub(crate) const PAGE: usize = 8192;

/// Every file but the log, by its path.
#[derive(Debug, Clone, Default)]
pub(crate) struct State(pub(crate) BTreeMap<SnapshotPath, Arc<Vec<u8>>>);

impl State {
    pub(crate) fn read(data_dir: &Path) -> Self {
        let mut state = Self::default();
        let mut folders = vec![SnapshotPath::root()];
        while let Some(folder) = folders.pop() {
            let on_disk = data_dir.join(folder.as_str().unwrap());
            // Of a running server anything may go while it is looked at.
            for entry in fs::read_dir(on_disk).into_iter().flatten() {
                let path = folder
                    .join(entry.unwrap().file_name().as_encoded_bytes())
                    .unwrap();
                let on_disk = data_dir.join(path.as_str().unwrap());
                // Follows the links of tablespaces.
                let Ok(kind) = fs::metadata(&on_disk) else {
                    continue;
                };
                if kind.is_dir() && path.as_str() != Some("pg_wal") {
                    folders.push(path);
                } else if kind.is_file()
                    && let Ok(content) = fs::read(on_disk)
                {
                    state.0.insert(path, Arc::new(content));
                }
            }
        }
        state
    }

    pub(crate) fn unlogged(&self, major: PgMajor) -> UnloggedRelations {
        let mut unlogged = UnloggedRelations::new(major);
        self.0.keys().for_each(|path| unlogged.note(path));
        unlogged
    }

    /// This state with what the set names read from `now`, everything else left as it was.
    pub(crate) fn advanced(&self, now: &Self, set: &ChangeSet, major: PgMajor) -> (Self, Read) {
        let unlogged = now.unlogged(major);
        let mut next = Self::default();
        let mut read = Read::default();
        for (path, content) in &now.0 {
            let parent = self.0.get(path);
            let change = set.of(&FileFacts {
                path,
                size: content.len() as u64,
                parent_size: parent.map(|parent| parent.len() as u64),
                unlogged: unlogged.contains(path),
            });
            let pages = content.len().div_ceil(PAGE) as u64;
            read.all += pages;
            let content = match (change, parent) {
                (FileChange::Unchanged, Some(parent)) => {
                    assert_eq!(parent.len(), content.len(), "{path}");
                    Arc::clone(parent)
                }
                (FileChange::Pages { limit, pages }, Some(parent)) => {
                    read.pages += pages
                        .iter()
                        .map(|range| u64::from(range.end - range.start))
                        .sum::<u64>();
                    let patched = patched(parent, content, limit, &pages);
                    if patched == **content {
                        Arc::clone(content)
                    } else {
                        Arc::new(patched)
                    }
                }
                (FileChange::Whole(reason), _) => {
                    *read.whole.entry(reason).or_default() += pages;
                    Arc::clone(content)
                }
                (change, None) => panic!("{path} is new and {change:?}"),
            };
            next.0.insert(path.clone(), content);
        }
        (next, read)
    }

    /// Compares this state, made from a change set, with what is there.
    pub(crate) fn judge(&self, now: &Self, hints: Hints) -> Verdict {
        let mut verdict = Verdict::default();
        assert!(self.0.keys().eq(now.0.keys()));
        for ((path, made), real) in self.0.iter().zip(now.0.values()) {
            if Arc::ptr_eq(made, real) || made == real {
                continue;
            }
            assert_eq!(made.len(), real.len(), "{path}");
            for (number, (made, real)) in made.chunks(PAGE).zip(real.chunks(PAGE)).enumerate() {
                if made == real {
                    continue;
                }
                let whole = made.len() == PAGE && path.as_bytes().contains(&b'/');
                let cache = || {
                    let made = without_spgist_cache(made);
                    number == 0 && made.is_some() && made == without_spgist_cache(real)
                };
                if whole && cache() {
                    verdict.caches += 1;
                } else if whole
                    && hints == Hints::MayBeOlder
                    && without_hints(made) == without_hints(real)
                {
                    verdict.hints += 1;
                } else {
                    let at = made.iter().zip(real).position(|(made, real)| made != real);
                    verdict
                        .wrong
                        .push(format!("{path} page {number} at {at:?}"));
                }
            }
        }
        verdict
    }
}

/// The parent's pages below the limit and the new ones where they are named; nothing else is known.
fn patched(parent: &[u8], new: &[u8], limit: u32, pages: &[std::ops::Range<u32>]) -> Vec<u8> {
    const UNKNOWN: u8 = 0xEE;
    let mut made = vec![UNKNOWN; new.len()];
    let kept = (limit as usize * PAGE).min(parent.len()).min(made.len());
    made[..kept].copy_from_slice(&parent[..kept]);
    for range in pages {
        let bytes = range.start as usize * PAGE..(range.end as usize * PAGE).min(new.len());
        made[bytes.clone()].copy_from_slice(&new[bytes]);
    }
    made
}

/// How much of a state was read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) all: u64,
    pub(crate) pages: u64,
    pub(crate) whole: BTreeMap<WholeReason, u64>,
}

/// How a state made from a change set differs from what is there.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Pages that differ in hints.
    pub(crate) hints: u64,
    /// Metapages of SP-GiST indexes that differ in their cache.
    pub(crate) caches: u64,
    /// All other differences.
    pub(crate) wrong: Vec<String>,
}

/// The digests of a state's pages.
pub(crate) struct Digests<'a>(pub(crate) &'a State);

impl ParentPages for Digests<'_> {
    fn snapshot(&self) -> CommitId {
        CommitId::of(b"a state")
    }

    fn file(&mut self, path: &SnapshotPath) -> Result<Option<ParentFile<'_>>> {
        Ok(self.0.0.get(path).map(|content| ParentFile {
            size: content.len() as u64,
            pages: Box::new(content.chunks(PAGE).map(|page| Ok(ParentPage::of(page)))),
        }))
    }
}

/// The files of a state, as a scan finds them.
pub(crate) struct Files<'a>(
    pub(crate) std::collections::btree_map::Iter<'a, SnapshotPath, Arc<Vec<u8>>>,
);

impl ScanFiles for Files<'_> {
    fn next(&mut self) -> Result<Option<ScanFile<'_>>> {
        Ok(self.0.next().map(|(path, content)| ScanFile {
            path: path.clone(),
            content: Box::new(content.as_slice()),
        }))
    }
}
