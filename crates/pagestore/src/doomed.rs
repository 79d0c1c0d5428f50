//! Doomed lists: what a collection is going to delete, published before it does.
//!
//! A list is *announced* first. After a grace somebody publishes a list of their own, *executing*, marks again, and
//! deletes what is on it and still not needed. Only who published an executing list deletes by it, so a list that is
//! gone has nobody left who acts on it. Who wants to rely on something they did not write puts a lease, then reads
//! these: either the lease is seen by the mark, or the list is seen by them.

use std::collections::HashSet;
use std::time::SystemTime;

use futures_util::TryStreamExt;
use neon_snapshot_format::pack::PackId;
use neon_storage::{Key, ListOptions, StorageExt};
use serde::{Deserialize, Serialize};

use crate::commit_object::CommitObject;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{from_hex, random};
use crate::keys::{self, DOOMED};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// How far a collection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Nobody deletes anything by this list.
    Announced,
    /// Its writer may be deleting.
    Executing,
}

/// What is going to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DoomedBody {
    pub(crate) stage: Stage,
    /// Packs, and with them where their frames moved.
    #[serde(with = "pack_ids")]
    pub(crate) packs: Vec<PackId>,
    pub(crate) commits: Vec<CommitObject>,
}

/// A list as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct DoomedList {
    pub(crate) key: Key,
    pub(crate) published: SystemTime,
    pub(crate) body: DoomedBody,
}

/// Everything that is on some list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doomed {
    pub(crate) packs: HashSet<PackId>,
    pub(crate) commits: HashSet<CommitObject>,
}

impl Repository {
    /// Reads all lists.
    pub(crate) async fn doomed_lists(&self) -> Result<Vec<DoomedList>> {
        let listing = self.shared.storage.list(ListOptions::prefix(DOOMED));
        let objects: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| Error::storage(DOOMED, error))?;
        let mut lists = Vec::with_capacity(objects.len());
        for object in objects {
            match self.get_json(&object.key, ObjectKind::Doomed).await {
                Ok((_, body)) => lists.push(DoomedList {
                    key: object.key,
                    published: object.modified,
                    body,
                }),
                // Done meanwhile: what was on it is deleted, or kept for good.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lists)
    }

    pub(crate) async fn doomed(&self) -> Result<Doomed> {
        let mut all = Doomed::default();
        for list in self.doomed_lists().await? {
            all.packs.extend(list.body.packs);
            all.commits.extend(list.body.commits);
        }
        Ok(all)
    }

    /// Publishes a list.
    pub(crate) async fn publish_doomed(&self, body: DoomedBody) -> Result<DoomedList> {
        let key = keys::doomed(random()?)?;
        let meta = self
            .put_json(&key, ObjectKind::Doomed, self.shared.me, &body)
            .await?;
        Ok(DoomedList {
            key,
            published: meta.modified,
            body,
        })
    }

    pub(crate) async fn withdraw_doomed(&self, list: &DoomedList) -> Result<()> {
        let deleted = self.shared.storage.delete(&list.key).await;
        deleted.map_err(|error| Error::storage(list.key.as_str(), error))
    }
}

/// Pack ids as hexadecimal text.
pub(crate) mod pack_ids {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use super::{PackId, from_hex};

    pub(crate) fn serialize<S: Serializer>(
        ids: &[PackId],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<PackId>, D::Error> {
        Vec::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?
            .iter()
            .map(|text| {
                from_hex(text)
                    .map(PackId)
                    .ok_or_else(|| de::Error::custom("not the id of a pack"))
            })
            .collect()
    }
}
