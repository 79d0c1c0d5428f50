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
    /// The object isn't at the version the caller named. Of a put: and this put did nothing.
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

/// What is known of the effect of a put or delete that failed, where it isn't what the kind says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Unknown,
}

/// A failed operation on a storage.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Operation,
    subject: Option<String>,
    detail: Option<Cow<'static, str>>,
    retry: Retry,
    effect: Option<Effect>,
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
            effect: None,
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

    /// States that the put or delete may have taken effect although it failed.
    #[must_use]
    pub fn with_unknown_outcome(mut self) -> Self {
        self.0.effect = Some(Effect::Unknown);
        self
    }

    /// States that the put or delete did nothing and never will: it was not sent, or refused.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        self.0.effect = Some(Effect::None);
        self
    }

    /// What this answer to a put means after an earlier attempt at it that may have taken effect.
    ///
    /// A refusal under a version says where the object is now, not whether it was ours in between.
    /// One of a create is final only about an object that can't be ours.
    #[must_use]
    pub(crate) fn after_a_lost_answer(self, recognises_own_put: bool) -> Self {
        let hides = match self.0.kind {
            ErrorKind::Precondition => true,
            ErrorKind::Exists => !recognises_own_put,
            _ => false,
        };
        if !hides {
            return self.with_unknown_outcome();
        }
        let subject = self.0.subject.clone();
        let mut unknown = Self::new(ErrorKind::Unavailable, self.0.operation)
            .detail("an answer was lost and the object is another by now: the outcome is unknown")
            .retry(Retry::Never)
            .with_unknown_outcome()
            .because(self);
        unknown.0.subject = subject;
        unknown
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

    /// Whether the put or delete may have taken effect all the same, or still may: its answer was
    /// lost, and what the storage shows now doesn't tell.
    ///
    /// Of a put or delete, `Unavailable` and `Corrupt` mean this unless the backend knows that
    /// nothing happened. Any other kind means it only where a repetition met that answer after an
    /// attempt whose own was lost. A put under a version is then `Unavailable` and never
    /// `Precondition`: the object may have been ours in between. A create is `Exists` where the
    /// storage recognises a put's own object (what is there is somebody else's, though ours may
    /// have been there and been deleted before), else `Unavailable`: what is there may be ours.
    pub fn outcome_unknown(&self) -> bool {
        match self.0.effect {
            Some(effect) => effect == Effect::Unknown,
            None => {
                matches!(self.0.operation, Operation::Put | Operation::Delete)
                    && matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Corrupt)
            }
        }
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
            .field("outcome_unknown", &self.outcome_unknown())
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
