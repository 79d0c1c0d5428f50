//! The one error type of this crate.
//!
//! An error says what went wrong ([`ErrorKind`]), with what (the subject), why (the reason) and what to do about it
//! (the hint, when there is something to do). Its cause is reached through `source()`.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// What went wrong, coarse enough to decide on. Each belongs to one exit code of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument that cannot be meant so.
    Invalid,
    /// There is no such instance, storage or snapshot.
    NotFound,
    /// There is one of this name already.
    Exists,
    /// Somebody else is at it.
    Busy,
    /// What was found cannot be what was stored.
    Damaged,
    /// The machine lacks something: PostgreSQL, a user, rights, room.
    Environment,
    /// It was tried and failed.
    Failed,
    /// Done in part: the subject says which part is missing.
    Partial,
    /// Somebody asked to stop.
    Cancelled,
}

impl ErrorKind {
    /// The exit code of the command.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Exists | Self::Busy => 4,
            Self::Damaged => 5,
            Self::Environment => 6,
            Self::Partial => 7,
            Self::Cancelled => 130,
        }
    }
}

/// Why something could not be done.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: String,
    reason: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the kinds of errors of storages are here.
fn of_storage(error: &neon_storage::Error) -> (ErrorKind, &'static str) {
    use neon_storage::ErrorKind as Storage;
    match error.kind() {
        Storage::NotFound => (ErrorKind::NotFound, "is not there"),
        Storage::Exists => (ErrorKind::Exists, "is there already"),
        Storage::Corrupt => (ErrorKind::Damaged, "did not come back as it was stored"),
        Storage::Unsupported => (ErrorKind::Invalid, "cannot do that"),
        Storage::Invalid => (ErrorKind::Invalid, "cannot be used so"),
        Storage::Denied | Storage::Unauthenticated => {
            (ErrorKind::Environment, "does not let us in")
        }
        _ => (below(error), "cannot be used now"),
    }
}

/// What lies below an error of a file or a storage: no room and no rights are not the fault of what was tried.
fn below(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::ReadOnlyFilesystem
                | std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded => ErrorKind::Environment,
                _ => ErrorKind::Failed,
            };
        }
        if let Some(storage) = error.downcast_ref::<neon_storage::Error>()
            && matches!(
                storage.kind(),
                neon_storage::ErrorKind::Denied | neon_storage::ErrorKind::Unauthenticated
            )
        {
            return ErrorKind::Environment;
        }
        source = error.source();
    }
    ErrorKind::Failed
}

/// Whether a file system that is full, or full for us, lies below an error.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    matches!(error.kind(), Io::StorageFull | Io::QuotaExceeded)
}

