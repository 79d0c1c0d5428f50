//! Reload, restart and promote a running server.

use std::fs;
use std::time::{Duration, Instant};

use neon_pg_layout::ClusterState;
use rustix::process::Signal;

use crate::command::POLL;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::process;
use crate::start::{StartOptions, Started};
use crate::stop::StopOptions;

/// The file that asks a standby to become a primary (`PROMOTE_SIGNAL_FILE`).
const PROMOTE_FILE: &str = "promote";

impl Instance {
    /// Makes the server read its configuration files again. Returns when it has been told; settings that
    /// need a restart stay as they are, and a file with errors is not used: the log says so.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Permissions`](ErrorKind::Permissions).
    pub fn reload(&self) -> Result<()> {
        self.signal(&self.server()?, Signal::HUP)
    }

    /// Stops the server, if one runs, and starts it.
    ///
    /// Dropping the future leaves the server stopping, stopped, or (after that) as [`start`](Self::start)
    /// does.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub async fn restart(&self, stop: &StopOptions, start: &StartOptions) -> Result<Started> {
        match self.stop(stop).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotRunning => {}
            Err(error) => return Err(error),
        }
        self.start(start).await
    }

    /// Ends the recovery of a standby: it becomes a primary on a new timeline. Returns when it has.
    ///
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`NotInRecovery`](ErrorKind::NotInRecovery) on a primary,
    /// [`Timeout`](ErrorKind::Timeout), [`ServerEnded`](ErrorKind::ServerEnded).
    pub async fn promote(&self, deadline: Duration) -> Result<()> {
        let server = self.server()?;
        if self.control_file()?.state != ClusterState::InArchiveRecovery {
            return Err(Error::path(
                ErrorKind::NotInRecovery,
                &self.data_dir,
                "its server is no standby",
            ));
        }
        let startup = process::startup_process(server.pid());
        let file = self.data_dir.join(PROMOTE_FILE);
        // As a whole: any signal makes the server look for it, and take it away.
        durable::replace(&file, b"", 0o600, &self.user)?;
        if let Err(error) = self.signal(&server, Signal::USR1) {
            drop(fs::remove_file(&file));
            return Err(error);
        }
        let start = Instant::now();
        loop {
            // In this order: it may end right after it was promoted.
            let alive = server.is_alive();
            // The main process must have noticed too: a smart stop that reaches it before that is never
            // finished (seen with 15.18).
            let noticed = startup.is_none_or(|pid| !process::is_child(pid, server.pid()));
            if noticed && self.control_file()?.state == ClusterState::InProduction {
                // If it was promoted before it saw this request, which another had asked for.
                drop(fs::remove_file(&file));
                return Ok(());
            }
            if !alive {
                return Err(Error::path(
                    ErrorKind::ServerEnded,
                    &self.data_dir,
                    "the server ended while it was promoted",
                )
                .with_log(self.log_tail(20)));
            }
            if start.elapsed() > deadline {
                return Err(Error::path(
                    ErrorKind::Timeout,
                    &self.data_dir,
                    format!("it was not promoted within {} s", deadline.as_secs()),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
