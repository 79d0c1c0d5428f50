//! From what somebody writes to the snapshot they mean.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;
use crate::keys::SNAPSHOTS;
use crate::name::SnapshotName;
use crate::repository::Repository;

/// The fewest digits of an id that are looked up.
const SHORTEST: usize = 8;

impl Repository {
    /// The snapshot with this name, this id, or the only id that begins with these (at least eight) digits. A name goes
    /// before an id.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for `CURRENT`, which is no snapshot, for what
    /// is neither a name nor an id, and for digits that several ids begin with.
    pub async fn resolve(&self, text: &str) -> Result<CommitId> {
        if !self.lists()
            && let Ok(id) = text.parse::<CommitId>()
            && self.standing(id).await?.is_some()
        {
            return Ok(id);
        }
        let by_name = match text.parse::<SnapshotName>() {
            Ok(name) => match self.resolve_name(&name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
                found => return found,
            },
            Err(error) => Err(error),
        };
        let digits = text.len() >= SHORTEST
            && text.len() <= 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || !self.lists() {
            return by_name;
        }
        match self.resolve_digits(text).await? {
            Some(id) => Ok(id),
            None => by_name.map_err(|_| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("snapshot {text}"),
                    "there is no snapshot with this name or id",
                )
            }),
        }
    }

    /// The snapshot with this name.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn resolve_name(&self, name: &SnapshotName) -> Result<CommitId> {
        if name.is_current() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("name {name}"),
                "stands for the live state, which is no snapshot",
            ));
        }
        let claims = self.claims(name).await?;
        self.holder(&claims).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("snapshot {name}"),
                "there is no snapshot with this name",
            )
        })
    }

    async fn resolve_digits(&self, digits: &str) -> Result<Option<CommitId>> {
        let prefix = format!("{SNAPSHOTS}{digits}");
        let objects = self.commit_objects_below(&prefix).await?;
        let ids: BTreeSet<CommitId> = objects.iter().map(|object| object.id).collect();
        let mut found = None;
        for id in ids {
            // Tombstones are read after the commits: what was destroyed meanwhile is not offered, nor what a writer
            // created that was condemned before.
            if self.standing(id).await?.is_none() {
                continue;
            }
            if found.replace(id).is_some() {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("snapshot {digits}"),
                    "several ids begin with these digits",
                ));
            }
        }
        Ok(found)
    }
}
