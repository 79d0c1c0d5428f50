//! What differs between two states of a cluster, by relation.
//!
//! Two snapshots are compared by their maps, and where these differ by the digests of pages: no page is read. The live state
//! is compared with a snapshot by the log since then, or, where that does not tell, by reading it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use neon_pagestore::SnapshotName;
use neon_pagestore::changes::{
    CannotSay, Child, ClusterFacts, LogWalk, Parent, ParentPage, SegmentDirectory, Span, read_tail,
};
use neon_pagestore::map::{At, Diff, FileKind, MappedFile, Walk};
use neon_pagestore::read::Snapshot;
use neon_pg_layout::{
    BlockRefTable, DEFAULT_TABLESPACE, DataFile, Fork, GLOBAL_TABLESPACE, Lsn, Oid, RelFileLocator,
    VersionLayout,
};
use neon_snapshot_format::SnapshotPath;
use serde::Serialize;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::instances::PgRecord;
use crate::name::Name;
use crate::neon::Neon;
use crate::snapshots::catalogue::{self, Files, Relations};
use crate::snapshots::log_end::history;
use crate::snapshots::watch::{GoOn, Wanting};
use crate::snapshots::{Found, Snapshots};

/// What differs between two states of a cluster.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SnapshotDiff {
    /// The earlier one, as it was asked for.
    pub before: String,
    /// The later one.
    pub after: String,
    /// How it is known: `maps` of two snapshots of one repository, `digests` of two repositories, the `log`, or the `content` of
    /// the live state.
    pub by: &'static str,
    /// Why something better did not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Pages that differ, or that only one of the two has.
    pub pages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Relations, the one with the most bytes first.
    pub relations: Vec<RelationDiff>,
    /// Files that are no relation's, by path. Unknown where the log tells.
    pub files: Vec<OtherDiff>,
}

/// A relation that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelationDiff {
    /// The database; absent for shared relations, and where its name was not found.
    pub database: Option<String>,
    /// Its schema, where that was found.
    pub schema: Option<String>,
    /// Its name, where that was found in the catalogue of either state.
    pub name: Option<String>,
    /// Of a TOAST table or its index: whose values it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toast_of: Option<String>,
    /// Its file: `tablespace/database/number`.
    pub file: String,
    /// Pages that differ, in all its forks.
    pub pages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Of these, pages of free space maps and visibility maps.
    pub map_pages: u64,
    /// `added`, `removed` or `changed`.
    pub what: &'static str,
}

/// Another file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OtherDiff {
    /// Its path.
    pub path: String,
    /// Bytes in the pages that differ.
    pub bytes: u64,
    /// `added`, `removed` or `changed`.
    pub what: &'static str,
}

/// One of the two states.
enum Side {
    Snapshot(Found, Snapshot),
    Live(Box<PgRecord>),
}

