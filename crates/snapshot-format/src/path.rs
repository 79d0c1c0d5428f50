//! Paths inside a snapshot: relative, plain, and unable to lead anywhere else.

use std::fmt;

use neon_pg_layout::Oid;

use crate::error::{Error, ErrorKind, Result};

/// The path of a file or directory relative to the data directory, as bytes.
///
/// Parts are separated by single slashes; none is empty, `.` or `..`, and no byte is zero. The empty path
/// is the data directory itself. Tablespaces lie below `pg_tblspc/<oid>`, wherever they are on disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotPath(Box<[u8]>);

/// Longer paths cannot be opened on any supported system.
const MAX_LENGTH: usize = 4095;

impl SnapshotPath {
    /// Checks and takes a path.
    ///
    /// # Errors
    /// [`Unsafe`](ErrorKind::Unsafe) for a path that is absolute, has a part `.`, `..` or none between
    /// two slashes, a zero byte, or more than 4095 bytes.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self> {
        let path: Vec<u8> = path.into();
        let refuse = |reason: &'static str| {
            let shown = String::from_utf8_lossy(&path)
                .chars()
                .take(200)
                .collect::<String>();
            Err(Error::new(ErrorKind::Unsafe, shown, reason))
        };
        if path.len() > MAX_LENGTH {
            return refuse("the path is longer than 4095 bytes");
        }
        if path.contains(&0) {
            return refuse("a zero byte in a path");
        }
        if path.starts_with(b"/") {
            return refuse("the path is absolute");
        }
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" if !path.is_empty() => return refuse("an empty part in a path"),
                b"." => return refuse("a part '.' in a path"),
                b".." => return refuse("the path leads out of the snapshot"),
                _ => {}
            }
        }
        Ok(Self(path.into_boxed_slice()))
    }

    /// The data directory itself.
    #[must_use]
    pub fn root() -> Self {
        Self(Box::default())
    }

    /// Whether it is the data directory itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as text, if it is UTF-8. Everything that the server itself names is.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// This path with one more part.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a name with a slash.
    pub fn join(&self, name: &[u8]) -> Result<Self> {
        let mut path = self.0.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if name.is_empty() || name.contains(&b'/') {
            let shown = String::from_utf8_lossy(&path).into_owned();
            return Err(Error::new(
                ErrorKind::Unsafe,
                shown,
                "not the name of a file",
            ));
        }
        Self::new(path)
    }

    /// The directory that holds it; none for the data directory itself.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.split()?;
        Some(Self(parent.into()))
    }

    /// Its last part; empty for the data directory itself.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.split().map_or(b"", |(_, name)| name)
    }

    /// The directory's path and the last part.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => {
                let (parent, name) = self.0.split_at_checked(slash)?;
                (parent, name.get(1..)?)
            }
            None => (&b""[..], &self.0),
        })
    }

    /// The tablespace it lies in or is the link of, and what follows `pg_tblspc/<oid>/`.
    #[must_use]
    pub fn tablespace(&self) -> Option<(Oid, &[u8])> {
        let rest = self.0.strip_prefix(b"pg_tblspc/")?;
        let end = rest
            .iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(rest.len());
        let (number, inside) = rest.split_at_checked(end)?;
        let oid = oid(number)?;
        Some((oid, inside.strip_prefix(b"/").unwrap_or(inside)))
    }
}

/// The OID written in a name without sign, blanks or leading zeros.
pub(crate) fn oid(name: &[u8]) -> Option<Oid> {
    let text = std::str::from_utf8(name).ok()?;
    let oid: Oid = text.parse().ok()?;
    (oid != 0 && oid.to_string() == text).then_some(oid)
}

impl fmt::Display for SnapshotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for SnapshotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        for bad in [
            "/", "/etc", "..", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b",
        ] {
            assert_eq!(
                SnapshotPath::new(bad).unwrap_err().kind(),
                ErrorKind::Unsafe,
                "{bad:?}"
            );
        }
        assert!(SnapshotPath::new(vec![b'a'; 4096]).is_err());
        for good in [
            "",
            "PG_VERSION",
            "base/5/1259_fsm.1",
            "a..b/...",
            "caf\u{e9}",
        ] {
            assert_eq!(SnapshotPath::new(good).unwrap().as_bytes(), good.as_bytes());
        }
        let base = SnapshotPath::new("base").unwrap();
        assert!(base.join(b"..").is_err() && base.join(b"a/b").is_err() && base.join(b"").is_err());
        assert_eq!(base.join(b"5").unwrap().to_string(), "base/5");
    }

    #[test]
    fn parts_and_tablespaces_are_told() {
        let path = SnapshotPath::new("pg_tblspc/16400/PG_15_202209061/5").unwrap();
        assert_eq!(path.tablespace(), Some((16400, &b"PG_15_202209061/5"[..])));
        assert_eq!(path.name(), b"5");
        assert_eq!(
            path.parent().unwrap().to_string(),
            "pg_tblspc/16400/PG_15_202209061"
        );
        for none in [
            "pg_tblspc",
            "pg_tblspc/016400/x",
            "pg_tblspc/x",
            "pg_tblspc/0",
            "base/1",
        ] {
            assert_eq!(
                SnapshotPath::new(none).unwrap().tablespace(),
                None,
                "{none}"
            );
        }
        assert!(SnapshotPath::root().parent().is_none());
    }
}
