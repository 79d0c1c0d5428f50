//! The one error type of this crate.
//!
//! A decoder says what was wrong ([`ErrorKind`]), in which structure (the subject), where in it (the
//! offset, when one is known) and why. It never panics on the bytes it is given.

use std::borrow::Cow;
use std::fmt;

use crate::lsn::Lsn;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes end before the structure does. More bytes may help.
    Truncated,
    /// The bytes or the text do not follow the grammar of the structure.
    Malformed,
    /// A stored checksum differs from the one computed.
    Checksum,
    /// Well formed, but of a version or a build that this crate does not know.
    Unsupported,
    /// Two facts that must agree do not, for example a page's own address and its place.
    Inconsistent,
    /// A value lies outside the range its type can have.
    OutOfRange,
}

/// Why a structure could not be decoded or built.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    subject: Cow<'static, str>,
    offset: Option<u64>,
    lsn: Option<Lsn>,
    reason: Cow<'static, str>,
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
            offset: None,
            lsn: None,
            reason: reason.into(),
        }))
    }

    pub(crate) fn malformed(
        subject: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Malformed, subject, reason)
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    pub(crate) fn at_lsn(mut self, lsn: Lsn) -> Self {
        self.0.lsn = Some(lsn);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The structure that could not be read or built, for example `backup_label`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The byte offset within the structure, when one is known.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Where in the write-ahead log the structure begins, for a page or a record of it.
    #[must_use]
    pub fn lsn(&self) -> Option<Lsn> {
        self.0.lsn
    }

    /// The reason alone, without subject and offset.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.subject)?;
        if let Some(lsn) = self.0.lsn {
            write!(f, " at {lsn}")?;
        }
        if let Some(offset) = self.0.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.0.reason)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("subject", &self.0.subject)
            .field("offset", &self.0.offset)
            .field("lsn", &self.0.lsn)
            .field("reason", &self.0.reason)
            .finish()
    }
}

impl std::error::Error for Error {}
