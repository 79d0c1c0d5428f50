//! A pid file that is there before a start: a running server, or what a dead one left behind.
//!
//! PostgreSQL removes a stale file itself, as long as no process has the number now. After a reboot another
//! server of the same user may have it, and in a container nobody may wait for the dead, so that a zombie
//! keeps it; both make PostgreSQL refuse. The file is removed here in these cases, and only once no process
//! of the old server is left that could write to the data directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::command::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::pid_file::{PID_FILE, PidFile};
use crate::process::{self, Process};

/// Processes of a killed server notice within moments that it is gone, unless they are stuck.
const SURVIVORS_MAY_TAKE: Duration = Duration::from_secs(15);

/// Makes sure that no server and no rest of one uses the data directory.
///
/// Dropping the future leaves everything as it is.
///
/// # Errors
/// [`AlreadyRunning`](ErrorKind::AlreadyRunning).
pub(crate) async fn clear(instance: &Instance) -> Result<()> {
    let data_dir = &instance.data_dir;
    let start = Instant::now();
    loop {
        let Some(file) = PidFile::read(data_dir)? else {
            return Ok(());
        };
        if running(&file, data_dir).is_some() {
            return Err(already_running(&file, data_dir));
        }
        let survivors = process::servers_in(data_dir);
        let attached = file.shmid.and_then(process::shared_memory_in_use) == Some(true);
        if survivors.is_empty() && !attached {
            if process::number_is_taken(file.pid) {
                tracing::info!(
                    pid = file.pid,
                    "removing a pid file whose number belongs to another process"
                );
                let path = data_dir.join(PID_FILE);
                fs::remove_file(&path)
                    .map_err(|error| Error::io(&path, "cannot be removed", error))?;
            }
            return Ok(());
        }
        if start.elapsed() > SURVIVORS_MAY_TAKE {
            return Err(Error::path(
                ErrorKind::AlreadyRunning,
                data_dir,
                format!(
                    "the server {} is dead, but processes of it still run",
                    file.pid
                ),
            )
            .with_hint(format!("look at the processes {survivors:?} and end them")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The server that a pid file tells of, if it runs.
pub(crate) fn running(file: &PidFile, data_dir: &Path) -> Option<Process> {
    let process = Process::open(file.pid)?;
    match process.serves(data_dir) {
        Some(true) => Some(process),
        Some(false) => None,
        // We may not look at it. A server runs as the owner of its data directory: a process of anybody
        // else is another one that took the number.
        None => process.may_serve(data_dir).then_some(process),
    }
}

pub(crate) fn already_running(file: &PidFile, data_dir: &Path) -> Error {
    let what = if file.single_user {
        "a single-user server"
    } else {
        "a server"
    };
    let mut reason = format!("{what} runs on it already, process {}", file.pid);
    if let Some(port) = file.port {
        reason.push_str(&format!(", port {port}"));
    }
    Error::path(ErrorKind::AlreadyRunning, data_dir, reason)
}
