//! What differs, counted by relation, with the names that the catalogues have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use neon_pagestore::map::{FileKind, MappedFile};
use neon_pg_layout::{
    BlockRefTable, DEFAULT_TABLESPACE, DataFile, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator,
    VersionLayout,
};
use neon_snapshot_format::SnapshotPath;

use super::compare::{pages_of, push};
use super::{OtherDiff, RelationDiff};
use crate::error::Result;
use crate::snapshots::catalogue::{self, Files, Relations};

/// What was found to differ, by relation.
pub(super) struct Gathered {
    layout: &'static VersionLayout,
    page_size: u64,
    relations: BTreeMap<RelFileLocator, Counts>,
    files: Vec<OtherDiff>,
}

#[derive(Debug, Default)]
struct Counts {
    pages: u64,
    bytes: u64,
    map_pages: u64,
    /// Whether its first file is in the states.
    before: bool,
    after: bool,
}

impl Gathered {
    pub(super) fn new(layout: &'static VersionLayout, page_size: u32) -> Self {
        Self {
            layout,
            page_size: page_size.into(),
            relations: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// A file that may differ: its sizes then and now, and pages.
    pub(super) fn file(
        &mut self,
        path: &SnapshotPath,
        before: Option<u64>,
        after: Option<u64>,
        pages: &[Range<u32>],
    ) {
        if before.is_none() && after.is_none() {
            // A directory.
            return;
        }
        let size = before.unwrap_or(0).max(after.unwrap_or(0));
        let bytes = pages.iter().fold(0_u64, |sum, range| {
            let start = u64::from(range.start).saturating_mul(self.page_size);
            let end = u64::from(range.end)
                .saturating_mul(self.page_size)
                .min(size);
            sum.saturating_add(end.saturating_sub(start))
        });
        let count: u64 = pages
            .iter()
            .map(|range| u64::from(range.end.saturating_sub(range.start)))
            .sum();
        if count == 0 && before.is_some() == after.is_some() {
            return;
        }
        let text = path.to_string();
        match DataFile::of(&text, self.layout) {
            DataFile::Relation(relation) => {
                let counts = self.relations.entry(relation.locator).or_default();
                counts.pages = counts.pages.saturating_add(count);
                counts.bytes = counts.bytes.saturating_add(bytes);
                if matches!(relation.fork, Fork::FreeSpaceMap | Fork::VisibilityMap) {
                    counts.map_pages = counts.map_pages.saturating_add(count);
                }
                if relation.fork == Fork::Main && relation.segment == 0 {
                    counts.before |= before.is_some();
                    counts.after |= after.is_some();
                } else if before.is_some() == after.is_some() {
                    (counts.before, counts.after) = (true, true);
                }
            }
            _ => self.files.push(OtherDiff {
                path: text,
                bytes,
                what: what(before.is_some(), after.is_some()),
            }),
        }
    }

    /// Two states of a file with their digests.
    pub(super) fn compared(&mut self, old: Option<&MappedFile>, new: Option<&MappedFile>) {
        let Some(path) = new.or(old).map(|file| file.path.clone()) else {
            return;
        };
        let size = |file: Option<&MappedFile>| match file.map(|file| &file.attributes.kind) {
            Some(FileKind::File { size }) => Some(*size),
            _ => None,
        };
        let mut before = old.map(pages_of).unwrap_or_default();
        let mut differing = BTreeSet::new();
        for (page, now) in new.map(pages_of).unwrap_or_default() {
            if before.remove(&page) != Some(now) {
                differing.insert(page);
            }
        }
        differing.extend(before.into_keys());
        let mut pages = Vec::new();
        for page in differing {
            push(&mut pages, page);
        }
        self.file(&path, size(old), size(new), &pages);
    }

    /// What the log named.
    pub(super) fn blocks(&mut self, table: &BlockRefTable) {
        for (locator, fork, blocks) in table.iter() {
            let count = blocks.block_count();
            if count == 0 {
                continue;
            }
            let counts = self.relations.entry(locator).or_default();
            counts.pages = counts.pages.saturating_add(count);
            let bytes = count.saturating_mul(self.page_size);
            counts.bytes = counts.bytes.saturating_add(bytes);
            if matches!(fork, Fork::FreeSpaceMap | Fork::VisibilityMap) {
                counts.map_pages = counts.map_pages.saturating_add(count);
            }
            counts.after = true;
            // Cut to nothing on the way: made, or made anew.
            counts.before |= !(fork == Fork::Main && blocks.limit_block() == Some(0));
        }
    }

    /// Before is after.
    pub(super) fn turn(&mut self) {
        for counts in self.relations.values_mut() {
            std::mem::swap(&mut counts.before, &mut counts.after);
        }
        for file in &mut self.files {
            file.what = match file.what {
                "added" => "removed",
                "removed" => "added",
                other => other,
            };
        }
    }

    /// Gives relations the names that the catalogues have: of the later state, else of the earlier one.
    pub(super) async fn finish(
        self,
        named: &[Files],
    ) -> Result<(Vec<RelationDiff>, Vec<OtherDiff>)> {
        let page_size = u32::try_from(self.page_size).unwrap_or(u32::MAX);
        let mut relations: Vec<_> = self
            .relations
            .iter()
            .map(|(locator, counts)| RelationDiff {
                database: None,
                schema: None,
                name: None,
                toast_of: None,
                file: locator.to_string(),
                pages: counts.pages,
                bytes: counts.bytes,
                map_pages: counts.map_pages,
                what: what(counts.before, counts.after),
            })
            .collect();
        // The catalogue of a database is in its own tablespace, which is mostly the default one.
        let mut places: BTreeMap<Oid, BTreeSet<Oid>> = BTreeMap::new();
        for locator in self.relations.keys() {
            let place = places.entry(locator.database).or_default();
            place.insert(locator.tablespace);
            place.insert(DEFAULT_TABLESPACE);
        }
        for files in named {
            let databases = catalogue::databases(files, self.layout, page_size).await?;
            let mut known: HashMap<Oid, Vec<Relations>> = HashMap::new();
            for (database, tablespaces) in &places {
                let mut found = Vec::new();
                if *database == 0 {
                    // Shared relations are in every catalogue; template1 is always there.
                    let shared = (GLOBAL_TABLESPACE, 0);
                    let template = (DEFAULT_TABLESPACE, 1);
                    let names =
                        catalogue::relations(files, shared, template, self.layout, page_size);
                    found.push(names.await?);
                } else {
                    for tablespace in tablespaces {
                        let place = (*tablespace, *database);
                        let names =
                            catalogue::relations(files, place, place, self.layout, page_size);
                        found.push(names.await?);
                    }
                }
                known.insert(*database, found);
            }
            for (locator, relation) in self.relations.keys().zip(&mut relations) {
                if relation.name.is_some() {
                    continue;
                }
                if relation.database.is_none() {
                    relation.database = databases.get(&locator.database).cloned();
                }
                let names = known.get(&locator.database).into_iter().flatten();
                let found = names.filter_map(|names| names.get(locator.number)).next();
                if let Some(found) = found {
                    relation.schema.clone_from(&found.schema);
                    relation.name = Some(found.name.clone());
                    relation.toast_of.clone_from(&found.toast_of);
                }
            }
        }
        relations.sort_by(|a, b| (b.bytes, &a.file).cmp(&(a.bytes, &b.file)));
        Ok((relations, self.files))
    }
}

const fn what(before: bool, after: bool) -> &'static str {
    match (before, after) {
        (false, true) => "added",
        (true, false) => "removed",
        _ => "changed",
    }
}
