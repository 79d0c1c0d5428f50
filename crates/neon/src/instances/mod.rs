//! Instances: what a home remembers of each, and how they come and go.
//!
//! A record is put before its folder is made and says so (`creating`); the folder appears as a whole; then the record
//! says `ready`. Destroying goes the other way: the record says `destroying`, the folder moves to the trash, its record
//! follows. Whatever a crash left in between, the next verb on that name finishes or takes back under the lock.

mod adopt;
mod all_at_once;
mod archived;
mod between;
pub(crate) mod checkout;
mod create;
mod destroy;
mod elsewhere;
mod heads;
mod in_use;
mod isolate;
mod kept_log;
mod life;
mod missing;
mod mounted;
mod ports;
mod record;
mod replica;
pub(crate) mod restore;
mod runs_here;
mod shared_places;
mod stopping;
mod trash;
mod trash_left;
mod trees;
mod unlogged;
mod used;

use std::path::PathBuf;
use std::time::Duration;

use neon_pgctl::{Instance, ServerState, Status, StopMode, StopOptions};

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::neon::Neon;
use crate::record as records;
use crate::record::Lock;
use crate::upkeep::with_causes;

pub use adopt::{AdoptPg, AdoptedPg};
pub use checkout::{CheckedOut, CheckoutChoice, CheckoutPlan, Compare};
pub use create::CreatePg;
pub use heads::Head;
pub use kept_log::KeptLog;
pub(crate) use mounted::{led_to, quoted};
pub use neon_cowfs::{Method as CloneMethod, Wanted as CloneWanted};
pub use record::{AdoptedPlace, Base, PgRecord, Stage};
pub use replica::ReplicaOf;
pub use restore::RestoreChoice;
pub(crate) use restore::{Fill, NOBODY, has_room, place_for};
pub use trash::TrashedPg;
pub use trash_left::LeftInTrash;
pub use used::bytes_on_disk;

/// What instances are made in by `neon-pgctl`, each locked by who makes it.
pub(crate) const CREATION: &str = ".neon-new-";

/// An instance as it is now.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pg {
    /// What is remembered of it.
    pub record: PgRecord,
    /// What its server does; nothing while it is being made or destroyed.
    pub status: Option<Status>,
}

impl Pg {
    /// Where its server listens, when it runs.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        let status = self.status.as_ref().filter(|status| status.is_up())?;
        status.port.map(|port| format!("localhost:{port}"))
    }

    /// Its role: `primary`, `replica`, or nothing when it does not run.
    #[must_use]
    pub fn role(&self) -> Option<&'static str> {
        match self.status.as_ref()?.state {
            ServerState::Stopped | ServerState::Crashed => None,
            ServerState::Standby => Some("replica"),
            _ => Some("primary"),
        }
    }

    /// Its role as a listing shows it: that of a replica with its number, `replica-1`.
    #[must_use]
    pub fn role_in_list(&self) -> Option<String> {
        let role = self.role()?;
        Some(match (&self.record.replica, role) {
            (Some(of), "replica") => format!("replica-{}", of.number),
            _ => role.to_owned(),
        })
    }
}

/// The instances of a home.
#[derive(Debug, Clone, Copy)]
pub struct Instances<'a>(pub(crate) &'a Neon);

