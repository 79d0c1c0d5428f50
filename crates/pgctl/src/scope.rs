//! A server that lives no longer than its guard, nor than the process that holds the guard.
//!
//! For tests and for programs that embed a server. However the process ends, by `SIGKILL` too, the server
//! ends with it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::command::POLL;
use crate::create::{CreateOptions, user_for};
use crate::durable::{self, Scrap};
use crate::error::Result;
use crate::identity;
use crate::installation::Installation;
use crate::instance::{DATA, Instance};
use crate::launch::Launched;
use crate::os_user::OsUser;
use crate::pid_file::PidFile;
use crate::process::{self, Process};
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
    // Last of all: it says that the folder is somebody's.
    _lock: Option<File>,
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
            _lock: None,
        })
    }
}

impl ScopedServer {
    /// Creates an instance in a new folder below `parent`, starts it, and removes all of it with the guard,
    /// also when this process is killed.
    ///
    /// Should the process be killed together with the guardian, as when a container ends, the folder stays. It is
    /// removed by the next call for the same `parent` and user, with a server that may still run in it; folders
    /// whose process lives are locked and stay.
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
        let parent = parent.as_ref();
        sweep(parent, &user_for(create)?).await;
        let name = format!("{TEMPORARY}{}", durable::random_hex(6)?);
        let dir = parent.join(name);
        let scrap = Scrap(dir.clone());
        let (instance, lock) = Instance::create_locked(installation, &dir, create).await?;
        let (launched, started) = instance.launch(start, Some(dir)).await?;
        Ok(Self {
            instance,
            started,
            options: start.clone(),
            launched: Some(launched),
            scrap: Some(scrap),
            _lock: Some(lock),
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

/// What the folders of temporary instances are called.
const TEMPORARY: &str = "neon-temporary-";

/// How long a server whose host is dead may take to end.
const SWEEP_MAY_TAKE: Duration = Duration::from_secs(20);

/// Removes the temporary instances of dead processes: those of this user that nobody has locked.
async fn sweep(parent: &Path, user: &OsUser) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let dir = entry.path();
        // What is no folder is not opened: a pipe could make us wait for ever.
        let folder = durable::open_dir(&dir)
            .ok()
            .filter(|folder| folder.metadata().is_ok_and(|meta| meta.uid() == user.uid()));
        let Some(folder) = folder else { continue };
        // Kept until the folder is gone, so that nobody else removes it at the same time.
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
            && ended(&dir.join(DATA)).await
        {
            tracing::info!(path = %dir.display(), "removing what a killed process left");
            drop(Scrap(dir));
        }
    }
}

/// Ends the server of a data directory whose host is dead; whether none is left.
async fn ended(data_dir: &Path) -> bool {
    let file = PidFile::read(data_dir).ok().flatten();
    let server = file.and_then(|file| identity::running(&file, data_dir));
    if let Some(server) = &server {
        drop(server.signal(Signal::QUIT));
    }
    let start = Instant::now();
    while server.as_ref().is_some_and(Process::is_alive)
        || !process::servers_in(data_dir).is_empty()
    {
        if start.elapsed() > SWEEP_MAY_TAKE {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

impl Drop for ScopedServer {
    fn drop(&mut self) {
        if let Some(mut launched) = self.launched.take() {
            launched.end(self.scrap.is_none());
        }
        quarantine::clear(&self.instance);
    }
}
