//! A pid file that is there before a start: a running server, or what a dead one left behind.
//!
//! PostgreSQL removes a stale file itself, as long as no process has the number now. After a reboot another
//! server of the same user may have it, and in a container nobody may wait for the dead, so that a zombie
//! keeps it; both make PostgreSQL refuse. The file is removed here in these cases, and only once no process
//! of the old server is left that could write to the data directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use neon_pg_layout::PostmasterPid;

use crate::command::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::pid_file::{PID_FILE, PidFile};
use crate::process::{self, Process};

/// Processes of a killed server notice within moments that it is gone, unless they are stuck.
const SURVIVORS_MAY_TAKE: Duration = Duration::from_secs(15);

/// A server writes its pid file at once after it has created it.
const EMPTY_FOR: Duration = Duration::from_millis(500);

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
            clear_empty(data_dir).await?;
            return clear_socket_locks(data_dir, &instance.socket_dir);
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
            if let Some(dir) = &file.socket_dir {
                clear_socket_locks(data_dir, dir)?;
            }
            return clear_socket_locks(data_dir, &instance.socket_dir);
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

/// Removes the locks of sockets that a dead server of this data directory left in a folder, where another
/// process has its number now: they would keep the next server from its socket.
fn clear_socket_locks(data_dir: &Path, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(".s.PGSQL.") || !name.ends_with(".lock") {
            continue;
        }
        let path = entry.path();
        // The same first lines as in a pid file, so it says whose it is.
        let lock = fs::read(&path)
            .ok()
            .and_then(|bytes| PostmasterPid::parse(&bytes).ok());
        let Some(lock) = lock else { continue };
        let ours = lock.data_dir.is_some_and(|named| {
            Path::new(OsStr::from_bytes(&named))
                .canonicalize()
                .is_ok_and(|named| named == data_dir)
        });
        let pid = i32::try_from(lock.pid).unwrap_or_default();
        if !ours || !process::number_is_taken(pid) {
            continue;
        }
        let server = Process::open(pid).filter(|process| process.serves(data_dir) != Some(false));
        if server.is_none() {
            tracing::info!(path = %path.display(), "removing the lock of a dead server's socket");
            fs::remove_file(&path).map_err(|error| Error::io(&path, "cannot be removed", error))?;
        }
    }
    Ok(())
}

/// A pid file without content: a server that is just writing it, or that could not because the disk was
/// full or the machine went down. PostgreSQL refuses to start with it.
async fn clear_empty(data_dir: &Path) -> Result<()> {
    let path = data_dir.join(PID_FILE);
    if !path.exists() {
        return Ok(());
    }
    tokio::time::sleep(EMPTY_FOR).await;
    if PidFile::read(data_dir)?.is_none() && process::servers_in(data_dir).is_empty() {
        tracing::info!(path = %path.display(), "removing an empty pid file");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&path, "cannot be removed", error));
            }
            _ => {}
        }
    }
    Ok(())
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
