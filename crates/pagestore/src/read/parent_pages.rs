//! The digests of a snapshot's pages, for a scan that compares a cluster with it.

use std::fmt;

use neon_snapshot_format::SnapshotPath;

use crate::bridge::Bridge;
use crate::changes::{ParentFile, ParentPage, ParentPages};
use crate::error::{Error, Result};
use crate::id::CommitId;
use crate::map::{At, FileKind, MappedFile, Walk};
use crate::read::pages::Snapshot;

/// Reads digests file by file, in the order of paths; holds those of one file at a time.
///
/// It waits for the storage, so it must be used in a thread outside of the runtime, such as `spawn_blocking` gives.
pub struct SnapshotPages {
    snapshot: Snapshot,
    bridge: Bridge,
    walk: Walk,
    /// The file that the walk has come to.
    file: Option<MappedFile>,
    begun: bool,
}

impl fmt::Debug for SnapshotPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotPages")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// The digests of its pages, for a [`ScanSource`](crate::changes::ScanSource). Must be called where the runtime is
    /// known: in it, or in one of its blocking threads.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) outside of a runtime.
    pub fn parent_pages(&self) -> Result<SnapshotPages> {
        Ok(SnapshotPages {
            snapshot: self.clone(),
            bridge: Bridge::current()?,
            walk: Walk::new(self.view(), true),
            file: None,
            begun: false,
        })
    }
}

impl ParentPages for SnapshotPages {
    fn snapshot(&self) -> CommitId {
        self.snapshot.id()
    }

    fn file(&mut self, path: &SnapshotPath) -> Result<Option<ParentFile<'_>>> {
        while !self.begun || self.file.as_ref().is_some_and(|file| file.path < *path) {
            self.begun = true;
            self.file = self.snapshot.maps().wait(&self.bridge, &mut self.walk)?;
        }
        let Some(file) = self.file.as_ref().filter(|file| file.path == *path) else {
            return Ok(None);
        };
        let FileKind::File { size } = file.attributes.kind else {
            return Ok(None);
        };
        let mut digests = file.digests.as_slice();
        let pages = file.extents.iter().flat_map(|extent| {
            let zeros = matches!(extent.at, At::Zeros);
            std::iter::repeat_n(zeros, extent.count as usize)
        });
        let page = move |zeros| match (zeros, digests) {
            (true, _) => Ok(ParentPage::Zeros),
            (false, [digest, rest @ ..]) => {
                digests = rest;
                Ok(ParentPage::Digest(*digest))
            }
            (false, []) => Err(Error::malformed(
                file.path.to_string(),
                "has fewer digests than pages",
            )),
        };
        Ok(Some(ParentFile {
            size,
            pages: Box::new(pages.map(page)),
        }))
    }
}
