//! Pins: what a journal names stays in its storage until the journal ends.
//!
//! A creation and a checkout pin the snapshot that they read, a checkout also the `HEAD{i}` that it may have to go back to. The
//! record says so first, then the pin is put; the pin goes first, then the record says no more of it. So a pin that no record
//! speaks of is left only where a storage could not be asked at that time. Each says which home put it, and for which instance: who
//! finds one of a home of its own that no record speaks of removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures_util::TryStreamExt;
use neon_pagestore::{CommitId, Pin};
use neon_storage::{ListOptions, Locator};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{Instances, PgRecord, Stage};
use crate::name::Name;
use crate::neon::Neon;
use crate::record;
use crate::repositories::StorageRepository;

const PINS: &str = "pins/";

/// Which home put a pin, and for which instance.
#[derive(Debug, PartialEq, Eq)]
struct Owner<'a> {
    home: &'a str,
    pg: &'a str,
    id: &'a str,
}

impl<'a> Owner<'a> {
    fn write(&self, what: &str) -> String {
        let Self { home, pg, id } = self;
        format!("home {home}, pg {pg} ({id}): {what}")
    }

    /// None for a pin that no home put.
    fn read(text: &'a str) -> Option<Self> {
        let (home, rest) = text.strip_prefix("home ")?.split_once(", pg ")?;
        let (pg, rest) = rest.split_once(" (")?;
        let (id, _) = rest.split_once("): ")?;
        Some(Self { home, pg, id })
    }
}

/// A pin that nobody may need any more.
#[derive(Debug)]
pub(crate) struct LeftPin {
    pub(crate) pin: Pin,
    /// When it was put, as the storage knows.
    pub(crate) since: SystemTime,
    /// Whether this home put it, and knows that nothing needs it.
    pub(crate) ours: bool,
}

impl Neon {
    /// Pins a snapshot for what the record of an instance says is under way. In a storage that we may only read nothing can
    /// be pinned, and the snapshot is as safe as who writes there leaves it; so it is in one without room, which is told.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the snapshot was destroyed meanwhile, and what the storage answers.
    pub(crate) async fn pin(
        &self,
        at: &StorageRepository,
        id: CommitId,
        record: &PgRecord,
        what: &str,
    ) -> Result<()> {
        let owner = Owner {
            home: self.home().id(),
            pg: record.name.as_str(),
            id: &record.id,
        };
        let pinned = at.repository.pin(id, &owner.write(what)).await;
        let Err(error) = pinned.map_err(|error| Error::repository(at.label(), error)) else {
            return Ok(());
        };
        if error.is_of_a_full_disk() {
            self.tell(Event::Warning(format!(
                "{} has no room to say that pg {} needs snapshot {id}: nobody may destroy it there, or collect, until this command is done",
                at.label(),
                record.name
            )));
            return Ok(());
        }
        match error.kind() {
            ErrorKind::Environment | ErrorKind::Invalid => Ok(()),
            _ => Err(error),
        }
    }

