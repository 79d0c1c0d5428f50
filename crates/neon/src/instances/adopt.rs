//! Adopting clusters that somebody else created and runs.
//!
//! Adopting is a record and nothing else: no file of theirs is written, their server is not touched. Snapshots are taken
//! through their socket. Who starts and stops them goes on to do so.

use std::path::PathBuf;

use neon_pgctl::{AdoptOptions, Adopted, Installation, Instance, ManagedBy};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::instances::trash_left::ADOPTED;
use crate::instances::{AdoptedPlace, CreatePg, Instances, PgRecord, Stage};
use crate::name::Name;
use crate::record;
use crate::storages::LOCAL;

/// Which cluster to adopt, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AdoptPg {
    /// Its data directory.
    pub path: PathBuf,
    /// Its name here; the name it has with Debian, or `pgdata1` and so on, if absent.
    pub name: Option<Name>,
    /// Where its snapshots go; the local storage, if absent.
    pub storage: Option<Name>,
    /// Its main configuration file, if that is where nobody would look.
    pub config_file: Option<PathBuf>,
    /// A file in the format of `.pgpass`, whose first line has the role and the password to connect with.
    pub pass_file: Option<PathBuf>,
    /// The role to connect as, without a pass file; the name of its operating-system user, or `postgres`, if absent.
    pub superuser: Option<String>,
    /// Where Debian's clusters are configured.
    pub etc: PathBuf,
}

impl AdoptPg {
    /// The cluster in this data directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            name: None,
            storage: None,
            config_file: None,
            pass_file: None,
            superuser: None,
            etc: PathBuf::from("/etc/postgresql"),
        }
    }
}

/// A cluster that was adopted.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AdoptedPg {
    /// Its name here.
    pub name: Name,
    /// What is remembered of it.
    pub record: PgRecord,
    /// The operating-system user it belongs to.
    pub os_user: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The folder of its socket.
    pub socket_dir: Option<PathBuf>,
    /// Whether it runs.
    pub runs: bool,
    /// Its tablespaces outside the data directory.
    pub tablespaces: Vec<PathBuf>,
    /// Whether its pages carry checksums.
    pub checksums: bool,
    /// What of its settings keeps snapshots from being cheap, with what to do about it. Nothing was changed.
    pub advice: Vec<String>,
}

