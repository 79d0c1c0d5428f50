//! The one error type of this crate.
//!
//! An error says what went wrong ([`ErrorKind`]), with what (the subject: a name, a commit, an object of the
//! storage, a page) and why. Its cause, if it has one, is reached through `source()`.

use std::borrow::Cow;
use std::fmt;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such repository, snapshot, name, file or page.
    NotFound,
    /// What was to be made is there already.
    Exists,
    /// Somebody else is at it; trying again later may help.
    Busy,
    /// A digest or checksum differs, or an object that must be there is missing.
    Damaged,
    /// The bytes do not follow their format.
    Malformed,
    /// Well formed, but of a version or with an addition that this crate does not handle.
    Unsupported,
    /// Encrypted, and no key that opens it was given.
    Locked,
    /// Two facts that must agree do not: a parent of another cluster, a snapshot that was not completed.
    Inconsistent,
    /// A limit that the caller set, or that the format has, is exceeded.
    Limit,
    /// The input was not accepted: a name, a key, an option.
    Invalid,
    /// The storage failed; the cause says how.
    Storage,
    /// A file or the operating system failed.
    Io,
    /// The caller asked to stop.
    Cancelled,
}

/// Why something could not be done with a repository.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: String,
    reason: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind about this subject.
    #[must_use]
    pub fn new(
        kind: ErrorKind,
        subject: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            subject: subject.into(),
            reason: reason.into(),
            source: None,
        }))
    }

    /// The same error with its cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Whether it says something of one object, not of the storage as a whole: another object may do in its place.
    pub(crate) fn is_of_object(&self) -> bool {
        !matches!(
            self.kind(),
            ErrorKind::Storage | ErrorKind::Io | ErrorKind::Cancelled
        )
    }

    pub(crate) fn malformed(
        subject: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Malformed, subject, reason)
    }

    pub(crate) fn damaged(
        subject: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Damaged, subject, reason)
    }

    /// An error of the storage about one of its objects.
    #[must_use]
    pub fn storage(subject: impl Into<String>, source: neon_storage::Error) -> Self {
        use neon_storage::ErrorKind as Storage;
        let (kind, reason) = match source.kind() {
            Storage::NotFound => (ErrorKind::NotFound, "is not in the storage"),
            Storage::Exists => (ErrorKind::Exists, "is in the storage already"),
            Storage::Corrupt => (ErrorKind::Damaged, "did not come back as it was stored"),
            Storage::Unsupported => (ErrorKind::Unsupported, "the storage cannot do this"),
            _ => (ErrorKind::Storage, "the storage failed"),
        };
        Self::new(kind, subject, reason).caused_by(source)
    }

    /// An error of a format below this crate: packs, frames, data directories.
    #[must_use]
    pub fn format(subject: impl Into<String>, source: neon_snapshot_format::Error) -> Self {
        use neon_snapshot_format::ErrorKind as Format;
        let kind = match source.kind() {
            Format::NotFound => ErrorKind::NotFound,
            Format::Exists => ErrorKind::Exists,
            Format::Malformed => ErrorKind::Malformed,
            Format::Damaged => ErrorKind::Damaged,
            Format::Unsupported => ErrorKind::Unsupported,
            Format::Unsafe => ErrorKind::Invalid,
            Format::Limit => ErrorKind::Limit,
            Format::Io => ErrorKind::Io,
            Format::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Inconsistent,
        };
        Self::new(kind, subject, "cannot be read or written").caused_by(source)
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What it went wrong with.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
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
