//! Snapshots: their maps, the frames these lead to, and with data the pages in them.

use std::collections::HashSet;

use crate::check::packs::frame_name;
use crate::check::seen::SeenPages;
use crate::check::{Check, Problem, told};
use crate::commit::Commit;
use crate::commit_object::CommitObject;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::run;
use crate::id::{CommitId, WriterId};
use crate::keys;
use crate::map::{At, Extent, FileKind, FrameRef, MappedFile, Walk};
use crate::page_checks::{FileChecks, PageChecks};
use crate::read::Part;
use crate::read::plain::Plain;
use crate::tombstone::Tombstones;

/// Extents of a file whose frames are read together.
const AHEAD: usize = 64;

impl Check<'_> {
    /// All that stand, each once.
    pub(super) async fn snapshots(&mut self) -> Result<()> {
        let tombstones = self.repository.tombstones().await?;
        let mut looked_at = HashSet::new();
        for object in self
            .repository
            .commit_objects_below(keys::SNAPSHOTS)
            .await?
        {
            let id = object.id;
            let (writer, commit) = match self.repository.read_commit_object(object).await {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    self.unread(&format!("{}{object}", keys::SNAPSHOTS), id, error)?;
                    continue;
                }
            };
            if tombstones.bury(object, writer) || !looked_at.insert(id) {
                continue;
            }
            self.checked.snapshots = self.checked.snapshots.saturating_add(1);
            self.found.clear();
            if let Err(error) = self.snapshot(&commit).await {
                self.found_error(error)?;
            }
            if self.found.is_empty() {
                continue;
            }
            if self.gone(object, writer, &tombstones).await? {
                // Another object of it may still stand.
                looked_at.remove(&id);
                self.found.clear();
            }
            self.note_found(id);
        }
        Ok(())
    }

    /// Notes a commit that cannot be read, or whose it is if that was noted when all small objects were read.
    fn unread(&mut self, key: &str, id: CommitId, error: Error) -> Result<()> {
        let (_, (kind, problem)) = told(error)?;
        let mut noted = false;
        for finding in &mut self.checked.findings {
            if finding.object == key {
                finding.snapshots.insert(id);
                noted = true;
            }
        }
        if !noted {
            self.note(key.to_owned(), problem, kind, Some(id));
        }
        Ok(())
    }

    /// Whether a snapshot was destroyed, or even collected, while we looked at it.
    async fn gone(
        &self,
        object: CommitObject,
        writer: WriterId,
        before: &Tombstones,
    ) -> Result<bool> {
        let now = self.repository.tombstones().await?;
        if now.bury(object, writer) && !before.bury(object, writer) {
            return Ok(true);
        }
        match self.repository.commit_author(object).await {
            Ok(author) => Ok(author.is_none()),
            Err(error) if error.is_of_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads the whole map, and looks at every frame it leads to. What is wrong is found, not noted yet.
    pub(super) async fn snapshot(&mut self, commit: &Commit) -> Result<()> {
        let view = commit.view()?;
        let checks = PageChecks::of(&commit.facts);
        let reader = self.reader.clone();
        let mut walk = Walk::new(&view, true);
        while let Some(file) = run(&reader, &mut walk).await? {
            for extent in &file.extents {
                let Some((frame, cells)) = extent.cells(view.page_size) else {
                    continue;
                };
                if let Some(problem) = self.frame(frame, cells).await? {
                    self.found
                        .push((frame_name(frame.pack.id, frame.frame), problem));
                }
            }
            if self.read_data {
                self.content(commit, checks, &file, view.page_size).await?;
            }
        }
        Ok(())
    }

    /// The pages of a file: digests, and checksums of relations.
    async fn content(
        &mut self,
        commit: &Commit,
        checks: PageChecks,
        file: &MappedFile,
        page_size: u32,
    ) -> Result<()> {
        let shown = file.path.to_string();
        let bad = commit.facts.bad_pages.iter();
        let rules = Rules {
            checks: checks.file(&file.path),
            known: bad
                .filter(|bad| bad.path == shown)
                .map(|bad| bad.block)
                .collect(),
        };
        let mut digests = file.digests.as_slice();
        let mut ahead = AHEAD;
        for (at, extent) in file.extents.iter().enumerate() {
            if ahead == AHEAD {
                ahead = 0;
                let soon = file.extents.iter().skip(at).take(AHEAD);
                let soon: Vec<Part> = soon
                    .filter_map(|extent| match &extent.at {
                        At::Frame { frame, offset } => {
                            let mut starts = starts(extent, *offset, page_size);
                            let unseen = starts
                                .any(|(_, start)| !self.seen(page_size).contains(frame, start));
                            unseen.then(|| part(extent, frame, *offset, page_size))
                        }
                        At::Zeros => None,
                    })
                    .collect();
                // Few requests for many frames; what fails is read again, and named, one by one.
                drop(self.reader.parts(&soon).await);
            }
            ahead = ahead.saturating_add(1);
            let At::Frame { frame, offset } = &extent.at else {
                continue;
            };
            let Some((own, rest)) = digests.split_at_checked(extent.count as usize) else {
                return Err(Error::malformed(shown, "has fewer digests than pages"));
            };
            digests = rest;
            let part = part(extent, frame, *offset, page_size);
            let mut plain: Option<Plain> = None;
            for ((number, start), digest) in starts(extent, *offset, page_size).zip(own) {
                let block = u64::from(extent.page).saturating_add(number.into());
                let address = (frame.pack.id, frame.frame, start);
                if self.seen(page_size).contains(frame, start) {
                    // What is wrong with it hurts this snapshot too.
                    if let Some(problem) = self.bad_pages.get(&address) {
                        let name = format!("page {block} of {shown}");
                        self.found.push((name, problem.clone()));
                    }
                    continue;
                }
                let bytes = match &plain {
                    Some(bytes) => bytes.clone(),
                    None => match self.reader.part(&part).await {
                        Ok(bytes) => plain.insert(bytes).clone(),
                        Err(error) => {
                            self.found_error(error)?;
                            break;
                        }
                    },
                };
                self.seen(page_size).insert(frame, start);
                self.checked.pages = self.checked.pages.saturating_add(1);
                let end = file_end(file, block, page_size, start);
                let end = start.saturating_add(page_size).min(end);
                let end = u64::from(end.min(frame.plain_length));
                let page = bytes.range(frame, &(start.into()..end));
                let page = page.unwrap_or_default();
                let page = page.as_ref();
                let problem = match blake3::hash(page).as_bytes().first_chunk() == Some(digest) {
                    true => rules.judge(page, block),
                    false => Some("does not match its digest".to_owned()),
                };
                if let Some(problem) = problem {
                    let problem: Problem = (ErrorKind::Damaged, problem);
                    self.bad_pages.insert(address, problem.clone());
                    self.found
                        .push((format!("page {block} of {shown}"), problem));
                }
            }
        }
        Ok(())
    }

    fn seen(&mut self, page_size: u32) -> &mut SeenPages {
        self.seen
            .entry(page_size)
            .or_insert_with(|| SeenPages::new(page_size))
    }
}

/// How the pages of one file are judged.
struct Rules {
    checks: Option<FileChecks>,
    /// Pages that the commit says are damaged.
    known: HashSet<u64>,
}

impl Rules {
    fn judge(&self, page: &[u8], block: u64) -> Option<String> {
        if self.known.contains(&block) {
            return None;
        }
        self.checks?.judge(page, block)
    }
}

/// What of a frame an extent needs.
fn part(extent: &Extent, frame: &FrameRef, offset: u32, page_size: u32) -> Part {
    Part {
        frame: *frame,
        cells: frame.cells_of(offset, extent.count, page_size),
    }
}

/// The pages of an extent: their numbers in it, and where they begin in the frame.
fn starts(
    extent: &Extent,
    offset: u32,
    page_size: u32,
) -> impl Iterator<Item = (u32, u32)> + use<> {
    let start = move |number: u32| offset.saturating_add(number.saturating_mul(page_size));
    (0..extent.count).map(move |number| (number, start(number)))
}

/// Where a page that begins here ends in its frame at the latest, because the file does.
fn file_end(file: &MappedFile, block: u64, page_size: u32, start: u32) -> u32 {
    let FileKind::File { size } = file.attributes.kind else {
        return u32::MAX;
    };
    let at = block.saturating_mul(page_size.into());
    let left = u32::try_from(size.saturating_sub(at)).unwrap_or(u32::MAX);
    start.saturating_add(left)
}
