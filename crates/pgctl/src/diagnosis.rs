//! Why a server did not start: the lines of its log that matter, and the cause they tell.
//!
//! The log of a start is what the server wrote to our file, and after its own collector took over, what it
//! wrote there. Both are read from where they ended before the start. Messages are known in English: of a
//! server that logs in another language (`lc_messages`) the lines are given, and the cause mostly is not.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::instance::Instance;

/// The name of the file that tells where the collector writes (`LOG_METAINFO_DATAFILE`).
pub(crate) const CURRENT_LOGFILES: &str = "current_logfiles";

/// No error carries more lines than this.
const MOST_LINES: usize = 30;

/// More than this of a log is never read.
const MOST_BYTES: u64 = 256 * 1024;

/// Where all logs of an instance ended at some moment.
#[derive(Debug)]
pub(crate) struct LogMark {
    start_log: PathBuf,
    data_dir: PathBuf,
    lengths: HashMap<PathBuf, u64>,
}

impl LogMark {
    pub(crate) fn set(instance: &Instance) -> Self {
        let mut lengths = HashMap::new();
        let collected = collector_file(&instance.data_dir);
        let folders = [
            Some(instance.log_dir.as_path()),
            collected.as_deref().and_then(Path::parent),
        ];
        for folder in folders.into_iter().flatten() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let length = entry.metadata().map_or(0, |meta| meta.len());
                let path = entry.path();
                lengths.insert(path.canonicalize().unwrap_or(path), length);
            }
        }
        Self {
            start_log: instance.start_log(),
            data_dir: instance.data_dir.clone(),
            lengths,
        }
    }

    /// The beginning of all logs.
    pub(crate) fn beginning(instance: &Instance) -> Self {
        Self {
            start_log: instance.start_log(),
            data_dir: instance.data_dir.clone(),
            lengths: HashMap::new(),
        }
    }

    /// What was logged since.
    pub(crate) fn since(&self) -> Vec<String> {
        let mut lines = self.new_lines(&self.start_log);
        let redirected = lines
            .iter()
            .any(|line| line.contains("logging collector process"));
        if redirected && let Some(path) = collector_file(&self.data_dir) {
            lines.extend(self.new_lines(&path));
        }
        lines
    }

    fn new_lines(&self, path: &Path) -> Vec<String> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let start = self.lengths.get(&real).copied().unwrap_or(0);
        read_from(&real, start).unwrap_or_default()
    }
}

fn read_from(path: &Path, start: u64) -> std::io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // Shorter than before: it was truncated on rotation.
    let start = if start > length { 0 } else { start };
    file.seek(SeekFrom::Start(
        start.max(length.saturating_sub(MOST_BYTES)),
    ))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// The file that the server's collector writes to now, or wrote to last.
pub(crate) fn collector_file(data_dir: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(data_dir.join(CURRENT_LOGFILES)).ok()?;
    let mut paths = text.lines().filter_map(|line| line.split_once(' '));
    let first = paths.clone().next();
    let (_, path) = paths.find(|(kind, _)| *kind == "stderr").or(first)?;
    Some(data_dir.join(path))
}

/// The lines that tell of a failure: errors with what belongs to them, and what is no log line at all (the
/// loader's or the shell's).
fn telling(lines: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut belongs = false;
    for line in lines {
        let severe = ["FATAL:", "PANIC:", "ERROR:"]
            .iter()
            .any(|word| line.contains(word));
        let attached = ["DETAIL:", "HINT:", "CONTEXT:"]
            .iter()
            .any(|word| line.contains(word));
        let logged = ["LOG:", "WARNING:", "NOTICE:", "DEBUG"]
            .iter()
            .any(|word| line.contains(word));
        let complains = logged
            && CAUSES.iter().any(|cause| line.contains(cause.0))
            && !line.contains("automatic recovery in progress");
        belongs = severe || complains || (attached && belongs) || (!attached && !logged);
        if belongs && !line.trim().is_empty() {
            kept.push(line.clone());
        }
    }
    let skip = kept.len().saturating_sub(MOST_LINES);
    kept.split_off(skip)
}

