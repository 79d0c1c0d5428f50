//! `PG@CURRENT`: the live state of every instance, beside the snapshots in a listing.

use neon_pagestore::{CommitId, SnapshotName, Tag};
use serde::Serialize;

use crate::background::beside;
use crate::error::Result;
use crate::instances::Stage;
use crate::name::Name;
use crate::snapshots::copying::size_of;
use crate::snapshots::{ListedSnapshot, Snapshots, parent};

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
    /// The snapshot that it comes from, among those that were listed: the newest of its history, or the one that this began with.
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
            let system = parent::system_of(self.0, &record);
            let own: Vec<_> = listed
                .iter()
                .filter(|listed| listed.storage == record.storage)
                .map(|listed| &listed.listed)
                .collect();
            let parent = parent::of_history(own, &record, system.as_deref());
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
                parent,
            });
        }
        Ok(all)
    }
}
