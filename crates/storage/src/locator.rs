//! Where a storage is, as people write it.
//!
//! | text | scheme |
//! |---|---|
//! | `backups`, `/srv/backups` | `file` |
//! | `file:///srv/backups` | `file` |
//! | `memory:` | `memory` |
//! | `s3://bucket/prefix?endpoint=…&region=…` | `s3` |
//! | `http://host/path`, `https://user:password@host/path?query` | `http`, `https` |
//! | `ssh://user@host:22/path`, `ssh://host/~/path` | `ssh` |
//! | `other://…` | whatever is registered |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::secret::Secret;

/// A parsed locator. Display and Debug leave out passwords and, for HTTP, the values of the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Locator(Place);

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Path(PathBuf),
    Url(Box<Url>),
}

impl Locator {
    /// Parses a locator. A text without a scheme is a path and taken as it is.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(scheme) = scheme(text) else {
            if text.is_empty() {
                return Err(invalid("(empty)", "an empty locator"));
            }
            return Ok(Self(Place::Path(text.into())));
        };
        let subject = || format!("{scheme}://…");
        let url = Url::parse(text)
            .map_err(|error| invalid(&subject(), format!("not a locator: {error}")))?;
        if url.fragment().is_some() {
            return Err(invalid(
                &subject(),
                "a locator has no part after `#`; write it as `%23`",
            ));
        }
        if scheme != "file" {
            return Ok(Self(Place::Url(Box::new(url))));
        }
        if url.query().is_some() {
            return Err(invalid(&subject(), "`file` has no options"));
        }
        match url.to_file_path() {
            Ok(path) => Ok(Self(Place::Path(path))),
            Err(()) => Err(invalid(
                &subject(),
                "`file` needs an absolute path on this machine",
            )),
        }
    }

    /// The locator of a path.
    pub fn path_of(path: impl Into<PathBuf>) -> Self {
        Self(Place::Path(path.into()))
    }

    /// The scheme in lower case; `file` for paths.
    pub fn scheme(&self) -> &str {
        match &self.0 {
            Place::Path(_) => "file",
            Place::Url(url) => url.scheme(),
        }
    }

    /// The path of a `file` locator.
    pub fn file_path(&self) -> Option<&Path> {
        match &self.0 {
            Place::Path(path) => Some(path),
            Place::Url(_) => None,
        }
    }

    /// The host, or what stands in its place (the bucket of `s3`).
    pub fn host(&self) -> Option<&str> {
        self.url()
            .and_then(Url::host_str)
            .filter(|host| !host.is_empty())
    }

    /// The port, if one is named.
    pub fn port(&self) -> Option<u16> {
        self.url().and_then(Url::port)
    }

    /// The user before the `@`, decoded.
    pub fn user(&self) -> Option<String> {
        let user = self
            .url()
            .map(Url::username)
            .filter(|user| !user.is_empty())?;
        Some(decode(user))
    }

    /// The password before the `@`, decoded.
    pub fn password(&self) -> Option<Secret> {
        self.url()
            .and_then(Url::password)
            .map(|password| Secret::new(decode(password)))
    }

    /// The path after the host, decoded, without the slash at its beginning and its end.
    pub fn path(&self) -> String {
        match &self.0 {
            Place::Path(path) => path.to_string_lossy().into_owned(),
            Place::Url(url) => decode(url.path().trim_matches('/')),
        }
    }

    /// The options after the `?`, decoded, in order.
    pub fn options(&self) -> Vec<(String, String)> {
        match self.url() {
            Some(url) => url
                .query_pairs()
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect(),
            None => Vec::new(),
        }
    }

    /// The whole locator with its secrets, for a backend to connect by.
    pub fn expose(&self) -> Secret {
        Secret::new(match &self.0 {
            Place::Path(path) => path.to_string_lossy().into_owned(),
            Place::Url(url) => url.to_string(),
        })
    }

    fn url(&self) -> Option<&Url> {
        match &self.0 {
            Place::Url(url) => Some(url),
            Place::Path(_) => None,
        }
    }

    /// An error about this locator.
    pub fn invalid(&self, detail: impl Into<String>) -> Error {
        invalid(&self.to_string(), detail)
    }
}

