//! Into the trash and back.

use std::time::Duration;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::instances::{Instances, PgRecord, Stage};
use crate::name::Name;
use crate::record::{self, Lock};

/// At most so many instances are kept in the trash, and none but the newest for longer.
const MOST_IN_TRASH: usize = 5;
const OLDEST_IN_TRASH: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Instances<'_> {
    /// Stops an instance and moves it to the trash, from where [`undo_destroy`](Self::undo_destroy) brings it back.
    /// Its name is free then. Returns its id. One that was adopted is only forgotten: it runs on, and its files stay.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and why it does not stop.
    pub async fn destroy(&self, name: &Name) -> Result<String> {
        let record = self.known(name)?;
        let mut operation = self.0.begin_operation("pg destroy", name.as_str())?;
        let destroyed = Box::pin(self.destroy_of(name, None)).await;
        operation.detail("id", destroyed.as_deref().unwrap_or(&record.id));
        operation.end(destroyed)
    }

    /// As [`destroy`](Self::destroy), without a word in the log; with an id only that instance.
    pub(crate) async fn destroy_of(&self, name: &Name, id: Option<&str>) -> Result<String> {
        let _lock = self.lock(name).await?;
        let adopted = record::read::<PgRecord>(&self.record(name))?.is_some_and(|record| {
            record.adopted.is_some() && record.stage == Stage::Ready && record.checkout.is_some()
        });
        if adopted {
            // Only a record goes, and nothing in the cluster is changed for that.
            self.update(name, |record| record.checkout = None)?;
        }
        Box::pin(self.settle_with(name, false)).await?;
        let record = self.known(name)?;
        if id.is_some_and(|id| id != record.id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("pg {name}"),
                "is another instance by now",
            ));
        }
        // What was adopted goes on without us.
        if record.adopted.is_none() {
            self.stop_locked(name, false).await?;
        }
        self.update(name, |record| record.stage = Stage::Destroying)?;
        Box::pin(self.settle(name)).await?;
        self.trim_trash(name).await;
        Ok(record.id)
    }

    /// Removes for good what is beyond the limits of the trash. What cannot be removed now is tried again.
    /// The lock of one name is held.
    async fn trim_trash(&self, held: &Name) {
        let home = self.0.home();
        self.finish_removals().await;
        let Ok(records) = record::list::<PgRecord>(&home.trash()) else {
            return;
        };
        let now = self.0.now();
        let mut aged: Vec<_> = records
            .into_iter()
            .filter_map(|(id, record)| {
                let path = home.trash().join(format!("{id}.json"));
                let since = std::fs::metadata(&path).and_then(|facts| facts.modified());
                let age = now.duration_since(since.ok()?).unwrap_or_default();
                Some((age, id, record))
            })
            .collect();
        aged.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (place, (age, id, record)) in aged.into_iter().enumerate() {
            let old = place > 0 && age > OLDEST_IN_TRASH;
            if place < MOST_IN_TRASH && !old {
                continue;
            }
            // Not while somebody brings it back.
            let lock = Lock::free(&self.lock_file(&record.name));
            if record.name != *held && lock.is_none() {
                continue;
            }
            // First nobody finds it any more, then it goes: half of an instance is never brought back.
            let trash = home.trash().join(format!("{id}.json"));
            if record::rename(&trash, &home.gone(&id)).is_err() {
                return;
            }
        }
        self.finish_removals().await;
    }

    /// Removes what was said to be removed, also by a command that was killed then.
    pub(super) async fn finish_removals(&self) {
        let home = self.0.home();
        let entries = std::fs::read_dir(home.trash()).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".gone")) else {
                continue;
            };
            let Ok(Some(record)) = record::read::<PgRecord>(&home.gone(id)) else {
                continue;
            };
            let (mark, left) = (home.gone(id), self.remains(&record));
            let removed = beside(move || {
                left.iter().try_for_each(|left| record::remove_tree(left))?;
                record::remove(&mark)
            });
            // What cannot be removed now is tried again.
            drop(removed.await);
        }
    }

    /// Brings an instance back from the trash under the name it had.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the trash has no such instance (any more); [`Exists`](ErrorKind::Exists)
    /// when its name was given again.
    pub async fn undo_destroy(&self, id: &str) -> Result<PgRecord> {
        let trash = self.0.home().trash().join(format!("{id}.json"));
        let plain = id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let known = plain.then(|| record::read::<PgRecord>(&trash)).transpose();
        let Ok(Some(Some(known))) = known else {
            return Box::pin(self.undo_destroy_unlogged(id)).await;
        };
        let operation = self
            .0
            .begin_operation("pg undo destroy", known.name.as_str())?;
        operation.end(Box::pin(self.undo_destroy_unlogged(id)).await)
    }

    pub(crate) async fn undo_destroy_unlogged(&self, id: &str) -> Result<PgRecord> {
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
        Box::pin(self.settle(&name)).await?;
        // It may have been removed while we waited.
        if !trash.exists() {
            return Err(missing());
        }
        Self::can_come_back(&record)?;
        let restored = (|| {
            record.stage = Stage::Creating;
            record.checkouts = record.checkouts.max(self.first_head(&name)?);
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
            self.bring_back(&record)?;
            let folder = self.0.home().instance_folder(name.as_str());
            let trash_folder = self.0.home().trash_folder(id);
            if record.adopted.is_none() || trash_folder.exists() {
                record::rename(&trash_folder, &folder)?;
            }
            self.update(&name, |record| record.stage = Stage::Ready)?;
            record::remove(&trash)
        })();
        restored?;
        self.known(&name)
    }
}
