//! What several modules need.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use neon_pagestore::{
    ClusterFacts, Commit, CommitId, Committed, Facts, OpenOptions, Repository, SnapshotName,
};
use neon_pg_layout::{PgMajor, SystemIdentifier};
use neon_snapshot_format::SnapshotKind;
use neon_storage::Storage;

pub(crate) const GRACE: Duration = Duration::from_secs(3600);

pub(crate) fn options() -> OpenOptions {
    OpenOptions::new().grace(GRACE)
}

pub(crate) async fn init(storage: &(impl Storage + Clone)) -> Repository {
    Repository::init(Arc::new(storage.clone()), options())
        .await
        .unwrap()
}

pub(crate) async fn open(storage: &(impl Storage + Clone)) -> Repository {
    Repository::open(Arc::new(storage.clone()), options())
        .await
        .unwrap()
}

/// A commit without pages that no other equals.
pub(crate) fn empty_commit(names: &[&str]) -> Commit {
    static TAKEN: AtomicI64 = AtomicI64::new(1_700_000_000);
    let system = SystemIdentifier::new(7_710_187_071_172_605_999).unwrap();
    let cluster = ClusterFacts::new(system, PgMajor::V17, 8192, 131_072);
    let mut facts = Facts::new(
        SnapshotKind::Cold,
        TAKEN.fetch_add(1, Ordering::Relaxed),
        cluster,
    );
    facts.names = names
        .iter()
        .map(|name| name.parse::<SnapshotName>().unwrap())
        .collect();
    Commit {
        facts,
        runs: Bytes::new(),
    }
}

pub(crate) async fn take(repository: &Repository, names: &[&str]) -> Committed {
    let writing = repository.begin_writing().await.unwrap();
    writing.commit(&empty_commit(names)).await.unwrap()
}

pub(crate) async fn snapshot(repository: &Repository, name: &str) -> CommitId {
    take(repository, &[name]).await.id
}