impl Snapshots<'_> {
    /// What differs between two snapshots, or between one and the live state of an instance (`PG@CURRENT`).
    ///
    /// # Errors
    /// As [`find`](Self::find); [`Invalid`](ErrorKind::Invalid) for two live states, and for clusters with
    /// pages of other sizes.
    pub async fn diff(
        &self,
        before: &str,
        after: &str,
        storage: Option<&Name>,
    ) -> Result<SnapshotDiff> {
        let first = self.side(before, storage).await?;
        let second = self.side(after, storage).await?;
        let (layout, page_size) = match (&first, &second) {
            (Side::Snapshot(_, snapshot), _) | (_, Side::Snapshot(_, snapshot)) => {
                let cluster = &snapshot.facts().cluster;
                (cluster.major.layout(), cluster.block_size)
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{before} and {after}"),
                    "are both live states",
                )
                .hinted("take a snapshot of one of them"));
            }
        };
        let mut gathered = Gathered::new(layout, page_size);
        let (by, because) = match (&first, &second) {
            (Side::Snapshot(found, first), Side::Snapshot(other, second)) => {
                let (one, two) = (
                    &first.facts().cluster.system,
                    &second.facts().cluster.system,
                );
                if first.facts().cluster.block_size != second.facts().cluster.block_size {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{before} and {after}"),
                        format!("are of clusters with pages of other sizes ({one}, {two})"),
                    ));
                }
                let same = found.repository.repository.id() == other.repository.repository.id();
                if same {
                    by_maps(found, first, second, &mut gathered).await?;
                    ("maps", None)
                } else {
                    by_digests((found, first), (other, second), &mut gathered).await?;
                    ("digests", None)
                }
            }
            (Side::Snapshot(found, snapshot), Side::Live(record))
            | (Side::Live(record), Side::Snapshot(found, snapshot)) => {
                self.live(record, (found, snapshot), &mut gathered).await?
            }
            _ => ("content", None),
        };
        if matches!(first, Side::Live(_)) {
            gathered.turn();
        }
        let files = |side: &Side| match side {
            Side::Snapshot(found, snapshot) => Files::Snapshot(snapshot.clone(), found.subject()),
            Side::Live(record) => Files::Live(self.0.pg().data_dir(record)),
        };
        let named = [files(&second), files(&first)];
        let (relations, files) = gathered.finish(&named).await?;
        let sum = |each: fn(&RelationDiff) -> u64| relations.iter().map(each).sum::<u64>();
        let other_bytes: u64 = files.iter().map(|file| file.bytes).sum();
        Ok(SnapshotDiff {
            before: before.to_owned(),
            after: after.to_owned(),
            by,
            because,
            pages: sum(|relation| relation.pages)
                .saturating_add(other_bytes.div_ceil(page_size.into())),
            bytes: sum(|relation| relation.bytes).saturating_add(other_bytes),
            relations,
            files,
        })
    }

    async fn side(&self, text: &str, storage: Option<&Name>) -> Result<Side> {
        let live = text
            .parse::<SnapshotName>()
            .ok()
            .filter(SnapshotName::is_current);
        if let Some(name) = live {
            let name: Name = name.instance().unwrap_or_default().parse()?;
            return Ok(Side::Live(Box::new(self.0.pg().record_of(&name)?)));
        }
        let found = self.find(text, storage).await?;
        let snapshot = found.open().await?;
        Ok(Side::Snapshot(found, snapshot))
    }

    /// The live state, compared with a snapshot.
    async fn live(
        &self,
        record: &PgRecord,
        (found, snapshot): (&Found, &Snapshot),
        gathered: &mut Gathered,
    ) -> Result<(&'static str, Option<String>)> {
        let data = self.0.pg().data_dir(record);
        let instance = self.0.pg().open(record).await?;
        let subject = format!("pg {}", record.name);
        let control = instance
            .control_file()
            .map_err(|error| Error::server(subject.as_str(), error))?;
        let (_wanting, go_on) = Wanting::new(self.0);
        let pg_wal = data.join("pg_wal");
        let (parent, record, asked) = (snapshot.clone(), record.clone(), go_on.clone());
        let told = beside(move || Ok(by_log(&parent, &record, &control, &pg_wal, &asked))).await?;
        self.0.go_on()?;
        match told {
            Ok(blocks) => {
                gathered.blocks(&blocks);
                Ok(("log", None))
            }
            Err(reason) => {
                let why = reason.to_string();
                by_content(self.0, (found, snapshot), &data, &go_on, gathered).await?;
                Ok(("content", Some(why)))
            }
        }
    }
}

async fn by_maps(
    found: &Found,
    first: &Snapshot,
    second: &Snapshot,
    gathered: &mut Gathered,
) -> Result<()> {
    let failed = |error| Error::repository(found.repository.label(), error);
    let mut diff = Diff::new(first.view(), second.view(), true);
    while let Some(file) = found.repository.maps.run(&mut diff).await.map_err(failed)? {
        let size = |attributes: &Option<neon_pagestore::map::Attributes>| match attributes
            .as_ref()
            .map(|attributes| &attributes.kind)
        {
            Some(FileKind::File { size }) => Some(*size),
            _ => None,
        };
        gathered.file(
            &file.path,
            size(&file.before),
            size(&file.after),
            &file.pages,
        );
    }
    Ok(())
}

