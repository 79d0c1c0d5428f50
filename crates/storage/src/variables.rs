//! Settings as variables, with the names that WAL-G and the AWS tools use.
//!
//! The variables are those of a given map. A setting `X` is looked up as `X`, `WALG_X` and
//! `WALE_X`, as WAL-G does. A variable that is known and can't be honoured is an error: a setting
//! that is silently ignored is believed.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::locator::Locator;

/// A given set of variables. Debug shows names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// Prefixes of WAL-G for places that this crate has no backend for, in its order of precedence
/// relative to those it has.
const FOREIGN_FIRST: &[(&str, &str)] = &[("OSS_PREFIX", "oss")];
const FOREIGN_LAST: &[(&str, &str)] = &[
    ("GS_PREFIX", "gs"),
    ("AZ_PREFIX", "azure"),
    ("SWIFT_PREFIX", "swift"),
];

impl Variables {
    /// The value of a setting under any of its names; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        ["", "WALG_", "WALE_"]
            .iter()
            .filter_map(|prefix| self.0.get(&format!("{prefix}{name}")))
            .map(String::as_str)
            .find(|value| !value.is_empty())
    }

    /// A setting that is on or off.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" | "t" => Ok(Some(true)),
                "false" | "0" | "no" | "off" | "f" => Ok(Some(false)),
                _ => Err(invalid(name, "is neither true nor false")),
            },
        }
    }

    /// A setting that is a number.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let parse = |text: &str| text.parse().map_err(|_| invalid(name, "is not a number"));
        self.get(name).map(parse).transpose()
    }

    /// The storage that the variables name, if they name one: the first of `WALG_S3_PREFIX`,
    /// `WALG_FILE_PREFIX` and `WALG_SSH_PREFIX`, with `WALG_STORAGE_PREFIX` after it.
    pub fn locate(&self) -> Result<Option<Locator>> {
        let foreign =
            |list: &[(&str, &str)]| match list.iter().find(|(name, _)| self.get(name).is_some()) {
                None => Ok(()),
                Some((name, place)) => Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                    .subject(format!("WALG_{name}"))
                    .detail(format!("there is no backend for `{place}`"))),
            };
        foreign(FOREIGN_FIRST)?;
        let below = match self.get("STORAGE_PREFIX") {
            Some(below) => format!("/{}", below.trim_matches('/')),
            None => String::new(),
        };
        let extended = |text: &str| format!("{}{below}", text.trim_end_matches('/'));
        if let Some(prefix) = self.get("S3_PREFIX") {
            if !prefix.starts_with("s3://") {
                return Err(invalid("S3_PREFIX", "does not begin with s3://"));
            }
            return Locator::parse(&extended(prefix)).map(Some);
        }
        if let Some(prefix) = self.get("FILE_PREFIX") {
            let path = prefix.strip_prefix("file://localhost").unwrap_or(prefix);
            let path = if path.is_empty() { "/" } else { path };
            return Locator::parse(&extended(path)).map(Some);
        }
        foreign(FOREIGN_LAST)?;
        let Some(prefix) = self.get("SSH_PREFIX") else {
            return Ok(None);
        };
        for name in ["SSH_PASSWORD", "SSH_PRIVATE_KEY_PATH"] {
            if self.get(name).is_some() {
                return Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                    .subject(name)
                    .detail("the system's ssh is used: put it into its configuration or agent"));
            }
        }
        let text = extended(prefix);
        let Some(rest) = text.strip_prefix("ssh://") else {
            return Err(invalid("SSH_PREFIX", "does not begin with ssh://"));
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let user = match self.get("SSH_USERNAME") {
            Some(user) if !authority.contains('@') => format!("{user}@"),
            _ => String::new(),
        };
        let port = match self.number("SSH_PORT")? {
            Some(port) if !authority.contains(':') => format!(":{port}"),
            _ => String::new(),
        };
        Locator::parse(&format!("ssh://{user}{authority}{port}/{path}")).map(Some)
    }
}

pub(crate) fn invalid(name: &str, problem: &str) -> Error {
    // Never the value: it may be a secret under a wrong name.
    Error::new(ErrorKind::Invalid, Operation::Open)
        .subject(name)
        .detail(format!("the variable {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(pairs: &[(&str, &str)]) -> String {
        let variables: Variables = pairs.iter().copied().collect();
        match variables.locate() {
            Ok(Some(locator)) => locator.to_string(),
            Ok(None) => "nowhere".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        }
    }

    #[test]
    fn the_first_configured_prefix_wins() {
        assert_eq!(located(&[]), "nowhere");
        assert_eq!(located(&[("WALG_FILE_PREFIX", "/srv/wal")]), "/srv/wal");
        assert_eq!(
            located(&[("WALG_FILE_PREFIX", "file://localhost/srv/wal")]),
            "/srv/wal"
        );
        assert_eq!(
            located(&[
                ("WALG_FILE_PREFIX", "/srv"),
                ("WALE_S3_PREFIX", "s3://bucket/path/")
            ]),
            "s3://bucket/path"
        );
        assert_eq!(
            located(&[
                ("WALG_S3_PREFIX", "s3://bucket/path"),
                ("WALG_STORAGE_PREFIX", "/sub/")
            ]),
            "s3://bucket/path/sub"
        );
        assert_eq!(
            located(&[
                ("WALG_SSH_PREFIX", "ssh://h/p"),
                ("SSH_PORT", "2222"),
                ("SSH_USERNAME", "u")
            ]),
            "ssh://u@h:2222/p"
        );
        assert_eq!(located(&[("WALG_GS_PREFIX", "gs://b/p")]), "Unsupported");
        assert_eq!(located(&[("WALG_S3_PREFIX", "bucket/path")]), "Invalid");
        let password = [("WALG_SSH_PREFIX", "ssh://h/p"), ("SSH_PASSWORD", "x")];
        assert_eq!(located(&password), "Unsupported");
    }

    #[test]
    fn debug_shows_no_values() {
        let variables: Variables = [("AWS_SECRET_ACCESS_KEY", "hidden")].into_iter().collect();
        assert_eq!(format!("{variables:?}"), r#"{"AWS_SECRET_ACCESS_KEY"}"#);
    }
}
