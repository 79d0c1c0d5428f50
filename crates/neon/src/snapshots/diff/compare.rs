//! The ways to find out what differs: maps, digests, the log, the content.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use neon_pagestore::changes::{
    CannotSay, Child, ClusterFacts, LogWalk, Parent, ParentPage, SegmentDirectory, Span, read_tail,
};
use neon_pagestore::map::{At, Diff, FileKind, MappedFile, Walk};
use neon_pagestore::read::Snapshot;
use neon_pg_layout::{BlockRefTable, DataFile, Lsn, VersionLayout};
use neon_snapshot_format::SnapshotPath;

use super::gathered::Gathered;
use crate::background::beside;
use crate::error::{Error, Result};
use crate::instances::PgRecord;
use crate::neon::Neon;
use crate::snapshots::Found;
use crate::snapshots::log_end::history;
use crate::snapshots::watch::GoOn;

pub(super) async fn by_maps(
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

pub(super) async fn by_digests(
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
pub(super) fn by_log(
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
pub(super) async fn by_content(
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
pub(super) fn pages_of(file: &MappedFile) -> BTreeMap<u32, ParentPage> {
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

pub(super) fn push(pages: &mut Vec<Range<u32>>, page: u32) {
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
