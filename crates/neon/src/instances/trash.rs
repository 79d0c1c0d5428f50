//! What is in the trash, and what empties it.

use serde::Serialize;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::instances::used::bytes_on_disk;
use crate::instances::{Instances, PgRecord};
use crate::name::Name;
use crate::operation::seconds;
use crate::record;

/// An instance that was destroyed, and that an undo would bring back.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TrashedPg {
    /// Its id.
    pub id: String,
    /// The name it had.
    pub name: Name,
    /// Its major version.
    pub major: String,
    /// Bytes on disk that go with it. None of one that was adopted: its files are somebody else's.
    pub used: u64,
    /// When it was destroyed, in seconds since 1970.
    pub destroyed: u64,
}

impl Instances<'_> {
    /// What is in the trash, the newest first. Counts what each uses.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn trash(&self) -> Result<Vec<TrashedPg>> {
        let home = self.0.home();
        let mut all = Vec::new();
        for (id, record) in record::list::<PgRecord>(&home.trash())? {
            let facts = std::fs::metadata(home.trash().join(format!("{id}.json")));
            let since = facts.and_then(|facts| facts.modified());
            let remains = match record.adopted {
                Some(_) => Vec::new(),
                None => self.remains(&record),
            };
            let used = beside(move || {
                let sums = remains.iter().map(|place| bytes_on_disk(place));
                Ok(sums.fold(0, u64::saturating_add))
            });
            all.push(TrashedPg {
                id,
                name: record.name,
                major: record.major,
                used: used.await?,
                destroyed: since.map_or(0, seconds),
            });
        }
        all.sort_by(|a, b| b.destroyed.cmp(&a.destroyed).then(a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Removes one of the trash for good: what it used is free when this returns.
    ///
    /// Dropped, or killed: no undo finds it any more, and what is left of it goes with the next destroy, the next purge, or
    /// [`finish_purges`](Self::finish_purges).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is not in the trash (any more); [`Busy`](ErrorKind::Busy) when somebody
    /// brings it back this moment.
    pub async fn purge(&self, trashed: &TrashedPg) -> Result<()> {
        let home = self.0.home();
        let _lock = self.lock(&trashed.name).await?;
        let mut operation = self.0.begin_relief("pg purge", trashed.name.as_str())?;
        operation.detail("id", trashed.id.clone());
        let path = home.trash().join(format!("{}.json", trashed.id));
        let known = record::read::<PgRecord>(&path)?;
        let Some(known) = known.filter(|record| record.id == trashed.id) else {
            return operation.end(Err(Error::new(
                ErrorKind::NotFound,
                format!("pg {}", trashed.name),
                "is not in the trash",
            )));
        };
        if let Err(hidden) = self.is_trash_mounted(&known) {
            return operation.end(Err(hidden));
        }
        let gone = record::rename(&path, &home.gone(&trashed.id));
        operation.end(gone)?;
        self.finish_removal(&known).await.map_err(|error| {
            Error::new(
                ErrorKind::Failed,
                format!("pg {}", trashed.name),
                "could not be removed whole",
            )
            .hinted("what is left of it goes with the next destroy")
            .caused_by(error)
        })?;
        self.finish_removals().await;
        Ok(())
    }

    /// Removes what killed commands left of what they had begun to remove for good. What cannot be removed now is
    /// tried again by the next.
    pub async fn finish_purges(&self) {
        self.finish_removals().await;
        // What was renamed for its removal already, and nobody is at.
        let home = self.0.home().path();
        let folders = self.folders_beside();
        let ours = ["trash", "pg"].map(|name| home.join(name));
        let swept = beside(move || {
            for folder in &folders {
                // Others clone there, too, and know best what is left of that.
                drop(neon_cowfs::sweep_removals(folder));
            }
            ours.iter()
                .for_each(|folder| drop(neon_cowfs::sweep(folder)));
            Ok(())
        });
        drop(swept.await);
    }
}
