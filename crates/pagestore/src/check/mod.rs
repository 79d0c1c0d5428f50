//! Checks a repository: every object parsed, every frame that a snapshot needs found; with data, every stored byte, page
//! digest and page checksum.

mod content;
mod objects;
mod packs;
mod seen;

use std::collections::{BTreeSet, HashMap, HashSet};

use neon_snapshot_format::pack::PackId;

use crate::check::packs::Noted;
use crate::check::seen::SeenPages;
use crate::error::{Error, ErrorKind, Result};
use crate::gc::run;
use crate::id::CommitId;
use crate::map::{At, Cells, LiveFrames, Walk};
use crate::moves::MovePiece;
use crate::read::FrameReader;
use crate::repository::Repository;

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
        let mut check = Check::new(self, read_data);
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
        if !self.lists() {
            // What the storage says to that.
            crate::gc::list_packs(self).await?;
        }
        // Of its packs only what it needs is read.
        let mut check = Check::new(self, false);
        check.checked.snapshots = 1;
        check.checked.objects = 1;
        let outcome = check.one(id, read_data).await;
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound && check.packs.is_empty() => {
                return Err(error);
            }
            Err(error) => check.found_error(error)?,
            Ok(()) => {}
        }
        check.note_found(id);
        Ok(check.checked)
    }
}

/// What is wrong with something, and of what sort that is.
type Problem = (ErrorKind, String);

struct Check<'a> {
    repository: &'a Repository,
    reader: FrameReader,
    read_data: bool,
    checked: Checked,
    /// Where a finding is in the list, by object and problem.
    noted: HashMap<(String, String), usize>,
    /// What was found about the snapshot that is being looked at: noted when it is still there afterwards.
    found: Vec<(String, Problem)>,
    packs: HashMap<PackId, u64>,
    /// Of each pack that is there what its directory says; nothing if it cannot be read.
    files: HashMap<PackId, Option<Vec<Noted>>>,
    moves: HashMap<PackId, Vec<MovePiece>>,
    /// Packs of which it was asked a second time where their frames moved.
    asked_again: HashSet<PackId>,
    /// Packs in which something is not encrypted that should be.
    open: HashSet<PackId>,
    /// What of frames was looked at; what is bad is among `bad` too.
    good: LiveFrames,
    /// By the cells that are.
    bad: HashMap<(PackId, u64), (Cells, Problem)>,
    /// Pages that were looked at, by their size; those that are bad are among `bad_pages` too.
    seen: HashMap<u32, SeenPages>,
    bad_pages: HashMap<(PackId, u64, u32), Problem>,
}

impl<'a> Check<'a> {
    fn new(repository: &'a Repository, read_data: bool) -> Self {
        Self {
            repository,
            reader: repository.frames(),
            read_data,
            checked: Checked::default(),
            noted: HashMap::new(),
            found: Vec::new(),
            packs: HashMap::new(),
            files: HashMap::new(),
            moves: HashMap::new(),
            asked_again: HashSet::new(),
            open: HashSet::new(),
            good: LiveFrames::default(),
            bad: HashMap::new(),
            seen: HashMap::new(),
            bad_pages: HashMap::new(),
        }
    }

    fn note(
        &mut self,
        object: String,
        problem: String,
        kind: ErrorKind,
        snapshot: Option<CommitId>,
    ) {
        let findings = &mut self.checked.findings;
        let at = *self
            .noted
            .entry((object, problem))
            .or_insert_with_key(|(object, problem)| {
                findings.push(Finding {
                    object: object.clone(),
                    problem: problem.clone(),
                    kind,
                    snapshots: BTreeSet::new(),
                });
                findings.len() - 1
            });
        if let Some(finding) = findings.get_mut(at) {
            finding.snapshots.extend(snapshot);
        }
    }

    /// Notes what was found about a snapshot.
    fn note_found(&mut self, snapshot: CommitId) {
        for (object, (kind, problem)) in std::mem::take(&mut self.found) {
            self.note(object, problem, kind, Some(snapshot));
        }
    }

    /// Notes an error about an object, unless it is the storage that fails: then nothing is known.
    fn note_error(&mut self, error: Error, snapshot: Option<CommitId>) -> Result<()> {
        let (object, (kind, problem)) = told(error)?;
        self.note(object, problem, kind, snapshot);
        Ok(())
    }

    /// As [`note_error`](Self::note_error), about the snapshot that is being looked at.
    fn found_error(&mut self, error: Error) -> Result<()> {
        self.found.push(told(error)?);
        Ok(())
    }

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
        self.packs = crate::gc::list_packs(self.repository).await?;
        let moved = self.moves_of(&needed).await?;
        self.packs
            .retain(|pack, _| needed.contains(pack) || moved.contains(pack));
        self.directories().await?;
        self.read_data = read_data;
        self.snapshot(&commit).await
    }
}

/// What an error says, and of what.
fn told(error: Error) -> Result<(String, Problem)> {
    if !error.is_of_object() {
        return Err(error);
    }
    let mut problem = error.reason().to_owned();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        problem = format!("{problem}: {source}");
        cause = source.source();
    }
    Ok((error.subject().to_owned(), (error.kind(), problem)))
}
