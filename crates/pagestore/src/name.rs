//! Names of snapshots: `pgdata@tag`, or a bare name.
//!
//! The tags `CURRENT` (the live state) and `HEAD{i}` (the state before the i-th checkout) are not for people to
//! give: the first is no snapshot at all, the second is given by a checkout and its numbers are never used again.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;

/// The longest instance name or tag, in bytes.
const MAX_PART: usize = 128;

/// What a snapshot is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotName {
    /// A name without an instance: what was imported or built.
    Bare(String),
    /// A snapshot of an instance.
    Tagged {
        /// The name of the instance.
        instance: String,
        /// Which of its snapshots.
        tag: Tag,
    },
}

/// What stands behind the `@`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// `CURRENT`: the live state. Never stored.
    Current,
    /// `HEAD{i}`: the state before the i-th checkout.
    Head(u32),
    /// A tag that somebody gave.
    Given(String),
}

impl SnapshotName {
    /// Reads a name that somebody wants to give: no reserved tag.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with the reason.
    pub fn to_give(text: &str) -> Result<Self> {
        let name: Self = text.parse()?;
        if name.is_reserved() {
            return Err(invalid(
                text,
                "the tags CURRENT and HEAD{…} are given by checkouts, not by people",
            ));
        }
        Ok(name)
    }

    /// Whether its tag is `CURRENT` or `HEAD{i}`.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        matches!(
            self,
            Self::Tagged {
                tag: Tag::Current | Tag::Head(_),
                ..
            }
        )
    }

    /// Whether it stands for the live state, which is no snapshot.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(
            self,
            Self::Tagged {
                tag: Tag::Current,
                ..
            }
        )
    }

    /// The instance it names.
    #[must_use]
    pub fn instance(&self) -> Option<&str> {
        match self {
            Self::Bare(_) => None,
            Self::Tagged { instance, .. } => Some(instance),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("CURRENT"),
            Self::Head(number) => write!(f, "HEAD{{{number}}}"),
            Self::Given(tag) => f.write_str(tag),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare(name) => f.write_str(name),
            Self::Tagged { instance, tag } => write!(f, "{instance}@{tag}"),
        }
    }
}

impl FromStr for SnapshotName {
    type Err = Error;

    /// Reads any name, also one with a reserved tag.
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('@') {
            None => {
                part(text, text)?;
                if is_reserved_word(text) {
                    return Err(invalid(
                        text,
                        "stands for a state of an instance: write INSTANCE@TAG",
                    ));
                }
                if text.parse::<CommitId>().is_ok() {
                    return Err(invalid(text, "is the form of a snapshot's id"));
                }
                Ok(Self::Bare(text.to_owned()))
            }
            Some((instance, tag)) => {
                part(text, instance)?;
                if is_reserved_word(instance) {
                    return Err(invalid(text, "CURRENT and HEAD are tags, not instances"));
                }
                Ok(Self::Tagged {
                    instance: instance.to_owned(),
                    tag: read_tag(text, tag)?,
                })
            }
        }
    }
}

fn read_tag(text: &str, tag: &str) -> Result<Tag> {
    if tag == "CURRENT" {
        return Ok(Tag::Current);
    }
    if let Some(number) = tag
        .strip_prefix("HEAD{")
        .and_then(|rest| rest.strip_suffix('}'))
    {
        return number
            .parse()
            .ok()
            .filter(|parsed: &u32| parsed.to_string() == number)
            .map(Tag::Head)
            .ok_or_else(|| invalid(text, "between the braces of HEAD{…} belongs a number"));
    }
    part(text, tag)?;
    if is_reserved_word(tag) {
        return Err(invalid(
            text,
            "is too easily taken for a reserved tag: CURRENT, HEAD{0}",
        ));
    }
    Ok(Tag::Given(tag.to_owned()))
}

fn is_reserved_word(text: &str) -> bool {
    text.eq_ignore_ascii_case("current") || text.eq_ignore_ascii_case("head")
}

fn part(whole: &str, text: &str) -> Result<()> {
    let reason = match text.bytes().next() {
        None => "a part of the name is empty",
        Some(first) if !first.is_ascii_alphanumeric() && first != b'_' => {
            "each part begins with a letter, a digit or an underscore"
        }
        Some(_) if text.len() > MAX_PART => "a part is longer than 128 bytes",
        Some(_) if text.bytes().any(|byte| !is_name_byte(byte)) => {
            "letters, digits and the characters . _ - may be used, with one @ between instance and tag"
        }
        Some(_) => return Ok(()),
    };
    Err(invalid(whole, reason))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn invalid(text: &str, reason: &'static str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::new(ErrorKind::Invalid, format!("name {shown:?}"), reason)
}

impl serde::Serialize for SnapshotName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SnapshotName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_written_as_they_are_read() {
        for good in [
            "oldpg",
            "pgdata@snap1",
            "pgdata@CURRENT",
            "pgdata@HEAD{0}",
            "pgdata@HEAD{4294967295}",
            "_a.b-c@9",
        ] {
            assert_eq!(good.parse::<SnapshotName>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn what_could_be_mistaken_is_refused() {
        let id = "0".repeat(64);
        let long = "a".repeat(129);
        for bad in [
            "",
            "@",
            "a@",
            "@b",
            "a@b@c",
            "a b",
            "-a",
            "a/b",
            "CURRENT",
            "head",
            "HEAD{0}",
            "a@HEAD",
            "a@current",
            "a@HEAD{}",
            "a@HEAD{01}",
            "a@HEAD{-1}",
            "a@HEAD{4294967296}",
            "CURRENT@x",
            "ä",
            "a\n",
            &id,
            &long,
        ] {
            let error = bad.parse::<SnapshotName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn reserved_tags_are_read_and_not_given() {
        for reserved in ["pgdata@CURRENT", "pgdata@HEAD{3}"] {
            assert!(reserved.parse::<SnapshotName>().unwrap().is_reserved());
            assert!(SnapshotName::to_give(reserved).is_err());
        }
        assert!(SnapshotName::to_give("pgdata@HEAD3").is_ok());
    }

    proptest! {
        #[test]
        fn a_text_is_refused_or_kept(text in "[a-zA-Z0-9@{}._ -]{0,12}") {
            if let Ok(name) = text.parse::<SnapshotName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
