//! What a change set wants of the files of a new listing.

use neon_snapshot_format::pgdata::Select;
use neon_snapshot_format::{Entry, SnapshotPath, Wanted};

use crate::bridge::Bridge;
use crate::changes::{ChangeSet, FileChange, FileFacts};
use crate::error::Result;
use crate::map::{FileKind, Stat};
use crate::write::complete::Parent;
use crate::write::snapshot::passed;

/// Wants what changed since a parent, and nothing else. For
/// [`PgData::copy_selected`](neon_snapshot_format::pgdata::PgData::copy_selected) into a
/// [`SnapshotWriter`](crate::write::SnapshotWriter) with the same parent.
#[derive(Debug)]
pub struct ChangedSince<'a> {
    set: &'a ChangeSet,
    parent: Parent,
    bridge: Bridge,
}

impl<'a> ChangedSince<'a> {
    /// Must be called where the runtime is known: in it, or in one of its blocking threads.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) outside of a runtime; [`Inconsistent`](crate::ErrorKind::Inconsistent) when
    /// the set is known to be of changes since another snapshot.
    pub fn new(set: &'a ChangeSet, parent: Parent) -> Result<Self> {
        set.require_parent(parent.id)?;
        Ok(Self {
            set,
            parent,
            bridge: Bridge::current()?,
        })
    }

    fn size_in_parent(&self, path: &SnapshotPath) -> Result<Option<u64>> {
        let mut stat = Stat::new(&self.parent.view, path.clone());
        let found = self.parent.maps.wait(&self.bridge, &mut stat)?;
        Ok(found.and_then(|attributes| match attributes.kind {
            FileKind::File { size } => Some(size),
            _ => None,
        }))
    }

    /// Whether it belongs to a relation that was unlogged in the parent. One that became so since has other files.
    fn is_unlogged(&self, path: &SnapshotPath) -> Result<bool> {
        let (Some(directory), name) = (path.parent(), path.name()) else {
            return Ok(false);
        };
        let digits = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Ok(false);
        }
        let mut init = name.get(..digits).unwrap_or_default().to_vec();
        init.extend_from_slice(b"_init");
        let Ok(init) = directory.join(&init) else {
            return Ok(false);
        };
        Ok(self.size_in_parent(&init)?.is_some())
    }

    fn decide(&self, entry: &Entry) -> Result<Wanted> {
        let parent_size = self.size_in_parent(&entry.path)?;
        let unlogged = parent_size.is_some() && self.is_unlogged(&entry.path)?;
        let change = self.set.of(&FileFacts {
            path: &entry.path,
            size: entry.size(),
            parent_size,
            unlogged,
        });
        let page_size = u64::from(self.parent.view.page_size);
        Ok(match change {
            FileChange::Unchanged => Wanted::Nothing,
            FileChange::Whole(_) => Wanted::Whole,
            FileChange::Pages { pages, .. } => Wanted::Ranges(
                pages
                    .into_iter()
                    .map(|pages| {
                        let end = u64::from(pages.end).saturating_mul(page_size);
                        u64::from(pages.start).saturating_mul(page_size)..end.min(entry.size())
                    })
                    .collect(),
            ),
        })
    }
}

impl Select for ChangedSince<'_> {
    fn wanted(&self, entry: &Entry) -> neon_snapshot_format::Result<Wanted> {
        self.decide(entry).map_err(passed)
    }
}
