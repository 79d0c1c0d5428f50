//! What a server says in ErrorResponse and NoticeResponse.
//!
//! Source: "Error and Notice Message Fields" in the protocol chapter of PostgreSQL's documentation.

use std::fmt;

/// An error or a notice as the server sent it. Texts are in the server's language; decide on
/// [`code`](Self::code).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    severity: String,
    code: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    context: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or NoticeResponse body: pairs of a type byte and a
    /// NUL-terminated text, ended by a NUL. Unknown fields are skipped; a body that breaks off gives
    /// what was whole.
    pub(crate) fn parse(mut body: &[u8]) -> Self {
        let mut error = Self::default();
        while let [kind, rest @ ..] = body {
            if *kind == 0 {
                break;
            }
            let Some(end) = rest.iter().position(|byte| *byte == 0) else {
                break;
            };
            let (text, after) = rest.split_at(end);
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                // 'V' (not translated) comes after 'S' and wins.
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'W' => error.context = Some(text),
                _ => {}
            }
            body = after.get(1..).unwrap_or_default();
        }
        error
    }

    /// `ERROR`, `FATAL`, `PANIC`, or for notices `WARNING`, `NOTICE`, `INFO`, `LOG`, `DEBUG`.
    #[must_use]
    pub fn severity(&self) -> &str {
        &self.severity
    }

    /// The SQLSTATE, five characters, for example `58P01`.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The message itself.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// More about the error.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Where in the server it happened.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " [SQLSTATE {}]", self.code)
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerError")
            .field("severity", &self.severity)
            .field("code", &self.code)
            .field("message", &self.message)
            .field("detail", &self.detail)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for ServerError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_unknown_ones_skipped() {
        let error =
            ServerError::parse(b"SFEHLER\0VERROR\0C58P01\0Mgone\0Dd\0Hh\0Zwhat\0Fwal.c\0\0");
        assert_eq!(
            (error.severity(), error.code(), error.message()),
            ("ERROR", "58P01", "gone")
        );
        assert_eq!((error.detail(), error.hint()), (Some("d"), Some("h")));
        assert_eq!(error.to_string(), "ERROR: gone (d) [SQLSTATE 58P01]");
    }

    #[test]
    fn a_body_that_breaks_off_gives_what_was_whole() {
        assert_eq!(ServerError::parse(b"CXX000\0Mno end").code(), "XX000");
        assert_eq!(ServerError::parse(b""), ServerError::default());
    }
}
