//! `PG@CURRENT`: the live state of every instance, beside the snapshots in a listing.

use neon_pagestore::{CommitId, SnapshotName, Tag};
use serde::Serialize;

use crate::error::Result;
use crate::instances::Stage;
use crate::name::Name;
use crate::snapshots::create::{beside, size_of};
use crate::snapshots::{ListedSnapshot, Snapshots};

/// The live state of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CurrentState {
    /// `PG@CURRENT`.
    pub name: SnapshotName,
    /// The instance.
    pub pg: Name,
    /// Where its snapshots go.
    pub storage: Name,
    /// Bytes in its data directory and tablespaces.
    pub size: u64,
    /// The snapshot that the next one will share pages with, among those that were listed.
    pub parent: Option<CommitId>,
}

impl Snapshots<'_> {
    /// The live states of all instances, by name, placed among the snapshots that were [listed](Self::list).
    ///
    /// Walks the data directories; reads no file.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn current(&self, listed: &[ListedSnapshot]) -> Result<Vec<CurrentState>> {
        let mut all = Vec::new();
        for record in self.0.pg().records()? {
            if record.stage != Stage::Ready {
                continue;
            }
            let own = || {
                listed
                    .iter()
                    .filter(|listed| listed.storage == record.storage)
            };
            let newest = own()
                .filter_map(|listed| Some((listed.listed.summary.as_ref().ok()?, listed.listed.id)))
                .filter(|(summary, _)| summary.lineage == Some(record.lineage))
                .max_by_key(|(summary, _)| summary.taken)
                .map(|(_, id)| id);
            let base = record.base.as_ref().map(|base| base.snapshot);
            let base = base.filter(|base| own().any(|listed| listed.listed.id == *base));
            let data = self.0.pg().data_dir(&record);
            let size = beside(move || Ok(size_of(&data))).await?;
            all.push(CurrentState {
                name: SnapshotName::Tagged {
                    instance: record.name.to_string(),
                    tag: Tag::Current,
                },
                pg: record.name,
                storage: record.storage,
                size,
                parent: newest.or(base),
            });
        }
        Ok(all)
    }
}
