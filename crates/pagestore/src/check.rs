//! Checks a repository: every object parsed, every frame that a snapshot needs found; with data, every stored byte, page
//! digest and page checksum.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use neon_snapshot_format::pack::PackId;
use neon_storage::{ListOptions, ObjectMeta, StorageExt};

use crate::claim::ClaimBody;
use crate::commit::Commit;
use crate::commit_object::CommitObject;
use crate::doomed::DoomedBody;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::run;
use crate::id::{CommitId, from_hex};
use crate::keys;
use crate::lease::LeaseBody;
use crate::map::{At, FrameRef, MappedFile, Walk};
use crate::moves::MovePiece;
use crate::object::{Object, ObjectKind};
use crate::pack_file::PackFile;
use crate::page_rules::PageRules;
use crate::pin::PinBody;
use crate::read::FrameReader;
use crate::repository::Repository;
use crate::tombstone::{TombstoneBody, Tombstones};

/// Extents of a file whose frames are read together.
const AHEAD: usize = 64;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The object, frame, page or snapshot it is about.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What sort of problem it is.
    pub kind: ErrorKind,
    /// The snapshots that it hurts.
    pub snapshots: BTreeSet<CommitId>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Snapshots that were checked.
    pub snapshots: u64,
    /// Small objects that were read.
    pub objects: u64,
    /// Packs whose directories were read.
    pub packs: u64,
    /// Frames that snapshots need.
    pub frames: u64,
    /// Pages whose content was read.
    pub pages: u64,
    /// What is wrong; empty when all is well.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    fn note(
        &mut self,
        object: String,
        problem: String,
        kind: ErrorKind,
        snapshot: Option<CommitId>,
    ) {
        let known = self
            .findings
            .iter_mut()
            .find(|finding| finding.object == object && finding.problem == problem);
        match known {
            Some(finding) => finding.snapshots.extend(snapshot),
            None => self.findings.push(Finding {
                object,
                problem,
                kind,
                snapshots: snapshot.into_iter().collect(),
            }),
        }
    }

    /// Notes an error about an object, unless it is the storage that fails: then nothing is known.
    fn note_error(&mut self, error: Error, snapshot: Option<CommitId>) -> Result<()> {
        if matches!(
            error.kind(),
            ErrorKind::Storage | ErrorKind::Cancelled | ErrorKind::Io
        ) {
            return Err(error);
        }
        let mut problem = error.reason().to_owned();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            problem = format!("{problem}: {source}");
            cause = source.source();
        }
        self.note(error.subject().to_owned(), problem, error.kind(), snapshot);
        Ok(())
    }
}

impl Repository {
    /// Checks the repository. With `read_data` it reads every byte of every pack.
    ///
    /// Changes nothing. What is collected while it runs is not missed.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage) when the storage fails, so that nothing is known. What is wrong with the repository
    /// is no error but a finding.
    pub async fn check(&self, read_data: bool) -> Result<Checked> {
        let mut check = Check {
            repository: self,
            reader: self.frames(),
            read_data,
            checked: Checked::default(),
            packs: HashMap::new(),
            files: HashMap::new(),
            moves: HashMap::new(),
            verdicts: HashMap::new(),
            pages: HashSet::new(),
        };
        check.small_objects().await?;
        check.directories().await?;
        check.snapshots().await?;
        Ok(check.checked)
    }

    /// Checks one snapshot: its commit, its map, and that every frame it needs is there. With `read_data` it reads them all
    /// and judges every page.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such snapshot; as [`check`](Self::check).
    pub async fn check_snapshot(&self, id: CommitId, read_data: bool) -> Result<Checked> {
        let mut check = Check {
            repository: self,
            reader: self.frames(),
            // Of its packs only what it needs is read.
            read_data: false,
            checked: Checked::default(),
            packs: HashMap::new(),
            files: HashMap::new(),
            moves: HashMap::new(),
            verdicts: HashMap::new(),
            pages: HashSet::new(),
        };
        check.checked.snapshots = 1;
        check.checked.objects = 1;
        let outcome = check.one(id, read_data).await;
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound && check.packs.is_empty() => {
                return Err(error);
            }
            Err(error) => check.checked.note_error(error, Some(id))?,
            Ok(()) => {}
        }
        Ok(check.checked)
    }
}

