//! A server that lives no longer than its guard, nor than the process that holds the guard.
//!
//! For tests and for programs that embed a server. However the process ends, by `SIGKILL` too, the server
//! ends with it.

use std::path::Path;

use crate::create::CreateOptions;
use crate::durable::{self, Scrap};
use crate::error::Result;
use crate::installation::Installation;
use crate::instance::Instance;
use crate::launch::Launched;
use crate::quarantine;
use crate::start::{StartOptions, Started};
use crate::stop::StopMode;

/// A running server that ends when this is dropped, and when this process ends in whatever way.
///
/// Dropping it waits until the server is gone. One that keeps its data directory is shut down cleanly, as
/// long as that takes no more than ten seconds; a temporary one is ended at once and its folder removed. If
/// the process is killed, the server is ended at once in both cases: nothing that was committed is lost, the
/// next start recovers, and unlogged tables are empty then.
#[derive(Debug)]
pub struct ScopedServer {
    instance: Instance,
    started: Started,
    options: StartOptions,
    launched: Option<Launched>,
    // After the server: removed when it is gone.
    scrap: Option<Scrap>,
}

impl Instance {
    /// As [`start`](Self::start), but the server ends with the guard.
    ///
    /// Dropping the future ends a server that it has started, as [`start`](Self::start) does.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_scoped(&self, options: &StartOptions) -> Result<ScopedServer> {
        let (launched, started) = self.launch(options, None).await?;
        Ok(ScopedServer {
            instance: self.clone(),
            started,
            options: options.clone(),
            launched: Some(launched),
            scrap: None,
        })
    }
}

impl ScopedServer {
    /// Creates an instance in a new folder below `parent`, starts it, and removes all of it with the guard,
    /// also when this process is killed.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// As [`Instance::create`] and [`Instance::start`].
    pub async fn temporary(
        installation: &Installation,
        parent: impl AsRef<Path>,
        create: &CreateOptions,
        start: &StartOptions,
    ) -> Result<Self> {
        let name = format!("neon-temporary-{}", durable::random_hex(6)?);
        let dir = parent.as_ref().join(name);
        let scrap = Scrap(dir.clone());
        let instance = Instance::create(installation, &dir, create).await?;
        let (launched, started) = instance.launch(start, Some(dir)).await?;
        Ok(Self {
            instance,
            started,
            options: start.clone(),
            launched: Some(launched),
            scrap: Some(scrap),
        })
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// How to reach it: process, port, socket.
    #[must_use]
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Whether the server has not ended by itself.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.launched.as_ref().is_some_and(Launched::is_alive)
    }

    /// The superuser's password, when it is in a file of ours.
    #[must_use]
    pub fn password(&self) -> Option<String> {
        self.instance.login().password
    }

    /// Ends the server in this mode ([`Smart`](StopMode::Smart) counts as fast) and starts it again, also
    /// after it has ended by itself.
    ///
    /// Holds up the thread until the old server is gone. Dropping the future leaves the server ended.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub async fn restart(&mut self, mode: StopMode) -> Result<()> {
        if let Some(mut launched) = self.launched.take() {
            launched.end(mode != StopMode::Immediate);
        }
        let scrap = self.scrap.as_ref().map(|scrap| scrap.0.clone());
        let (launched, started) = self.instance.launch(&self.options, scrap).await?;
        self.launched = Some(launched);
        self.started = started;
        Ok(())
    }

    /// Ends the server in this mode and waits until it is gone; a temporary instance is removed.
    pub fn stop(mut self, mode: StopMode) {
        if let Some(mut launched) = self.launched.take() {
            launched.end(mode != StopMode::Immediate);
        }
    }
}

impl Drop for ScopedServer {
    fn drop(&mut self) {
        if let Some(mut launched) = self.launched.take() {
            launched.end(self.scrap.is_none());
        }
        quarantine::clear(&self.instance);
    }
}
