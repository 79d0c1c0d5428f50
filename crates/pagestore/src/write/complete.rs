//! From what came in to the map of the snapshot.
//!
//! The list of what came and the files of the parent are walked side by side. What is new, changed or gone goes into
//! the newest run; how many of the parent's runs are merged with it, the level policy says.

use std::ops::Range;
use std::sync::atomic::Ordering;

use neon_snapshot_format::pack::{Codec, Flags};
use neon_snapshot_format::{End, SnapshotPath};

use crate::changes::Hints;
use crate::commit::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::facts::{BadPage, Facts, Noted};
use crate::id::CommitId;
use crate::map::{
    Attributes, BlockSink, FileKind, FileState, KEEP_ALL, MappedFile, Merge, RunRef, RunWriter,
    Spool, View, Walk, encode_runs, policy,
};
use crate::read::{MapReader, Snapshot};
use crate::write::gather::{Item, Sorted};
use crate::write::packs::Packs;
use crate::write::part::{ANNOUNCED, Coming, GONE, Part, get_announced, get_part};
use crate::write::snapshot::{Counted, SnapshotWriter, WriteReport};
use crate::writing::read_only;

/// The snapshot whose pages a new one shares.
#[derive(Debug, Clone)]
pub struct Parent {
    /// Its map.
    pub view: View,
    /// Reads it.
    pub maps: MapReader,
    /// Additions that its writer used.
    pub flags: Flags,
    /// Its id.
    pub id: CommitId,
    /// Whether hints on its pages [may be older](Facts::hints_may_be_older) than they were in the cluster.
    pub hints_may_be_older: bool,
}

impl Parent {
    /// An open snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            view: snapshot.view().clone(),
            maps: snapshot.maps().clone(),
            flags: snapshot.flags(),
            id: snapshot.id(),
            hints_may_be_older: snapshot.facts().hints_may_be_older,
        }
    }
}

/// A snapshot of which everything but the commit is stored.
#[derive(Debug)]
#[non_exhaustive]
pub struct Stored {
    /// Its map, to be put into the commit.
    pub view: View,
    /// What the source said at the end.
    pub end: End,
    /// What was written.
    pub report: WriteReport,
    parent: Option<CommitId>,
    /// Bytes of the cluster that were read before any came.
    scanned: u64,
    hints: Hints,
}

impl Stored {
    /// The commit of it: what the caller knows, with what was found out while writing. Damaged pages that the caller
    /// names are added to those that the source named.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when the cluster has pages of another size than the writer was
    /// [told](crate::write::SnapshotOptions::page_size), or another parent is named than the one it was written with.
    pub fn commit(&self, mut facts: Facts) -> Result<Commit> {
        if facts.cluster.block_size != self.view.page_size {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                format!(
                    "the cluster has pages of {} bytes, and it was written with pages of {}",
                    facts.cluster.block_size, self.view.page_size
                ),
            ));
        }
        if let (Some(said), Some(parent)) = (facts.parent, self.parent)
            && said != parent
        {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {said}"),
                format!("is said to be the parent, which is {parent}"),
            ));
        }
        facts.parent = facts.parent.or(self.parent);
        facts.hints_may_be_older |= self.hints == Hints::MayBeOlder;
        if let Some(kind) = self.end.kind {
            facts.kind = kind;
        }
        facts.skipped = self
            .end
            .skipped
            .iter()
            .map(|skipped| Noted {
                path: skipped.path.to_string(),
                reason: skipped.reason.to_owned(),
            })
            .collect();
        // The caller may have found others.
        let known = std::mem::take(&mut facts.bad_pages);
        let said = self.end.bad_pages.iter().map(|bad| BadPage {
            path: bad.path.to_string(),
            block: bad.block,
            reason: bad.reason.clone(),
        });
        facts.bad_pages = known.into_iter().chain(said).collect();
        facts
            .bad_pages
            .sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        facts
            .bad_pages
            .dedup_by(|a, b| (&a.path, a.block) == (&b.path, b.block));
        let report = &self.report;
        facts.cost.files = report.files;
        facts.cost.bytes = report.bytes;
        facts.cost.changed_pages = report.pages.saturating_add(report.zero_pages);
        facts.cost.read_changed = report.received_changed;
        facts.cost.read_other = report
            .received
            .saturating_sub(report.received_changed)
            .saturating_add(self.scanned);
        facts.cost.written_data = report.stored_data;
        facts.cost.written_metadata = report.stored_metadata;
        Ok(Commit {
            flags: Flags::default(),
            facts,
            runs: encode_runs(&self.view.runs).into(),
        })
    }
}

