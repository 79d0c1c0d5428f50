//! Replicas: standbys of an instance of ours, on this machine.
//!
//! A replica is an instance of its own, called `<primary>-r<number>`, made by a base backup of the running primary over its
//! socket. It keeps no slot on the primary, which would keep log for ever when nobody drops it: what the primary keeps
//! anyway (`wal_keep_size`) is how long a replica may be away. `CREATE TABLESPACE` on the primary must wait until it has no
//! replica on the same machine: [`shared_places`](super::shared_places) says why.

use neon_pgctl::{Instance, StandbyOptions, Upstream};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{CreatePg, Instances, Pg, PgRecord, Stage};
use crate::name::Name;
use crate::record;

/// Whose replica an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaOf {
    /// The id of its primary.
    pub id: String,
    /// The name of its primary.
    pub name: Name,
    /// Which of the primary's replicas it is.
    pub number: u32,
}

impl Instances<'_> {
    /// Makes a replica of a running instance and starts it.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) when the primary does not run;
    /// [`Environment`](ErrorKind::Environment) without room; why the base backup failed.
    pub async fn start_replica(&self, primary: &Name) -> Result<Pg> {
        let of = {
            let _lock = self.lock(primary).await?;
            Box::pin(self.settle(primary)).await?;
            let instance = self.instance(primary).await?;
            self.settled_status(&instance, primary).await?;
            self.get(primary).await?
        };
        let subject = format!("pg {primary}");
        let running = of.status.as_ref().filter(|status| status.is_up());
        let (Some(port), Some(socket)) = (
            running.and_then(|status| status.port),
            running.and_then(|status| status.socket_dir.clone()),
        ) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "does not run, so nothing can follow it",
            )
            .hinted(format!("neon pg start {primary}")));
        };
        let upstream = self.instance(primary).await?;
        let size = crate::snapshots::copying::size_of(upstream.data_dir());
        super::restore::room_for(&self.0.home().path().join("pg"), size)?;
        let installation = upstream.installation().clone();
        let user = self.0.os_user()?;
        let (name, number, _lock) = loop {
            let number = self.next_replica(&of.record.id, primary)?;
            let mut wanted = CreatePg::default();
            let name: Name = format!("{primary}-r{number}").parse()?;
            wanted.name = Some(name.clone());
            match Box::pin(self.claim(&wanted, of.record.storage.clone(), &installation)).await {
                Ok((name, lock)) => break (name, number, lock),
                // Another one was made meanwhile.
                Err(error) if error.kind() == ErrorKind::Exists && self.known(&name).is_ok() => {}
                Err(error) => return Err(error),
            }
        };
        let mut operation = self.0.begin_operation("pg replica", name.as_str())?;
        operation.detail("id", self.known(&name)?.id);
        operation.detail("of", primary.as_str());
        self.0.tell(Event::Warning(format!(
            "As long as {primary} has a replica on this machine, do not create tablespaces on it: {name} would write into \
             the same folder. neon doctor tells if it happened."
        )));
        self.0
            .tell(Event::Step(format!("Copying {primary} to {name}.")));
        let made = async {
            let role = of.record.superuser(&upstream);
            let role = role.as_deref().unwrap_or("postgres");
            let mut address = Upstream::new(socket.display().to_string(), port, role)
                .with_application_name(name.as_str());
            if let Some(pass_file) = upstream.pass_file() {
                address = address.with_pass_file(pass_file);
            }
            let mut options = StandbyOptions::new(address);
            if let Some(user) = user {
                options = options.with_os_user(user);
            }
            let folder = self.0.home().instance_folder(name.as_str());
            let made = Instance::create_standby(&installation, &folder, &options).await;
            if let Err(error) = made {
                record::remove(&self.record(&name))?;
                return Err(Error::server(format!("pg {name}"), error));
            }
            self.go_on_making(&name, &folder).await?;
            self.update(&name, |record| {
                record.stage = Stage::Ready;
                record.lineage = of.record.lineage;
                record.timelines.clone_from(&of.record.timelines);
                record.replica = Some(ReplicaOf {
                    id: of.record.id.clone(),
                    name: primary.clone(),
                    number,
                });
            })
        }
        .await;
        operation.end(made)?;
        self.first_start(&name).await?;
        self.get(&name).await
    }

    /// The replicas of an instance, by name, whether or not they run.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn replicas_of(&self, record: &PgRecord) -> Result<Vec<Name>> {
        let records = self.records()?.into_iter();
        let ours = records.filter(|other| {
            let of = other.replica.as_ref();
            other.stage == Stage::Ready && of.is_some_and(|of| of.id == record.id)
        });
        Ok(ours.map(|other| other.name).collect())
    }

    /// The first number that no replica of this primary has, and no other instance's name.
    fn next_replica(&self, id: &str, primary: &Name) -> Result<u32> {
        let records = self.records()?;
        let mut number = 1_u32;
        loop {
            let name = format!("{primary}-r{number}");
            let taken = records.iter().any(|record| {
                record.name.as_str() == name
                    || record
                        .replica
                        .as_ref()
                        .is_some_and(|of| of.id == id && of.number == number)
            });
            if !taken {
                return Ok(number);
            }
            number = number.saturating_add(1);
        }
    }
}
