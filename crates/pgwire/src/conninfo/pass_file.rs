//! Password files: `host:port:database:user:password`.
//!
//! Source: `passwordFromFile` in libpq. The first matching line wins; `*` matches anything, `\`
//! takes the next character as it is, `#` starts a comment line. A file that others may read is not
//! used.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// Files beyond this are no password files.
const LARGEST: u64 = 1 << 20;

/// What a password is looked up by. For a connection that replicates without a database the
/// database is the word `replication`; for a default Unix socket the host is `localhost`.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) database: &'a str,
    pub(crate) user: &'a str,
}

/// Looks for a password in the file. A file that does not exist has none.
pub(crate) fn look_up(path: &Path, wanted: &Wanted<'_>) -> Result<Option<Secret>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file(path, "the password file cannot be read", error)),
    };
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(refused(path, "it is not a plain file of reasonable size"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused(
            path,
            "group or others may access it; its mode must be 0600 or stricter",
        ));
    }
    let text = fs::read(path)
        .map_err(|error| Error::file(path, "the password file cannot be read", error))?;
    Ok(find(&String::from_utf8_lossy(&text), wanted))
}

fn refused(path: &Path, reason: &'static str) -> Error {
    Error::new(ErrorKind::File, path.display().to_string(), reason)
}

pub(crate) fn find(text: &str, wanted: &Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut rest = line.strip_suffix('\r').unwrap_or(line);
            for value in [wanted.host, &port, wanted.database, wanted.user] {
                rest = field_matches(rest, value)?;
            }
            // The password ends at an unescaped colon, if there is one.
            let (password, _) = unescape_until_colon(rest);
            Some(Secret::new(password))
        })
}

/// What follows the field and its colon, if the field is `*` or equals the value.
fn field_matches<'a>(line: &'a str, value: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    match unescape_until_colon(line) {
        (field, Some(rest)) if field == value => Some(rest),
        _ => None,
    }
}

fn unescape_until_colon(line: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => return (field, Some(chars.as_str())),
            '\\' => field.push(chars.next().unwrap_or('\\')),
            c => field.push(c),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        host: "db",
        port: 5432,
        database: "replication",
        user: "me",
    };

    fn password(text: &str) -> Option<String> {
        find(text, &WANTED).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_wins() {
        let text =
            "# db:5432:replication:me:comment\ndb:5433:*:me:no\ndb:*:*:me:first\n*:*:*:*:second\n";
        assert_eq!(password(text).as_deref(), Some("first"));
    }

    #[test]
    fn the_database_of_replication_is_the_word_replication() {
        assert_eq!(password("db:5432:me:me:x"), None);
        assert_eq!(password("db:5432:replication:me:x").as_deref(), Some("x"));
    }

    #[test]
    fn backslashes_protect_colons_and_themselves() {
        assert_eq!(
            password(r"db:5432:*:me:a\:b\\c:rest").as_deref(),
            Some(r"a:b\c")
        );
        assert_eq!(password(r"d\b:5432:*:m\e:x").as_deref(), Some("x"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "*:*:*:*:x").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(
            look_up(file.path(), &WANTED).unwrap_err().kind(),
            ErrorKind::File
        );
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o400)).unwrap();
        assert!(look_up(file.path(), &WANTED).unwrap().is_some());
        assert!(
            look_up(Path::new("/nonexistent/pgpass"), &WANTED)
                .unwrap()
                .is_none()
        );
    }
}
