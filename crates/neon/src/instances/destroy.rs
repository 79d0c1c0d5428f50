//! Into the trash and back.

use std::path::Path;
use std::time::Duration;

use neon_pgctl::Status;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::trash_left::PLACE;
use crate::instances::{Instances, PgRecord, Stage};
use crate::name::Name;
use crate::record;

/// At most so many instances are kept in the trash beside those of the last day, and none but the newest for longer.
const MOST_IN_TRASH: usize = 5;
const NEW_IN_TRASH: Duration = Duration::from_secs(24 * 60 * 60);
const OLDEST_IN_TRASH: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Instances<'_> {
    /// Stops an instance and moves it to the trash, from where [`undo_destroy`](Self::undo_destroy) brings it back.
    /// Its name is free then. Returns its id. One that was adopted is only forgotten: it runs on, and its files stay.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and why it does not stop.
    pub async fn destroy(&self, name: &Name) -> Result<String> {
        self.destroy_logged(name, None, false).await
    }

    /// As [`destroy`](Self::destroy), only the instance with this id, as somebody agreed to.
    ///
    /// # Errors
    /// As [`destroy`](Self::destroy); [`Busy`](ErrorKind::Busy) when the name is another's by now.
    pub async fn destroy_this(&self, name: &Name, id: &str) -> Result<String> {
        self.destroy_logged(name, Some(id), false).await
    }

    /// As [`destroy_this`](Self::destroy_this), also if what it has on disks that are not mounted is lost.
    ///
    /// # Errors
    /// As [`destroy_this`](Self::destroy_this).
    pub async fn destroy_lost(&self, name: &Name, id: &str) -> Result<String> {
        self.destroy_logged(name, Some(id), true).await
    }

    async fn destroy_logged(&self, name: &Name, id: Option<&str>, lost: bool) -> Result<String> {
        let record = self.known(name)?;
        is_that(&record, id)?;
        let mut operation = self.0.begin_relief("pg destroy", name.as_str())?;
        if let Some(place) = record.pgdata.as_deref().and_then(Path::to_str) {
            operation.detail(PLACE, place);
        }
        let destroyed = Box::pin(self.destroy_of(name, id, lost)).await;
        operation.detail("id", destroyed.as_deref().unwrap_or(&record.id));
        operation.end(destroyed)
    }

    /// As [`destroy`](Self::destroy), without a word in the log; with an id only that instance; if said, although its
    /// disks are lost.
    pub(crate) async fn destroy_of(
        &self,
        name: &Name,
        id: Option<&str>,
        lost: bool,
    ) -> Result<String> {
        let _lock = self.lock(name).await?;
        if lost {
            is_that(&self.known(name)?, id)?;
        }
        let before = record::read::<PgRecord>(&self.record(name))?;
        // A journal goes to the trash with its instance, and is ended when that is brought back.
        let ready = |record: &PgRecord| record.stage == Stage::Ready && record.is_changing();
        if !before.as_ref().is_some_and(ready) {
            Box::pin(self.settle_as(name, false, lost)).await?;
        }
        let record = match (self.known(name), before) {
            // Half destroyed: with the end of that it is gone. What was half made never was, unless it is known to be lost.
            (Err(error), Some(before))
                if error.kind() == ErrorKind::NotFound
                    && (lost || before.stage == Stage::Destroying) =>
            {
                is_that(&before, id)?;
                return Ok(before.id);
            }
            (record, _) => record?,
        };
        is_that(&record, id)?;
        if lost || record.adopted.is_some() {
            self.0.home().is_mounted()?;
        } else {
            self.is_in_sight(&record)?;
        }
        // What was adopted goes on without us. Without a server nothing is needed to end it.
        if record.adopted.is_none() && self.may_run(&record).await {
            self.stop_locked(name, false).await?;
        }
        self.update(name, |record| {
            record.stage = Stage::Destroying;
            if lost {
                record.disks.clear();
            }
        })?;
        Box::pin(self.settle(name)).await?;
        self.trim_trash(name).await;
        Ok(record.id)
    }

    /// Whether there may be a server. One without its directory, or its programs, is destroyed like any other.
    async fn may_run(&self, record: &PgRecord) -> bool {
        let data = self.data_dir(record);
        match Status::of(&data).await {
            Ok(status) => status.is_up(),
            Err(_) => data.join("postmaster.pid").exists(),
        }
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
            if (place < MOST_IN_TRASH && !old) || age < NEW_IN_TRASH {
                continue;
            }
            // Not while somebody brings it back.
            let lock = self.lock_if_free(&record.name);
            if record.name != *held && lock.is_none() {
                continue;
            }
            if self.is_trash_mounted(&record).is_err() {
                continue;
            }
            // First nobody finds it any more, then it goes: half of an instance is never brought back.
            let trash = home.trash().join(format!("{id}.json"));
            if record::rename(&trash, &home.gone(&id)).is_err() {
                return;
            }
            let days = age.as_secs() / (24 * 60 * 60);
            self.0.tell(Event::Note(format!(
                "pg {} is removed from the trash for good: it was destroyed {days} days ago",
                record.name
            )));
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
            if self.is_trash_mounted(&record).is_err() {
                continue;
            }
            // What cannot be removed now is tried again, and what somebody is at is removed by them.
            if record::is_free(&home.gone(id)) {
                drop(self.finish_removal(&record).await);
            }
        }
    }

    /// Removes one of which that was said. Another command may be at it: then that is waited for.
    pub(super) async fn finish_removal(&self, record: &PgRecord) -> Result<()> {
        // What was under way in it is never ended.
        self.let_go(record).await;
        let (mark, left) = (self.0.home().gone(&record.id), self.remains(record));
        beside(move || {
            let Some(_held) = record::held(&mark)? else {
                return Ok(());
            };
            for left in &left {
                record::remove_tree(left)?;
                // A removal that was killed left it without its name, and nothing else would find it.
                drop(left.parent().map(neon_cowfs::sweep_removals));
            }
            record::remove(&mark)
        })
        .await
    }

    /// Brings an instance back from the trash under the name it had, and starts it if it ran when it was destroyed.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the trash has no such instance (any more); [`Exists`](ErrorKind::Exists)
    /// when its name was given again; [`Partial`](ErrorKind::Partial) when it is back, and does not start.
    pub async fn undo_destroy(&self, id: &str) -> Result<PgRecord> {
        let trash = self.0.home().trash().join(format!("{id}.json"));
        let plain = id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let known = plain.then(|| record::read::<PgRecord>(&trash)).transpose();
        let back = match known {
            Ok(Some(Some(known))) => {
                let name = known.name.as_str();
                let operation = self.0.begin_operation("pg undo destroy", name)?;
                operation.end(Box::pin(self.undo_destroy_unlogged(id)).await)
            }
            _ => Box::pin(self.undo_destroy_unlogged(id)).await,
        };
        match back? {
            (record, None) => Ok(record),
            (_, Some(trouble)) => Err(trouble),
        }
    }

    /// Brings it back; beside it why its server, which ran, does not start.
    pub(crate) async fn undo_destroy_unlogged(
        &self,
        id: &str,
    ) -> Result<(PgRecord, Option<Error>)> {
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
        self.is_trash_mounted(&record)?;
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
        let mut trouble = None;
        if record.checkout.is_some() {
            Box::pin(self.settle(&name)).await?;
        } else if record.wanted && record.adopted.is_none() {
            self.0
                .tell(Event::Step(format!("Starting postgres on {name}.")));
            let started = self.start_locked(&name).await;
            trouble = started.err().map(|error| {
                Error::new(
                    ErrorKind::Partial,
                    format!("pg {name}"),
                    "is back, and its server, which ran before, does not start",
                )
                .hinted(format!("neon pg start {name}, when what keeps it is gone"))
                .caused_by(error)
            });
        }
        Ok((self.known(&name)?, trouble))
    }
}

/// An error when an instance is not the one with this id, as somebody agreed to.
fn is_that(record: &PgRecord, id: Option<&str>) -> Result<()> {
    if id.is_none_or(|id| id == record.id) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("pg {}", record.name),
        "is another instance by now",
    )
    .hinted("see `neon pg list`"))
}
