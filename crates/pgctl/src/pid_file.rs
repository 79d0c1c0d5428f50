//! `postmaster.pid` of a data directory: what a running server says about itself, and what a dead one left
//! behind.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use neon_pg_layout::PostmasterPid;
pub(crate) use neon_pg_layout::PostmasterStatus as PidFileStatus;

use crate::error::{Error, ErrorKind, Result};

/// The name of the file in a data directory.
pub(crate) const PID_FILE: &str = "postmaster.pid";

/// A `postmaster.pid` in the types of the operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PidFile {
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
    /// Reads the file of a data directory; none when there is none, or an empty one: a server that is just
    /// writing it, or that could not on a full disk.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(PID_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) if bytes.is_empty() => return Ok(None),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "cannot be read", error)),
        };
        let corrupt = || Error::path(ErrorKind::Corrupt, &path, "names no process");
        let file = PostmasterPid::parse(&bytes).map_err(|error| corrupt().with_source(error))?;
        Self::new(file).map(Some).ok_or_else(corrupt)
    }

    /// None for a number that no process can have. The lock beside a socket begins with the same lines.
    pub(crate) fn new(file: PostmasterPid) -> Option<Self> {
        let started = file
            .start_time
            .and_then(|seconds| u64::try_from(seconds).ok());
        let started = started.map(Duration::from_secs);
        Some(Self {
            pid: i32::try_from(file.pid).ok()?,
            single_user: file.single_user,
            started: started.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
            port: file.port,
            socket_dir: file.socket_dir.map(OsString::from_vec).map(PathBuf::from),
            listen: file.listen_address,
            shmid: file.shared_memory.map(|(_, id)| id),
            status: file.status,
        })
    }
}
