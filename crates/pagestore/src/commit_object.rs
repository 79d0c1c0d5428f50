//! Under which keys the commit of one snapshot is stored.
//!
//! The first writer that brings a snapshot stores its commit under its id. When that key cannot be relied on (what is
//! there was destroyed, or its writer may yet be condemned, or a collection may be deleting it), the next one stores the
//! commit once more, under a key of its own that no list of a collection ever had on it. A snapshot is there as long as
//! any of these objects stands.

use std::fmt;
use std::str::FromStr;

use futures_util::TryStreamExt;
use neon_storage::{ListOptions, StorageExt};

use crate::commit::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, SNAPSHOTS};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// One object that holds the commit of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CommitObject {
    pub(crate) id: CommitId,
    /// The writer that stored it beside the first one.
    pub(crate) again: Option<WriterId>,
}

impl CommitObject {
    /// The object under the snapshot's id.
    pub(crate) fn first(id: CommitId) -> Self {
        Self { id, again: None }
    }

    pub(crate) fn again(id: CommitId, writer: WriterId) -> Self {
        let again = Some(writer);
        Self { id, again }
    }
}

impl fmt::Display for CommitObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.again {
            None => write!(f, "{}", self.id),
            Some(writer) => write!(f, "{}-{writer}", self.id),
        }
    }
}

impl FromStr for CommitObject {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once('-') {
            None => Self::first(text.parse()?),
            Some((id, writer)) => Self::again(id.parse()?, writer.parse()?),
        })
    }
}

impl serde::Serialize for CommitObject {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for CommitObject {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An object that stands, by tombstones that were read after it was seen.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) object: CommitObject,
    pub(crate) author: WriterId,
    pub(crate) commit: Commit,
}

/// What looking at objects of one commit found.
#[derive(Debug)]
pub(crate) struct Looked {
    /// These stand.
    pub(crate) standing: Vec<Standing>,
    /// These cannot be read, and have no tombstone: they may stand. Of one snapshot all say the same, so another one that
    /// stands does in their place.
    pub(crate) unread: Vec<(CommitObject, Error)>,
}