/// Text of a message, what it means, and what to do where the server itself gives no hint. The first entry
/// that is found decides, so the particular stand before the general.
const CAUSES: &[(&str, ErrorKind, &str)] = &[
    (
        "lock file \"postmaster.pid\" already exists",
        ErrorKind::AlreadyRunning,
        "",
    ),
    (
        "pre-existing shared memory block",
        ErrorKind::AlreadyRunning,
        "",
    ),
    (
        "could not create semaphores",
        ErrorKind::OutOfMemory,
        "raise kernel.sem, or lower max_connections",
    ),
    (
        "could not resize shared memory segment",
        ErrorKind::OutOfMemory,
        "the file system of shared memory (/dev/shm) is too small",
    ),
    (
        "could not map anonymous shared memory",
        ErrorKind::OutOfMemory,
        "lower shared_buffers or max_connections",
    ),
    (
        "could not create shared memory segment",
        ErrorKind::OutOfMemory,
        "lower shared_buffers or max_connections",
    ),
    (
        "Cannot allocate memory",
        ErrorKind::OutOfMemory,
        "lower shared_buffers",
    ),
    (
        "out of memory",
        ErrorKind::OutOfMemory,
        "lower shared_buffers",
    ),
    (
        "No space left on device",
        ErrorKind::DiskFull,
        "make room on the file system of the data directory",
    ),
    // A file that was extended in part: the server names no cause then.
    (
        ": wrote only ",
        ErrorKind::DiskFull,
        "make room on the file system of the data directory",
    ),
    (
        "Disk quota exceeded",
        ErrorKind::DiskFull,
        "make room, or raise the quota",
    ),
    (
        "File too large",
        ErrorKind::DiskFull,
        "raise the limit of file sizes (ulimit -f)",
    ),
    (
        "Permission denied",
        ErrorKind::Permissions,
        "the server's user must be able to reach and read it",
    ),
    (
        "Address already in use",
        ErrorKind::PortInUse,
        "choose another port, or stop the server that has it",
    ),
    (
        ".lock\" already exists",
        ErrorKind::PortInUse,
        "choose another port, or stop the server that has it",
    ),
    (
        "is too long (maximum",
        ErrorKind::SocketPath,
        "give a shorter folder for the socket",
    ),
    (
        "could not create any Unix-domain sockets",
        ErrorKind::SocketPath,
        "",
    ),
    (
        "has wrong ownership",
        ErrorKind::WrongOwner,
        "the data directory must belong to the user of the server",
    ),
    (
        "has invalid permissions",
        ErrorKind::Permissions,
        "chmod 0700 the data directory",
    ),
    (
        "has group or world access",
        ErrorKind::Permissions,
        "chmod 0600 the key file",
    ),
    (
        "database files are incompatible with server",
        ErrorKind::WrongMajor,
        "use an installation of the major version that the data directory belongs to",
    ),
    (
        "is not a database cluster directory",
        ErrorKind::NotACluster,
        "",
    ),
    (
        "error while loading shared libraries",
        ErrorKind::MissingLibrary,
        "install the library, or give the loader its folder",
    ),
    (
        "Error loading shared library",
        ErrorKind::MissingLibrary,
        "install the library, or give the loader its folder",
    ),
    (
        "Library not loaded",
        ErrorKind::MissingLibrary,
        "install the library",
    ),
    (
        "could not load library",
        ErrorKind::MissingLibrary,
        "install the extension's package, or take the library out of the setting",
    ),
    (
        "could not access file \"",
        ErrorKind::MissingLibrary,
        "install the extension's package, or take the library out of shared_preload_libraries",
    ),
    (
        "resource manager with ID",
        ErrorKind::MissingLibrary,
        "preload the library of the extension that wrote these records, in quarantine by with_preload_library",
    ),
    (
        "incompatible library",
        ErrorKind::MissingLibrary,
        "install the extension's package for this major version",
    ),
    (
        "unrecognized configuration parameter",
        ErrorKind::BadSetting,
        "take the setting out, or install what defines it",
    ),
    ("invalid value for parameter", ErrorKind::BadSetting, ""),
    ("requires a numeric value", ErrorKind::BadSetting, ""),
    ("requires a Boolean value", ErrorKind::BadSetting, ""),
    ("is outside the valid range", ErrorKind::BadSetting, ""),
    ("syntax error in file", ErrorKind::BadSetting, ""),
    ("contains errors", ErrorKind::BadSetting, ""),
    (
        "could not open configuration",
        ErrorKind::BadSetting,
        "an include names a file that is not there",
    ),
    (
        "could not access the server configuration file",
        ErrorKind::BadSetting,
        "name postgresql.conf if it lies outside the data directory",
    ),
    (
        "could not load pg_hba.conf",
        ErrorKind::BadSetting,
        "see the line of pg_hba.conf that the log names",
    ),
    ("pg_hba.conf", ErrorKind::BadSetting, ""),
    (
        "FATAL:  could not load ",
        ErrorKind::BadSetting,
        "see the line of the file that the log names",
    ),
    (
        "could not load server certificate file",
        ErrorKind::BadSetting,
        "turn ssl off, or give the server a certificate it can read",
    ),
    (
        "private key file",
        ErrorKind::BadSetting,
        "turn ssl off, or give the server a key it can read",
    ),
    ("root certificate file", ErrorKind::BadSetting, ""),
    (
        "could not translate host name",
        ErrorKind::BadSetting,
        "see listen_addresses",
    ),
    ("WAL archival cannot be enabled", ErrorKind::BadSetting, ""),
    ("WAL streaming (", ErrorKind::BadSetting, ""),
    (
        "multiple recovery targets specified",
        ErrorKind::BadSetting,
        "",
    ),
    (
        "replication slot exists, but",
        ErrorKind::BadSetting,
        "a slot of the cluster needs a higher wal_level or max_replication_slots",
    ),
    (
        "could not open log file",
        ErrorKind::BadSetting,
        "see log_directory",
    ),
    (
        "could not create any TCP/IP sockets",
        ErrorKind::BadSetting,
        "see listen_addresses",
    ),
    (
        "could not locate a valid checkpoint record",
        ErrorKind::Corrupt,
        "WAL is missing; restore the cluster from a snapshot",
    ),
    (
        "could not locate required checkpoint record",
        ErrorKind::Corrupt,
        "WAL that the copy needs is missing; do not remove backup_label",
    ),
    ("incorrect checksum in control file", ErrorKind::Corrupt, ""),
    ("control file", ErrorKind::Corrupt, ""),
    ("global/pg_control", ErrorKind::Corrupt, ""),
    (
        "could not access status of transaction",
        ErrorKind::Corrupt,
        "",
    ),
    (
        "recovery ended before configured recovery target",
        ErrorKind::Recovery,
        "",
    ),
    (
        "requested recovery stop point is before",
        ErrorKind::Recovery,
        "",
    ),
    ("WAL ends before", ErrorKind::Recovery, ""),
    ("must specify \"restore_command\"", ErrorKind::Recovery, ""),
    ("recovery target timeline", ErrorKind::Recovery, ""),
    ("requested timeline", ErrorKind::Recovery, ""),
    ("recovery aborted", ErrorKind::Recovery, ""),
    ("hot standby is not possible", ErrorKind::Recovery, ""),
];