impl SnapshotWriter {
    /// Makes the map, durably. To be called when all has come, from a thread outside of the runtime.
    ///
    /// With a parent, files of which nothing came keep their pages, and of files of which ranges came, all
    /// other pages.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when pages are missing that the parent does not have either, or not all that
    /// came was stored;
    /// [`Cancelled`](ErrorKind::Cancelled);
    /// [`Unsupported`](ErrorKind::Unsupported) when the parent uses additions with which this version may read it only; what
    /// the storage returns.
    pub fn complete(self) -> Result<Stored> {
        if let Some(parent) = &self.parent
            && !parent.flags.writable()
        {
            return Err(read_only("parent"));
        }
        self.check_cancelled()?;
        let end = self.end_of_source()?;
        self.require_stored()?;
        let hints = self.hints_left();
        let mut metadata = Packs::new(self.target.clone(), Codec::Zstd(3));
        let page_size = self.options.page_size;
        let parent = self.parent.as_ref();
        let runs = match parent.filter(|parent| !parent.view.runs.is_empty()) {
            None => {
                let mut writer = RunWriter::new(&mut metadata, page_size)?;
                self.delta(&mut writer, None)?;
                vec![writer.finish()?.0]
            }
            Some(parent) => {
                if parent.view.page_size != page_size {
                    return Err(Error::new(
                        ErrorKind::Inconsistent,
                        "parent",
                        "has pages of another size",
                    ));
                }
                let mut writer = RunWriter::new(Spool::default(), page_size)?;
                self.delta(&mut writer, Some(parent))?;
                let (delta, spool) = writer.finish()?;
                self.merge(&mut metadata, parent, &delta, &spool)?
            }
        };
        metadata.finish()?;
        let report = WriteReport {
            stored_metadata: metadata.written().0,
            ..self.report()
        };
        let runs = runs.into_iter().filter(|run| !run.is_empty()).collect();
        Ok(Stored {
            view: View { runs, page_size },
            end,
            report,
            parent: self.parent.as_ref().map(|parent| parent.id),
            scanned: self.known.map_or(0, |known| known.scanned),
            hints,
        })
    }

    /// Whether hints on pages that did not come are those of the cluster, judged by what was announced in part.
    fn hints_left(&self) -> Hints {
        let inherited = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.hints_may_be_older);
        match self.known {
            Some(known) if self.in_part.load(Ordering::Relaxed) => {
                if inherited && !known.read {
                    Hints::MayBeOlder
                } else {
                    known.hints
                }
            }
            _ => Hints::Exact,
        }
    }

    fn merge(
        &self,
        metadata: &mut Packs,
        parent: &Parent,
        delta: &RunRef,
        spool: &Spool,
    ) -> Result<Vec<RunRef>> {
        let old = &parent.view.runs;
        if delta.is_empty() {
            return Ok(old.clone());
        }
        let sizes: Vec<_> = old.iter().map(RunRef::size).collect();
        let count = policy::plan(&sizes, delta.size()).min(old.len());
        let (merged, kept) = old.split_at_checked(count).unwrap_or((old, &[]));
        let page_size = self.options.page_size;
        let mut merge = Merge::new(metadata, page_size, delta, merged, kept.is_empty())?;
        let unstored = |frame: &crate::map::FrameRef| spool.decode(frame).ok();
        let merged = parent.maps.wait_with(self.bridge(), &mut merge, unstored)?;
        let run = merged.map(|(run, _)| run);
        Ok(run.into_iter().chain(kept.iter().cloned()).collect())
    }

    /// Writes what differs from the parent.
    fn delta<S: BlockSink>(
        &self,
        writer: &mut RunWriter<S>,
        parent: Option<&Parent>,
    ) -> Result<()> {
        let mut news = News {
            sorted: self.gathering.sorted()?,
            ahead: None,
        };
        let mut old = parent.map(|parent| (Walk::new(&parent.view, false), &parent.maps));
        let mut next_old = || match &mut old {
            Some((walk, maps)) => maps.wait(self.bridge(), walk),
            None => Ok(None),
        };
        let (mut new, mut before) = (news.next()?, next_old()?);
        loop {
            self.check_cancelled()?;
            let order = match (&new, &before) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(new), Some(before)) => new.path.cmp(&before.path),
            };
            let matching = if order.is_le() { new.take() } else { None };
            let known = if order.is_ge() { before.take() } else { None };
            match (&matching, &known) {
                (Some(file), known) if !file.gone => {
                    self.file(writer, file, known.as_ref())?;
                }
                (_, Some(known)) => writer.begin(&known.path, &FileState::Removed)?,
                (_, None) => {}
            }
            if order.is_le() {
                new = news.next()?;
            }
            if order.is_ge() {
                before = next_old()?;
            }
        }
    }

    /// Writes what is new about one file.
    fn file<S: BlockSink>(
        &self,
        writer: &mut RunWriter<S>,
        new: &New,
        old: Option<&MappedFile>,
    ) -> Result<()> {
        let wrong = |reason| Error::new(ErrorKind::Inconsistent, new.path.to_string(), reason);
        let Some((attributes, coming)) = &new.announced else {
            return Err(wrong("data of a file that was not announced"));
        };
        let page_size = self.page_size();
        let size = size_of(attributes);
        let pages = |size: u64| u32::try_from(size.div_ceil(page_size)).unwrap_or(u32::MAX);
        // The parent's pages count only where the same path was a file already.
        let shared = old.filter(|old| {
            matches!(old.attributes.kind, FileKind::File { .. })
                && matches!(attributes.kind, FileKind::File { .. })
        });
        let missing = match (coming, shared) {
            (Coming::Whole, _) | (_, None) => new.uncovered(0, pages(size)),
            (Coming::Nothing, Some(old)) => {
                let known = size_of(&old.attributes);
                // Nothing of it is to be read also when only whole pages were cut off.
                let cut = size < known && size.is_multiple_of(page_size);
                (size != known && !cut).then_some(0)
            }
            (Coming::Ranges(ranges), Some(old)) => {
                let known = size_of(&old.attributes);
                let whole = u32::try_from(known / page_size).unwrap_or(u32::MAX);
                let grown = (size > known).then(|| whole..pages(size));
                let mut wanted = ranges.iter().cloned().chain(grown);
                wanted.find_map(|wanted| new.uncovered(wanted.start, wanted.end))
            }
        };
        if let Some(page) = missing {
            return Err(
                wrong("pages are missing that were announced or that no parent has")
                    .caused_by(format!("the first is page {page}")),
            );
        }
        if *coming != Coming::Whole || shared.is_none() {
            let came = new.parts.iter().map(|part| part.bytes(page_size, size));
            Counted::add(&self.counted.received_changed, came.sum());
        }
        let same = old.is_some_and(|old| old.attributes == *attributes);
        // Of what came, some may be the parent's: then its pages stay visible under those that are new.
        let compared = new.parts.iter().any(|part| !part.same.is_empty());
        let whole = (*coming == Coming::Whole && !compared) || shared.is_none();
        if whole && compared {
            return Err(wrong("pages of a parent that does not have them"));
        }
        let is_file = matches!(attributes.kind, FileKind::File { .. });
        let pages_came = new.parts.iter().any(|part| !part.extents.is_empty());
        if same && !pages_came && !(whole && is_file && size > 0) {
            return Ok(());
        }
        let state = if same && !whole {
            FileState::Same
        } else {
            let limit = if whole { 0 } else { KEEP_ALL };
            FileState::Present {
                attributes: attributes.clone(),
                limit,
            }
        };
        writer.begin(&new.path, &state)?;
        for part in &new.parts {
            let mut digests = part.digests.as_slice();
            for extent in &part.extents {
                let count = match extent.at {
                    crate::map::At::Zeros => 0,
                    crate::map::At::Frame { .. } => extent.count as usize,
                };
                let (own, rest) = digests
                    .split_at_checked(count)
                    .ok_or_else(|| wrong("has fewer digests than pages"))?;
                writer.pages(extent, own)?;
                digests = rest;
            }
        }
        Ok(())
    }
}