fn invalid(subject: &str, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, Operation::Open)
        .subject(subject)
        .detail(detail.into())
}

/// The scheme of a text that has one.
fn scheme(text: &str) -> Option<String> {
    if text == "memory:" {
        return Some("memory".to_owned());
    }
    let (scheme, _) = text.split_once("://")?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    valid.then(|| scheme.to_ascii_lowercase())
}

/// Percent-decoding; what is no UTF-8 becomes a replacement character and later no key.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |digit: &u8| {
            char::from(*digit)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        match (first, after) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                let (high, low) = (hex(high).unwrap_or(0), hex(low).unwrap_or(0));
                bytes.push(high << 4 | low);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Path(path) => write!(f, "{}", path.display()),
            Place::Url(url) => f.write_str(&redacted(url)),
        }
    }
}

impl fmt::Debug for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Locator({self})")
    }
}

impl FromStr for Locator {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// The URL as people may see it.
fn redacted(url: &Url) -> String {
    let mut shown = url.clone();
    if shown.password().is_some() {
        // Can fail for schemes without a host; those have no password.
        let _same = shown.set_password(Some("***"));
    }
    // A query of HTTP is sent as it is and often is the credential. Options of other schemes are
    // settings, but for one whose name says what it is.
    let http = matches!(url.scheme(), "http" | "https");
    if url.query().is_some() {
        let pairs: Vec<String> = url
            .query()
            .unwrap_or_default()
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((name, _)) if http || sounds_secret(name) => format!("{name}=***"),
                None if http => "***".to_owned(),
                _ => pair.to_owned(),
            })
            .collect();
        shown.set_query(Some(&pairs.join("&")));
    }
    shown.to_string()
}

fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "secret",
        "token",
        "password",
        "key",
        "signature",
        "credential",
    ]
    .iter()
    .any(|word| name.contains(word))
}

/// An address without user, password, query: for messages.
#[cfg(feature = "s3")]
pub(crate) fn without_secrets(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else {
        return "(unreadable address)".to_owned();
    };
    let _no_host = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.to_string().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_parts_of_a_locator_are_found() {
        let ssh = Locator::parse("ssh://me@host.example:2222/srv/my%20backups").unwrap();
        assert_eq!(
            (ssh.scheme(), ssh.host(), ssh.port()),
            ("ssh", Some("host.example"), Some(2222))
        );
        assert_eq!(
            (ssh.user().as_deref(), ssh.path().as_str()),
            (Some("me"), "srv/my backups")
        );
        let s3 = Locator::parse("s3://bucket/a/b/?endpoint=http://h:1&region=x").unwrap();
        assert_eq!((s3.host(), s3.path().as_str()), (Some("bucket"), "a/b"));
        assert_eq!(
            s3.options()[0],
            ("endpoint".to_owned(), "http://h:1".to_owned())
        );
        for path in ["/srv/x?y#z", "rel/ative", "./a:b", "C:\\x"] {
            let locator = Locator::parse(path).unwrap();
            assert_eq!(locator.file_path(), Some(Path::new(path)));
        }
        let file = Locator::parse("file:///srv/a%20b").unwrap();
        assert_eq!(file.file_path(), Some(Path::new("/srv/a b")));
        for bad in [
            "",
            "file://host/x",
            "file:///x?a=b",
            "s3://b/x#y",
            "http://",
        ] {
            assert_eq!(
                Locator::parse(bad).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_password_shows(text in "[ -~]{0,60}", password in "[a-zA-Z0-9]{12,20}") {
            let _parsed = Locator::parse(&text);
            for locator in [
                format!("https://user:{password}@host/path"),
                format!("https://host/path?sig={password}"),
                format!("https://host/path?{password}"),
                format!("s3://bucket/x?secret_access_key={password}"),
                format!("ssh://user:{password}@host/path"),
            ] {
                let locator = Locator::parse(&locator).unwrap();
                let shown = format!("{locator} {locator:?} {}", locator.invalid("x"));
                prop_assert!(!shown.contains(&password));
            }
        }
    }
}
