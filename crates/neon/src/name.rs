//! Names of instances and storages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The longest name, in bytes. Names become names of files and folders.
const LONGEST: usize = 64;

/// A name of an instance or a storage: letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason| {
            let shown: String = text.chars().take(80).collect();
            Err(Error::new(
                ErrorKind::Invalid,
                format!("name {shown:?}"),
                reason,
            ))
        };
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.len() > LONGEST {
            return refuse("is longer than 64 bytes");
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !text.bytes().all(plain) {
            return refuse("may have letters, digits, '.', '_' and '-' only");
        }
        if !text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
        {
            return refuse("must begin with a letter or a digit");
        }
        if ["CURRENT", "HEAD"].contains(&text) {
            return refuse("stands for a state of an instance");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_names_of_files() {
        for good in ["pgdata1", "local.compr", "0", "a-b_c.d", &"x".repeat(64)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "-n",
            "a/b",
            "a@b",
            "a b",
            "ü",
            "CURRENT",
            "HEAD",
            &"x".repeat(65),
        ] {
            assert_eq!(
                bad.parse::<Name>().unwrap_err().kind(),
                ErrorKind::Invalid,
                "{bad:?}"
            );
        }
    }
}
