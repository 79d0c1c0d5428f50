//! The one error type of this crate.
//!
//! What went wrong coarsely ([`ErrorKind`]), with what (the subject: a host, a command, a file), and
//! the cause. Passwords and tokens never appear in one.

use std::borrow::Cow;
use std::fmt;
use std::io;

use crate::server_error::ServerError;

/// What went wrong, coarse enough to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Connection parameters, options or arguments that cannot be used.
    Config,
    /// A file named by the parameters cannot be read or may not be used (its permissions, say).
    File,
    /// The peer could not be reached, or the connection broke.
    Io,
    /// Nothing came, or nothing was taken, for longer than allowed.
    Timeout,
    /// TLS could not be negotiated, or a certificate was not accepted.
    Tls,
    /// The peer did not accept our credentials, or asks for a method that is not allowed or not known.
    Authentication,
    /// The peer sent what the protocol does not allow, or more than the limits allow.
    Protocol,
    /// The server answered with an error; [`Error::server`] has it.
    Server,
    /// The server, or this build, cannot do what was asked.
    Unsupported,
    /// The connection was closed by an earlier failure or an earlier future that was dropped.
    Closed,
}

/// Why an operation failed.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: Cow<'static, str>,
    reason: Cow<'static, str>,
    cause: Option<Cause>,
}

enum Cause {
    Server(Box<ServerError>),
    Io(io::Error),
    Own(Error),
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
            cause: None,
        }))
    }

    pub(crate) fn config(
        subject: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Config, subject, reason)
    }

    pub(crate) fn protocol(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Protocol, "message", reason)
    }

    pub(crate) fn unsupported(
        subject: impl Into<Cow<'static, str>>,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(ErrorKind::Unsupported, subject, reason)
    }

    pub(crate) fn closed() -> Self {
        Self::new(
            ErrorKind::Closed,
            "connection",
            "closed by an earlier failure or a dropped operation",
        )
    }

    pub(crate) fn io(subject: impl Into<Cow<'static, str>>, cause: io::Error) -> Self {
        let (kind, reason) = match cause.kind() {
            io::ErrorKind::UnexpectedEof => (ErrorKind::Io, "the peer closed the connection"),
            io::ErrorKind::TimedOut => (ErrorKind::Timeout, "timed out"),
            _ => (ErrorKind::Io, "input or output failed"),
        };
        let mut error = Self::new(kind, subject, reason);
        error.0.cause = Some(Cause::Io(cause));
        error
    }

    pub(crate) fn file(path: &std::path::Path, reason: &'static str, cause: io::Error) -> Self {
        let mut error = Self::new(ErrorKind::File, path.display().to_string(), reason);
        error.0.cause = Some(Cause::Io(cause));
        error
    }

    pub(crate) fn from_server(subject: impl Into<Cow<'static, str>>, cause: ServerError) -> Self {
        // A refused login is reported as such whatever it is about.
        let kind = match cause.code() {
            "28000" | "28P01" => ErrorKind::Authentication,
            _ => ErrorKind::Server,
        };
        let mut error = Self::new(kind, subject, "the server reported an error");
        error.0.cause = Some(Cause::Server(Box::new(cause)));
        error
    }

    pub(crate) fn caused_by(mut self, cause: Self) -> Self {
        self.0.cause = Some(Cause::Own(cause));
        self
    }

    pub(crate) fn caused_by_io(mut self, cause: io::Error) -> Self {
        self.0.cause = Some(Cause::Io(cause));
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What it went wrong with, for example a host and port, a command or a file.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// What the server said, here or further down the chain of causes.
    #[must_use]
    pub fn server(&self) -> Option<&ServerError> {
        match &self.0.cause {
            Some(Cause::Server(error)) => Some(error),
            Some(Cause::Own(error)) => error.server(),
            _ => None,
        }
    }

    /// The SQLSTATE of [`Error::server`].
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.server().map(ServerError::code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.subject, self.0.reason)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug
            .field("kind", &self.0.kind)
            .field("subject", &self.0.subject)
            .field("reason", &self.0.reason);
        match &self.0.cause {
            Some(Cause::Server(cause)) => debug.field("cause", cause),
            Some(Cause::Io(cause)) => debug.field("cause", cause),
            Some(Cause::Own(cause)) => debug.field("cause", cause),
            None => &mut debug,
        };
        debug.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.cause {
            Some(Cause::Server(cause)) => Some(cause.as_ref()),
            Some(Cause::Io(cause)) => Some(cause),
            Some(Cause::Own(cause)) => Some(cause),
            None => None,
        }
    }
}
