//! How a case says what it expected: failures are values, so the suite also runs outside of test
//! harnesses.

use std::fmt;
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};

/// Why a case did not hold.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text = format!("{text}; caused by: {inner}");
            cause = inner.source();
        }
        Self(text)
    }
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::contract::Failure::new(format!($($message)+)));
        }
    };
}

/// Fails the case unless both sides are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::contract::Failure::new(format!(
                "{}: {:?} is not {:?}", format!($($message)+), left, right
            )));
        }
    }};
}

/// The entry of a case in a module's list.
macro_rules! case {
    ($name:ident, $needs:expr) => {
        $crate::contract::Case {
            name: stringify!($name),
            needs: $needs,
            run: |subject| Box::pin($name(subject)),
        }
    };
}

/// Fails the case unless the result is an error of this kind.
pub(super) fn refused<T: fmt::Debug>(
    what: &str,
    result: Result<T>,
    kind: ErrorKind,
) -> Result<Error, Failure> {
    match result {
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what}: expected {kind:?}, got {}",
            Failure::from(error)
        ))),
        Ok(value) => Err(Failure::new(format!(
            "{what}: expected {kind:?}, got {value:?}"
        ))),
    }
}

/// Bytes that show any misplacement: no two aligned words are equal.
pub(super) fn pattern(length: usize) -> bytes::Bytes {
    // Made once: the suite asks for many of the same.
    static LONGEST: OnceLock<bytes::Bytes> = OnceLock::new();
    let longest = LONGEST.get_or_init(|| {
        let mut bytes = bytes::BytesMut::with_capacity(super::put::LARGE.saturating_add(8));
        for word in 0u64.. {
            if bytes.len() >= super::put::LARGE {
                break;
            }
            bytes.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        bytes.freeze()
    });
    longest.slice(..length.min(longest.len()))
}
