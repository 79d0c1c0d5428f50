//! Two copies of a cluster, compared page by page, and the reason for each difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use neon_pg_layout::wal::changes::UnloggedChange;
use neon_pg_layout::{
    ControlFile, DataFile, Fork, RelFileLocator, RelationPath, Slru, VersionLayout,
};
use neon_testkit::DataDirCopy;
use neon_testkit::mask::{without_hints, without_spgist_cache};

use super::changed::Changed;

/// Why a page or file may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    /// A record names the block.
    Named,
    /// A record says that bits of this block of a visibility map were cleared.
    VisibilityMapCleared,
    /// A record names the page of a log of transaction states.
    State(Slru),
    /// The file is gone or shorter, and the log says so.
    Removed,
    /// A relation map is what the log says it is.
    RelationMap,
    /// Something is on a page behind the limit block that no record named.
    BeyondLimit,
    /// No record names it, and it is known that none does.
    Unlogged(UnloggedChange),
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How many pages (or whole files) each rule explains.
    pub(crate) counts: BTreeMap<Rule, usize>,
    /// What nothing explains.
    pub(crate) unexplained: Vec<String>,
    /// Pages of which only hints differ: relation file and block.
    pub(crate) hints: Vec<(RelationPath, u32)>,
}

const PAGE: usize = 8192;

struct Comparison<'a> {
    changed: &'a Changed,
    /// Relations that have an init fork in either copy.
    unlogged: BTreeSet<RelFileLocator>,
    segment_blocks: u32,
    hints_are_free: bool,
    verdict: Verdict,
}

/// Compares `later` with `earlier`. `hints_are_free`: neither checksums nor hint logging are on.
pub(crate) fn compare(
    earlier: &DataDirCopy,
    later: &DataDirCopy,
    control: &ControlFile,
    changed: &Changed,
    layout: &VersionLayout,
    hints_are_free: bool,
) -> Verdict {
    let kind = |path: &std::path::PathBuf| DataFile::of(path.to_str().unwrap(), layout);
    let (before, after) = (earlier.files(), later.files());
    let unlogged = before
        .iter()
        .chain(&after)
        .filter_map(|path| match kind(path) {
            DataFile::Relation(path) if path.fork == Fork::Init => Some(path.locator),
            _ => None,
        })
        .collect();
    let mut comparison = Comparison {
        changed,
        unlogged,
        segment_blocks: control.build.segment_blocks,
        hints_are_free,
        verdict: Verdict::default(),
    };
    let paths: BTreeSet<_> = before.into_iter().chain(after).collect();
    for path in paths {
        let read = |copy: &DataDirCopy| fs::read(copy.path().join(&path)).ok();
        let (old, new) = (read(earlier), read(later));
        if old == new {
            continue;
        }
        match kind(&path) {
            DataFile::Relation(relation) => {
                comparison.relation(relation, old.as_deref(), new.as_deref());
            }
            DataFile::RelationMap {
                tablespace,
                database,
            } => {
                comparison.map((tablespace, database), new.as_deref(), old.is_some());
            }
            DataFile::Temporary | DataFile::Other => {
                comparison.unexplained(format!("{}", path.display()));
            }
            DataFile::Slru { area, segment } => {
                comparison.states(area, segment, old.as_deref(), new.as_deref());
            }
            _ => comparison.count(Rule::Unlogged(UnloggedChange::NotRelation)),
        }
    }
    comparison.verdict
}