impl Instances<'_> {
    /// What is remembered of all instances, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn records(&self) -> Result<Vec<PgRecord>> {
        let records = records::list::<PgRecord>(&self.0.home().instances())?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// What is remembered of those instances whose record can be read: what is under way on one does not fail for another's.
    pub(super) fn readable(&self) -> Vec<PgRecord> {
        let read = records::list_readable::<PgRecord>(&self.0.home().instances());
        let records = read.map(|(records, _)| records).unwrap_or_default();
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// All instances as they are now, by name. Runs no program and opens no storage. One that cannot be looked at is in
    /// the list without a status, and why is told. One whose record cannot be read is not in the list: see
    /// [`unreadable`](Self::unreadable).
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub async fn list(&self) -> Result<Vec<Pg>> {
        let (records, _) = records::list_readable::<PgRecord>(&self.0.home().instances())?;
        let looks = records.into_iter().map(async |(_, record)| {
            let looked = self.look(record.clone()).await;
            looked.unwrap_or_else(|error| {
                self.0.tell(Event::Warning(with_causes(&error)));
                Pg {
                    record,
                    status: None,
                }
            })
        });
        Ok(futures_util::future::join_all(looks).await)
    }

    /// Why the records of instances cannot be read that are in no list.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn unreadable(&self) -> Result<Vec<Error>> {
        Ok(records::list_readable::<PgRecord>(&self.0.home().instances())?.1)
    }

    /// One instance as it is now.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub async fn get(&self, name: &Name) -> Result<Pg> {
        self.look(self.known(name)?).await
    }

    pub(super) async fn look(&self, record: PgRecord) -> Result<Pg> {
        let status = match record.stage {
            Stage::Ready if record.is_changing() => None,
            Stage::Ready => {
                self.is_mounted(&record)?;
                let status = Status::of(&self.data_dir(&record)).await;
                Some(status.map_err(|error| Error::server(format!("pg {}", record.name), error))?)
            }
            _ => None,
        };
        Ok(Pg { record, status })
    }

    /// The instance, to be worked with directly.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Environment`](ErrorKind::Environment) when PostgreSQL of its major is gone.
    pub async fn instance(&self, name: &Name) -> Result<Instance> {
        self.open(&self.known(name)?).await
    }

    pub(crate) async fn open(&self, record: &PgRecord) -> Result<Instance> {
        let subject = || format!("pg {}", record.name);
        self.is_mounted(record)?;
        let installation = match self.0.installed_at(&record.bin_dir).await {
            Some(installation) if installation.major().to_string() == record.major => installation,
            // Upgraded or moved: any of the same major will do.
            _ => {
                let major = record.major.parse().map_err(|_| {
                    Error::new(ErrorKind::Damaged, subject(), "is of an unknown major")
                })?;
                self.0.installation(Some(major)).await?
            }
        };
        if let Some(place) = &record.adopted {
            return self.open_adopted(record, place, &installation);
        }
        let folder = self.0.home().instance_folder(record.name.as_str());
        Instance::open(&installation, folder).map_err(|error| Error::server(subject(), error))
    }

    /// Where the data directory of an instance is.
    pub(crate) fn data_dir(&self, record: &PgRecord) -> PathBuf {
        match &record.adopted {
            Some(place) => place.data_dir.clone(),
            None => self
                .0
                .home()
                .instance_folder(record.name.as_str())
                .join("data"),
        }
    }

    /// Finishes or takes back what a crash interrupted, and starts the server again if it ran. The lock is held.
    pub(crate) async fn settle(&self, name: &Name) -> Result<()> {
        Box::pin(self.settle_with(name, true)).await
    }

    /// As [`settle`](Self::settle), for who starts or stops the server anyway.
    pub(super) async fn settle_with(&self, name: &Name, start: bool) -> Result<()> {
        self.settle_as(name, start, false).await
    }

    /// As [`settle_with`](Self::settle_with); if said, of one whose disks are lost, and which goes next.
    pub(super) async fn settle_as(&self, name: &Name, start: bool, lost: bool) -> Result<()> {
        let Some(record) = records::read::<PgRecord>(&self.record(name))? else {
            return Ok(());
        };
        if let (Stage::Ready, Some(under_way)) = (record.stage, &record.checkout) {
            // It goes to the trash with the instance.
            if lost && self.is_mounted(&record).is_err() {
                return Ok(());
            }
            match record.is_changing() {
                true => self.is_all_in_sight(&record)?,
                false => self.is_mounted(&record)?,
            }
            return Box::pin(self.settle_checkout(&record, under_way, start)).await;
        }
        let folder = self.0.home().instance_folder(name.as_str());
        if record.stage != Stage::Ready && record.adopted.is_none() {
            match lost {
                true => self.0.home().is_mounted()?,
                false => self.is_mounted(&record)?,
            }
        }
        match record.stage {
            Stage::Ready => Ok(()),
            Stage::Creating if self.is_placed(&record) => {
                self.finish_place(&record)?;
                // What came out of the trash may have a checkout to be ended, whose pins are needed for that.
                if record.checkout.is_none() {
                    self.let_go(&record).await;
                }
                self.update(name, |record| {
                    record.stage = Stage::Ready;
                    record.in_place_of = None;
                    if let Some(base) = &mut record.base {
                        base.locator = None;
                    }
                })?;
                records::remove(&self.0.home().trash().join(format!("{}.json", record.id)))?;
                match record.checkout {
                    Some(_) if !lost => Box::pin(self.settle_with(name, start)).await,
                    _ => Ok(()),
                }
            }
            Stage::Creating => {
                self.clear_new(&record).await?;
                if record.checkout.is_none() {
                    self.let_go(&record).await;
                }
                self.unclaim(&record)
            }
            Stage::Destroying => {
                let home = self.0.home();
                let mut record = record;
                if lost {
                    record.disks.clear();
                }
                records::replace(&home.trash().join(format!("{}.json", record.id)), &record)?;
                self.put_away(&record)?;
                if folder.exists() {
                    home.to_trash(&folder, &record.id)?;
                }
                self.keep_number(&record)?;
                records::remove(&self.record(name))
            }
        }
    }

    /// Removes what is half made, with a server that may still end in it.
    async fn clear_new(&self, record: &PgRecord) -> Result<()> {
        let staging = self.staging(record);
        if staging.join("data/postmaster.pid").exists()
            && let Ok(installation) = self.0.installed().at(&record.bin_dir)
            && let Ok(instance) = Instance::open(&installation, &staging)
        {
            let options = StopOptions::new(StopMode::Immediate).with_escalation();
            match instance.stop(&options).await {
                Err(error) if error.kind() != neon_pgctl::ErrorKind::NotRunning => {
                    return Err(Error::server(format!("pg {}", record.name), error));
                }
                _ => {}
            }
        }
        for folder in self.dead_creations(&record.name) {
            // What a killed creation had started ends by itself, and may write until then.
            let mut removed = records::remove_tree(&folder);
            for _ in 0..100 {
                if removed.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                removed = records::remove_tree(&folder);
            }
            removed?;
        }
        let writing = self.writing(&record.name);
        let home = self.0.home().path().join("pg");
        let left = [self.0.home().new_folder(&record.id), staging];
        // Who still writes may need this thread to come to an end.
        beside(move || {
            let _lock = Lock::wait(&writing)?;
            // What a removal that was killed left of another one.
            drop(neon_cowfs::sweep(&home));
            left.iter().try_for_each(|left| records::remove_tree(left))
        })
        .await
    }

    /// Folders in which an instance of this name was created by a process that is gone: `.neon-new-<random>-<name>`, which
    /// `neon-pgctl` has locked as long as it works there.
    fn dead_creations(&self, name: &Name) -> Vec<PathBuf> {
        let pg = self.0.home().path().join("pg");
        let entries = std::fs::read_dir(&pg).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| {
            let folder = entry.file_name();
            let rest = folder.to_str().and_then(|name| name.strip_prefix(CREATION));
            rest.and_then(|rest| rest.split_once('-'))
                .is_some_and(|(_, of)| of == name.as_str())
        });
        let paths = ours.map(|entry| entry.path());
        paths.filter(|path| records::is_free(path)).collect()
    }

    /// What is remembered of one instance.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub fn record_of(&self, name: &Name) -> Result<PgRecord> {
        self.known(name)
    }

    pub(super) fn known(&self, name: &Name) -> Result<PgRecord> {
        records::read(&self.record(name))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("pg {name}"),
                "is not known here",
            )
            .hinted("see `neon pg list`")
        })
    }

    /// Has the snapshots of an instance go to another storage.
    pub(crate) async fn set_storage(&self, name: &Name, storage: &Name) -> Result<()> {
        let _lock = self.lock(name).await?;
        Box::pin(self.settle_with(name, false)).await?;
        let attached = self.0.storages().hold(storage).await?;
        self.update(name, |record| record.storage = storage.clone())?;
        drop(attached);
        Ok(())
    }

    /// Changes a record. Its lock is held.
    pub(crate) fn update(&self, name: &Name, change: impl FnOnce(&mut PgRecord)) -> Result<()> {
        let mut record = self.known(name)?;
        change(&mut record);
        records::replace(&self.record(name), &record)
    }

    pub(crate) async fn lock(&self, name: &Name) -> Result<Lock> {
        let path = self.lock_file(name);
        let lock = Lock::take(&path, &format!("pg {name}"), self.0.options().patience).await;
        lock.map(|lock| self.while_known(name, lock))
    }

    /// The lock of an instance, if nobody has it.
    pub(crate) fn lock_if_free(&self, name: &Name) -> Option<Lock> {
        let lock = Lock::free(&self.lock_file(name))?;
        Some(self.while_known(name, lock))
    }

    /// Nothing stays of a name that no instance has.
    fn while_known(&self, name: &Name, lock: Lock) -> Lock {
        let others = vec![self.writing(name)];
        lock.only_with(&self.lock_file(name), &self.record(name), others)
    }

    pub(super) fn lock_file(&self, name: &Name) -> PathBuf {
        self.0.home().instances().join(format!("{name}.lock"))
    }

    /// The lock of who writes the files of an instance, in a thread that may outlive the command by moments.
    pub(super) fn writing(&self, name: &Name) -> PathBuf {
        let name = format!("{name}.writing");
        self.0.home().instances().join(name)
    }

    /// The number of the first `HEAD{i}` of a new instance: no number that another one of this name gave is given again,
    /// also when its snapshot is gone.
    pub(super) fn first_head(&self, name: &Name) -> Result<u32> {
        Ok(records::read(&self.numbers(name))?.unwrap_or(0))
    }

    /// Keeps how many `HEAD{i}` an instance gave, beyond its record.
    pub(super) fn keep_number(&self, record: &PgRecord) -> Result<()> {
        if record.checkouts <= self.first_head(&record.name)? {
            return Ok(());
        }
        records::replace(&self.numbers(&record.name), &record.checkouts)
    }

    fn numbers(&self, name: &Name) -> PathBuf {
        self.0.home().instances().join(format!("{name}.heads"))
    }

    pub(crate) fn record(&self, name: &Name) -> PathBuf {
        self.0.home().instances().join(format!("{name}.json"))
    }
}
