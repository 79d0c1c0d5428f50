//! Service files: named groups of connection parameters.
//!
//! Source: `parseServiceFile` in libpq: `[name]` headings, `keyword=value` lines, `#` comments. The
//! personal file is searched first, then the one for the whole system.

use std::fs;
use std::io;
use std::path::Path;

use crate::conninfo::params::Params;
use crate::error::{Error, Result};

/// Adds the parameters of the service to those that have no value yet. The first file that has the
/// service is used.
pub(crate) fn apply(params: &mut Params, service: &str, files: &[&Path]) -> Result<()> {
    for path in files {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file(path, "the service file cannot be read", error)),
        };
        if apply_text(params, service, &String::from_utf8_lossy(&text))? {
            return Ok(());
        }
    }
    Err(Error::config(
        "service",
        format!("no service file defines {service:?}"),
    ))
}

pub(crate) fn apply_text(params: &mut Params, service: &str, text: &str) -> Result<bool> {
    let mut found = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            if found {
                break;
            }
            found = heading.strip_suffix(']') == Some(service);
            continue;
        }
        if !found {
            continue;
        }
        match line.split_once('=') {
            Some(("service", _)) => {
                return Err(Error::config(
                    "service",
                    "a service cannot refer to another",
                ));
            }
            Some((name, value)) => params.set_default(name, value)?,
            None if line.starts_with("ldap") => {
                return Err(Error::unsupported(
                    "service",
                    "look-ups over LDAP are not supported",
                ));
            }
            None => {
                return Err(Error::config(
                    "service",
                    "a line is not of the form name=value",
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_group_is_used_and_explicit_values_stay() {
        let mut params: Params = "port=1".parse().unwrap();
        let text = "# c\n[other]\nhost=no\n[mine]\nhost=yes\nport=2\n\n[more]\nuser=no\n";
        assert!(apply_text(&mut params, "mine", text).unwrap());
        assert_eq!(
            (params.get("host"), params.get("port"), params.get("user")),
            (Some("yes"), Some("1"), None)
        );
        assert!(!apply_text(&mut params, "none", text).unwrap());
        assert!(apply_text(&mut params, "a", "[a]\nservice=b").is_err());
    }
}
