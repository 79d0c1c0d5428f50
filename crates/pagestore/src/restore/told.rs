//! What the maps of two snapshots tell of a directory that one of them shows, and of which files they are believed.

use std::collections::BTreeMap;
use std::ops::Range;

use neon_pg_layout::{Fork, PgMajor, RelationPath};
use neon_snapshot_format::pgdata::ExistingDirectory;
use neon_snapshot_format::{Entry, SnapshotPath};

use crate::bridge::Bridge;
use crate::changes::{FileChange, NamedPages, UnloggedRelations};
use crate::error::Result;
use crate::map::{Attributes, Diff, FileKind, MappedFile, Walk};
use crate::read::Snapshot;

/// What the maps tell.
pub(super) struct Told {
    major: PgMajor,
    page_size: u64,
    unlogged: UnloggedRelations,
    differing: BTreeMap<SnapshotPath, Differing>,
}

/// A file that is not the same in both.
struct Differing {
    /// What it is in the present one.
    before: Option<Attributes>,
    pages: Vec<Range<u32>>,
}

/// What is to be done with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every page is what it shall be.
    Same,
    /// These bytes may differ, no others.
    Pages(Vec<Range<u64>>),
    /// It has to be read.
    Compare,
}

impl Told {
    /// Compares the maps; reads no page.
    pub(super) fn of(
        snapshot: &Snapshot,
        present: &Snapshot,
        directory: &ExistingDirectory,
        bridge: &Bridge,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let major = snapshot.facts().cluster.major;
        let mut unlogged = UnloggedRelations::new(major);
        for entry in directory.entries() {
            unlogged.note(&entry.path);
        }
        let mut walk = Walk::new(snapshot.view(), false);
        while let Some(file) = snapshot.maps().wait(bridge, &mut walk)? {
            go_on()?;
            unlogged.note(&file.path);
        }
        let mut differing = BTreeMap::new();
        let mut diff = Diff::new(present.view(), snapshot.view(), true);
        while let Some(file) = snapshot.maps().wait(bridge, &mut diff)? {
            go_on()?;
            let (before, pages) = (file.before, file.pages);
            differing.insert(file.path, Differing { before, pages });
        }
        Ok(Self {
            major,
            page_size: snapshot.view().page_size.into(),
            unlogged,
            differing,
        })
    }

    /// What is to be done with a file of the snapshot that is in the directory, too. What the log names is written anew.
    pub(super) fn verdict(
        &self,
        file: &MappedFile,
        here: &Entry,
        named: Option<&NamedPages>,
    ) -> Verdict {
        let FileKind::File { size } = file.attributes.kind else {
            return Verdict::Compare;
        };
        let Some(differing) = self.by_maps(file, here, size) else {
            return Verdict::Compare;
        };
        let named = match named.map(|named| named.of(&file.path, size)) {
            None | Some(FileChange::Unchanged) => Vec::new(),
            Some(FileChange::Pages { pages, .. }) => pages,
            Some(FileChange::Whole(_)) => return Verdict::Compare,
        };
        if differing.is_empty() && named.is_empty() {
            return Verdict::Same;
        }
        let mut pages: Vec<&Range<u32>> = differing.iter().chain(&named).collect();
        pages.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let first = 0..u32::from(size > 0);
        for pages in std::iter::once(&first).chain(pages) {
            let start = u64::from(pages.start).saturating_mul(self.page_size);
            let end = u64::from(pages.end)
                .saturating_mul(self.page_size)
                .min(size);
            if start >= end {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        Verdict::Pages(ranges)
    }

    /// The pages that the maps say differ, in order; nothing where the file has to be read.
    fn by_maps(&self, file: &MappedFile, here: &Entry, size: u64) -> Option<&[Range<u32>]> {
        let whole = |bytes: u64| bytes.is_multiple_of(self.page_size);
        if !self.is_believed(&file.path) || !whole(size) || !whole(here.size()) {
            return None;
        }
        let is = |attributes: &Attributes| {
            attributes.modified == here.modified
                && attributes.kind == FileKind::File { size: here.size() }
        };
        let Some(differing) = self.differing.get(&file.path) else {
            // Both snapshots have the same of it, attributes included.
            return is(&file.attributes).then_some(&[]);
        };
        // Changed since the other one was taken, or not in it.
        if !differing.before.as_ref().is_some_and(is) {
            return None;
        }
        // Where nobody says that a page differs, but it was written to, somebody did something to it.
        let known = !differing.pages.is_empty() || is(&file.attributes);
        known.then_some(&differing.pages)
    }

    /// Whether every change of a file is in the log: only the main forks of relations that are logged.
    fn is_believed(&self, path: &SnapshotPath) -> bool {
        let relation = path
            .as_str()
            .and_then(|path| RelationPath::parse(path, self.major.layout()));
        relation.is_some_and(|relation| relation.fork == Fork::Main && relation.backend.is_none())
            && !self.unlogged.contains(path)
    }
}