fn size_of(attributes: &Attributes) -> u64 {
    match attributes.kind {
        FileKind::File { size } => size,
        _ => 0,
    }
}

/// What came of one path.
#[derive(Debug)]
struct New {
    path: SnapshotPath,
    announced: Option<(Attributes, Coming)>,
    gone: bool,
    parts: Vec<Part>,
}

impl New {
    /// The first page from `from` up to `to` that did not come.
    fn uncovered(&self, from: u32, to: u32) -> Option<u32> {
        let mut next = from;
        for part in &self.parts {
            let mut came: Vec<Range<u32>> = part.came().collect();
            came.sort_by_key(|range| range.start);
            for range in came {
                if range.start > next {
                    return (next < to).then_some(next);
                }
                next = next.max(range.end);
            }
        }
        (next < to).then_some(next)
    }
}

/// The sorted list, by path.
struct News<'a> {
    sorted: Sorted<'a>,
    ahead: Option<Item>,
}

impl News<'_> {
    fn next(&mut self) -> Result<Option<New>> {
        let first = match self.ahead.take() {
            Some(item) => Some(item),
            None => self.sorted.next()?,
        };
        let Some(first) = first else {
            return Ok(None);
        };
        let path = SnapshotPath::new(first.path.clone())
            .map_err(|error| Error::format("list of files", error))?;
        let mut new = New {
            path,
            announced: None,
            gone: false,
            parts: Vec::new(),
        };
        new.take(&first)?;
        loop {
            match self.sorted.next()? {
                Some(item) if item.path == new.path.as_bytes() => new.take(&item)?,
                other => {
                    self.ahead = other;
                    return Ok(Some(new));
                }
            }
        }
    }
}

impl New {
    fn take(&mut self, item: &Item) -> Result<()> {
        match item.order {
            ANNOUNCED => {
                // A directory that became another file meanwhile, or a file that comes twice.
                if self.announced.is_some() {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        self.path.to_string(),
                        "comes twice",
                    ));
                }
                self.announced = Some(get_announced(&item.content)?);
            }
            GONE => self.gone = true,
            _ => self.parts.push(get_part(&item.content)?),
        }
        Ok(())
    }
}