/// What to do about what lies below an error: what the system says of a file first, then what a storage says of itself.
fn remedy(error: &Error) -> Option<&'static str> {
    use neon_storage::ErrorKind as Storage;
    let mut storage = None;
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    return Some("free some space there, or choose another place");
                }
                std::io::ErrorKind::ReadOnlyFilesystem => {
                    return Some("choose another place, or have it mounted to be written");
                }
                std::io::ErrorKind::PermissionDenied => {
                    return Some("run as somebody who may, or choose another place");
                }
                _ => {}
            }
        }
        if let Some(error) = cause.downcast_ref::<neon_storage::Error>() {
            storage = storage.or(Some(error.kind()));
        }
        source = cause.source();
    }
    match storage? {
        Storage::Unavailable => {
            Some("see whether its address is right and can be reached from here, then try again")
        }
        Storage::Unauthenticated => {
            Some("give credentials by the environment or a profile, or other ones")
        }
        Storage::Invalid => {
            Some("see whether what its address names is there, and its options are right")
        }
        Storage::Denied => {
            Some("its credentials do not allow this: have them allow it, or give other ones")
        }
        _ => None,
    }
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        subject: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            subject: subject.into(),
            reason: reason.into(),
            hint: None,
            source: None,
        }))
    }

    pub(crate) fn hinted(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the operating system answered.
    pub(crate) fn io(path: &Path, doing: &'static str, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ReadOnlyFilesystem
            | std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded => ErrorKind::Environment,
            _ => ErrorKind::Failed,
        };
        Self::new(kind, path.display().to_string(), doing)
            .caused_by(error)
            .remedied()
    }

    /// What running PostgreSQL for `subject` came to.
    pub(crate) fn server(subject: impl Into<String>, error: neon_pgctl::Error) -> Self {
        use neon_pgctl::ErrorKind as Server;
        let kind = match error.kind() {
            Server::Invalid | Server::BadSetting => ErrorKind::Invalid,
            Server::NotACluster => ErrorKind::NotFound,
            Server::Exists => ErrorKind::Exists,
            Server::AlreadyRunning | Server::PortInUse | Server::UpstreamAlive => ErrorKind::Busy,
            Server::Corrupt => ErrorKind::Damaged,
            Server::NoInstallation
            | Server::BadInstallation
            | Server::MissingTool
            | Server::MissingLibrary
            | Server::WrongMajor
            | Server::WrongOwner
            | Server::Permissions
            | Server::NoOsUser
            | Server::SocketPath
            | Server::DiskFull
            | Server::OutOfMemory => ErrorKind::Environment,
            _ => ErrorKind::Failed,
        };
        let reason = match error.kind() {
            Server::NoInstallation => "was not found",
            Server::BadInstallation
            | Server::MissingTool
            | Server::MissingLibrary
            | Server::Unsupported => "cannot be used",
            Server::NotACluster => "is no cluster",
            Server::WrongMajor
            | Server::WrongOwner
            | Server::Permissions
            | Server::NoOsUser
            | Server::SocketPath
            | Server::OutOfMemory => "cannot be run here",
            Server::Invalid | Server::BadSetting => "does not take a setting",
            Server::Exists => "is there already",
            Server::AlreadyRunning => "runs already",
            Server::NotRunning => "does not run",
            Server::PortInUse => "cannot have its port",
            Server::DiskFull => "has no room",
            Server::Corrupt => "is damaged",
            _ => "its server failed",
        };
        let hint = error.hint().map(|hint| Cow::from(hint.to_owned()));
        let mut whole = Self::new(kind, subject, reason).caused_by(error);
        whole.0.hint = hint;
        whole
    }

    /// What a storage answered.
    pub(crate) fn storage(subject: impl Into<String>, error: neon_storage::Error) -> Self {
        let (kind, reason) = of_storage(&error);
        Self::new(kind, subject, reason).caused_by(error).remedied()
    }

    /// What a repository answered.
    pub(crate) fn repository(subject: impl Into<String>, error: neon_pagestore::Error) -> Self {
        use neon_pagestore::ErrorKind as Repository;
        let mut cause = std::error::Error::source(&error);
        let mut found = None;
        while let Some(source) = cause {
            found = found.or(source.downcast_ref::<neon_storage::Error>());
            cause = source.source();
        }
        let (kind, reason, hint) = match error.kind() {
            Repository::NotFound => (ErrorKind::NotFound, "has no such thing", None),
            Repository::Exists => (ErrorKind::Exists, "has it already", None),
            Repository::Busy => (
                ErrorKind::Busy,
                "somebody else is at it",
                Some("try again when they are done"),
            ),
            Repository::Damaged | Repository::Malformed | Repository::Inconsistent => (
                ErrorKind::Damaged,
                "is damaged",
                Some(
                    "neon storage check tells what is; snapshots that are taken or imported with --no-parent share nothing with it",
                ),
            ),
            // What its place cannot do, no other version of us can.
            Repository::Unsupported if found.is_some() => (
                ErrorKind::Invalid,
                "is in a place that cannot do that",
                Some("if it can by now, `neon storage init NAME` asks it anew"),
            ),
            Repository::Unsupported => (
                ErrorKind::Invalid,
                "was made by a newer version",
                Some("use a newer neon"),
            ),
            Repository::Locked => (
                ErrorKind::Environment,
                "is encrypted",
                Some("give its passphrase in NEON_PASSPHRASE, or its key file"),
            ),
            Repository::Invalid | Repository::Limit => {
                (ErrorKind::Invalid, "does not take it", None)
            }
            Repository::Cancelled => (ErrorKind::Cancelled, "was stopped", None),
            Repository::Storage => {
                let (kind, reason) =
                    found.map_or((ErrorKind::Failed, "cannot be used now"), of_storage);
                (kind, reason, None)
            }
            _ => (below(&error), "could not be worked with", None),
        };
        let whole = Self::new(kind, subject, reason).caused_by(error);
        match hint {
            Some(hint) => whole.hinted(hint),
            None => whole.remedied(),
        }
    }

    /// What a server of somebody else answered.
    pub(crate) fn wire(subject: impl Into<String>, error: neon_pgwire::Error) -> Self {
        use neon_pgwire::ErrorKind as Wire;
        let (kind, reason) = match error.kind() {
            Wire::Config | Wire::Unsupported => (ErrorKind::Invalid, "cannot be connected to so"),
            Wire::File | Wire::Tls => (ErrorKind::Environment, "cannot be connected to"),
            Wire::Authentication => (ErrorKind::Environment, "does not let us in"),
            Wire::Io | Wire::Timeout => (ErrorKind::Failed, "cannot be reached"),
            // Class 28: not let in, by pg_hba.conf say; 42501: without the right.
            Wire::Server
                if error
                    .sqlstate()
                    .is_some_and(|code| code.starts_with("28") || code == "42501") =>
            {
                (ErrorKind::Environment, "does not let us in")
            }
            _ => (ErrorKind::Failed, "could not be copied from"),
        };
        let away = matches!(error.kind(), Wire::Io | Wire::Timeout);
        let whole = Self::new(kind, subject, reason).caused_by(error);
        match away {
            true => whole.hinted("see whether its server runs, and can be reached from here"),
            false => whole,
        }
    }

    /// What reading or writing a form of a snapshot came to.
    pub(crate) fn format(subject: impl Into<String>, error: neon_snapshot_format::Error) -> Self {
        use neon_snapshot_format::ErrorKind as Format;
        let kind = match error.kind() {
            Format::NotFound => ErrorKind::NotFound,
            Format::Exists => ErrorKind::Exists,
            Format::Damaged
            | Format::Malformed
            | Format::Inconsistent
            | Format::Unsafe
            | Format::Limit => ErrorKind::Damaged,
            Format::Unsupported => ErrorKind::Invalid,
            _ => below(&error),
        };
        Self::new(kind, subject, "could not be copied")
            .caused_by(error)
            .remedied()
    }

    /// What writing a form of a snapshot to its place came to.
    pub(crate) fn unwritten(
        subject: impl Into<String>,
        error: neon_snapshot_format::Error,
    ) -> Self {
        let mut whole = Self::format(subject, error);
        whole.0.reason = Cow::Borrowed("could not be written");
        whole
    }

    /// With what to do about what lies below, if nobody said more.
    fn remedied(mut self) -> Self {
        if self.0.hint.is_none() {
            self.0.hint = remedy(&self).map(Cow::Borrowed);
        }
        self
    }

    /// Whether what lies below it is a file system without room.
    pub(crate) fn is_of_a_full_disk(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            if cause.downcast_ref().is_some_and(is_full) {
                return true;
            }
            source = cause.source();
        }
        false
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// With what.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What went wrong, finer than [`kind`](Self::kind) where a cause tells more: `not-found`, or `failed/server-port-in-use`.
    #[must_use]
    pub fn code(&self) -> String {
        let mut code = kebab(&format!("{:?}", self.0.kind));
        let mut finer = None;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref::<neon_pgctl::Error>() {
                finer = Some(format!("server{:?}", error.kind()));
            } else if let Some(error) = cause.downcast_ref::<neon_pagestore::Error>() {
                finer = Some(format!("repository{:?}", error.kind()));
            } else if let Some(error) = cause.downcast_ref::<neon_storage::Error>() {
                finer = Some(format!("storage{:?}", error.kind()));
            } else if let Some(error) = cause.downcast_ref::<neon_snapshot_format::Error>() {
                finer = Some(format!("format{:?}", error.kind()));
            }
            source = cause.source();
        }
        if let Some(finer) = finer {
            code.push('/');
            code.push_str(&kebab(&finer));
        }
        code
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// `PortInUse` as `port-in-use`.
fn kebab(camel: &str) -> String {
    let mut text = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
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
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.0.source.as_deref()?;
        Some(source)
    }
}
