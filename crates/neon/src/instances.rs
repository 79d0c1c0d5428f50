//! Instances: what a home remembers of each, and how they come and go.
//!
//! A record is put before its folder is made and says so (`creating`); the folder appears as a whole; then the record
//! says `ready`. Destroying goes the other way: the record says `destroying`, the folder moves to the trash, its record
//! follows. Whatever a crash left in between, the next verb on that name finishes or takes back under the lock.

use std::path::PathBuf;

use neon_pgctl::{
    CreateOptions, Installation, Instance, PgMajor, PortChoice, ServerState, StartOptions, Started,
    Status, StopMode, StopOptions,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::home::random_id;
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::record::{self, Lock};
use crate::storages::LOCAL;

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// Its folder is being made.
    Creating,
    /// It is there.
    Ready,
    /// It is on its way to the trash.
    Destroying,
}

/// What a home remembers of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PgRecord {
    /// Its id: random, never used again.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// How far it is.
    pub stage: Stage,
    /// The major version.
    pub major: String,
    /// The programs it was made with.
    pub bin_dir: PathBuf,
    /// Where its snapshots go.
    pub storage: Name,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The port it got at its first start, kept for it also while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether its server shall run: what a start after a reboot brings back.
    pub wanted: bool,
}

/// What a new instance shall be like.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CreatePg {
    /// Its name; `pgdata1` and so on, if absent.
    pub name: Option<Name>,
    /// The major version; the newest installed, if absent.
    pub major: Option<PgMajor>,
    /// Where its snapshots go; the local storage, if absent.
    pub storage: Option<Name>,
    /// Its port; the first that is free from 5432 on, if absent.
    pub port: Option<u16>,
    /// Only make it.
    pub no_start: bool,
}

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
}

/// The instances of a home.
#[derive(Debug, Clone, Copy)]
pub struct Instances<'a>(pub(crate) &'a Neon);

