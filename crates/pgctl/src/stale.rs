//! A pid file that is there before a start: a running server, or what a dead one left behind.
//!
//! PostgreSQL removes a stale file itself, as long as no process has the number now. After a reboot another
//! server of the same user may have it, and in a container nobody may wait for the dead, so that a zombie
//! keeps it; both make PostgreSQL refuse. The file is removed here in these cases, and only once no process
//! of the old server is left that could write to the data directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use neon_pg_layout::PostmasterPid;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use crate::command::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::instance::Instance;
use crate::pid_file::{PID_FILE, PidFile};
use crate::process;

/// Processes of a killed server mostly notice at once that it is gone. But up to 14 one that asks for
/// statistics waits ten seconds for an answer of the collector, which is dead too, and may ask again.
pub(crate) const SURVIVORS_MAY_TAKE: Duration = Duration::from_secs(60);

/// A server writes its pid file at once after it has created it.
const EMPTY_FOR: Duration = Duration::from_millis(500);

/// The right to start a server on a data directory, against everybody else who asks for it here.
///
/// Without it one starter could remove the pid file that another one's server has just written, in the belief
/// that it is the stale one it saw before. It is a lock on the data directory itself: no file, gone with its
/// process, and the same for whoever reaches the directory by another name.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: Option<File>,
}

impl Claim {
    /// None while somebody else has it.
    pub(crate) fn try_take(data_dir: &Path) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(data_dir, flags, Mode::empty())
            .map_err(|error| Error::io(data_dir, "cannot be opened", error.into()))?;
        let folder = File::from(folder);
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self {
                _lock: Some(folder),
            })),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            // A file system without locks on folders (NFS). The server's own checks remain.
            Err(error) => {
                tracing::debug!(path = %data_dir.display(), %error, "cannot be locked");
                Ok(Some(Self { _lock: None }))
            }
        }
    }
}

/// Makes sure that no server and no rest of one uses the data directory, and that nobody else who asks here
/// starts one as long as the claim is kept: until the new server's pid file is there.
///
/// Dropping the future leaves everything as it is.
///
/// # Errors
/// [`AlreadyRunning`](ErrorKind::AlreadyRunning).
pub(crate) async fn claim(instance: &Instance, patience: Duration) -> Result<Claim> {
    let data_dir = &instance.data_dir;
    let start = Instant::now();
    let claim = loop {
        if let Some(claim) = Claim::try_take(data_dir)? {
            break claim;
        }
        if let Some(file) = PidFile::read(data_dir)?
            && identity::running(&file, data_dir).is_some()
        {
            return Err(already_running(&file, data_dir));
        }
        if start.elapsed() > patience {
            return Err(Error::path(
                ErrorKind::AlreadyRunning,
                data_dir,
                "somebody else is starting a server on it",
            ));
        }
        tokio::time::sleep(POLL).await;
    };
    clear(instance, start, patience.min(SURVIVORS_MAY_TAKE)).await?;
    Ok(claim)
}

async fn clear(instance: &Instance, start: Instant, patience: Duration) -> Result<()> {
    let data_dir = &instance.data_dir;
    loop {
        let Some(file) = PidFile::read(data_dir)? else {
            if !data_dir.join(PID_FILE).exists() {
                return clear_socket_locks(data_dir, &instance.socket_dir);
            }
            wait_for_survivors(
                data_dir,
                start,
                patience,
                "a server that left an empty pid file",
            )
            .await?;
            clear_empty(data_dir).await?;
            continue;
        };
        if identity::running(&file, data_dir).is_some() {
            return Err(already_running(&file, data_dir));
        }
        let attached = file.shmid.and_then(process::shared_memory_in_use) == Some(true);
        let whose = format!("the server {}", file.pid);
        wait_for_survivors(data_dir, start, patience, &whose).await?;
        if attached {
            if start.elapsed() > patience {
                let reason = format!("{whose} is dead, but its shared memory is still in use");
                return Err(survived(data_dir, reason, &[]));
            }
            tokio::time::sleep(POLL).await;
            continue;
        }
        if process::number_is_taken(file.pid) {
            // A server started by somebody who does not ask here may have replaced it meanwhile.
            if !identity::is_unchanged(&file, data_dir) {
                continue;
            }
            tracing::info!(
                pid = file.pid,
                "removing a pid file whose number belongs to another process"
            );
            remove_pid_file(data_dir)?;
        }
        if let Some(dir) = &file.socket_dir {
            clear_socket_locks(data_dir, dir)?;
        }
        return clear_socket_locks(data_dir, &instance.socket_dir);
    }
}

/// Waits until no process of a dead server works in the data directory.
async fn wait_for_survivors(
    data_dir: &Path,
    start: Instant,
    patience: Duration,
    whose: &str,
) -> Result<()> {
    loop {
        let survivors = process::servers_in(data_dir);
        if survivors.is_empty() {
            return Ok(());
        }
        if start.elapsed() > patience {
            let reason = format!("{whose} is dead, but processes of it still run");
            return Err(survived(data_dir, reason, &survivors));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until nothing of a dead server is left that could write, and changes nothing.
pub(crate) async fn wait_for_end(
    data_dir: &Path,
    start: Instant,
    patience: Duration,
) -> Result<()> {
    loop {
        let file = PidFile::read(data_dir)?;
        let whose = match &file {
            Some(file) if identity::running(file, data_dir).is_some() => {
                return Err(already_running(file, data_dir));
            }
            Some(file) => format!("the server {}", file.pid),
            None => "a server without a pid file".to_owned(),
        };
        wait_for_survivors(data_dir, start, patience, &whose).await?;
        let shared = file.and_then(|file| file.shmid);
        if shared.and_then(process::shared_memory_in_use) != Some(true) {
            return Ok(());
        }
        if start.elapsed() > patience {
            let reason = format!("{whose} is dead, but its shared memory is still in use");
            return Err(survived(data_dir, reason, &[]));
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) fn survived(data_dir: &Path, reason: String, survivors: &[i32]) -> Error {
    let names: Vec<String> = survivors
        .iter()
        .map(|pid| process::describe(*pid))
        .collect();
    let hint = if names.is_empty() {
        "look for the processes of the old server and end them".to_owned()
    } else {
        format!("look at these processes and end them: {}", names.join(", "))
    };
    Error::path(ErrorKind::AlreadyRunning, data_dir, reason).with_hint(hint)
}

fn remove_pid_file(data_dir: &Path) -> Result<()> {
    let path = data_dir.join(PID_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(&path, "cannot be removed", error))
        }
        _ => Ok(()),
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
        let ours = lock.data_dir.as_ref().is_some_and(|named| {
            Path::new(OsStr::from_bytes(named))
                .canonicalize()
                .is_ok_and(|named| named == data_dir)
        });
        let Some(lock) = PidFile::new(lock) else {
            continue;
        };
        if !ours || !process::number_is_taken(lock.pid) {
            continue;
        }
        if identity::running(&lock, data_dir).is_none() {
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
    tokio::time::sleep(EMPTY_FOR).await;
    if path.exists()
        && PidFile::read(data_dir)?.is_none()
        && process::servers_in(data_dir).is_empty()
    {
        tracing::info!(path = %path.display(), "removing an empty pid file");
        remove_pid_file(data_dir)?;
    }
    Ok(())
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