    /// Removes what was pinned for an instance, but for this snapshot.
    pub(crate) async fn unpin(
        &self,
        at: &StorageRepository,
        record: &PgRecord,
        but: Option<CommitId>,
    ) -> Result<()> {
        let failed = |error| Error::repository(at.label(), error);
        let pins = at.repository.pins().await.map_err(failed)?;
        for pin in pins.into_iter().filter(|pin| Some(pin.commit) != but) {
            let owner = Owner::read(&pin.owner);
            if owner.is_some_and(|owner| owner.home == self.home().id() && owner.id == record.id) {
                at.repository.unpin(pin.id).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Who needs a snapshot for what is under way. What this home left, and nothing of it needs, is removed.
    pub(crate) async fn holders(
        &self,
        at: &StorageRepository,
        id: CommitId,
    ) -> Result<Vec<String>> {
        let failed = |error| Error::repository(at.label(), error);
        let pins = at.repository.pins().await.map_err(failed)?;
        let mut holders = Vec::new();
        for pin in pins.into_iter().filter(|pin| pin.commit == id) {
            if self.is_left(&pin) {
                at.repository.unpin(pin.id).await.map_err(failed)?;
            } else {
                holders.push(pin.owner);
            }
        }
        Ok(holders)
    }

    /// Whether a pin is of this home and no record speaks of it. Records are read after the pin was seen: one that ends
    /// meanwhile has taken its pin away before.
    fn is_left(&self, pin: &Pin) -> bool {
        let Some(owner) = Owner::read(&pin.owner) else {
            return false;
        };
        if owner.home != self.home().id() {
            return false;
        }
        let Ok(records) = self.pg().records() else {
            return false;
        };
        let Ok(trash) = record::list::<PgRecord>(&self.home().trash()) else {
            return false;
        };
        let mut records = records.iter().chain(trash.iter().map(|(_, record)| record));
        !records.any(|record| record.id == owner.id && record.is_under_way())
    }

    /// Pins of this home that no record speaks of, and those of others that were put before a time.
    pub(crate) async fn left_pins(
        &self,
        at: &StorageRepository,
        before: SystemTime,
    ) -> Result<Vec<LeftPin>> {
        let failed = |error| Error::repository(at.label(), error);
        let storage = at.repository.storage();
        let listing = storage.list(ListOptions::prefix(PINS));
        let ages: BTreeMap<String, SystemTime> = listing
            .map_ok(|object| (object.key.as_str().to_owned(), object.modified))
            .try_collect()
            .await
            .map_err(|error| Error::storage(at.label(), error))?;
        if ages.is_empty() {
            return Ok(Vec::new());
        }
        let mut left = Vec::new();
        for pin in at.repository.pins().await.map_err(failed)? {
            let digits: String = pin.id.0.iter().map(|byte| format!("{byte:02x}")).collect();
            let Some(since) = ages.get(&format!("{PINS}{digits}")).copied() else {
                continue;
            };
            let home = Owner::read(&pin.owner).map(|owner| owner.home == self.home().id());
            let ours = self.is_left(&pin);
            if ours || (home == Some(false) && since < before) {
                left.push(LeftPin { pin, since, ours });
            }
        }
        Ok(left)
    }
}

impl Instances<'_> {
    /// Removes the pins of what a record says is under way, before the record says no more of it. Those that cannot be
    /// removed now are found by the doctor.
    pub(crate) async fn let_go(&self, record: &PgRecord) {
        self.let_go_but(record, None).await;
    }

    /// As [`let_go`](Self::let_go), but for one snapshot.
    pub(crate) async fn let_go_but(&self, record: &PgRecord, but: Option<CommitId>) {
        for storage in record.needs() {
            let repository = self.0.storages().existing_repository(&storage).await;
            self.unpinned(record, but, storage.as_str(), repository)
                .await;
        }
        if let Some(place) = record.needs_at() {
            let repository = match Locator::parse(place) {
                Ok(locator) => self.0.storages().repository_at(&locator).await,
                Err(error) => Err(Error::storage(format!("storage {place}"), error)),
            };
            self.unpinned(record, but, place, repository).await;
        }
    }

    async fn unpinned(
        &self,
        record: &PgRecord,
        but: Option<CommitId>,
        storage: &str,
        repository: Result<Option<StorageRepository>>,
    ) {
        let unpinned = match repository {
            Ok(Some(repository)) => self.0.unpin(&repository, record, but).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match unpinned {
            // What is behind HTTP, or is not attached any more, has no pins of ours.
            Err(error) if !matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound) => {
                self.0.tell(Event::Warning(format!(
                    "what pg {} needed stays pinned in storage {storage} ({error}); neon doctor --fix removes that",
                    record.name
                )));
            }
            _ => {}
        }
    }

    /// The instances that need a storage for what is under way, also those in the trash: their end is for who brings them
    /// back.
    pub(crate) fn needing(&self, storage: &Name) -> Result<Vec<Name>> {
        let trash = crate::record::list::<PgRecord>(&self.0.home().trash())?;
        let records = self.records()?.into_iter();
        let records = records.chain(trash.into_iter().map(|(_, record)| record));
        let needing = records.filter(|record| record.needs().contains(storage));
        Ok(needing.map(|record| record.name).collect())
    }
}

impl PgRecord {
    /// Whether something is under way that reads a snapshot.
    fn is_under_way(&self) -> bool {
        self.stage == Stage::Creating || self.checkout.is_some()
    }

    /// The storages that are needed for what is under way.
    fn needs(&self) -> BTreeSet<Name> {
        let mut needed = BTreeSet::new();
        if let Some(checkout) = &self.checkout {
            needed.insert(checkout.storage.clone());
            needed.insert(checkout.kept_in(self));
        }
        if self.stage == Stage::Creating {
            let base = self.base.as_ref();
            needed.extend(base.and_then(|base| base.storage.clone()));
        }
        needed
    }

    /// The storage that is not attached, and needed for what is under way.
    fn needs_at(&self) -> Option<&str> {
        let base = self.base.as_ref();
        let base = base.filter(|base| self.stage == Stage::Creating && base.storage.is_none());
        base?.locator.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_as_it_was_written() {
        let owner = Owner {
            home: "0123456789abcdef",
            pg: "pgdata1",
            id: "fedcba9876543210",
        };
        let text = owner.write("it goes back to it (now): so");
        assert_eq!(Owner::read(&text), Some(owner));
        assert_eq!(Owner::read("a mount"), None);
    }
}
