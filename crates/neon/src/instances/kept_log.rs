//! Log that was not archived when a checkout replaced it: kept beside the instance, in `wal-kept/<lineage>`, for as long as
//! the state before that checkout is kept as `HEAD{i}`.

use std::fs;
use std::path::{Path, PathBuf};

use neon_pagestore::{CommitId, LineageId, SnapshotName};
use serde::Serialize;

use crate::error::Result;
use crate::events::Event;
use crate::instances::checkout::UnderWay;
use crate::instances::heads::{OLDEST_HEAD, head_name};
use crate::instances::used::bytes_on_disk;
use crate::instances::{Instances, PgRecord, archived};
use crate::name::Name;
use crate::operation::seconds;
use crate::record;
use crate::snapshots::room::Place;

const FOLDER: &str = "wal-kept";

/// Log that was not archived yet when a checkout replaced it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeptLog {
    /// The state before the checkout, which it goes with; absent if nobody knows any more.
    pub head: Option<SnapshotName>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Instances<'_> {
    /// What is kept of log that was not archived, the oldest first.
    pub fn kept_log(&self, record: &PgRecord) -> Vec<KeptLog> {
        let mut all: Vec<(Option<u32>, PathBuf)> = self
            .kept_folders(record)
            .into_iter()
            .map(|path| (number_of(record, &path), path))
            .collect();
        all.sort_unstable();
        all.into_iter()
            .map(|(number, path)| KeptLog {
                head: number.map(|number| head_name(&record.name, number)),
                bytes: bytes_on_disk(&path),
                path,
            })
            .collect()
    }

    /// The room that [`keep_log`](Self::keep_log) takes, before anything is replaced.
    pub(super) fn room_of_kept(&self, record: &PgRecord, data: &Path) -> Place {
        Place {
            spare: archived::bytes_of_missing(data),
            ..Place::new(self.place_of_kept(record), 0)
        }
    }

    /// Keeps what the archiver did not get yet, before a checkout replaces it. There is room for it.
    pub(super) fn keep_log(&self, record: &PgRecord, data: &Path) -> Result<()> {
        if archived::bytes_of_missing(data) == 0 {
            return Ok(());
        }
        let kept = self.place_of_kept(record).join(record.lineage.to_string());
        if archived::keep(data, &kept)? {
            self.0.tell(Event::Warning(format!(
                "Log of {} that was not archived yet is kept in {}.",
                record.name,
                kept.display()
            )));
        }
        Ok(())
    }

    /// Nothing was changed: what was kept is where it was.
    pub(super) fn forget_log(&self, record: &PgRecord) {
        let kept = self.place_of_kept(record);
        drop(record::remove_tree(&kept.join(record.lineage.to_string())));
        drop(fs::remove_dir(kept));
    }

    /// Removes what was kept with states that are not kept any more, and tells of it. What cannot be removed now is tried
    /// again; what nobody knows the age of stays.
    pub(super) fn trim_log(&self, record: &PgRecord) {
        let now = seconds(self.0.now());
        for path in self.kept_folders(record) {
            let under_way = record.checkout.is_some() && is_of(&path, &record.lineage.to_string());
            let since = fs::symlink_metadata(&path).and_then(|facts| facts.modified());
            let Ok(since) = since else { continue };
            let age = now.saturating_sub(seconds(since));
            // Of those of whom nothing says which state they go with.
            let known = record.heads.iter().all(|head| head.lineage.is_some());
            if number_of(record, &path).is_none()
                && !under_way
                && (known || age > OLDEST_HEAD)
                && record::remove_tree(&path).is_ok()
            {
                self.0.tell(Event::Note(format!(
                    "log of {} that was kept in {} is removed: the state before its checkout is not kept any more",
                    record.name,
                    path.display()
                )));
            }
        }
        let place = self.place_of_kept(record);
        if place.is_dir() {
            // Of removals that were killed.
            drop(neon_cowfs::sweep(&place));
            drop(fs::remove_dir(place));
        }
    }

    /// What is kept with this snapshot in this storage, of whichever instance. With a copy of it elsewhere, which has the
    /// same id, nothing is.
    pub(crate) fn log_kept_with(&self, snapshot: CommitId, storage: Option<&Name>) -> Vec<KeptLog> {
        let mut all = Vec::new();
        for record in self.readable() {
            let mut heads = record.heads.iter();
            let head =
                heads.find(|head| head.snapshot == snapshot && Some(&head.storage) == storage);
            let name = head.map(|head| head_name(&record.name, head.number));
            if name.is_some() {
                let kept = self.kept_log(&record).into_iter();
                all.extend(kept.filter(|kept| kept.head == name));
            }
        }
        all
    }

    /// Those that were made here: anything else that somebody put beside them is theirs.
    fn kept_folders(&self, record: &PgRecord) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.place_of_kept(record));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .filter(|path| is_lineage(path))
            .collect()
    }

    fn place_of_kept(&self, record: &PgRecord) -> PathBuf {
        let folder = self.0.home().instance_folder(record.name.as_str());
        folder.join(FOLDER)
    }
}

impl UnderWay {
    /// The state before this checkout, once it is done.
    pub(super) fn head_of(&self, record: &PgRecord, taken: u64) -> Option<super::Head> {
        Some(super::Head {
            number: self.head,
            snapshot: self.head_id?,
            storage: self.kept_in(record),
            taken,
            lineage: Some(record.lineage),
        })
    }
}

/// The number of the state that a folder of log goes with.
fn number_of(record: &PgRecord, folder: &Path) -> Option<u32> {
    let heads = record.heads.iter();
    let mut ours = heads.filter(|head| {
        head.lineage
            .is_some_and(|lineage| is_of(folder, &lineage.to_string()))
    });
    ours.next_back().map(|head| head.number)
}

/// Whether it is called as a lineage is.
fn is_lineage(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    let lineage = name.and_then(|name| name.parse::<LineageId>().ok());
    lineage.is_some_and(|lineage| is_of(folder, &lineage.to_string()))
}

fn is_of(folder: &Path, lineage: &str) -> bool {
    folder.file_name().is_some_and(|name| name == lineage)
}