/// Adds to the failure of a start what the log tells of it.
pub(crate) fn explain(error: Error, mark: &LogMark) -> Error {
    let lines = telling(&mark.since());
    if error.kind() != ErrorKind::ServerEnded {
        return if error.log().is_empty() {
            error.with_log(lines)
        } else {
            error
        };
    }
    let subject = error.subject().to_owned();
    let cause = CAUSES.iter().find_map(|cause| {
        lines
            .iter()
            .find(|line| line.contains(cause.0))
            .map(|line| (cause, line))
    });
    let Some(((_, kind, ours), line)) = cause else {
        return error.with_log(lines);
    };
    let hint = lines.iter().find_map(|line| line.split_once("HINT:"));
    let hint = match (*ours, hint) {
        ("", Some((_, theirs))) => Some(theirs.trim().to_owned()),
        ("", None) => None,
        (ours, _) => Some(ours.to_owned()),
    };
    let explained = Error::new(
        *kind,
        subject,
        format!("the server did not start: {}", message_of(line)),
    );
    let explained = match hint {
        Some(hint) => explained.with_hint(hint),
        None => explained,
    };
    explained.with_log(lines)
}

/// A log line without what `log_line_prefix` and the severity put before the message.
fn message_of(line: &str) -> &str {
    ["FATAL:", "PANIC:", "ERROR:", "LOG:", "WARNING:", "DETAIL:"]
        .iter()
        .find_map(|word| line.split_once(word))
        .map_or(line, |(_, message)| message)
        .trim()
}

/// The lines that say that a running server got its port on one address and not on another: a client that
/// tries the other one would reach somebody else.
pub(crate) fn half_bound(mark: &LogMark) -> Option<Vec<String>> {
    let lines = mark.since();
    let bound: Vec<String> = lines
        .into_iter()
        .filter(|line| line.contains("Address already in use"))
        .collect();
    (!bound.is_empty()).then_some(bound)
}

pub(crate) fn port_in_use(port: u16, lines: Vec<String>) -> Error {
    Error::new(
        ErrorKind::PortInUse,
        format!("port {port}"),
        "belongs to another server on one of the addresses to listen on",
    )
    .with_hint("choose another port, or stop the server that has it")
    .with_log(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_detail_and_leaves_ordinary_lines_out() {
        let log = [
            "2026-01-01 LOG:  starting PostgreSQL",
            "2026-01-01 DETAIL:  ordinary",
            "2026-01-01 FATAL:  database files are incompatible with server",
            "2026-01-01 DETAIL:  The data directory was initialized by PostgreSQL version 13",
            "2026-01-01 LOG:  database system is shut down",
        ]
        .map(str::to_owned);
        let kept = telling(&log);
        assert_eq!(kept.len(), 2);
        assert_eq!(
            message_of(&kept[0]),
            "database files are incompatible with server"
        );
    }
}
