//! What there is to know of one snapshot.

use std::collections::BTreeMap;

use neon_pagestore::gc::Retained;
use neon_pagestore::{CommitId, Facts, SnapshotName};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::name::Name;
use crate::repositories::StorageRepository;
use crate::snapshots::{Found, Snapshots};

/// A snapshot with what it holds, what it cost, and what would be free without it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SnapshotDetails {
    /// Its id.
    pub id: CommitId,
    /// The names it has now.
    pub names: Vec<SnapshotName>,
    /// The storage that holds it; absent for one that is not attached.
    pub storage: Option<Name>,
    /// The instance that it shows, by the name it had then.
    pub pg: Option<String>,
    /// Bytes that it shows: the sum of its files' sizes.
    pub size: u64,
    /// Bytes that it added to the storage when it was taken.
    pub added: u64,
    /// Stored bytes that destroying it alone would free.
    pub retained: u64,
    /// Stored bytes of all pages that it needs, shared ones too.
    pub stored: u64,
    /// Snapshots that were built on it.
    pub children: Vec<CommitId>,
    /// What its commit records: of the cluster, the log, the machine, and of the cost. `cost.source` is what told the
    /// changes, `cost.refused_sources` why better ones could not.
    pub facts: Facts,
}

impl Snapshots<'_> {
    /// What there is to know of a snapshot. Looks through the maps of all snapshots of its repository, to tell what is
    /// its own.
    ///
    /// # Errors
    /// As [`find`](Self::find), and when a map cannot be read.
    pub async fn show(&self, text: &str, storage: Option<&Name>) -> Result<SnapshotDetails> {
        let found = self.find(text, storage).await?;
        self.show_found(&found).await
    }

    /// As [`show`](Self::show), of a snapshot that was found.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub async fn show_found(&self, found: &Found) -> Result<SnapshotDetails> {
        let target = &found.repository;
        let snapshot = target.snapshot(found.id).await?;
        let listed = target.repository.list().await;
        let listed = listed.map_err(|error| Error::repository(target.label(), error))?;
        let names = listed
            .iter()
            .find(|listed| listed.id == found.id)
            .map(|listed| listed.names.clone())
            .unwrap_or_default();
        let children = listed
            .iter()
            .filter(|listed| {
                let summary = listed.summary.as_ref().ok();
                summary.is_some_and(|summary| summary.parent == Some(found.id))
            })
            .map(|listed| listed.id)
            .collect();
        let retained = self.retained(target).await?;
        let retained = retained.get(&found.id).copied().unwrap_or_default();
        let facts = snapshot.facts().clone();
        Ok(SnapshotDetails {
            id: found.id,
            names,
            storage: target.name.clone(),
            pg: facts.labels.get(crate::snapshots::needs::PG).cloned(),
            size: facts.cost.bytes,
            added: facts
                .cost
                .written_data
                .saturating_add(facts.cost.written_metadata),
            retained: retained.own,
            stored: retained.all,
            children,
            facts,
        })
    }

    /// For every snapshot of a repository, what destroying it alone would free: the RETAINED of listings.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub async fn retained(
        &self,
        repository: &StorageRepository,
    ) -> Result<BTreeMap<CommitId, Retained>> {
        repository
            .repository
            .retained()
            .await
            .map_err(|error| Error::repository(repository.label(), error))
    }
}