impl Instances<'_> {
    /// Makes an instance and starts it, unless told not to.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists); [`NotFound`](ErrorKind::NotFound) for its storage;
    /// [`Environment`](ErrorKind::Environment) without PostgreSQL, with the command that installs it.
    pub async fn create(&self, wanted: &CreatePg) -> Result<Pg> {
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.0.storages().get(&storage)?;
        let installation = self.0.installation(wanted.major).await?;
        let user = self.0.os_user()?;
        let (name, _lock) = self.claim(wanted, storage, &installation).await?;
        let operation = self.0.begin_operation("pg create", name.as_str())?;
        let created = async {
            let mut options = CreateOptions::new();
            if let Some(user) = user {
                options = options.with_os_user(user);
            }
            let folder = self.0.home().instance_folder(name.as_str());
            let made = Instance::create(&installation, &folder, &options).await;
            if let Err(error) = made {
                record::remove(&self.record(&name))?;
                return Err(Error::server(format!("pg {name}"), error));
            }
            self.update(&name, |record| record.stage = Stage::Ready)
        }
        .await;
        operation.end(created)?;
        if !wanted.no_start {
            self.start_locked(&name).await?;
        }
        self.get(&name).await
    }

    /// Takes a name that is free, with a record that says that it is being made.
    async fn claim(
        &self,
        wanted: &CreatePg,
        storage: Name,
        installation: &Installation,
    ) -> Result<(Name, Lock)> {
        let mut number = 0_u32;
        loop {
            number = number.saturating_add(1);
            let name = match &wanted.name {
                Some(name) => name.clone(),
                None => format!("pgdata{number}").parse()?,
            };
            if wanted.name.is_none() && self.record(&name).exists() {
                continue;
            }
            let lock = self.lock(&name).await?;
            self.settle(&name).await?;
            let record = PgRecord {
                id: random_id()?,
                name: name.clone(),
                stage: Stage::Creating,
                major: installation.major().to_string(),
                bin_dir: installation.bin_dir().to_owned(),
                storage: storage.clone(),
                created: seconds(self.0.now()),
                port: wanted.port,
                wanted: false,
            };
            match record::create(&self.record(&name), &record) {
                Ok(()) => return Ok((name, lock)),
                Err(error) if error.kind() == ErrorKind::Exists && wanted.name.is_none() => {}
                Err(error) if error.kind() == ErrorKind::Exists => {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        format!("pg {name}"),
                        "is there already",
                    )
                    .hinted("choose another name, or destroy it first"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What is remembered of all instances, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn records(&self) -> Result<Vec<PgRecord>> {
        let records = record::list::<PgRecord>(&self.0.home().instances())?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// All instances as they are now, by name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<Pg>> {
        let mut all = Vec::new();
        for record in self.records()? {
            all.push(self.look(record).await?);
        }
        Ok(all)
    }

    /// One instance as it is now.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub async fn get(&self, name: &Name) -> Result<Pg> {
        self.look(self.known(name)?).await
    }

    async fn look(&self, record: PgRecord) -> Result<Pg> {
        let status = match record.stage {
            Stage::Ready => {
                let instance = self.open(&record).await?;
                let status = instance.status().await;
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

    async fn open(&self, record: &PgRecord) -> Result<Instance> {
        let subject = || format!("pg {}", record.name);
        let installation = match Installation::at(&record.bin_dir) {
            Ok(installation) if installation.major().to_string() == record.major => installation,
            // Upgraded or moved: any of the same major will do.
            _ => {
                let major = record.major.parse().map_err(|_| {
                    Error::new(ErrorKind::Damaged, subject(), "is of an unknown major")
                })?;
                self.0.installation(Some(major)).await?
            }
        };
        let folder = self.0.home().instance_folder(record.name.as_str());
        Instance::open(&installation, folder).map_err(|error| Error::server(subject(), error))
    }

    /// Starts a server that does not run.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Busy`](ErrorKind::Busy) when it runs; why it does not come up.
    pub async fn start(&self, name: &Name) -> Result<Started> {
        let _lock = self.lock(name).await?;
        self.settle(name).await?;
        self.start_locked(name).await
    }

    async fn start_locked(&self, name: &Name) -> Result<Started> {
        let record = self.known(name)?;
        let instance = self.open(&record).await?;
        let port = match record.port {
            Some(port) => PortChoice::Fixed(port),
            None => PortChoice::Free {
                range: self.0.options().ports.clone(),
                avoid: self
                    .records()?
                    .iter()
                    .filter_map(|other| other.port)
                    .collect(),
            },
        };
        let operation = self.0.begin_operation("pg start", name.as_str())?;
        let started = instance.start(&StartOptions::new().with_port(port)).await;
        let started = started.map_err(|error| Error::server(format!("pg {name}"), error));
        let started = started.and_then(|started| {
            self.update(name, |record| {
                record.wanted = true;
                record.port = Some(started.port);
            })?;
            Ok(started)
        });
        operation.end(started)
    }

    /// Stops a server: sessions are ended, everything is written. One that does not run is stopped.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and why it does not stop.
    pub async fn stop(&self, name: &Name) -> Result<()> {
        let _lock = self.lock(name).await?;
        self.settle(name).await?;
        let operation = self.0.begin_operation("pg stop", name.as_str())?;
        operation.end(self.stop_locked(name, true).await)
    }

    async fn stop_locked(&self, name: &Name, remember: bool) -> Result<()> {
        let instance = self.instance(name).await?;
        match instance.stop(&StopOptions::new(StopMode::Fast)).await {
            Ok(_) => {}
            Err(error) if error.kind() == neon_pgctl::ErrorKind::NotRunning => {}
            Err(error) => return Err(Error::server(format!("pg {name}"), error)),
        }
        if remember {
            self.update(name, |record| record.wanted = false)?;
        }
        Ok(())
    }

    /// Stops a server if it runs, and starts it.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub async fn restart(&self, name: &Name) -> Result<Started> {
        let _lock = self.lock(name).await?;
        self.settle(name).await?;
        self.stop_locked(name, false).await?;
        self.start_locked(name).await
    }

    /// Starts every server that shall run and does not: after a reboot.
    ///
    /// # Errors
    /// When the records cannot be read; what became of each instance is in the result.
    pub async fn start_wanted(&self) -> Result<Vec<(Name, Result<()>)>> {
        let mut all = Vec::new();
        for record in self.records()? {
            if !record.wanted || record.stage != Stage::Ready {
                continue;
            }
            let outcome = match self.start(&record.name).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
                Err(error) => Err(error),
            };
            all.push((record.name, outcome));
        }
        Ok(all)
    }

    /// Stops an instance and moves it to the trash, from where [`undo_destroy`](Self::undo_destroy) brings it back.
    /// Its name is free then. Returns its id.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and why it does not stop.
    pub async fn destroy(&self, name: &Name) -> Result<String> {
        let _lock = self.lock(name).await?;
        self.settle(name).await?;
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

    /// Finishes or takes back what a crash interrupted. The lock is held.
    async fn settle(&self, name: &Name) -> Result<()> {
        let Some(record) = record::read::<PgRecord>(&self.record(name))? else {
            return Ok(());
        };
        let folder = self.0.home().instance_folder(name.as_str());
        match record.stage {
            Stage::Ready => Ok(()),
            Stage::Creating if folder.exists() => {
                self.update(name, |record| record.stage = Stage::Ready)?;
                record::remove(&self.0.home().trash().join(format!("{}.json", record.id)))
            }
            Stage::Creating => record::remove(&self.record(name)),
            Stage::Destroying => {
                let home = self.0.home();
                record::replace(&home.trash().join(format!("{}.json", record.id)), &record)?;
                if folder.exists() {
                    record::rename(&folder, &home.trash_folder(&record.id))?;
                }
                record::remove(&self.record(name))
            }
        }
    }

    fn known(&self, name: &Name) -> Result<PgRecord> {
        record::read(&self.record(name))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("pg {name}"),
                "is not known here",
            )
            .hinted("see `neon pg list`")
        })
    }

    fn update(&self, name: &Name, change: impl FnOnce(&mut PgRecord)) -> Result<()> {
        let mut record = self.known(name)?;
        change(&mut record);
        record::replace(&self.record(name), &record)
    }

    async fn lock(&self, name: &Name) -> Result<Lock> {
        let path = self.0.home().instances().join(format!("{name}.lock"));
        Lock::take(&path, &format!("pg {name}"), self.0.options().patience).await
    }

    fn record(&self, name: &Name) -> PathBuf {
        self.0.home().instances().join(format!("{name}.json"))
    }
}
