//! Into the trash and back.

use crate::error::{Error, ErrorKind, Result};
use crate::instances::{Instances, PgRecord, Stage};
use crate::name::Name;
use crate::record;

impl Instances<'_> {
    /// Stops an instance and moves it to the trash, from where [`undo_destroy`](Self::undo_destroy) brings it back.
    /// Its name is free then. Returns its id.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and why it does not stop.
    pub async fn destroy(&self, name: &Name) -> Result<String> {
        let _lock = self.lock(name).await?;
        self.settle_with(name, false).await?;
        let record = self.known(name)?;
        let mut operation = self.0.begin_operation("pg destroy", name.as_str())?;
        operation.detail("id", record.id.clone());
        let destroyed = async {
            self.stop_locked(name, false).await?;
            self.update(name, |record| record.stage = Stage::Destroying)?;
            self.settle(name).await
        }
        .await;
        operation.end(destroyed)?;
        Ok(record.id)
    }

    /// Brings an instance back from the trash under the name it had.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the trash has no such instance (any more); [`Exists`](ErrorKind::Exists)
    /// when its name was given again.
    pub async fn undo_destroy(&self, id: &str) -> Result<PgRecord> {
        let missing = || {
            Error::new(
                ErrorKind::NotFound,
                format!("pg with id {id}"),
                "is not in the trash",
            )
        };
        if id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let trash = self.0.home().trash().join(format!("{id}.json"));
        let mut record: PgRecord = record::read(&trash)?.ok_or_else(missing)?;
        let name = record.name.clone();
        let _lock = self.lock(&name).await?;
        self.settle(&name).await?;
        let operation = self.0.begin_operation("pg undo destroy", name.as_str())?;
        let restored = (|| {
            record.stage = Stage::Creating;
            record::create(&self.record(&name), &record).map_err(|error| {
                if error.kind() == ErrorKind::Exists {
                    return Error::new(
                        ErrorKind::Exists,
                        format!("pg {name}"),
                        "is there again already",
                    );
                }
                error
            })?;
            let folder = self.0.home().instance_folder(name.as_str());
            record::rename(&self.0.home().trash_folder(id), &folder)?;
            self.update(&name, |record| record.stage = Stage::Ready)?;
            record::remove(&trash)
        })();
        operation.end(restored)?;
        self.known(&name)
    }
}