impl Looked {
    /// An error unless it is sure that no other object stands.
    fn none(self) -> Result<()> {
        match self.unread.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

impl Repository {
    /// Reads a commit.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`Damaged`](ErrorKind::Damaged), and as
    /// [`Object::decode`](crate::Object::decode).
    pub async fn read_commit(&self, id: CommitId) -> Result<(WriterId, Commit)> {
        let error = match self.read_commit_object(CommitObject::first(id)).await {
            Err(error) if error.is_of_object() => error,
            found => return found,
        };
        for object in self.brought_again(id).await? {
            match self.read_commit_object(object).await {
                Err(error) if error.is_of_object() => {}
                found => return found,
            }
        }
        Err(error)
    }

    pub(crate) async fn read_commit_object(
        &self,
        object: CommitObject,
    ) -> Result<(WriterId, Commit)> {
        let (author, body) = self.commit_body(object).await?;
        Ok((author, Commit::decode_as(object.id, &body)?))
    }

    /// Who stored an object, and the body in it.
    pub(crate) async fn commit_body(&self, object: CommitObject) -> Result<(WriterId, Vec<u8>)> {
        let key = keys::commit(object)?;
        let found = self.get_object(&key, ObjectKind::Commit).await?;
        if object.again.is_some_and(|writer| writer != found.writer) {
            return Err(Error::damaged(key.as_str(), "is of another writer"));
        }
        Ok((found.writer, found.body))
    }

    /// Who stored an object; nobody when it is not there.
    pub(crate) async fn commit_author(&self, object: CommitObject) -> Result<Option<WriterId>> {
        let key = keys::commit(object)?;
        if let Some(writer) = object.again {
            let there = self.shared.storage.exists(&key).await;
            let there = there.map_err(|error| Error::storage(key.as_str(), error))?;
            return Ok(there.then_some(writer));
        }
        match self.get_object(&key, ObjectKind::Commit).await {
            Ok(found) => Ok(Some(found.writer)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The objects of a commit beside the first.
    pub(crate) async fn brought_again(&self, id: CommitId) -> Result<Vec<CommitObject>> {
        if !self.lists() {
            return Ok(Vec::new());
        }
        self.commit_objects_below(&format!("{SNAPSHOTS}{id}-"))
            .await
    }

    /// All objects of a commit, the first one first.
    pub(crate) async fn commit_objects_of(&self, id: CommitId) -> Result<Vec<CommitObject>> {
        self.commit_objects_below(&format!("{SNAPSHOTS}{id}")).await
    }

    /// What stands below this prefix; what is not where commits are is passed over.
    pub(crate) async fn commit_objects_below(&self, prefix: &str) -> Result<Vec<CommitObject>> {
        let listing = self.shared.storage.list(ListOptions::prefix(prefix));
        listing
            .try_filter_map(|object| async move { Ok(keys::commit_of(&object.key)) })
            .try_collect()
            .await
            .map_err(|error| Error::storage(SNAPSHOTS, error))
    }

    /// An object of this snapshot that stands; none when it is no snapshot (any more).
    ///
    /// # Errors
    /// When none that can be read stands, and of another it cannot be said.
    pub(crate) async fn standing(&self, id: CommitId) -> Result<Option<Standing>> {
        let first = CommitObject::first(id);
        if !self.lists() {
            return self.standing_unlisted(first).await;
        }
        let unread = match self.read_commit_object(first).await {
            Ok((author, commit)) => {
                // A collection that went by between the two looks has left neither commit nor tombstone.
                if !self.tombstones().await?.bury(first, author)
                    && self.commit_author(first).await? == Some(author)
                {
                    let object = first;
                    return Ok(Some(Standing {
                        object,
                        author,
                        commit,
                    }));
                }
                None
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) if error.is_of_object() => Some(error),
            Err(error) => return Err(error),
        };
        let again = self.brought_again(id).await?;
        let mut looked = self.look_at(&again).await?;
        match (looked.standing.pop(), unread) {
            (Some(standing), _) => Ok(Some(standing)),
            (None, Some(error)) if !self.tombstones().await?.commits.contains_key(&first) => {
                Err(error)
            }
            (None, _) => looked.none().map(|()| None),
        }
    }

    /// Whether an object stands, where nothing can be listed: by the keys of what would take it away.
    async fn standing_unlisted(&self, object: CommitObject) -> Result<Option<Standing>> {
        let (author, commit) = match self.read_commit_object(object).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        for key in [keys::tombstone(object)?, keys::condemnation(author)?] {
            let there = self.shared.storage.exists(&key).await;
            if there.map_err(|error| Error::storage(key.as_str(), error))? {
                return Ok(None);
            }
        }
        Ok(Some(Standing {
            object,
            author,
            commit,
        }))
    }

    /// Which of these objects stand, and which cannot be read.
    pub(crate) async fn look_at(&self, objects: &[CommitObject]) -> Result<Looked> {
        let mut found = Vec::with_capacity(objects.len());
        let mut unread = Vec::new();
        for object in objects {
            match self.read_commit_object(*object).await {
                Ok((author, commit)) => found.push(Standing {
                    object: *object,
                    author,
                    commit,
                }),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.is_of_object() => unread.push((*object, error)),
                Err(error) => return Err(error),
            }
        }
        if !found.is_empty() || !unread.is_empty() {
            let tombstones = self.tombstones().await?;
            found.retain(|standing| !tombstones.bury(standing.object, standing.author));
            unread.retain(|(object, _)| !tombstones.commits.contains_key(object));
        }
        // A collection that went by between the two looks has left neither commit nor tombstone.
        let mut standing = Vec::with_capacity(found.len());
        for one in found {
            if self.commit_author(one.object).await? == Some(one.author) {
                standing.push(one);
            }
        }
        Ok(Looked { standing, unread })
    }

    /// An error unless this is a snapshot: an object of it stands, and can be read.
    pub(crate) async fn require_alive(&self, id: CommitId) -> Result<Looked> {
        let objects = self.commit_objects_of(id).await?;
        let looked = self.look_at(&objects).await?;
        match (looked.standing.is_empty(), objects.is_empty()) {
            (false, _) => Ok(looked),
            (true, true) => Err(gone(id, "there is no such snapshot")),
            (true, false) => Err(looked
                .none()
                .err()
                .unwrap_or_else(|| gone(id, "was destroyed"))),
        }
    }

    /// An error unless this is a snapshot that no collection has announced. To be called after the flag was put that
    /// keeps it: a pin or a lease.
    pub(crate) async fn require_kept(&self, id: CommitId) -> Result<Standing> {
        if !self.lists() {
            // Nobody can keep it from here: what is gone meanwhile is missed when it is read.
            let standing = self.standing(id).await?;
            return standing.ok_or_else(|| gone(id, "there is no such snapshot"));
        }
        let standing = self.require_alive(id).await?.standing;
        let doomed = self.doomed().await?;
        let mut reason = "is being collected";
        for standing in standing {
            if doomed.commits.contains(&standing.object) {
                continue;
            }
            // A collection that was through with it before we looked at tombstones and lists has left neither: what is
            // still there now is not being deleted.
            if self.commit_author(standing.object).await? == Some(standing.author) {
                return Ok(standing);
            }
            reason = "was collected";
        }
        Err(gone(id, reason))
    }
}

pub(crate) fn gone(id: CommitId, reason: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_which_object_of_which_snapshot_it_is() {
        let id = CommitId([0xab; 32]);
        let again = CommitObject::again(id, WriterId([0x12; 8]));
        for object in [CommitObject::first(id), again] {
            let key = keys::commit(object).unwrap();
            assert_eq!(keys::commit_of(&key), Some(object));
            let text = serde_json::to_string(&object).unwrap();
            assert_eq!(serde_json::from_str::<CommitObject>(&text).unwrap(), object);
        }
        assert_eq!(again.to_string(), format!("{id}-1212121212121212"));
        // In a listing the first one comes first, and all of one id side by side.
        assert!(CommitObject::first(id) < again);
        for other in [
            "",
            "-",
            "ab",
            &format!("{id}-"),
            &format!("{id}-12"),
            &format!("{id}-x"),
        ] {
            assert!(other.parse::<CommitObject>().is_err(), "{other}");
        }
    }
}
