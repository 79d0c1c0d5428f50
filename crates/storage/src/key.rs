//! Names of objects.
//!
//! A key means the same in every backend, so it obeys the narrowest of them: what a POSIX
//! directory, an S3 bucket, a URL path and an SFTP server all take without translation.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// The name of an object: segments joined by `/`.
///
/// - at most 1024 bytes of UTF-8, each segment at most 255 bytes (S3 and POSIX limits);
/// - no leading, trailing or doubled slash, no segment `.` or `..`;
/// - no control characters, no backslash, no U+FFFE or U+FFFF (XML can't carry them);
/// - no segment `.neon-storage`, where backends on file systems keep their temporaries.
///
/// Keys order by bytes, which is the order every listing comes in.
///
/// ```
/// use neon_storage::Key;
/// assert_eq!(Key::new("wal/1/000000010000000000000001")?.segments().count(), 3);
/// for bad in ["", "/a", "a/", "a//b", "a/../b", ".", "a\nb", "a\\b", ".neon-storage/x"] {
///     assert!(Key::new(bad).is_err(), "{bad:?}");
/// }
/// # Ok::<(), neon_storage::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    text: String,
    problem: &'static str,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid key {:?}: {}", self.text, self.problem)
    }
}

impl std::error::Error for KeyError {}

/// The segment that backends on file systems keep for themselves, at any depth.
pub(crate) const RESERVED: &str = ".neon-storage";

impl Key {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 1024;
    /// The longest segment, in bytes.
    pub const MAX_SEGMENT: usize = 255;

    /// Checks and wraps a text.
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        match problem(&text) {
            None => Ok(Self(text.into_boxed_str())),
            Some(problem) => Err(KeyError { text, problem }),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// This key with `/` and more segments after it.
    pub fn join(&self, rest: &str) -> Result<Self, KeyError> {
        Self::new(format!("{}/{rest}", self.0))
    }
}

fn problem(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > Key::MAX_LEN {
        return Some("it is longer than 1024 bytes");
    }
    let refused = |c: char| c.is_control() || matches!(c, '\\' | '\u{fffe}' | '\u{ffff}');
    if text.chars().any(refused) {
        return Some("it holds a control character, a backslash or a noncharacter");
    }
    text.split('/').find_map(|segment| match segment {
        "" => Some("it has a leading, trailing or doubled slash"),
        "." | ".." => Some("it has a segment `.` or `..`"),
        RESERVED => Some("the segment `.neon-storage` is reserved"),
        _ if segment.len() > Key::MAX_SEGMENT => Some("it has a segment longer than 255 bytes"),
        _ => None,
    })
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", &*self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Key {
    type Error = KeyError;
    fn try_from(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept_as_it_is(text in "[a-z./\\\\\u{0}-\u{1f}é]{0,20}") {
            if let Ok(key) = Key::new(text.clone()) {
                prop_assert_eq!(key.as_str(), &text);
                prop_assert!(key.segments().all(|s| !s.is_empty() && s != "." && s != ".."));
                // A key never escapes a directory it is joined to.
                let path = std::path::Path::new("/root").join(key.as_str());
                prop_assert!(path.starts_with("/root"));
            }
        }
    }

    #[test]
    fn limits_are_inclusive() {
        let segment = "s".repeat(255);
        assert!(Key::new(segment.clone()).is_ok());
        assert!(Key::new(format!("{segment}s")).is_err());
        let longest = [&segment[..]; 4].join("/") + "a";
        assert_eq!(longest.len(), 1024);
        assert!(Key::new(format!("{}/{}", &segment, "x")).is_ok());
        assert!(Key::new("x/".repeat(512) + "y").is_err());
    }
}