impl Comparison<'_> {
    fn count(&mut self, rule: Rule) {
        *self.verdict.counts.entry(rule).or_default() += 1;
    }

    fn unexplained(&mut self, what: String) {
        self.verdict.unexplained.push(what);
    }

    /// The file changed in whole by a record that holds it, or came with its database.
    fn map(&mut self, place: (u32, u32), new: Option<&[u8]>, existed: bool) {
        let logged = self.changed.maps.get(&place).map(Vec::as_slice);
        let replaced = self.changed.blocks.database_replaced(place.0, place.1);
        match new {
            Some(new) if logged == Some(new) => self.count(Rule::RelationMap),
            Some(_) if logged.is_none() && self.changed.copied.contains(&place) => {
                self.count(Rule::Unlogged(UnloggedChange::DatabaseCopied));
            }
            None if replaced => self.count(Rule::Removed),
            _ => self.unexplained(format!(
                "relation map of {place:?}, there before: {existed}"
            )),
        }
    }

    fn relation(&mut self, path: RelationPath, old: Option<&[u8]>, new: Option<&[u8]>) {
        let locator = path.locator;
        let first = path.first_block(self.segment_blocks).unwrap();
        if path.backend.is_some() {
            return self.unexplained(format!("{path:?} is temporary"));
        }
        let (old, new_bytes) = (old.unwrap_or_default(), new.unwrap_or_default());
        let in_copied = self
            .changed
            .copied
            .contains(&(locator.tablespace, locator.database));
        let replaced = self
            .changed
            .blocks
            .database_replaced(locator.tablespace, locator.database);
        let limit = match self
            .changed
            .blocks
            .get(locator, path.fork)
            .and_then(|refs| refs.limit_block())
        {
            _ if replaced => Some(0),
            limit => limit,
        };
        let loose = self.whole_fork(path);
        if new_bytes.len() < old.len() {
            let kept = first + u32::try_from(new_bytes.len() / PAGE).unwrap();
            if limit.is_some_and(|limit| limit <= kept) {
                self.count(Rule::Removed);
            } else if let Some(rule) = loose {
                self.count(rule);
            } else {
                self.unexplained(format!(
                    "{path:?} is shorter by {}",
                    old.len() - new_bytes.len()
                ));
            }
        }
        if new == Some(&[]) && old.is_empty() && limit.is_none() && loose.is_none() {
            self.unexplained(format!("{path:?} is new and empty"));
        }
        for (number, page) in new_bytes.chunks(PAGE).enumerate() {
            let before = old.get(number * PAGE..(number + 1) * PAGE);
            if before == Some(page) {
                continue;
            }
            let block = first + u32::try_from(number).unwrap();
            let named = self
                .changed
                .blocks
                .get(locator, path.fork)
                .is_some_and(|refs| refs.contains(block));
            let zero = page.iter().all(|byte| *byte == 0);
            let rule = if named {
                Rule::Named
            } else if path.fork == Fork::VisibilityMap
                && self.changed.cleared.contains(&(locator, block))
            {
                Rule::VisibilityMapCleared
            } else if in_copied {
                Rule::Unlogged(UnloggedChange::DatabaseCopied)
            } else if let Some(rule) = loose {
                rule
            } else if limit.is_some_and(|limit| limit <= block) {
                if zero {
                    Rule::Unlogged(UnloggedChange::BehindLimit)
                } else {
                    Rule::BeyondLimit
                }
            } else if before.is_none() && zero {
                Rule::Unlogged(UnloggedChange::Extended)
            } else if before.is_some_and(|before| same_but_for_spgist_cache(before, page)) {
                Rule::Unlogged(UnloggedChange::SpGistCache)
            } else if self.hints_are_free
                && before.is_some_and(|before| without_hints(before) == without_hints(page))
            {
                self.verdict.hints.push((path, block));
                Rule::Unlogged(UnloggedChange::Hints)
            } else {
                let differing = before.map(|before| {
                    let at = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
                    before
                        .iter()
                        .zip(page)
                        .enumerate()
                        .filter_map(at)
                        .take(12)
                        .collect::<Vec<_>>()
                });
                self.unexplained(format!(
                    "{path:?} block {block}: bytes {differing:?} differ"
                ));
                continue;
            };
            self.count(rule);
        }
    }

    /// The rule under which a fork is taken whole, if there is one.
    fn whole_fork(&self, path: RelationPath) -> Option<Rule> {
        let unlogged = self.unlogged.contains(&path.locator);
        let touched = self.changed.touched.contains(&path.locator);
        UnloggedChange::of_fork(path.fork, unlogged, touched).map(Rule::Unlogged)
    }

    /// Pages of transaction states change only where the log says so, hints there are none.
    fn states(&mut self, area: Slru, segment: u64, old: Option<&[u8]>, new: Option<&[u8]>) {
        if let Some(rule) = UnloggedChange::of_slru(area) {
            return self.count(Rule::Unlogged(rule));
        }
        let first = segment * Slru::PAGES_PER_FILE;
        let Some(new) = new else {
            let kept = self.changed.states_kept.get(&area);
            if kept.is_some_and(|kept| first + Slru::PAGES_PER_FILE <= *kept) {
                self.count(Rule::Removed);
            } else {
                self.unexplained(format!("{area:?} segment {segment} is gone"));
            }
            return;
        };
        let old = old.unwrap_or_default();
        if new.len() < old.len() {
            self.unexplained(format!("{area:?} segment {segment} is shorter"));
        }
        for (number, page) in new.chunks(PAGE).enumerate() {
            if old.get(number * PAGE..(number + 1) * PAGE) == Some(page) {
                continue;
            }
            let page = first + u64::try_from(number).unwrap();
            if self.changed.states.contains(&(area, page)) {
                self.count(Rule::State(area));
            } else {
                self.unexplained(format!("{area:?} page {page}"));
            }
        }
    }
}

fn same_but_for_spgist_cache(before: &[u8], after: &[u8]) -> bool {
    let before = without_spgist_cache(before);
    before.is_some() && before == without_spgist_cache(after)
}
