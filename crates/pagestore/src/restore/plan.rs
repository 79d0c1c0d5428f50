//! What a restore over something that is there would change: decided first, executed after.

use std::collections::BTreeMap;

use neon_snapshot_format::pgdata::{DirectoryOptions, ExistingDirectory};
use neon_snapshot_format::{Entry, SnapshotPath, Wanted};

use crate::bridge::Bridge;
use crate::changes::NamedPages;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;
use crate::read::Snapshot;
use crate::read::feed::is_held_whole;
use crate::read::source::CONTROL;
use crate::restore::compare::compare;
use crate::restore::execute::{RestoreOptions, Restored, run};

/// More bytes than a control file has.
const MOST_OF_CONTROL: u64 = 64 << 10;

/// What is to be done to turn a directory into a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestorePlan {
    /// What of each file is to be written; of a file that is not listed, nothing. Nothing wanted of a listed one
    /// means that its attributes or its length are set.
    pub files: BTreeMap<SnapshotPath, Wanted>,
    /// What is to be removed, the content of a directory before it.
    pub removed: Vec<Entry>,
    /// Bytes that are to be written.
    pub bytes: u64,
    /// Bytes of the directory that were read and compared.
    pub compared: u64,
    /// Bytes of the directory of which the maps of two snapshots told what differs, and which were not read.
    pub told: u64,
    /// Tablespaces that are not there.
    pub(super) new_tablespaces: Vec<Entry>,
    /// Which snapshot it leads to.
    snapshot: Option<CommitId>,
    /// What the directory was when it was compared.
    basis: Option<[u8; 32]>,
}

/// Decides what stays as it is on disk, whatever the snapshot says.
pub type Keep<'a> = &'a (dyn Fn(&SnapshotPath) -> bool + Sync);

impl RestorePlan {
    /// Compares everything in a directory with a snapshot, page by page: right whatever happened to the directory.
    /// Waits for the storage; see [`restore`](crate::restore::restore).
    ///
    /// What the snapshot says was left out when it was taken ([`Facts::skipped`](crate::Facts::skipped), such as a link
    /// at a configuration file) is kept, too.
    ///
    /// # Errors
    /// As [`restore`](crate::restore::restore), and [`Io`](ErrorKind::Io) when the directory cannot be read.
    pub fn by_content(
        snapshot: &Snapshot,
        directory: &ExistingDirectory,
        keep: Keep<'_>,
        options: &RestoreOptions,
    ) -> Result<Self> {
        compare(snapshot, directory, keep, options, None)
    }