async fn by_digests(
    first: (&Found, &Snapshot),
    second: (&Found, &Snapshot),
    gathered: &mut Gathered,
) -> Result<()> {
    let mut walks = (
        Walk::new(first.1.view(), true),
        Walk::new(second.1.view(), true),
    );
    let next = async |(found, snapshot): (&Found, &Snapshot), walk: &mut Walk| {
        let file = snapshot.maps().run(walk).await;
        file.map_err(|error| Error::repository(found.subject(), error))
    };
    let mut left = next(first, &mut walks.0).await?;
    let mut right = next(second, &mut walks.1).await?;
    loop {
        let (take_left, take_right) = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(left), Some(right)) => (left.path <= right.path, right.path <= left.path),
            (left, right) => (left.is_some(), right.is_some()),
        };
        let old = if take_left { left.take() } else { None };
        let new = if take_right { right.take() } else { None };
        gathered.compared(old.as_ref(), new.as_ref());
        if take_left {
            left = next(first, &mut walks.0).await?;
        }
        if take_right {
            right = next(second, &mut walks.1).await?;
        }
    }
}

/// What the log says of blocks from a snapshot to where the log ends now.
fn by_log(
    snapshot: &Snapshot,
    record: &PgRecord,
    control: &neon_pg_layout::ControlFile,
    pg_wal: &Path,
    go_on: &GoOn,
) -> Result<BlockRefTable, CannotSay> {
    let recorded = Parent::recorded(snapshot.id(), snapshot.facts())?;
    let unreadable = |why: String| CannotSay::Unreadable {
        what: "the log".into(),
        why,
    };
    let timeline = control
        .min_recovery_timeline
        .unwrap_or(control.checkpoint.timeline);
    let timelines = history(pg_wal, timeline).map_err(|error| unreadable(error.to_string()))?;
    let mut log = SegmentDirectory::new(pg_wal);
    let size = control.build.wal_segment_size;
    let child = Child {
        lineage: record.lineage,
        base: record.base.as_ref().map(|base| base.snapshot),
        cluster: ClusterFacts::of(control),
        history: timelines.clone(),
        // The log is followed beyond it.
        redo: control.checkpoint.redo,
        clean_stop: false,
        tail: read_tail(size, &timelines, recorded.stop, &mut log).ok(),
    };
    let span = Span::between(&recorded, &child).map_err(CannotSay::Parent)?;
    let mut walk = LogWalk::new(&recorded.cluster, &timelines, span.start())
        .map_err(|error| unreadable(error.to_string()))?;
    let mut asked = |_| match go_on.stopped() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    match walk.advance(Lsn::MAX, &mut log, &mut asked) {
        // It ends where the server writes, or with the last segment.
        Ok(_) => Ok(walk.blocks().clone()),
        Err(CannotSay::LogEnds { at, .. } | CannotSay::LogMissing { at, .. })
            if at >= span.end() =>
        {
            Ok(walk.blocks().clone())
        }
        Err(reason) => Err(reason),
    }
}

/// Reads every file of a live cluster and compares it with the digests of a snapshot.
async fn by_content(
    neon: &Neon,
    (found, snapshot): (&Found, &Snapshot),
    data: &Path,
    go_on: &GoOn,
    gathered: &mut Gathered,
) -> Result<()> {
    let mut walk = Walk::new(snapshot.view(), true);
    let page_size = u64::from(snapshot.view().page_size);
    let mut seen = BTreeSet::new();
    let layout = snapshot.facts().cluster.major.layout();
    while let Some(file) = snapshot
        .maps()
        .run(&mut walk)
        .await
        .map_err(|error| Error::repository(found.subject(), error))?
    {
        neon.go_on()?;
        let Some(path) = file.path.as_str().map(str::to_owned) else {
            continue;
        };
        if !counts(&path, layout) || !matches!(file.attributes.kind, FileKind::File { .. }) {
            continue;
        }
        seen.insert(path.clone());
        let (place, known) = (data.join(&path), pages_of(&file));
        let asked = go_on.clone();
        let found = beside(move || compare_content(&place, &known, page_size, &asked)).await?;
        let FileKind::File { size } = file.attributes.kind else {
            continue;
        };
        let (now, pages) = match found {
            Some((now, pages)) => (Some(now), pages),
            None => (None, whole(size, page_size)),
        };
        gathered.file(&file.path, Some(size), now, &pages);
    }
    let (place, known) = (data.to_owned(), seen);
    let added = beside(move || Ok(files_below(&place, &known))).await?;
    for (path, size) in added {
        if let Ok(path) = SnapshotPath::new(path.as_str())
            && counts(path.as_str().unwrap_or_default(), layout)
        {
            gathered.file(&path, None, Some(size), &whole(size, page_size));
        }
    }
    Ok(())
}

