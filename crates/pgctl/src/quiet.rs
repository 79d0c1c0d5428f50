//! A data directory that nobody writes, for whoever copies it.
//!
//! That its main process is dead does not make a server gone: its other processes notice within moments, or, while one
//! of them works off a long statement, much later, and write pages until then. A copy that is made meanwhile has pages
//! that are newer than its log.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::command::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::pid_file::PidFile;
use crate::process;
use crate::stale::{self, Claim};

/// A data directory on which no server runs and none is started by us, as long as this is kept. Nothing in the
/// directory is changed, not even a stale pid file.
#[derive(Debug)]
pub struct Quiet {
    data_dir: PathBuf,
    _claim: Claim,
}

impl Quiet {
    /// Waits until the last process of a server that ended is gone, and keeps everybody who asks this library from
    /// starting another.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`AlreadyRunning`](ErrorKind::AlreadyRunning) at once for a running server, and after `patience` for processes
    /// of a dead one, or somebody who starts one now.
    pub async fn hold(data_dir: &Path, patience: Duration) -> Result<Self> {
        let data_dir = data_dir
            .canonicalize()
            .map_err(|error| Error::io(data_dir, "cannot be found", error))?;
        let begun = Instant::now();
        let patience = patience.min(stale::SURVIVORS_MAY_TAKE);
        loop {
            if let Some(claim) = Claim::try_take(&data_dir)? {
                stale::wait_for_end(&data_dir, begun, patience).await?;
                return Ok(Self {
                    data_dir,
                    _claim: claim,
                });
            }
            refuse_running(&data_dir)?;
            if begun.elapsed() > patience {
                return Err(Error::path(
                    ErrorKind::AlreadyRunning,
                    &data_dir,
                    "somebody else is starting a server on it",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Looks once more: somebody who does not ask us may have started a server.
    ///
    /// # Errors
    /// [`AlreadyRunning`](ErrorKind::AlreadyRunning).
    pub fn check(&self) -> Result<()> {
        refuse_running(&self.data_dir)?;
        let there = process::servers_in(&self.data_dir);
        if there.is_empty() {
            return Ok(());
        }
        let reason = "a server was started on it meanwhile".to_owned();
        Err(stale::survived(&self.data_dir, reason, &there))
    }
}

fn refuse_running(data_dir: &Path) -> Result<()> {
    match PidFile::read(data_dir)? {
        Some(file) if identity::running(&file, data_dir).is_some() => {
            Err(stale::already_running(&file, data_dir))
        }
        _ => Ok(()),
    }
}
