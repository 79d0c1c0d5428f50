//! Destroying snapshots, and taking that back.

use neon_pagestore::{CommitId, SnapshotName};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::record;
use crate::snapshots::{Found, Snapshots, parent};
use crate::upkeep::with_causes;

/// What destroying a snapshot means.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DestroySnapshot {
    /// Its id.
    pub id: CommitId,
    /// The names that become free.
    pub names: Vec<SnapshotName>,
    /// The storage that holds it.
    pub storage: Option<Name>,
    /// Bytes that it shows.
    pub size: u64,
    /// Stored bytes that a collection frees then.
    pub retained: u64,
    /// Snapshots that were built on it. They stay whole: what they share stays stored.
    pub children: Vec<CommitId>,
    /// Instances whose next snapshot would have been built on this one, and has to be compared with another, or stored in
    /// whole.
    pub parent_of_next: Vec<Name>,
    /// Bytes of log that was not archived before a checkout, kept with this state in this storage: nothing brings it back.
    /// None with a copy that was pushed or pulled.
    pub kept_log: u64,
    #[serde(skip)]
    found: Found,
}

impl Snapshots<'_> {
    /// What destroying a snapshot would mean. Changes nothing.
    ///
    /// # Errors
    /// As [`find`](Self::find); [`Busy`](ErrorKind::Busy) when something is under way that needs it; when a map cannot be read.
    pub async fn plan_destroy(
        &self,
        text: &str,
        storage: Option<&Name>,
    ) -> Result<DestroySnapshot> {
        let found = self.find(text, storage).await?;
        self.require_unneeded(&found).await?;
        let details = self.show_found(&found).await?;
        let listed = found.repository.repository.list().await;
        let listed = listed.map_err(|error| Error::repository(found.repository.label(), error))?;
        let parent_of_next = self
            .0
            .pg()
            .records()?
            .into_iter()
            .filter(|record| found.repository.name.as_ref() == Some(&record.storage))
            .filter(|record| {
                let system = parent::system_of(self.0, record);
                parent::best(&listed, record, system.as_deref()) == Some(found.id)
            })
            .map(|record| record.name)
            .collect();
        Ok(DestroySnapshot {
            id: details.id,
            names: details.names,
            storage: details.storage,
            size: details.size,
            retained: details.retained,
            children: details.children,
            parent_of_next,
            kept_log: self
                .0
                .pg()
                .log_kept_with(details.id, found.repository.name.as_ref())
                .iter()
                .fold(0, |sum, kept| sum.saturating_add(kept.bytes)),
            found,
        })
    }

    /// Destroys a snapshot: nobody finds it any more, its names are free. What it holds alone goes with the next
    /// collection of its storage, and until then [`undo_destroy`](Self::undo_destroy) brings it back.
    ///
    /// Dropped: it is destroyed or not.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is gone already; [`Busy`](ErrorKind::Busy) when something is under way that
    /// needs it.
    pub async fn destroy(&self, plan: &DestroySnapshot) -> Result<()> {
        let target = &plan.found.repository;
        self.require_unneeded(&plan.found).await?;
        let mut operation = self.0.begin_relief("snapshot destroy", &plan.found.asked)?;
        operation.detail("id", plan.id.to_string());
        if let Some(storage) = &plan.storage {
            operation.detail("storage", storage.to_string());
        }
        let names: Vec<_> = plan.names.iter().map(ToString::to_string).collect();
        operation.detail("names", names.join(" "));
        let destroyed = target.repository.destroy(plan.id).await;
        operation.end(destroyed.map_err(|error| Error::repository(target.label(), error)))?;
        // The snapshot is destroyed, whatever becomes of what is kept with it.
        let storage = target.name.as_ref();
        for kept in self.0.pg().log_kept_with(plan.id, storage) {
            if let Err(error) = record::remove_tree(&kept.path) {
                self.0.tell(Event::Warning(format!(
                    "The snapshot is destroyed; the log that was kept with it could not be removed whole from {} ({}).",
                    kept.path.display(),
                    with_causes(&error)
                )));
            }
        }
        Ok(())
    }

    /// An error when an instance is being made from a snapshot, or goes back to it.
    async fn require_unneeded(&self, found: &Found) -> Result<()> {
        let holders = self.0.holders(&found.repository, found.id).await?;
        let Some(first) = holders.first() else {
            return Ok(());
        };
        Err(
            Error::new(ErrorKind::Busy, found.subject(), format!("is needed by {first}")).hinted(
                "try again when that is done; if its command was killed, the next command on that instance ends it, \
                 and neon doctor tells of what nobody ends",
            ),
        )
    }

    /// Brings a destroyed snapshot back, as long as no collection of its storage took it. Returns the names that it has
    /// again; one that was given to another snapshot meanwhile stays there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it was not destroyed, or is gone; [`Busy`](ErrorKind::Busy) when a collection is
    /// at it.
    pub async fn undo_destroy(&self, id: CommitId, storage: &Name) -> Result<Vec<SnapshotName>> {
        let target = self.0.storages().existing_repository(storage).await?;
        let target = target.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("storage {storage}"),
                "has no snapshots",
            )
        })?;
        let mut operation = self
            .0
            .begin_operation("snapshot undo destroy", &id.to_string())?;
        operation.detail("storage", storage.to_string());
        let undone = target.repository.undo_destroy(id).await;
        operation.end(undone.map_err(|error| Error::repository(target.label(), error)))?;
        let listed = target.repository.list().await;
        let listed = listed.map_err(|error| Error::repository(target.label(), error))?;
        let names = listed.into_iter().find(|listed| listed.id == id);
        Ok(names.map(|listed| listed.names).unwrap_or_default())
    }
}