/// Files that a snapshot has of other states than the live one are not compared.
fn counts(path: &str, layout: &VersionLayout) -> bool {
    match DataFile::of(path, layout) {
        DataFile::Relation(relation) => relation.backend.is_none(),
        DataFile::Slru { area, .. } => area.outlives_a_start(),
        DataFile::RelationMap { .. } | DataFile::DatabaseVersion { .. } => true,
        _ => false,
    }
}

#[expect(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is meant"
)]
fn whole(size: u64, page_size: u64) -> Vec<Range<u32>> {
    let pages = u32::try_from(size.div_ceil(page_size.max(1))).unwrap_or(u32::MAX);
    if pages == 0 {
        Vec::new()
    } else {
        vec![0..pages]
    }
}

/// Every page of a file that has a place, in order.
fn pages_of(file: &MappedFile) -> BTreeMap<u32, ParentPage> {
    let mut digests = file.digests.iter();
    let mut pages = BTreeMap::new();
    for extent in &file.extents {
        for page in extent.page..extent.end() {
            let known = match extent.at {
                At::Zeros => Some(ParentPage::Zeros),
                At::Frame { .. } => digests.next().copied().map(ParentPage::Digest),
            };
            if let Some(known) = known {
                pages.insert(page, known);
            }
        }
    }
    pages
}

type Compared = Option<(u64, Vec<Range<u32>>)>;

fn compare_content(
    path: &Path,
    known: &BTreeMap<u32, ParentPage>,
    page_size: u64,
    go_on: &GoOn,
) -> Result<Compared> {
    let Ok(mut file) = std::fs::File::open(path) else {
        return Ok(None);
    };
    let mut page = Vec::new();
    let (mut number, mut size) = (0_u32, 0_u64);
    let mut pages: Vec<Range<u32>> = Vec::new();
    loop {
        if go_on.stopped() {
            return Ok(None);
        }
        page.clear();
        let read = (&mut file).take(page_size).read_to_end(&mut page);
        let read = read.map_err(|error| Error::io(path, "cannot be read", error))?;
        if read == 0 {
            break;
        }
        size = size.saturating_add(read as u64);
        if !known.get(&number).is_some_and(|known| known.is(&page)) {
            push(&mut pages, number);
        }
        number = number.saturating_add(1);
    }
    for gone in known.range(number..).map(|(number, _)| *number) {
        push(&mut pages, gone);
    }
    Ok(Some((size, pages)))
}

fn push(pages: &mut Vec<Range<u32>>, page: u32) {
    match pages.last_mut() {
        Some(last) if last.end == page => last.end = page.saturating_add(1),
        _ => pages.push(page..page.saturating_add(1)),
    }
}

fn files_below(data: &Path, known: &BTreeSet<String>) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(data.join(&folder));
        for entry in entries.into_iter().flatten().flatten() {
            let path = folder.join(entry.file_name());
            let Ok(facts) = std::fs::metadata(entry.path()) else {
                continue;
            };
            if facts.is_dir() {
                folders.push(path);
            } else if let Some(path) = path.to_str()
                && !known.contains(path)
            {
                found.push((path.to_owned(), facts.len()));
            }
        }
    }
    found.sort();
    found
}

/// What was found to differ, by relation.
struct Gathered {
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
    fn new(layout: &'static VersionLayout, page_size: u32) -> Self {
        Self {
            layout,
            page_size: page_size.into(),
            relations: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// A file that may differ: its sizes then and now, and pages.
    fn file(
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
    fn compared(&mut self, old: Option<&MappedFile>, new: Option<&MappedFile>) {
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
    fn blocks(&mut self, table: &BlockRefTable) {
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
    fn turn(&mut self) {
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
    async fn finish(self, named: &[Files]) -> Result<(Vec<RelationDiff>, Vec<OtherDiff>)> {
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
