//! The one error type of this crate.
//!
//! An error says what went wrong ([`ErrorKind`]), with what (the subject, mostly a path) and why. Its cause, if
//! it has one, is reached through `source()`.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;

use crate::method::NotUsed;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused to read or write.
    Io,
    /// The source, or the folder of the target, is not there.
    NotFound,
    /// Something stands where the clone should.
    Exists,
    /// The method that was asked for, or every one that shares blocks, does not work here.
    Unsupported,
    /// The tree holds what must not be cloned: a link that leads elsewhere, a device, a pipe.
    Unsafe,
    /// The source changed while it was cloned.
    Changed,
    /// The options contradict each other or the source: a tablespace without a place, a target in the source.
    Invalid,
    /// The caller asked to stop. Nothing was left behind.
    Cancelled,
    /// There is no room for the clone.
    DiskFull,
    /// The rights of this process do not suffice.
    Permissions,
}

/// Why a tree was not cloned, measured or removed.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: String,
    reason: Cow<'static, str>,
    not_used: Vec<NotUsed>,
    source: Option<io::Error>,
}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        subject: impl AsRef<Path>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            subject: subject.as_ref().display().to_string(),
            reason: reason.into(),
            not_used: Vec::new(),
            source: None,
        }))
    }

    /// What the operating system answered while `doing` something with the path.
    pub(crate) fn io(
        subject: impl AsRef<Path>,
        doing: &'static str,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            io::ErrorKind::PermissionDenied => ErrorKind::Permissions,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, subject, doing);
        error.0.source = Some(source);
        error
    }

    pub(crate) fn with_not_used(mut self, not_used: Vec<NotUsed>) -> Self {
        self.0.not_used = not_used;
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What it went wrong with, mostly a path.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// For [`ErrorKind::Unsupported`]: each method that would have done, and why it does not work here.
    #[must_use]
    pub fn not_used(&self) -> &[NotUsed] {
        &self.0.not_used
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
            .field("not_used", &self.0.not_used)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
