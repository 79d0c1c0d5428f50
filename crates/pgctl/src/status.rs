//! Whether a server runs on a data directory, told as it is, whoever started it.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::pid_file::{PidFile, PidFileStatus};
use crate::ping::{Answer, ping};
use crate::stale;
use crate::start::address_of;

/// What the server on a data directory does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerState {
    /// No server, and the last one was shut down.
    Stopped,
    /// No server, and the last one was not shut down: the next start recovers.
    Crashed,
    /// A server that does not take connections yet.
    Starting,
    /// A server that takes connections.
    Running,
    /// A server in recovery; it takes read-only connections if it answers.
    Standby,
    /// A server that is shutting down.
    Stopping,
    /// A backend without a server (`postgres --single`) works on it.
    SingleUser,
}

/// The state of an instance at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// What the server does.
    pub state: ServerState,
    /// Its main process.
    pub pid: Option<i32>,
    /// When it was started, by the wall clock.
    pub started: Option<SystemTime>,
    /// Its port.
    pub port: Option<u16>,
    /// The folder of its first socket.
    pub socket_dir: Option<PathBuf>,
    /// The first address it listens on.
    pub listen: Option<String>,
    /// What it answered when asked.
    pub answer: Answer,
}

impl Status {
    /// Whether a process works on the data directory.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self.state, ServerState::Stopped | ServerState::Crashed)
    }
}

impl Instance {
    /// Looks at the pid file, the process it names, `pg_control`, and asks the server.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Permissions`](ErrorKind::Permissions) when we may not look into the data directory.
    pub async fn status(&self) -> Result<Status> {
        let mut status = Status {
            state: ServerState::Stopped,
            pid: None,
            started: None,
            port: None,
            socket_dir: None,
            listen: None,
            answer: Answer::Silent,
        };
        let file = PidFile::read(&self.data_dir)?;
        let running = file.filter(|file| stale::running(file, &self.data_dir).is_some());
        let Some(file) = running else {
            if !self.was_shut_down()? {
                status.state = ServerState::Crashed;
            }
            return Ok(status);
        };
        status.state = match file.status {
            _ if file.single_user => ServerState::SingleUser,
            Some(PidFileStatus::Ready) => ServerState::Running,
            Some(PidFileStatus::Standby) => ServerState::Standby,
            Some(PidFileStatus::Stopping) => ServerState::Stopping,
            Some(PidFileStatus::Starting) | None => ServerState::Starting,
        };
        if let (Some(address), false) = (address_of(&file), file.single_user) {
            status.answer = ping(&address).await;
        }
        status.pid = Some(file.pid);
        status.started = file.started;
        status.port = file.port;
        status.socket_dir = file.socket_dir;
        status.listen = file.listen;
        Ok(status)
    }

    /// Whether `pg_control` says that the last server was shut down, as a primary or in recovery.
    pub(crate) fn was_shut_down(&self) -> Result<bool> {
        let path = self.data_dir.join("global/pg_control");
        let bytes =
            std::fs::read(&path).map_err(|error| Error::io(&path, "cannot be read", error))?;
        // `DBState` stands at offset 16 in every major (`catalog/pg_control.h`): 1 is shut down, 2 is shut
        // down in recovery.
        let state = bytes
            .get(16..20)
            .and_then(|state| <[u8; 4]>::try_from(state).ok());
        state
            .map(|state| matches!(u32::from_le_bytes(state), 1 | 2))
            .ok_or_else(|| Error::path(ErrorKind::Corrupt, &path, "is too short"))
    }
}
