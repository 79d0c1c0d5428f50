//! Which snapshots there are.

use futures_util::TryStreamExt;
use neon_storage::ListOptions;

use crate::error::{Error, Result};
use crate::id::CommitId;
use crate::keys::{self, SNAPSHOTS};
use crate::repository::Repository;

impl Repository {
    /// The ids of all snapshots, in no order that means anything.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage), and as [`Object::decode`](crate::Object::decode).
    pub async fn snapshot_ids(&self) -> Result<Vec<CommitId>> {
        let tombstones = self.tombstones().await?;
        let listing = self.shared.storage.list(ListOptions::prefix(SNAPSHOTS));
        let ids: Vec<CommitId> = listing
            .map_err(|error| Error::storage(SNAPSHOTS, error))
            .try_filter_map(|object| async move { Ok(keys::commit_of(&object.key)) })
            .try_collect()
            .await?;
        let mut alive = Vec::with_capacity(ids.len());
        for id in ids {
            if self.lives(id, &tombstones).await? {
                alive.push(id);
            }
        }
        Ok(alive)
    }
}
