//! The one error of this crate: what was tried, on which key, what kind of answer came, and
//! whether trying again may help.
//!
//! Display prints this layer only; the cause (an I/O error, an SDK error) is reached through
//! `source()`. Causes that could carry credentials are reduced to text without them before they
//! get here.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// What sort of failure it was. Callers branch on this and on nothing finer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no object with this key.
    NotFound,
    /// A create-only put met an object that is already there and isn't its own.
    Exists,
    /// The object isn't at the version the caller named.
    Precondition,
    /// The credentials are good and don't allow this.
    Denied,
    /// The storage doesn't accept the credentials, or there are none.
    Unauthenticated,
    /// The storage did not answer, answered with a failure of its own, or refuses work for now.
    Unavailable,
    /// What came back can't be what was stored: short, mislabelled or undecodable.
    Corrupt,
    /// The storage can't do this at all.
    Unsupported,
    /// A key, range, locator or setting that no storage would accept.
    Invalid,
    /// The caller's own body stream failed; nothing was stored.
    Body,
}

impl ErrorKind {
    /// Every kind, in the order of the table in the README.
    pub const ALL: [Self; 10] = [
        Self::NotFound,
        Self::Exists,
        Self::Precondition,
        Self::Denied,
        Self::Unauthenticated,
        Self::Unavailable,
        Self::Corrupt,
        Self::Unsupported,
        Self::Invalid,
        Self::Body,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "no such object",
            Self::Exists => "the object exists already",
            Self::Precondition => "the object is not at the expected version",
            Self::Denied => "permission denied",
            Self::Unauthenticated => "not authenticated",
            Self::Unavailable => "the storage is unavailable",
            Self::Corrupt => "the storage returned something else than was stored",
            Self::Unsupported => "the storage does not support this",
            Self::Invalid => "invalid request",
            Self::Body => "the body to store could not be read",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Which verb of the storage failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Parsing a locator or settings, connecting, probing.
    Open,
    /// Storing an object.
    Put,
    /// Reading an object or parts of it.
    Get,
    /// Asking for an object's size, version and age.
    Head,
    /// Listing keys.
    List,
    /// Deleting objects.
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// Whether the same call may succeed later without anybody changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The answer will be the same.
    Never,
    /// It may help.
    MayHelp,
    /// It may help, and the storage asked to be left alone for so long.
    After(Duration),
}

/// A failed operation on a storage.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Operation,
    subject: Option<String>,
    detail: Option<Cow<'static, str>>,
    retry: Retry,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without subject, detail or cause. `Unavailable` starts with [`Retry::MayHelp`],
    /// every other kind with [`Retry::Never`].
    pub fn new(kind: ErrorKind, operation: Operation) -> Self {
        let retry = if kind == ErrorKind::Unavailable {
            Retry::MayHelp
        } else {
            Retry::Never
        };
        Self(Box::new(Inner {
            kind,
            operation,
            subject: None,
            detail: None,
            retry,
            source: None,
        }))
    }

    /// Names the key, prefix or locator it is about. Must be free of secrets.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = Some(subject.into());
        self
    }

    /// Says more than the kind does. Must be free of secrets.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Replaces the hint about trying again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Attaches the cause. Its text must be free of secrets.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Moves the error to another verb, for a layer that implements one verb by another.
    #[cfg(any(feature = "s3", feature = "ssh"))]
    #[must_use]
    pub(crate) fn during(mut self, operation: Operation) -> Self {
        self.0.operation = operation;
        self
    }

    /// What sort of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Which verb failed.
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// The key, prefix or locator it failed on, where there is one.
    pub fn key(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// Whether the same call may succeed later.
    pub fn retry_hint(&self) -> Retry {
        self.0.retry
    }

    /// True unless the hint is [`Retry::Never`].
    pub fn is_retryable(&self) -> bool {
        self.0.retry != Retry::Never
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.operation)?;
        if let Some(subject) = &self.0.subject {
            write!(f, " {subject}")?;
        }
        write!(f, ": {}", self.0.kind)?;
        if let Some(detail) = &self.0.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("subject", &self.0.subject)
            .field("detail", &self.0.detail)
            .field("retry", &self.0.retry)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// Lowers an error of the operating system by what it means for the caller.
pub(crate) fn from_io(operation: Operation, subject: &str, error: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::Exists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
        Io::InvalidFilename | Io::InvalidInput => ErrorKind::Invalid,
        Io::NotADirectory | Io::IsADirectory | Io::Unsupported => ErrorKind::Unsupported,
        Io::UnexpectedEof | Io::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).subject(subject).because(error)
}
