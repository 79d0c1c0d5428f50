//! `tablespace_map`: where the tablespaces of a copy lie.
//!
//! Recovery makes the links of `pg_tblspc` again from it when a `backup_label` stands beside it. One line
//! `<oid> <path>` per tablespace. In a path every major puts a backslash before newline and carriage
//! return, and 18 (and late minors before it) before a backslash too; all majors read a backslash as "the
//! next byte is meant literally". Source: `do_pg_backup_start` and `read_tablespace_map`.

use crate::error::{Error, Result};
use crate::relation::Oid;
use crate::relation_path::number;

const SUBJECT: &str = "tablespace_map";

/// The content of a `tablespace_map` file.
///
/// ```
/// use neon_pg_layout::TablespaceMap;
/// let map = TablespaceMap::parse(b"16400 /srv/fast\n")?;
/// assert_eq!(map.entries, [(16400, b"/srv/fast".to_vec())]);
/// assert_eq!(map.to_bytes(), b"16400 /srv/fast\n");
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// Each tablespace's OID and path, in file order. Paths are bytes, as file systems have them; one
    /// that is relative names a directory in `pg_tblspc` itself.
    pub entries: Vec<(Oid, Vec<u8>)>,
}

impl TablespaceMap {
    /// Parses a map as the server does.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) for a line without OID and path, and for a last line
    /// that does not end.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let mut map = Self::default();
        let mut line = Vec::new();
        let mut start = 0;
        let mut literal = false;
        for (offset, byte) in (0..).zip(content) {
            match byte {
                b'\\' if !literal => literal = true,
                b'\n' | b'\r' if !literal => {
                    if !line.is_empty() {
                        map.entries.push(entry(&line, start)?);
                        line.clear();
                    }
                    start = offset + 1;
                }
                _ => {
                    line.push(*byte);
                    literal = false;
                }
            }
        }
        if literal || !line.is_empty() {
            return Err(Error::malformed(SUBJECT, "the last line does not end").at(start));
        }
        Ok(map)
    }

    /// The bytes of the file, escaped so that every major reads back the same paths.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for (oid, path) in &self.entries {
            content.extend_from_slice(format!("{oid} ").as_bytes());
            for byte in path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    content.push(b'\\');
                }
                content.push(*byte);
            }
            content.push(b'\n');
        }
        content
    }
}

fn entry(line: &[u8], start: u64) -> Result<(Oid, Vec<u8>)> {
    let parse = || {
        let space = line.iter().position(|byte| *byte == b' ')?;
        let (oid, path) = line.split_at_checked(space)?;
        let path = path.strip_prefix(b" ").filter(|path| !path.is_empty())?;
        Some((number(std::str::from_utf8(oid).ok()?)?, path.to_vec()))
    };
    parse().ok_or_else(|| Error::malformed(SUBJECT, "a line without OID and path").at(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_read_back() {
        let map = TablespaceMap {
            entries: vec![
                (16400, b"/srv/fast disk".to_vec()),
                (16401, b"/srv/new\nline\rand\\back".to_vec()),
                (16402, b"/srv/\xFF".to_vec()),
                (16403, b"pg_tblspc/16403".to_vec()),
            ],
        };
        assert_eq!(TablespaceMap::parse(&map.to_bytes()).unwrap(), map);
        assert_eq!(TablespaceMap::parse(b"").unwrap(), TablespaceMap::default());
    }

    #[test]
    fn what_names_no_tablespace_is_refused() {
        for content in [
            &b"16400\n"[..],
            b"16400 \n",
            b"x /srv\n",
            b"0 /srv\n",
            b"016400 /srv\n",
            b" /srv\n",
            b"16400 /srv",
            b"16400 /srv\\",
            b"16400 /srv\\\n",
        ] {
            assert!(TablespaceMap::parse(content).is_err(), "{content:?}");
        }
    }
}
