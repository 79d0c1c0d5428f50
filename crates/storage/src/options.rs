//! How to put, get and list.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::Version;

/// Under which condition a put may take effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PutMode {
    /// Only if there is no such object; else [`ErrorKind::Exists`].
    #[default]
    Create,
    /// Whatever is there. Readers see the old object or the new one, nothing between.
    Overwrite,
    /// Only if the object is at this version; else [`ErrorKind::Precondition`].
    IfVersion(Version),
}

/// Marks one intended put, so that its repetition recognises its own object.
///
/// A create whose answer was lost is sent again and meets an object; where the token is the same,
/// that is success. Layers that retry set it; a caller that retries by hand sets it itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PutToken(Box<str>);

impl PutToken {
    /// A new token: 128 random bits.
    pub fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)).into_boxed_str())
    }

    /// The token as text: ASCII letters and digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PutToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PutToken({})", self.0)
    }
}

/// How to put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PutOptions {
    /// The condition. Create-only unless asked otherwise: overwriting is what is named.
    pub mode: PutMode,
    /// The identity of this put across repetitions.
    pub token: Option<PutToken>,
    /// The condition counts only where it is known at first hand that it is enforced: found out by this very process, or told
    /// by who configured it. What a program remembers of a provider is not enough.
    pub first_hand: bool,
}

impl PutOptions {
    /// Only if there is no such object.
    pub fn create() -> Self {
        Self::default()
    }

    /// Whatever is there.
    pub fn overwrite() -> Self {
        Self {
            mode: PutMode::Overwrite,
            ..Self::default()
        }
    }

    /// Only if the object is at `version`.
    pub fn if_version(version: Version) -> Self {
        Self {
            mode: PutMode::IfVersion(version),
            ..Self::default()
        }
    }

    /// Sets the identity of this put.
    #[must_use]
    pub fn with_token(mut self, token: PutToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Asks for a condition that is known at first hand to be enforced: for what nothing would notice afterwards.
    #[must_use]
    pub fn at_first_hand(mut self) -> Self {
        self.first_hand = true;
        self
    }
}

/// Which bytes to get. The first byte must lie inside the object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GetRange {
    /// From start up to, not including, end. An end beyond the object is moved to its end.
    Bounded(Range<u64>),
    /// From here to the end.
    From(u64),
    /// The last so many bytes; all of a shorter object.
    Last(u64),
}

impl GetRange {
    /// The bytes of an object of `size` that this range means.
    pub fn resolve(&self, key: &Key, size: u64) -> Result<Range<u64>> {
        let outside = || {
            Error::new(ErrorKind::Invalid, Operation::Get)
                .subject(key.as_str())
                .detail(format!("range {self} of an object of {size} bytes"))
        };
        match *self {
            Self::Bounded(ref range) if range.start < range.end && range.start < size => {
                Ok(range.start..range.end.min(size))
            }
            Self::From(start) if start < size => Ok(start..size),
            Self::Last(count) if count > 0 && size > 0 => Ok(size.saturating_sub(count)..size),
            _ => Err(outside()),
        }
    }
}

impl fmt::Display for GetRange {
    /// As in an HTTP `Range` header, after `bytes=`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bounded(range) => write!(f, "{}-{}", range.start, range.end.saturating_sub(1)),
            Self::From(start) => write!(f, "{start}-"),
            Self::Last(count) => write!(f, "-{count}"),
        }
    }
}

/// How to get.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GetOptions {
    /// Which bytes; all if absent.
    pub range: Option<GetRange>,
    /// Only if the object is at this version; else [`ErrorKind::Precondition`].
    pub if_version: Option<Version>,
}

impl GetOptions {
    /// All bytes of whatever version is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only these bytes.
    #[must_use]
    pub fn range(mut self, range: GetRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Only this version.
    #[must_use]
    pub fn if_version(mut self, version: Version) -> Self {
        self.if_version = Some(version);
        self
    }

    /// The bytes of an object of `size` that these options mean, checked for sense.
    pub fn resolve(&self, key: &Key, size: u64) -> Result<Range<u64>> {
        self.range
            .as_ref()
            .map_or(Ok(0..size), |range| range.resolve(key, size))
    }

    /// An error if the range is empty whatever the object's size is.
    pub(crate) fn check(&self, key: &Key) -> Result<()> {
        self.range
            .as_ref()
            .map_or(Ok(()), |range| range.resolve(key, u64::MAX).map(drop))
    }
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ListOptions {
    /// Only keys that begin with this text; it needn't end at a slash.
    pub prefix: String,
    /// Only keys after this text, itself excluded. With the last key of an interrupted listing the
    /// next one continues it.
    pub after: Option<String>,
}

impl ListOptions {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Keys that begin with this text.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            after: None,
        }
    }

    /// Only keys after this text.
    #[must_use]
    pub fn after(mut self, offset: impl Into<String>) -> Self {
        self.after = Some(offset.into());
        self
    }

    /// Whether a key belongs to this listing.
    pub fn admits(&self, key: &str) -> bool {
        key.starts_with(&self.prefix) && self.after.as_deref().is_none_or(|after| key > after)
    }
}
