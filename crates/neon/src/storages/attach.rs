//! Attaching storages. That there is no such place, or that it lets nobody in, is said before it is remembered, and not by the
//! first snapshot that is meant for it.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::TryStreamExt;
use neon_storage::{Key, ListOptions, Locator, Storage, StorageExt};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::operation::seconds;
use crate::record;
use crate::storages::probe_memory::Known;
use crate::storages::{
    ABOUT, StorageOptions, StorageRecord, StorageType, Storages, anchored, taken,
};

impl Storages<'_> {
    /// Attaches a storage: looks whether it can be reached, and remembers it. Nothing is written to it.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when the name is taken; [`Invalid`](ErrorKind::Invalid) for a locator with a
    /// password in it, or that names no place; what the storage answers.
    pub async fn attach(
        &self,
        name: &Name,
        locator: &Locator,
        options: BTreeMap<String, String>,
    ) -> Result<StorageRecord> {
        self.attach_as(name, locator, options, true).await
    }

    /// As [`attach`](Self::attach), of one that cannot be asked now: whether it is there, who uses it is told.
    ///
    /// # Errors
    /// As there, but for what the storage answers.
    pub async fn attach_unasked(
        &self,
        name: &Name,
        locator: &Locator,
        options: BTreeMap<String, String>,
    ) -> Result<StorageRecord> {
        self.attach_as(name, locator, options, false).await
    }

    async fn attach_as(
        &self,
        name: &Name,
        locator: &Locator,
        options: BTreeMap<String, String>,
        ask: bool,
    ) -> Result<StorageRecord> {
        let kind = StorageType::of(locator)?;
        let locator = &anchored(locator)?;
        if kind == StorageType::Http && !locator.options().is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("storage {locator}"),
                "has options in its address, which may be secret and would be kept in clear",
            ));
        }
        if locator.password().is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("storage {locator}"),
                "has a password in its address, which would be kept in clear",
            )
            .hinted("give credentials by the environment or a profile"));
        }
        let chosen = StorageOptions::of(kind, &options)?;
        let _lock = self.lock(name).await?;
        if self.get(name).is_ok() {
            return Err(taken(name));
        }
        let place = chosen.apply(name, locator)?;
        // Of one that had this name before, and whose detaching was cut short.
        self.forget_probed(name);
        if ask {
            let place = self
                .open_at(name, &place, Known::Believed)
                .await
                .map_err(|error| {
                    // Only the folder itself is made.
                    match locator.file_path().and_then(Path::parent) {
                        Some(folder) if error.kind() == ErrorKind::NotFound => {
                            error.hinted(format!(
                                "make the folder that it is in, or mount its disk: mkdir -p {}",
                                crate::instances::quoted(folder)
                            ))
                        }
                        _ => error,
                    }
                })?;
            self.ask(name, kind, &*place).await?;
        }
        let record = StorageRecord {
            kind,
            locator: locator.to_string(),
            options,
            attached: seconds(self.0.now()),
            repository: None,
        };
        let operation = self.0.begin_operation("storage attach", name.as_str())?;
        operation.end(record::create(&self.record(name.as_str()), &record))?;
        if chosen.encrypted && chosen.key_file.is_none() && self.0.options().passphrase.is_none() {
            self.0.tell(Event::Warning(format!(
                "storage {name} will be encrypted, and no passphrase was given now: whatever uses it needs NEON_PASSPHRASE; \
                 nothing can be read without it, by nobody"
            )));
        }
        Ok(record)
    }

    /// Asks a place whether it can be one of ours. Nothing is written to it.
    async fn ask(&self, name: &Name, kind: StorageType, place: &dyn Storage) -> Result<()> {
        let subject = || format!("storage {name}");
        let about = Key::new(ABOUT).map_err(|error| {
            Error::new(ErrorKind::Failed, ABOUT, "cannot be asked for").caused_by(error)
        })?;
        let failed = |error| Error::storage(subject(), error);
        if place.exists(&about).await.map_err(failed)? {
            return Ok(());
        }
        match kind {
            // Whoever is asked for one object that is not there says nothing of whether its bucket is.
            StorageType::S3 => {
                let mut listed = place.list(ListOptions::prefix(ABOUT));
                listed.try_next().await.map_err(failed)?;
            }
            StorageType::Http => self.0.tell(Event::Warning(format!(
                "storage {name}: there is no {ABOUT} at its address, so nothing can be read from it until a repository is put there"
            ))),
            StorageType::Native | StorageType::Ssh => {}
        }
        Ok(())
    }
}
