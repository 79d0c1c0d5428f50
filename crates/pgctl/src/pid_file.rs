//! `postmaster.pid`: what a running server says about itself, and what a dead one left behind.
//!
//! Eight lines, the same in every major (`utils/pidfile.h`). Lines 1 to 3 are written at once, the others
//! while the server comes up, so all but the first may be missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorKind, Result};

/// The name of the file in a data directory.
pub(crate) const PID_FILE: &str = "postmaster.pid";

/// What the last line says about readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidFileStatus {
    Starting,
    Stopping,
    Ready,
    Standby,
}

/// A parsed `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PidFile {
    /// Process id; negative in the file when a single-user backend wrote it.
    pub(crate) pid: i32,
    pub(crate) single_user: bool,
    pub(crate) started: Option<SystemTime>,
    pub(crate) port: Option<u16>,
    pub(crate) socket_dir: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    pub(crate) shmid: Option<u64>,
    pub(crate) status: Option<PidFileStatus>,
}

impl PidFile {
    /// Reads the file of a data directory; none when there is none, or an empty one that is just being
    /// written.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(PID_FILE);
        match fs::read_to_string(&path) {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Self::parse(&text).map(Some).ok_or_else(|| {
                Error::path(
                    ErrorKind::Corrupt,
                    &path,
                    "does not start with a process id",
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path, "cannot be read", error)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let number: i32 = lines.next()?.parse().ok()?;
        let pid = number.checked_abs().filter(|pid| *pid > 0)?;
        lines.next();
        let started = lines.next().and_then(|epoch| epoch.parse().ok());
        let port = lines.next().and_then(|port| port.parse().ok());
        let socket_dir = lines
            .next()
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from);
        let listen = lines
            .next()
            .filter(|addr| !addr.is_empty())
            .map(str::to_owned);
        let shmid = lines
            .next()
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let status = lines.next().and_then(|status| match status {
            "starting" => Some(PidFileStatus::Starting),
            "stopping" => Some(PidFileStatus::Stopping),
            "ready" => Some(PidFileStatus::Ready),
            "standby" => Some(PidFileStatus::Standby),
            _ => None,
        });
        Some(Self {
            pid,
            single_user: number < 0,
            started: started
                .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))),
            port,
            socket_dir,
            listen,
            shmid,
            status,
        })
    }
}
