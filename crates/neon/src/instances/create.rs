//! New instances.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use neon_pagestore::LineageId;
use neon_pgctl::{CreateOptions, Installation, Instance, PgMajor};

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::home::random_id;
use crate::instances::{Instances, Pg, PgRecord, Stage, elsewhere};
use crate::name::Name;
use crate::operation::seconds;
use crate::record::{self, Lock};
use crate::snapshots::room::{self, Place};
use crate::storages::LOCAL;

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
    /// The data directory: an absolute path of what is not there, or empty. Below the home, if absent.
    pub pgdata: Option<PathBuf>,
    /// Only make it.
    pub no_start: bool,
}

/// Bytes that a new cluster has of any major version: files of about 24 MiB, and a segment of log.
const LEAST_ROOM: u64 = 48 << 20;

impl Instances<'_> {
    /// Makes an instance and starts it, unless told not to.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists); [`NotFound`](ErrorKind::NotFound) for its storage; [`Busy`](ErrorKind::Busy) when its port
    /// belongs to somebody else; [`Environment`](ErrorKind::Environment) without PostgreSQL, with the command that installs it,
    /// and when the place that was chosen for it cannot be used.
    pub async fn create(&self, wanted: &CreatePg) -> Result<Pg> {
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.0.storages().get(&storage)?;
        self.can_listen(wanted)?;
        let installation = self.0.installation(wanted.major).await?;
        let user = self.0.os_user()?;
        let home = self.0.home().path().join("pg");
        let place = wanted.pgdata.as_deref().and_then(Path::parent);
        room::require(&[Place::new(place.unwrap_or(&home), LEAST_ROOM)])?;
        let (name, _lock) = Box::pin(self.claim(wanted, storage, &installation)).await?;
        let mut operation = self.0.begin_operation("pg create", name.as_str())?;
        operation.detail("id", self.known(&name)?.id);
        let created = async {
            let mut options = CreateOptions::new();
            if let Some(user) = user.clone() {
                options = options.with_os_user(user);
            }
            let record = self.known(&name)?;
            let folder = match &record.pgdata {
                Some(_) => self.staging(&record),
                None => self.0.home().instance_folder(name.as_str()),
            };
            let kept = format!("{}MB", log_to_keep(self.0.home().path()) >> 20);
            options = options.with_setting("wal_keep_size", kept);
            let made = Instance::create(&installation, &folder, &options).await;
            if let Err(error) = made {
                record::remove(&self.record(&name))?;
                return Err(Error::server(format!("pg {name}"), error));
            }
            self.go_on_making(&name, &folder).await?;
            if record.pgdata.is_some() {
                self.place(&record, user.as_ref())?;
            }
            self.update(&name, |record| record.stage = Stage::Ready)
        }
        .await;
        operation.end(created)?;
        if !wanted.no_start {
            self.first_start(&name).await?;
        }
        self.get(&name).await
    }

    /// An error when somebody asked to stop: the instance that was made in this folder is taken back then. Its lock is
    /// held.
    pub(super) async fn go_on_making(&self, name: &Name, folder: &Path) -> Result<()> {
        let stopped = self.0.go_on();
        if stopped.is_err() {
            let folder = folder.to_owned();
            beside(move || record::remove_tree(&folder)).await?;
            record::remove(&self.record(name))?;
        }
        stopped
    }

    /// Judges the place that was chosen for an instance, before anything is made.
    pub(crate) fn can_be_made(&self, wanted: &CreatePg) -> Result<()> {
        let place = wanted.pgdata.as_deref();
        elsewhere::check(place)?;
        elsewhere::reachable(place, self.0.os_user()?.as_ref())
    }

    /// Takes a name that is free, with a record that says that it is being made.
    pub(super) async fn claim(
        &self,
        wanted: &CreatePg,
        storage: Name,
        installation: &Installation,
    ) -> Result<(Name, Lock)> {
        self.0.home().is_mounted()?;
        self.can_be_made(wanted)?;
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
            Box::pin(self.settle(&name)).await?;
            let record = self.fresh(&name, wanted, storage.clone(), installation)?;
            let attached = self.0.storages().hold(&storage).await?;
            let made = record::create(&self.record(&name), &record);
            drop(attached);
            match made {
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

    /// What is to be remembered of an instance that is being made.
    pub(super) fn fresh(
        &self,
        name: &Name,
        wanted: &CreatePg,
        storage: Name,
        installation: &Installation,
    ) -> Result<PgRecord> {
        let mut record = PgRecord {
            id: random_id()?,
            name: name.clone(),
            stage: Stage::Creating,
            major: installation.major().to_string(),
            bin_dir: installation.bin_dir().to_owned(),
            storage,
            created: seconds(self.0.now()),
            port: wanted.port,
            wanted: false,
            lineage: LineageId::random()
                .map_err(|error| Error::repository(format!("pg {name}"), error))?,
            base: None,
            checkouts: self.first_head(name)?,
            timelines: BTreeSet::new(),
            adopted: None,
            method: None,
            heads: Vec::new(),
            replica: None,
            in_place_of: None,
            pgdata: wanted.pgdata.clone(),
            tablespaces_beside: false,
            disks: BTreeMap::new(),
            checkout: None,
        };
        record.disks = self.disks(&record);
        Ok(record)
    }
}

/// How much log a new instance keeps beyond its checkpoints, in bytes: what changed since the last snapshot is read from it.
/// A fiftieth of what is free, within reason.
fn log_to_keep(home: &std::path::Path) -> u64 {
    let free =
        rustix::fs::statvfs(home).map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize));
    (free / 50).clamp(LEAST_LOG, MOST_LOG)
}

const LEAST_LOG: u64 = 128 << 20;
const MOST_LOG: u64 = 1 << 30;
