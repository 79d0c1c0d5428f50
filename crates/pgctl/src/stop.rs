//! Stopping a server.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::command::POLL;
use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::instance::Instance;
use crate::pid_file::PidFile;
use crate::process::{self, Process};
use crate::quarantine;

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMode {
    /// Waits until all clients have left.
    Smart,
    /// Disconnects clients and shuts down cleanly.
    Fast,
    /// At once, without a checkpoint: the next start recovers, and unlogged tables are empty then.
    Immediate,
}

/// How to stop, and how far to go when it takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct StopOptions {
    mode: StopMode,
    deadline: Duration,
    escalate: bool,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self::new(StopMode::Fast)
    }
}

impl StopOptions {
    /// In this mode, within five minutes, without going further.
    pub fn new(mode: StopMode) -> Self {
        Self {
            mode,
            deadline: Duration::from_secs(300),
            escalate: false,
        }
    }

    /// How long the server may take.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// After the deadline goes on with the next harder mode, which gets as long again; after
    /// [`Immediate`](StopMode::Immediate) the server is killed.
    pub fn with_escalation(mut self) -> Self {
        self.escalate = true;
        self
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// The mode that did it: harder than asked for after an escalation.
    pub mode: StopMode,
    /// Whether `pg_control` says that it was shut down: only then is the data directory complete without
    /// recovery.
    pub clean: bool,
}

impl Instance {
    /// Stops the server and returns when it is gone.
    ///
    /// Dropping the future does not take the request back: the server goes on stopping.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Timeout`](ErrorKind::Timeout) without escalation,
    /// [`Permissions`](ErrorKind::Permissions) for a server of somebody else.
    pub async fn stop(&self, options: &StopOptions) -> Result<Stopped> {
        let server = self.server()?;
        let mut mode = options.mode;
        loop {
            self.signal(&server, signal_of(mode))?;
            if gone_within(&server, options.deadline).await {
                self.collector_gone().await;
                quarantine::clear(self);
                return Ok(Stopped {
                    mode,
                    clean: self.control_file()?.state.is_clean(),
                });
            }
            mode = match mode {
                _ if !options.escalate => {
                    return Err(Error::path(
                        ErrorKind::Timeout,
                        &self.data_dir,
                        format!(
                            "the server {} did not stop within {} s",
                            server.pid(),
                            options.deadline.as_secs()
                        ),
                    )
                    .with_hint("stop it in a harder mode, or look at who is connected"));
                }
                StopMode::Smart => StopMode::Fast,
                StopMode::Fast => StopMode::Immediate,
                StopMode::Immediate => {
                    self.signal(&server, Signal::KILL)?;
                    gone_within(&server, Duration::MAX).await;
                    quarantine::clear(self);
                    return Ok(Stopped { mode, clean: false });
                }
            };
            tracing::warn!(
                pid = server.pid(),
                ?mode,
                "the server takes too long to stop"
            );
        }
    }

    /// Tells a server that shuts down to disconnect its clients, and returns at once.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Permissions`](ErrorKind::Permissions) for a server of somebody else.
    pub fn hasten_stop(&self) -> Result<()> {
        self.signal(&self.server()?, signal_of(StopMode::Fast))
    }

    /// The collector of logs ends when nobody writes to it any more, moments after the main process.
    async fn collector_gone(&self) {
        let start = Instant::now();
        while !process::servers_in(&self.data_dir).is_empty()
            && start.elapsed() < COLLECTOR_MAY_TAKE
        {
            tokio::time::sleep(POLL).await;
        }
    }

    /// The main process of the running server.
    pub(crate) fn server(&self) -> Result<Process> {
        let file = PidFile::read(&self.data_dir)?;
        file.and_then(|file| identity::running(&file, &self.data_dir))
            .ok_or_else(|| self.not_running())
    }

    pub(crate) fn signal(&self, server: &Process, signal: Signal) -> Result<()> {
        server
            .signal(signal)
            .map(|_| ())
            .map_err(|error| Error::io(&self.data_dir, "its server cannot be signalled", error))
    }
}

const COLLECTOR_MAY_TAKE: Duration = Duration::from_secs(5);

fn signal_of(mode: StopMode) -> Signal {
    match mode {
        StopMode::Smart => Signal::TERM,
        StopMode::Fast => Signal::INT,
        StopMode::Immediate => Signal::QUIT,
    }
}

async fn gone_within(server: &Process, limit: Duration) -> bool {
    let start = Instant::now();
    while server.is_alive() {
        if start.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}
