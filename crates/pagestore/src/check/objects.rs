//! Every object but packs, each by the format that its key asks for.

use std::sync::Arc;

use futures_util::TryStreamExt;
use neon_snapshot_format::pack::PackId;
use neon_storage::{ListOptions, ObjectMeta, StorageExt};

use crate::check::Check;
use crate::claim::ClaimBody;
use crate::doomed::DoomedBody;
use crate::error::{Error, ErrorKind, Result};
use crate::id::from_hex;
use crate::keys;
use crate::lease::LeaseBody;
use crate::object::{Object, ObjectKind};
use crate::pin::PinBody;
use crate::tombstone::TombstoneBody;

impl Check<'_> {
    /// Every object but packs, each by the format that its key asks for.
    pub(super) async fn small_objects(&mut self) -> Result<()> {
        let storage = Arc::clone(self.repository.storage());
        let mut listing = storage.list(ListOptions::all());
        while let Some(object) = listing
            .try_next()
            .await
            .map_err(|error| Error::storage("all objects", error))?
        {
            let folder = object
                .key
                .as_str()
                .split_once('/')
                .map_or("", |(folder, _)| folder);
            if folder == "packs" {
                match keys::pack_of(&object.key) {
                    Some(id) => {
                        self.packs.insert(id, object.size);
                    }
                    None => self.stray(&object),
                }
                continue;
            }
            let parsed = match folder {
                "snapshots" => self.parse_commit(&object).await,
                "names" if object.key.as_str().contains("/declined-") => {
                    self.parse::<ClaimBody>(&object, ObjectKind::Declined).await
                }
                "names" => self.parse::<ClaimBody>(&object, ObjectKind::Claim).await,
                "leases" => self.parse::<LeaseBody>(&object, ObjectKind::Lease).await,
                "pins" => self.parse::<PinBody>(&object, ObjectKind::Pin).await,
                "tombstones" => {
                    self.parse::<TombstoneBody>(&object, ObjectKind::Tombstone)
                        .await
                }
                "doomed" => self.parse::<DoomedBody>(&object, ObjectKind::Doomed).await,
                "catalog" => {
                    self.parse::<Vec<crate::catalog::Entry>>(&object, ObjectKind::Catalog)
                        .await
                }
                "moves" => self.parse_moves(&object).await,
                "keys" if keys::is_envelope(&object.key) => self.parse_envelope(&object).await,
                // Not ours: archived log, policies; and what the repository was opened with.
                _ => continue,
            };
            self.checked.objects = self.checked.objects.saturating_add(1);
            match parsed {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.note_error(error, None)?,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn stray(&mut self, object: &ObjectMeta) {
        self.note(
            object.key.to_string(),
            "is not where packs are".to_owned(),
            ErrorKind::Malformed,
            None,
        );
    }

    async fn parse<T: for<'de> serde::Deserialize<'de>>(
        &self,
        object: &ObjectMeta,
        kind: ObjectKind,
    ) -> Result<()> {
        self.repository
            .get_json::<T>(&object.key, kind)
            .await
            .map(drop)
    }

    async fn parse_commit(&self, object: &ObjectMeta) -> Result<()> {
        let commit = keys::commit_of(&object.key)
            .ok_or_else(|| Error::malformed(object.key.as_str(), "is not where snapshots are"))?;
        let (_, commit) = self.repository.read_commit_object(commit).await?;
        commit.view().map(drop)
    }

    async fn parse_moves(&mut self, object: &ObjectMeta) -> Result<()> {
        let old = object.key.segments().nth(1).and_then(from_hex).map(PackId);
        let old =
            old.ok_or_else(|| Error::malformed(object.key.as_str(), "is not where moves are"))?;
        let found = self
            .repository
            .get_object(&object.key, ObjectKind::Moves)
            .await?;
        crate::moves::decode(&object.key, &found.body)?;
        if !self.moves.contains_key(&old) {
            let pieces = self.repository.moves_of(old).await?;
            self.moves.insert(old, pieces);
        }
        Ok(())
    }

    async fn parse_envelope(&self, object: &ObjectMeta) -> Result<()> {
        let bytes = self.repository.storage().read(&object.key).await;
        let bytes = bytes.map_err(|error| Error::storage(object.key.as_str(), error))?;
        let envelope = Object::decode(&object.key, ObjectKind::Key, &bytes, None)?;
        self.repository
            .check_voucher(&envelope.body)
            .map_err(|error| Error::malformed(object.key.as_str(), "holds no key").caused_by(error))
    }
}