impl Instances<'_> {
    /// Makes a cluster that somebody else created an instance of this home. Its files and its server stay as they are.
    ///
    /// Dropped: it is adopted or not.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no cluster, or no such storage; [`Exists`](ErrorKind::Exists) when the name is
    /// taken, or the cluster is an instance already; [`Environment`](ErrorKind::Environment) without the programs of its major, or
    /// the rights.
    pub async fn adopt(&self, wanted: &AdoptPg) -> Result<AdoptedPg> {
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.0.storages().get(&storage)?;
        let subject = wanted.path.display().to_string();
        let mut options = AdoptOptions::new().with_etc(&wanted.etc);
        if let Some(path) = &wanted.config_file {
            options = options.with_config_file(path);
        }
        let path = wanted.path.clone();
        let found = tokio::task::spawn_blocking(move || Adopted::describe(path, &options)).await;
        let found = found
            .map_err(|error| {
                Error::new(
                    ErrorKind::Failed,
                    subject.as_str(),
                    "could not be looked at",
                )
                .caused_by(error)
            })?
            .map_err(|error| Error::server(subject.as_str(), error))?;
        for known in self.records()? {
            let real = |path: PathBuf| std::fs::canonicalize(&path).unwrap_or(path);
            if real(self.data_dir(&known)) == real(found.data_dir.clone()) {
                return Err(Error::new(
                    ErrorKind::Exists,
                    subject,
                    format!("is an instance already: {}", known.name),
                ));
            }
        }
        let installation = match found
            .bin_dir
            .as_deref()
            .map(|bin_dir| self.0.installed().at(bin_dir))
        {
            Some(Ok(installation)) if installation.major() == found.major => installation,
            _ => self.0.installation(Some(found.major)).await?,
        };
        let mut number = 0_u32;
        loop {
            let name = match (&wanted.name, &found.managed_by, number) {
                (Some(name), ..) => name.clone(),
                (None, ManagedBy::DebianCluster { name }, 0) if name.parse::<Name>().is_ok() => {
                    name.parse()?
                }
                _ => format!("pgdata{}", number.max(1)).parse()?,
            };
            number = number.saturating_add(1);
            let _lock = self.lock(&name).await?;
            Box::pin(self.settle(&name)).await?;
            let nothing = CreatePg::default();
            let mut record = PgRecord {
                stage: Stage::Ready,
                major: found.major.to_string(),
                port: found.pid.and(found.port),
                adopted: Some(AdoptedPlace {
                    data_dir: found.data_dir.clone(),
                    config_file: found.config_file.clone(),
                    port: found.other_port,
                    socket_dir: found.socket_dir.clone(),
                    pass_file: wanted.pass_file.clone(),
                    superuser: wanted.superuser.clone(),
                    managed_by: manager(&found),
                }),
                ..self.fresh(&name, &nothing, storage.clone(), &installation)?
            };
            let mut advice = Vec::new();
            if found.pid.is_some() {
                self.log_in(&mut record, found.os_user.name()).await?;
                advice = self.advise(&record).await?;
            }
            let attached = self.0.storages().hold(&storage).await?;
            let made = record::create(&self.record(&name), &record);
            drop(attached);
            match made {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Exists && wanted.name.is_none() => {
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Exists => {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        format!("pg {name}"),
                        "is there already",
                    )
                    .hinted("choose another name"));
                }
                Err(error) => return Err(error),
            }
            let mut operation = self.0.begin_operation("pg adopt", name.as_str())?;
            operation.detail("id", record.id.clone());
            operation.detail(ADOPTED, found.data_dir.display().to_string());
            operation.end(Ok(()))?;
            return Ok(AdoptedPg {
                name,
                record,
                os_user: found.os_user.name().map(str::to_owned),
                port: found.port,
                socket_dir: found.socket_dir.clone(),
                runs: found.pid.is_some(),
                tablespaces: found
                    .tablespaces
                    .iter()
                    .map(|link| link.location.clone())
                    .collect(),
                checksums: found.checksums,
                advice,
            });
        }
    }

    /// Finds out which role to connect as.
    async fn log_in(&self, record: &mut PgRecord, os_user: Option<&str>) -> Result<()> {
        let chosen = record.adopted.as_ref();
        let chosen =
            chosen.is_some_and(|place| place.superuser.is_some() || place.pass_file.is_some());
        let mut roles: Vec<Option<String>> = vec![None];
        if !chosen {
            let user = os_user.filter(|user| *user != "postgres");
            roles = user
                .into_iter()
                .chain(["postgres"])
                .map(str::to_owned)
                .map(Some)
                .collect();
        }
        let mut refused = None;
        for role in roles {
            if let (Some(place), Some(role)) = (&mut record.adopted, role) {
                place.superuser = Some(role);
            }
            let instance = self.open(record).await?;
            match instance.connect("template1").await {
                Ok(client) => {
                    client.close().await;
                    return Ok(());
                }
                Err(error) => refused = Some(error),
            }
        }
        let subject = format!("pg {}", record.name);
        let error = Error::new(ErrorKind::Environment, subject, "its server does not let us in")
            .hinted("name a role with --superuser, or a file in the format of .pgpass with role and password");
        Err(match refused {
            Some(refused) => error.caused_by(refused),
            None => error,
        })
    }

    /// What its owner may want to change so that snapshots read only what changed.
    async fn advise(&self, record: &PgRecord) -> Result<Vec<String>> {
        let subject = || format!("pg {}", record.name);
        let instance = self.open(record).await?;
        let setting = async |name: &str| instance.setting(name).await.unwrap_or_default();
        let mut advice = Vec::new();
        let control = instance
            .control_file()
            .map_err(|error| Error::server(subject(), error))?;
        if setting("wal_level").await == "minimal" {
            advice.push(
                "wal_level is minimal: no snapshot can be taken while it runs; set it to replica"
                    .to_owned(),
            );
        }
        let layout = control.major.layout();
        if layout.has_wal_summaries && setting("summarize_wal").await != "on" {
            advice.push("summarize_wal is off: with it on, snapshots know what changed without reading the log".to_owned());
        }
        if setting("wal_keep_size").await.starts_with('0') {
            advice.push("wal_keep_size is 0: after a checkpoint the log since the last snapshot may be gone, and then all pages are read; 512MB or more keeps snapshots cheap".to_owned());
        }
        Ok(advice)
    }

    /// An adopted cluster as an instance.
    pub(super) fn open_adopted(
        &self,
        record: &PgRecord,
        place: &AdoptedPlace,
        installation: &Installation,
    ) -> Result<Instance> {
        let folder = self.0.home().instance_folder(record.name.as_str());
        let log = folder.join("log");
        let run = place
            .socket_dir
            .clone()
            .unwrap_or_else(|| folder.join("run"));
        let mut instance = Instance::at(installation, &place.data_dir, log, run)
            .map_err(|error| Error::server(format!("pg {}", record.name), error))?;
        if let Some(path) = &place.config_file {
            instance = instance.with_config_file(path);
        }
        if let Some(path) = &place.pass_file {
            instance = instance.with_pass_file(path);
        }
        if let Some(role) = &place.superuser {
            instance = instance.with_superuser(role);
        }
        Ok(instance)
    }

    /// An error when somebody else starts and stops this instance.
    pub(super) fn refuse_managed(&self, record: &PgRecord, verb: &str) -> Result<()> {
        let manager = record
            .adopted
            .as_ref()
            .and_then(|place| place.managed_by.as_deref());
        let Some(manager) = manager else {
            return Ok(());
        };
        let line = command_of(manager, verb, &record.major);
        Err(Error::new(
            ErrorKind::Busy,
            format!("pg {}", record.name),
            format!("is started and stopped by {manager}"),
        )
        .hinted(format!("{line}, or force it")))
    }
}

/// In words that [`command_of`] reads again.
fn manager(found: &Adopted) -> Option<String> {
    Some(match &found.managed_by {
        ManagedBy::Systemd { unit } => format!("systemd as {unit}"),
        ManagedBy::DebianCluster { name } => format!("pg_ctlcluster as {name}"),
        ManagedBy::Container => "somebody in another container".to_owned(),
        _ => return None,
    })
}

fn command_of(manager: &str, verb: &str, major: &str) -> String {
    if let Some(unit) = manager.strip_prefix("systemd as ") {
        return format!("run `systemctl {verb} {unit}`");
    }
    if let Some(name) = manager.strip_prefix("pg_ctlcluster as ") {
        return format!("run `pg_ctlcluster {major} {name} {verb}`");
    }
    format!("{verb} it there")
}
