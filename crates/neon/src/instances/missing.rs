//! Instances whose directory is gone, made anew from a snapshot.
//!
//! Gone is only what was below the home and is not there at all. A link that leads nowhere, a place that somebody chose, a
//! cluster that was adopted: their disk may be back tomorrow, with newer data than any snapshot.
//!
//! The new record holds the old one until the new directory has its name; what was left of the folder waits in the
//! trash. Whatever fails or is killed before that puts both back.

use std::fs;

use neon_pgctl::Installation;

use crate::error::{Error, ErrorKind, Result};
use crate::instances::{CreatePg, Instances, PgRecord, Stage};
use crate::name::Name;
use crate::record::{self, Lock};

impl Instances<'_> {
    /// The record of an instance whose directory is gone; nothing if its directory is there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for the instance; [`Environment`](ErrorKind::Environment) when its directory cannot be
    /// seen but may well be somewhere.
    pub(crate) async fn missing(&self, name: &Name) -> Result<Option<PgRecord>> {
        let _lock = self.lock(name).await?;
        if self.known(name)?.stage != Stage::Ready {
            Box::pin(self.settle_with(name, false)).await?;
        }
        let record = self.known(name)?;
        Ok(self.is_missing(&record)?.then_some(record))
    }

    fn is_missing(&self, record: &PgRecord) -> Result<bool> {
        let folder = self.0.home().instance_folder(record.name.as_str());
        let data = self.data_dir(record);
        self.is_mounted(record)?;
        if data.is_dir() {
            return Ok(false);
        }
        let elsewhere = |why: String, hint: String| {
            Err(Error::new(
                ErrorKind::Environment,
                format!("pg {}", record.name),
                format!("{why}: nothing is restored in its place"),
            )
            .hinted(hint))
        };
        let place = record.pgdata.as_ref().unwrap_or(&data);
        if record.adopted.is_some() {
            return elsewhere(
                format!("was adopted, and {} is not there", data.display()),
                "bring its disk back; neon pg create --snapshot makes another instance".to_owned(),
            );
        }
        if record.pgdata.is_some() {
            return elsewhere(
                format!(
                    "has its directory at {}, which is not there",
                    place.display()
                ),
                "bring its disk back; neon pg create --snapshot makes another instance".to_owned(),
            );
        }
        if let Some(of) = &record.replica {
            return elsewhere(
                "is a replica, and its directory is gone".to_owned(),
                format!(
                    "make another from its primary: neon pg start --replica {}; neon pg destroy {} forgets this one",
                    of.name, record.name
                ),
            );
        }
        for path in [&folder, &data] {
            match fs::symlink_metadata(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(Error::io(path, "cannot be looked at", error)),
                Ok(facts) if facts.is_dir() => {}
                Ok(_) => {
                    let leads = fs::read_link(path).map_or_else(
                        |_| "is no folder".to_owned(),
                        |to| format!("leads to {}, which is not there", to.display()),
                    );
                    return elsewhere(
                        format!("has its directory elsewhere ({} {leads})", path.display()),
                        "bring it back, or remove that link if it is lost for good".to_owned(),
                    );
                }
            }
        }
        // It came while we looked.
        Ok(false)
    }

    /// Takes the name of an instance whose directory is gone for one that is made in its place.
    pub(super) async fn claim_again(
        &self,
        wanted: &CreatePg,
        gone: &PgRecord,
        installation: &Installation,
    ) -> Result<(Name, Lock)> {
        let name = gone.name.clone();
        let lock = self.lock(&name).await?;
        let known = self.known(&name)?;
        if known.id != gone.id || known.stage != Stage::Ready || !self.is_missing(&known)? {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("pg {name}"),
                "is another instance by now",
            )
            .hinted("try again"));
        }
        let storage = wanted.storage.as_ref().unwrap_or(&known.storage).clone();
        let attached = self.0.storages().hold(&storage).await?;
        let mut record = self.fresh(&name, wanted, storage, installation)?;
        record.port = record.port.or(known.port);
        record.checkouts = record.checkouts.max(known.checkouts);
        record.heads.clone_from(&known.heads);
        record.wanted = known.wanted;
        record.in_place_of = Some(Box::new(known));
        record::replace(&self.record(&name), &record)?;
        drop(attached);
        self.move_rest(&record)?;
        Ok((name, lock))
    }

    /// Moves what is left of the folder of the instance that this one replaces to the trash.
    fn move_rest(&self, record: &PgRecord) -> Result<()> {
        let home = self.0.home();
        let folder = home.instance_folder(record.name.as_str());
        let Some(gone) = record.in_place_of.as_deref().filter(|_| folder.exists()) else {
            return Ok(());
        };
        let mut kept = gone.clone();
        kept.stage = Stage::Destroying;
        record::replace(&home.trash().join(format!("{}.json", gone.id)), &kept)?;
        home.to_trash(&folder, &gone.id)
    }

    /// Whether what is made has its name: then it stays.
    pub(super) fn is_placed(&self, record: &PgRecord) -> bool {
        let folder = self.0.home().instance_folder(record.name.as_str());
        match &record.in_place_of {
            // What was left of the one before may be there still.
            Some(_) => fs::symlink_metadata(folder.join("data")).is_ok(),
            None => folder.exists(),
        }
    }

    /// Gives the name back: to the instance that this one was to replace, or to anybody.
    pub(super) fn unclaim(&self, record: &PgRecord) -> Result<()> {
        let Some(gone) = record.in_place_of.as_deref() else {
            return record::remove(&self.record(&record.name));
        };
        let home = self.0.home();
        let rest = home.trash_folder(&gone.id);
        if rest.exists() {
            record::rename(&rest, &home.instance_folder(record.name.as_str()))?;
        }
        record::replace(&self.record(&record.name), gone)?;
        record::remove(&home.trash().join(format!("{}.json", gone.id)))
    }
}
