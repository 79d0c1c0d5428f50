//! `HEAD{i}`: the states before checkouts. The number of one that somebody may have seen is never given again, and the
//! oldest go.

use neon_pagestore::{CommitId, LineageId, SnapshotName, Tag};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::instances::checkout::UnderWay;
use crate::instances::{Instances, PgRecord};
use crate::name::Name;
use crate::operation::seconds;
use crate::snapshots::create::{CreateSnapshot, take_locked};

/// The state before a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number in its name.
    pub number: u32,
    /// Its id.
    pub snapshot: CommitId,
    /// The storage that it is in.
    pub storage: Name,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
    /// The history of log that it ends: what of that was not archived is kept as long as this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
}

/// At most so many states before checkouts are kept, and none but the newest for longer.
const MOST_HEADS: usize = 5;
pub(super) const OLDEST_HEAD: u64 = 7 * 24 * 60 * 60;

impl Instances<'_> {
    /// The first number that neither this instance nor one that had its name before gave.
    pub(crate) async fn next_head(&self, record: &PgRecord) -> Result<u32> {
        let mut number = record.checkouts;
        let repository = self.0.storages().repository(&record.storage).await?;
        loop {
            let name = head_name(&record.name, number);
            match repository.repository.resolve_name(&name).await {
                Ok(_) => number = number.saturating_add(1),
                Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {
                    return Ok(number);
                }
                Err(error) => return Err(Error::repository(repository.label(), error)),
            }
        }
    }

    /// Takes `HEAD{i}` of the stopped instance.
    pub(crate) async fn save(&self, name: &Name, under_way: &UnderWay) -> Result<CommitId> {
        let head = CreateSnapshot {
            // What is damaged now is damaged in it, too; that is no reason not to go back.
            allow_bad_pages: true,
            ..CreateSnapshot::new(head_name(name, under_way.head))
        };
        let taken = Box::pin(take_locked(self.0, &self.known(name)?, &head)).await?;
        if taken.name.is_some() {
            return Ok(taken.id);
        }
        // Another home has an instance of this name and keeps its snapshots in the same storage.
        let target = self.0.storages().repository(&taken.storage).await?;
        drop(target.repository.destroy(taken.id).await);
        let subject = format!("snapshot {}", head.name);
        Err(Error::new(
            ErrorKind::Busy,
            subject,
            "was taken by another home meanwhile",
        )
        .hinted("try again: the next number is used then"))
    }

    /// Removes states before checkouts that are beyond the limits, and the log that is kept with them. What cannot be removed now is tried again.
    pub(crate) async fn trim_heads(&self, name: &Name) {
        let Ok(record) = self.known(name) else { return };
        let now = seconds(self.0.now());
        let mut heads = record.heads.clone();
        heads.sort_by_key(|head| std::cmp::Reverse(head.number));
        for (place, head) in heads.iter().enumerate() {
            let old = place > 0 && now.saturating_sub(head.taken) > OLDEST_HEAD;
            let based = record.base.as_ref().map(|base| base.snapshot) == Some(head.snapshot);
            if based || (place < MOST_HEADS && !old) {
                continue;
            }
            let repository = self.0.storages().existing_repository(&head.storage).await;
            let gone = match repository {
                Ok(Some(repository)) => match repository.repository.destroy(head.snapshot).await {
                    Ok(()) => true,
                    Err(error) => error.kind() == neon_pagestore::ErrorKind::NotFound,
                },
                _ => false,
            };
            if gone {
                let forgotten = self.update(name, |record| {
                    record.heads.retain(|known| known.number != head.number);
                });
                if forgotten.is_err() {
                    return;
                }
            }
        }
        if let Ok(record) = self.known(name) {
            self.trim_log(&record);
        }
    }
}

/// `PG@HEAD{i}`
pub(crate) fn head_name(pg: &Name, number: u32) -> SnapshotName {
    SnapshotName::Tagged {
        instance: pg.as_str().to_owned(),
        tag: Tag::Head(number),
    }
}
