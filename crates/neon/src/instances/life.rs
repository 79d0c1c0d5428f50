//! Starting and stopping.

use neon_pgctl::{PortChoice, StartOptions, Started, StopMode, StopOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::instances::ports::runs_already;
use crate::instances::{Instances, Stage};
use crate::name::Name;
use crate::record;

impl Instances<'_> {
    /// Starts a server that does not run. The end of one that is shutting down is waited for.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Busy`](ErrorKind::Busy) when it runs, or somebody else starts and stops it; why it does
    /// not come up.
    pub async fn start(&self, name: &Name) -> Result<Started> {
        let _lock = self.lock(name).await?;
        Box::pin(self.settle_with(name, false)).await?;
        self.refuse_managed(&self.known(name)?, "start")?;
        self.start_locked(name).await
    }

    /// As [`start`](Self::start), also where somebody else should do so.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_by_force(&self, name: &Name) -> Result<Started> {
        let _lock = self.lock(name).await?;
        Box::pin(self.settle_with(name, false)).await?;
        self.start_locked(name).await
    }

    pub(super) async fn start_locked(&self, name: &Name) -> Result<Started> {
        let record = self.known(name)?;
        let instance = self.open(&record).await?;
        self.is_whole(&record)?;
        if record.adopted.is_some() {
            // For the log of our start.
            self.0.home().is_mounted()?;
            let folder = self.0.home().instance_folder(name.as_str());
            record::folder(&folder, 0o711)?;
        }
        self.remember_disks(&record)?;
        self.log_at_home(&record)?;
        self.refuse_shared(&record)?;
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
        self.nobody_gives_up(&instance).await;
        self.settled_status(&instance, name).await?;
        let operation = self.0.begin_operation("pg start", name.as_str())?;
        let mut options = StartOptions::new().with_port(port);
        if let Some(place) = &record.adopted {
            // As whoever started it did.
            options = options.with_last_options();
            if let Some(port) = place.port {
                options = options.with_variable("PGPORT", port.to_string());
            }
        }
        let started = instance.start(&options).await;
        if let Err(error) = &started
            && error.kind() == neon_pgctl::ErrorKind::AlreadyRunning
            && record.adopted.is_none()
            && !record.wanted
        {
            // A start that was killed before it could say so.
            let status = instance.status().await;
            self.update(name, |record| {
                record.wanted = true;
                record.port = status.ok().and_then(|status| status.port).or(record.port);
            })?;
        }
        let started = match started {
            Err(error) if error.kind() == neon_pgctl::ErrorKind::AlreadyRunning => {
                let status = instance.status().await.ok();
                let port = status.and_then(|status| status.port);
                Err(runs_already(name, port)
                    .caused_by(error)
                    .hinted(format!("neon pg restart {name} starts it anew")))
            }
            started => started.map_err(|error| Error::server(format!("pg {name}"), error)),
        };
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
        let _lock = self.lock_to_stop(name, false).await?;
        Box::pin(self.settle_with(name, false)).await?;
        self.refuse_managed(&self.known(name)?, "stop")?;
        let operation = self.0.begin_relief("pg stop", name.as_str())?;
        operation.end(self.stop_locked(name, true).await)
    }

    /// As [`stop`](Self::stop), also where somebody else should do so.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_by_force(&self, name: &Name) -> Result<()> {
        let _lock = self.lock_to_stop(name, true).await?;
        Box::pin(self.settle_with(name, false)).await?;
        let operation = self.0.begin_relief("pg stop", name.as_str())?;
        operation.end(self.stop_locked(name, true).await)
    }

    pub(super) async fn stop_locked(&self, name: &Name, remember: bool) -> Result<()> {
        let instance = self.instance(name).await?;
        match instance.stop(&StopOptions::new(StopMode::Fast)).await {
            Ok(_) => {}
            Err(error) if error.kind() == neon_pgctl::ErrorKind::NotRunning => {}
            Err(error) => return Err(Error::server(format!("pg {name}"), error)),
        }
        // Of tablespaces that were made while it ran, too.
        drop(self.remember_disks(&self.known(name)?));
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
        let _lock = self.lock_to_stop(name, false).await?;
        Box::pin(self.settle_with(name, false)).await?;
        let record = self.known(name)?;
        self.refuse_managed(&record, "restart")?;
        // What cannot be started again is not stopped.
        self.is_whole(&record)?;
        self.stop_locked(name, false).await?;
        self.start_locked(name).await
    }

    async fn answers(&self, name: &Name) -> bool {
        let pg = self.get(name).await;
        pg.is_ok_and(|pg| pg.endpoint().is_some())
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
            let outcome = match Box::pin(self.start(&record.name)).await {
                Ok(_) => Ok(()),
                // It runs already. Busy is also a port that somebody else has.
                Err(error)
                    if error.kind() == ErrorKind::Busy && self.answers(&record.name).await =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
            };
            all.push((record.name, outcome));
        }
        Ok(all)
    }
}