/// Where a frame was found, or what is wrong with it.
type Verdict = std::result::Result<(), (ErrorKind, String)>;

struct Check<'a> {
    repository: &'a Repository,
    reader: FrameReader,
    read_data: bool,
    checked: Checked,
    packs: HashMap<PackId, u64>,
    files: HashMap<PackId, Option<Arc<PackFile>>>,
    moves: HashMap<PackId, Vec<MovePiece>>,
    verdicts: HashMap<(PackId, u64), Verdict>,
    /// Pages that were looked at: frame and offset in it.
    pages: HashSet<(PackId, u64, u32)>,
}

impl Check<'_> {
    async fn one(&mut self, id: CommitId, read_data: bool) -> Result<()> {
        let commit = self.repository.require_kept(id).await?.commit;
        let view = commit.view()?;
        let mut needed: BTreeSet<PackId> = view
            .runs
            .iter()
            .flat_map(|run| run.index_frames())
            .map(|(_, frame)| frame.pack.id)
            .collect();
        let mut walk = Walk::new(&view, false);
        while let Some(file) = run(&self.reader, &mut walk).await? {
            needed.extend(file.extents.iter().filter_map(|extent| match &extent.at {
                At::Frame { frame, .. } => Some(frame.pack.id),
                At::Zeros => None,
            }));
        }
        let mut packs = crate::gc::list_packs(self.repository).await?;
        packs.retain(|pack, _| needed.contains(pack));
        self.packs = packs.into_iter().collect();
        self.directories().await?;
        self.read_data = read_data;
        self.snapshot(id, &commit).await
    }

    /// Every object but packs, each by the format that its key asks for.
    async fn small_objects(&mut self) -> Result<()> {
        let storage = Arc::clone(self.repository.storage());
        let mut listing = storage.list(ListOptions::all());
        while let Some(object) = listing
            .try_next()
            .await
            .map_err(|error| Error::storage("all objects", error))?
        {
            let folder = object
                .key
                .as_str()
                .split_once('/')
                .map_or("", |(folder, _)| folder);
            if folder == "packs" {
                match keys::pack_of(&object.key) {
                    Some(id) => {
                        self.packs.insert(id, object.size);
                    }
                    None => self.stray(&object),
                }
                continue;
            }
            let parsed = match folder {
                "snapshots" => self.parse_commit(&object).await,
                "names" if object.key.as_str().contains("/declined-") => {
                    self.parse::<ClaimBody>(&object, ObjectKind::Declined).await
                }
                "names" => self.parse::<ClaimBody>(&object, ObjectKind::Claim).await,
                "leases" => self.parse::<LeaseBody>(&object, ObjectKind::Lease).await,
                "pins" => self.parse::<PinBody>(&object, ObjectKind::Pin).await,
                "tombstones" => {
                    self.parse::<TombstoneBody>(&object, ObjectKind::Tombstone)
                        .await
                }
                "doomed" => self.parse::<DoomedBody>(&object, ObjectKind::Doomed).await,
                "catalog" => {
                    self.parse::<Vec<crate::catalog::Entry>>(&object, ObjectKind::Catalog)
                        .await
                }
                "moves" => self.parse_moves(&object).await,
                "keys" if keys::is_envelope(&object.key) => self.parse_envelope(&object).await,
                // Not ours: archived log, policies; and what the repository was opened with.
                _ => continue,
            };
            self.checked.objects = self.checked.objects.saturating_add(1);
            match parsed {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.checked.note_error(error, None)?,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn stray(&mut self, object: &ObjectMeta) {
        self.checked.note(
            object.key.to_string(),
            "is not where packs are".to_owned(),
            ErrorKind::Malformed,
            None,
        );
    }

    async fn parse<T: for<'de> serde::Deserialize<'de>>(
        &self,
        object: &ObjectMeta,
        kind: ObjectKind,
    ) -> Result<()> {
        self.repository
            .get_json::<T>(&object.key, kind)
            .await
            .map(drop)
    }

    async fn parse_commit(&self, object: &ObjectMeta) -> Result<()> {
        let commit = keys::commit_of(&object.key)
            .ok_or_else(|| Error::malformed(object.key.as_str(), "is not where snapshots are"))?;
        let (_, commit) = self.repository.read_commit_object(commit).await?;
        commit.view().map(drop)
    }

    async fn parse_moves(&mut self, object: &ObjectMeta) -> Result<()> {
        let old = object.key.segments().nth(1).and_then(from_hex).map(PackId);
        let old =
            old.ok_or_else(|| Error::malformed(object.key.as_str(), "is not where moves are"))?;
        let found = self
            .repository
            .get_object(&object.key, ObjectKind::Moves)
            .await?;
        crate::moves::decode(&object.key, &found.body)?;
        if !self.moves.contains_key(&old) {
            let pieces = self.repository.moves_of(old).await?;
            self.moves.insert(old, pieces);
        }
        Ok(())
    }

    async fn parse_envelope(&self, object: &ObjectMeta) -> Result<()> {
        let bytes = self.repository.storage().read(&object.key).await;
        let bytes = bytes.map_err(|error| Error::storage(object.key.as_str(), error))?;
        let envelope = Object::decode(&object.key, ObjectKind::Key, &bytes, None)?;
        self.repository
            .check_voucher(&envelope.body)
            .map_err(|error| Error::malformed(object.key.as_str(), "holds no key").caused_by(error))
    }

    /// The directories of all packs; with data, all their bytes.
    async fn directories(&mut self) -> Result<()> {
        let packs: BTreeMap<PackId, u64> =
            self.packs.iter().map(|(id, size)| (*id, *size)).collect();
        for (id, size) in packs {
            let file = match self.repository.pack_file(id, size).await {
                Ok(file) => Some(Arc::new(file)),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    self.checked.note_error(about_pack(id, error), None)?;
                    None
                }
            };
            self.checked.packs = self.checked.packs.saturating_add(1);
            if let (Some(file), true) = (&file, self.read_data)
                && let Err(error) = self.every_byte(file).await
            {
                match error.kind() {
                    ErrorKind::NotFound => continue,
                    _ => self.checked.note_error(about_pack(id, error), None)?,
                }
            }
            self.files.insert(id, file);
        }
        Ok(())
    }

    /// What the directory does not vouch for is the head; frames are checked one by one, so that each damaged one
    /// is named.
    async fn every_byte(&mut self, file: &PackFile) -> Result<()> {
        let head = self.repository.pack_range(file.id, 0..64).await?;
        let (covered, digest) = head.split_at_checked(48).unwrap_or_default();
        if blake3::hash(covered)
            .as_bytes()
            .first_chunk::<16>()
            .map(<[u8; 16]>::as_slice)
            != Some(digest)
        {
            return Err(Error::damaged(
                format!("pack {}", file.id),
                "its head does not match its digest",
            ));
        }
        // All at once, as few requests as may be; one by one only to tell which are damaged.
        match self
            .repository
            .each_stored(file.id, &file.records, |_, _| Ok(()))
            .await
        {
            Err(error) if error.kind() == ErrorKind::Damaged => {}
            whole => return whole,
        }
        for (number, record) in (0_u64..).zip(&file.records) {
            let one = std::slice::from_ref(record);
            match self
                .repository
                .each_stored(file.id, one, |_, _| Ok(()))
                .await
            {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Damaged) => {
                    let problem = (
                        ErrorKind::Damaged,
                        "its bytes are not those that were written".to_owned(),
                    );
                    self.checked.note(
                        frame_name(file.id, number),
                        problem.1.clone(),
                        problem.0,
                        None,
                    );
                    self.verdicts.insert((file.id, number), Err(problem));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn snapshots(&mut self) -> Result<()> {
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
                // Gone meanwhile, or noted already.
                Err(error) if error.kind() != ErrorKind::Storage => {
                    if error.kind() != ErrorKind::NotFound {
                        let object = format!("{}{object}", keys::SNAPSHOTS);
                        for finding in self
                            .checked
                            .findings
                            .iter_mut()
                            .filter(|finding| finding.object == object)
                        {
                            finding.snapshots.insert(id);
                        }
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            if tombstones.bury(object, writer) || !looked_at.insert(id) {
                continue;
            }
            self.checked.snapshots = self.checked.snapshots.saturating_add(1);
            let outcome = self.snapshot(id, &commit).await;
            if let Err(error) = outcome
                && !self.gone(object, &tombstones).await?
            {
                self.checked.note_error(error, Some(id))?;
            }
        }
        Ok(())
    }

    /// Whether a snapshot was destroyed while we looked at it.
    async fn gone(&self, object: CommitObject, before: &Tombstones) -> Result<bool> {
        let now = self.repository.tombstones().await?;
        Ok(now.commits.contains_key(&object) && !before.commits.contains_key(&object))
    }

    /// Reads the whole map, and looks at every frame it leads to.
    async fn snapshot(&mut self, id: CommitId, commit: &Commit) -> Result<()> {
        let view = commit.view()?;
        let reader = self.reader.clone();
        let mut walk = Walk::new(&view, true);
        while let Some(file) = run(&reader, &mut walk).await? {
            for extent in &file.extents {
                let At::Frame { frame, .. } = &extent.at else {
                    continue;
                };
                if let Err((kind, problem)) = self.frame(frame).await? {
                    let object = frame_name(frame.pack.id, frame.frame);
                    self.checked.note(object, problem, kind, Some(id));
                }
            }
            if self.read_data {
                self.content(id, commit, &file, view.page_size).await?;
            }
        }
        Ok(())
    }

    /// Whether a frame is where the map or a move says.
    async fn frame(&mut self, frame: &FrameRef) -> Result<Verdict> {
        if let Some(verdict) = self.verdicts.get(&frame.id()) {
            return Ok(verdict.clone());
        }
        self.checked.frames = self.checked.frames.saturating_add(1);
        let verdict = self.look(frame);
        // What is nowhere may have been moved while we looked.
        let verdict = match verdict {
            Err((ErrorKind::NotFound, problem)) => {
                let pieces = self.repository.moves_of(frame.pack.id).await?;
                match pieces.iter().any(|piece| piece.find(frame.frame).is_some())
                    && self.read_again(frame).await?
                {
                    true => Ok(()),
                    false => Err((ErrorKind::Damaged, problem)),
                }
            }
            verdict => verdict,
        };
        self.verdicts.insert(frame.id(), verdict.clone());
        Ok(verdict)
    }

    async fn read_again(&self, frame: &FrameRef) -> Result<bool> {
        match self.reader.get(frame).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Storage => Err(error),
            Err(_) => Ok(false),
        }
    }

    fn look(&self, frame: &FrameRef) -> Verdict {
        if let Some(file) = self.files.get(&frame.pack.id) {
            let Some(file) = file else {
                return Err((ErrorKind::Damaged, "its pack cannot be read".to_owned()));
            };
            let record = usize::try_from(frame.frame)
                .ok()
                .and_then(|number| file.records.get(number));
            let same = record.is_some_and(|record| {
                record.offset() == frame.offset
                    && record.stored_length() == frame.stored_length
                    && record.digest() == &frame.digest
            });
            return match same {
                true => Ok(()),
                false => Err((
                    ErrorKind::Damaged,
                    "its pack says something else of it than the map".to_owned(),
                )),
            };
        }
        let pieces = self
            .moves
            .get(&frame.pack.id)
            .map(Vec::as_slice)
            .unwrap_or_default();
        for piece in pieces {
            let (Some(moved), Some(Some(file))) =
                (piece.find(frame.frame), self.files.get(&piece.new))
            else {
                continue;
            };
            let at = file
                .records
                .binary_search_by_key(&moved.offset, |record| record.offset());
            let record = at.ok().and_then(|at| file.records.get(at));
            return match record.is_some_and(|record| record.stored_length() == moved.length) {
                true => Ok(()),
                false => Err((
                    ErrorKind::Damaged,
                    "is not in the pack that it moved to".to_owned(),
                )),
            };
        }
        Err((ErrorKind::NotFound, "is not in the storage".to_owned()))
    }

    /// The pages of a file: digests, and checksums of relations.
    async fn content(
        &mut self,
        id: CommitId,
        commit: &Commit,
        file: &MappedFile,
        page_size: u32,
    ) -> Result<()> {
        let rules = PageRules::of(commit, file);
        let mut digests = file.digests.iter();
        let mut ahead = AHEAD;
        for (at, extent) in file.extents.iter().enumerate() {
            if ahead == AHEAD {
                ahead = 0;
                let soon = file
                    .extents
                    .iter()
                    .skip(at)
                    .take(AHEAD)
                    .filter_map(|extent| match &extent.at {
                        At::Frame { frame, .. } => Some(*frame),
                        At::Zeros => None,
                    });
                let soon: Vec<FrameRef> = soon.collect();
                // Few requests for many frames; what fails is read again, and named, one by one.
                drop(self.reader.get_many(&soon).await);
            }
            ahead = ahead.saturating_add(1);
            let At::Frame { frame, offset } = &extent.at else {
                continue;
            };
            let mut plain: Option<Bytes> = None;
            for number in 0..extent.count {
                let digest = digests.next();
                let start = offset.saturating_add(number.saturating_mul(page_size));
                if !self.pages.insert((frame.pack.id, frame.frame, start)) {
                    continue;
                }
                let bytes = match &plain {
                    Some(bytes) => bytes.clone(),
                    None => match self.reader.get(frame).await {
                        Ok(bytes) => plain.insert(bytes).clone(),
                        Err(error) => {
                            self.pages.remove(&(frame.pack.id, frame.frame, start));
                            self.checked.note_error(error, Some(id))?;
                            break;
                        }
                    },
                };
                self.checked.pages = self.checked.pages.saturating_add(1);
                let end = start.saturating_add(page_size).min(file_end(
                    file,
                    extent.page,
                    number,
                    page_size,
                    start,
                ));
                let page = bytes
                    .get(start as usize..(end as usize).min(bytes.len()))
                    .unwrap_or_default();
                let block = u64::from(extent.page).saturating_add(number.into());
                let name = || format!("page {block} of {}", file.path);
                let same = blake3::hash(page).as_bytes().first_chunk::<16>() == digest;
                if !same {
                    let problem = "does not match its digest".to_owned();
                    self.checked
                        .note(name(), problem, ErrorKind::Damaged, Some(id));
                } else if let Some(problem) =
                    rules.as_ref().and_then(|rules| rules.judge(page, block))
                {
                    self.checked
                        .note(name(), problem, ErrorKind::Damaged, Some(id));
                }
            }
        }
        Ok(())
    }
}

/// Where the last page of a file ends in its frame.
fn file_end(file: &MappedFile, first: u32, number: u32, page_size: u32, start: u32) -> u32 {
    let crate::map::FileKind::File { size } = file.attributes.kind else {
        return u32::MAX;
    };
    let at = u64::from(first)
        .saturating_add(number.into())
        .saturating_mul(page_size.into());
    let left = u32::try_from(size.saturating_sub(at)).unwrap_or(u32::MAX);
    start.saturating_add(left)
}

fn frame_name(pack: PackId, frame: u64) -> String {
    format!("frame {frame} of pack {pack}")
}

fn about_pack(id: PackId, error: Error) -> Error {
    match error.subject().contains(&id.to_string()) {
        true => error,
        false => Error::new(error.kind(), format!("pack {id}"), "cannot be read").caused_by(error),
    }
}
