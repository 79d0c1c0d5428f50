//! The one error type of this crate.
//!
//! An error says what went wrong ([`ErrorKind`]), with what (the subject: a path, a member of an archive,
//! a frame) and why. Its cause, if it has one, is reached through `source()`.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused to read or write.
    Io,
    /// What was to be read is not there.
    NotFound,
    /// What was to be made is there already, or a directory that must be empty is not.
    Exists,
    /// The bytes do not follow their format, or end early.
    Malformed,
    /// A checksum or digest differs, or pages are damaged.
    Damaged,
    /// Well formed, but of a version, a build or a kind that this crate does not handle.
    Unsupported,
    /// The input asks for something outside the place it is unpacked to, or for what no snapshot needs.
    Unsafe,
    /// Two facts that must agree do not: a running server under a cold copy, a size and its data.
    Inconsistent,
    /// A limit that the caller set, or that the format has, is exceeded.
    Limit,
    /// The caller asked to stop.
    Cancelled,
}

/// Why a snapshot could not be read or written.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: String,
    reason: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind about this subject. For implementors of [`Sink`](crate::Sink) and the
    /// other traits of this crate.
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

    /// The same error of a subject that is known better.
    pub(crate) fn about(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = subject.into();
        self
    }

    /// An error of the operating system, or of a stream, while `doing` something with the subject.
    #[must_use]
    pub fn io(
        subject: impl Into<String>,
        doing: impl Into<Cow<'static, str>>,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput => ErrorKind::Malformed,
            _ => ErrorKind::Io,
        };
        Self::new(kind, subject, doing).caused_by(source)
    }

    pub(crate) fn layout(subject: impl Into<String>, source: neon_pg_layout::Error) -> Self {
        use neon_pg_layout::ErrorKind as Layout;
        let kind = match source.kind() {
            Layout::Checksum => ErrorKind::Damaged,
            Layout::Unsupported => ErrorKind::Unsupported,
            Layout::Inconsistent => ErrorKind::Inconsistent,
            _ => ErrorKind::Malformed,
        };
        Self::new(kind, subject, "not what the server writes").caused_by(source)
    }

    pub(crate) fn malformed(
        subject: impl Into<String>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Malformed, subject, reason)
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What it went wrong with: a path, a member of an archive, a frame.
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
