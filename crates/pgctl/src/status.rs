//! Whether a server runs on a data directory, told as it is, whoever started it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use neon_pg_layout::{ClusterState, ControlFile};

use crate::control_state;
use crate::error::Result;
use crate::identity;
use crate::instance::Instance;
use crate::pid_file::{PidFile, PidFileStatus};
use crate::ping::{Answer, ping};
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
    /// A server that was told to stop before this began is [`Stopping`](ServerState::Stopping), or gone: it takes its signals
    /// before it answers anybody.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Permissions`](crate::ErrorKind::Permissions) when we may not look into the data directory.
    pub async fn status(&self) -> Result<Status> {
        look(&self.data_dir, || self.control_file()).await
    }
}

impl Status {
    /// As [`Instance::status`], of a data directory whose programs nobody looked for: no program is run.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// As [`Instance::status`]; [`Corrupt`](crate::ErrorKind::Corrupt) when it is no data directory.
    pub async fn of(data_dir: &Path) -> Result<Self> {
        look(data_dir, || control_state::read(data_dir)).await
    }
}

impl Status {
    /// The main process of the server on a data directory, if there is one, whatever it does. Nobody is asked, which takes next to
    /// no time.
    #[must_use]
    pub fn main_process(data_dir: &Path) -> Option<i32> {
        let file = PidFile::read(data_dir).ok()??;
        identity::running(&file, data_dir).map(|_| file.pid)
    }
}

/// So often it is looked again because the server went on to its next state meanwhile.
const LOOKS: u32 = 5;

async fn look(data_dir: &Path, control_file: impl Fn() -> Result<ControlFile>) -> Result<Status> {
    let mut looks = 0;
    loop {
        looks += 1;
        let (status, seen) = look_once(data_dir, &control_file).await?;
        // A signal that was on its way when we looked has come by the time of an answer.
        let unchanged = match &seen {
            None => true,
            Some(seen) => PidFile::read(data_dir)?.as_ref() == Some(seen),
        };
        if unchanged || looks == LOOKS {
            return Ok(status);
        }
    }
}

/// The state, and what the pid file of a running server said.
async fn look_once(
    data_dir: &Path,
    control_file: impl Fn() -> Result<ControlFile>,
) -> Result<(Status, Option<PidFile>)> {
    let mut status = Status {
        state: ServerState::Stopped,
        pid: None,
        started: None,
        port: None,
        socket_dir: None,
        listen: None,
        answer: Answer::Silent,
    };
    let file = PidFile::read(data_dir)?;
    let running = file.filter(|file| identity::running(file, data_dir).is_some());
    let Some(file) = running else {
        if !control_file()?.state.is_clean() {
            status.state = ServerState::Crashed;
        }
        return Ok((status, None));
    };
    status.state = match file.status {
        _ if file.single_user => ServerState::SingleUser,
        // It says that of a hot standby too.
        Some(PidFileStatus::Ready) if control_file()?.state == ClusterState::InArchiveRecovery => {
            ServerState::Standby
        }
        Some(PidFileStatus::Ready) => ServerState::Running,
        Some(PidFileStatus::Standby) => ServerState::Standby,
        Some(PidFileStatus::Stopping) => ServerState::Stopping,
        Some(PidFileStatus::Starting | _) | None => ServerState::Starting,
    };
    if let (Some(address), false) = (address_of(&file), file.single_user) {
        status.answer = ping(&address).await;
    }
    status.pid = Some(file.pid);
    status.started = file.started;
    status.port = file.port;
    status.socket_dir = file.socket_dir.clone();
    status.listen = file.listen.clone();
    Ok((status, Some(file)))
}