    /// Compares two maps, where that is enough: right only for a directory that is known to hold what the other snapshot
    /// shows, which the caller has to know; here its control file is compared. Waits for the storage; see
    /// [`restore`](crate::restore::restore).
    ///
    /// Of the maps are taken only the pages of main forks of relations that are logged, and only of files that have the size
    /// and the time that the other snapshot recorded. The first page of a file of which any page differs is written
    /// anew: indexes of SP-GiST keep a cache there that no record names. Everything else is compared by content: free
    /// space and visibility maps, unlogged relations, what is no relation, a file of which the maps say that it is the same
    /// and whose time or size says that it is not, a file that only one of the two has.
    ///
    /// Pages that are `named`, by the log since some state of which the directory and the snapshot were the same, or since
    /// the snapshot, are written anew whatever the maps say: so summaries that are of another log hide nothing.
    ///
    /// What this does not find is a page of a relation that was changed behind the back of the server, by a person
    /// or by a disk, where the time of the file is as it was or other pages of it changed, too.
    ///
    /// # Errors
    /// - [`Inconsistent`](ErrorKind::Inconsistent) when the directory has another control file than the snapshot that it
    ///   is said to hold;
    /// - [`Unsupported`](ErrorKind::Unsupported) when hints on pages are in no log (without checksums and
    ///   `wal_log_hints`, or when a snapshot [may lack some](crate::Facts::hints_may_be_older)): a page that no map
    ///   names could keep a hint that is newer than the snapshot. Compare by content;
    /// - as [`by_content`](Self::by_content).
    pub fn by_map(
        snapshot: &Snapshot,
        present: &Snapshot,
        named: Option<&NamedPages>,
        directory: &ExistingDirectory,
        keep: Keep<'_>,
        options: &RestoreOptions,
    ) -> Result<Self> {
        let bridge = Bridge::current()?;
        for snapshot in [snapshot, present] {
            let facts = snapshot.facts();
            let logged = facts.cluster.checksum_version != 0 || facts.cluster.wal_log_hints;
            if facts.hints_may_be_older || !logged {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("snapshot {}", snapshot.id()),
                    "hints on its pages are not in the log; compare by content",
                ));
            }
        }
        let expected = bridge.wait(present.read_range(&control()?, 0..MOST_OF_CONTROL))?;
        if directory.control() != Some(expected.as_ref()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {}", present.id()),
                "is not what the directory holds; compare by content",
            ));
        }
        compare(snapshot, directory, keep, options, Some((present, named)))
    }

    pub(super) fn of(mut self, snapshot: &Snapshot, directory: &ExistingDirectory) -> Result<Self> {
        self.snapshot = Some(snapshot.id());
        self.basis = Some(fingerprint(directory)?);
        Ok(self)
    }

    /// Tablespaces that are not there, and will be made.
    #[must_use]
    pub fn new_tablespaces(&self) -> &[Entry] {
        &self.new_tablespaces
    }

    pub(super) fn add(&mut self, path: SnapshotPath, size: u64, wanted: Wanted) {
        // These are held, or left out, as a whole.
        let wanted = if is_held_whole(&path) || path.as_bytes() == b"backup_manifest" {
            Wanted::Whole
        } else {
            wanted
        };
        self.bytes += match &wanted {
            Wanted::Whole => size,
            Wanted::Nothing => 0,
            Wanted::Ranges(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
        };
        self.files.insert(path, wanted);
    }

    /// Carries it out. Before the first change the directory stops being one that a server accepts; when this
    /// returns, it is the snapshot (but for what was to be kept), durably.
    ///
    /// What can be known to fail is found before the first change: files that cannot be written or have a second name, a
    /// place of a tablespace that is missing or not empty.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent), with nothing changed, when the plan was made for another snapshot or
    /// directory, or the directory changed since it was compared; as [`restore`](crate::restore::restore). The
    /// directory can then be compared and restored over again.
    pub fn execute(
        &self,
        snapshot: &Snapshot,
        directory: ExistingDirectory,
        writing: DirectoryOptions,
        options: &RestoreOptions,
    ) -> Result<Restored> {
        if self.snapshot != Some(snapshot.id()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {}", snapshot.id()),
                "is not the one that the directory was compared with",
            ));
        }
        if self.basis != Some(fingerprint(&directory)?) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "restore",
                "the directory changed since it was compared; compare again",
            ));
        }
        for (path, wanted) in &self.files {
            if *wanted != Wanted::Whole {
                directory
                    .check_parts(path)
                    .map_err(|error| Error::format(path.to_string(), error))?;
            }
        }
        for entry in &self.new_tablespaces {
            directory
                .check_place(entry, &writing)
                .map_err(|error| Error::format(entry.path.to_string(), error))?;
        }
        let writer = directory
            .change(writing)
            .map_err(|error| Error::format("restore", error))?;
        for entry in &self.removed {
            writer
                .remove(entry)
                .map_err(|error| Error::format(entry.path.to_string(), error))?;
        }
        run(snapshot, &writer, options, Some(self))
    }
}

fn fingerprint(directory: &ExistingDirectory) -> Result<[u8; 32]> {
    directory
        .fingerprint()
        .map_err(|error| Error::format("restore", error))
}

fn control() -> Result<SnapshotPath> {
    SnapshotPath::new(CONTROL).map_err(|error| Error::format("restore", error))
}
