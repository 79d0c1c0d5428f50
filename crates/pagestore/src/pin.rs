//! Pins: a snapshot is in use, by a clone or a mount, and must keep its pages though it be destroyed.

use futures_util::TryStreamExt;
use neon_storage::{ListOptions, StorageExt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, from_hex, random};
use crate::keys::{self, PINS};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// The identity of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId(pub [u8; 16]);

/// A snapshot in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Which pin.
    pub id: PinId,
    /// The snapshot.
    pub commit: CommitId,
    /// Who uses it, for people and for whoever made the pin to know it again.
    pub owner: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PinBody {
    pub(crate) commit: CommitId,
    pub(crate) owner: String,
}

impl Repository {
    /// Pins a snapshot until [`unpin`](Self::unpin), whoever ends meanwhile.
    ///
    /// Dropped: a pin may remain; [`pins`](Self::pins) shows it.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such snapshot (any more).
    pub async fn pin(&self, commit: CommitId, owner: &str) -> Result<Pin> {
        let id = PinId(random()?);
        let body = PinBody {
            commit,
            owner: owner.to_owned(),
        };
        let me = self.shared.me;
        // First the pin, then the look: a collection that does not see the pin has announced before.
        self.put_json(&keys::pin(id.0)?, ObjectKind::Pin, me, &body)
            .await?;
        if let Err(error) = self.require_kept(commit).await {
            self.unpin(id).await?;
            return Err(error);
        }
        Ok(Pin {
            id,
            commit,
            owner: body.owner,
        })
    }

    /// Removes a pin; one that is not there is removed.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage); [`Unsupported`](ErrorKind::Unsupported) in a repository that a newer version
    /// forbids to change.
    pub async fn unpin(&self, id: PinId) -> Result<()> {
        self.require_writable()?;
        let key = keys::pin(id.0)?;
        let deleted = self.shared.storage.delete(&key).await;
        deleted.map_err(|error| Error::storage(key.as_str(), error))
    }

    /// All pins.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage), and as [`Object::decode`](crate::Object::decode).
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        let listing = self.shared.storage.list(ListOptions::prefix(PINS));
        let objects: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| Error::storage(PINS, error))?;
        let mut pins = Vec::with_capacity(objects.len());
        for object in objects {
            let id = object
                .key
                .as_str()
                .strip_prefix(PINS)
                .and_then(from_hex)
                .ok_or_else(|| Error::malformed(object.key.as_str(), "is not where pins are"))?;
            match self.get_json::<PinBody>(&object.key, ObjectKind::Pin).await {
                Ok((_, body)) => pins.push(Pin {
                    id: PinId(id),
                    commit: body.commit,
                    owner: body.owner,
                }),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pins)
    }
}
