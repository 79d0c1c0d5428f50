//! The one error type of this crate.
//!
//! An error says what went wrong ([`ErrorKind`]), with what (the subject), why (the reason), what to do
//! about it (the hint, when there is something to do) and, when a server or one of its programs said
//! something that matters, the lines it said.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No PostgreSQL was found. The hint is the command that installs one on this system.
    NoInstallation,
    /// The programs are there and do not work, or are not what they are said to be.
    BadInstallation,
    /// The installation lacks a program that is needed.
    MissingTool,
    /// A library that the server or a setting asks for cannot be loaded.
    MissingLibrary,
    /// The installation cannot do what was asked, for example a locale provider of a later major.
    Unsupported,
    /// Something is already where a new instance was to be.
    Exists,
    /// The path is no data directory.
    NotACluster,
    /// The data directory belongs to another major version.
    WrongMajor,
    /// The data directory belongs to another user than the one that would run the server.
    WrongOwner,
    /// Modes that PostgreSQL refuses, or that keep a user from what it needs.
    Permissions,
    /// We are root, servers must not be, and the operating-system user they shall run as is unknown.
    NoOsUser,
    /// A server runs on the data directory already.
    AlreadyRunning,
    /// No server runs on the data directory.
    NotRunning,
    /// The server is no standby, so there is nothing to promote.
    NotInRecovery,
    /// The port belongs to somebody else.
    PortInUse,
    /// The path of the socket is too long, or its folder is not ours.
    SocketPath,
    /// A setting has a value the server refuses, or a configuration file cannot be read.
    BadSetting,
    /// No space left where the server or we must write.
    DiskFull,
    /// Not enough memory, shared memory or semaphores for the settings.
    OutOfMemory,
    /// Files of the cluster are missing or damaged.
    Corrupt,
    /// Recovery cannot reach a state in which the server could run.
    Recovery,
    /// A tablespace or the WAL directory of a clone lies outside the clone.
    OutsideClone,
    /// The server ended and nothing known explains it. The log lines are in the error.
    ServerEnded,
    /// An argument that PostgreSQL cannot be given.
    Invalid,
    /// The recovery target lies before the data is consistent: an older base is needed.
    TargetTooEarly,
    /// The recovery target lies beyond the end of WAL.
    TargetTooLate,
    /// No transaction ended after the time to recover to, so recovery cannot tell that it is reached.
    NoLaterTransaction,
    /// The end of the transaction to recover to is not in the WAL.
    UnknownTransaction,
    /// The restore point to recover to is not in the WAL.
    UnknownRestorePoint,
    /// The timeline to recover along does not exist, or does not lead from the data to the target.
    WrongTimeline,
    /// A segment is missing that must be there: later ones are, or the data is not consistent without it.
    MissingWal,
    /// The WAL source failed, which is not the end of WAL.
    WalSource,
    /// WAL of `wal_level=minimal` does not hold all changes: no backup, no recovery.
    WalLevelMinimal,
    /// The session that held a backup open is lost, and the backup with it.
    BackupLost,
    /// The standby a backup was taken from was promoted meanwhile, or WAL without full pages was replayed.
    BackupSpoiled,
    /// The primary of a standby is still there: promoted, there would be two.
    UpstreamAlive,
    /// A replication slot belongs to somebody else, or none is free.
    Slot,
    /// It did not happen before the deadline.
    Timeout,
    /// The server answered with an error, or the connection to it failed.
    Connection,
    /// The operating system refused.
    Io,
}

/// Why an operation on a server or an installation failed.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: Cow<'static, str>,
    reason: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    log: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        subject: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            subject: subject.into(),
            reason: reason.into(),
            hint: None,
            log: Vec::new(),
            source: None,
        }))
    }

    /// An error whose subject is a file or a folder.
    pub(crate) fn path(kind: ErrorKind, path: &Path, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(kind, path.display().to_string(), reason)
    }

    /// What the operating system answered to `action` on `path`; a full disk and missing rights have
    /// kinds of their own.
    pub(crate) fn io(path: &Path, action: &'static str, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::DiskFull
            }
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permissions,
            _ => ErrorKind::Io,
        };
        Self::path(kind, path, action).with_source(error)
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_log(mut self, log: Vec<String>) -> Self {
        self.0.log = log;
        self
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What it went wrong with: a path, a setting, a port.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The reason alone, without the subject.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What to do about it, when there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The lines of the server's log, or of a program's output, that matter. Empty when none do.
    #[must_use]
    pub fn log(&self) -> &[String] {
        &self.0.log
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.subject, self.0.reason)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("subject", &self.0.subject)
            .field("reason", &self.0.reason)
            .field("hint", &self.0.hint)
            .field("log", &self.0.log)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
