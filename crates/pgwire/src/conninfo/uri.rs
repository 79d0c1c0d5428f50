//! Connection URIs: `postgresql://user:password@host:port,host:port/dbname?name=value`.
//!
//! Source: `conninfo_uri_parse_options` in libpq. Everything may be percent-encoded; a host in
//! brackets is an IPv6 address, and a percent-encoded directory is a Unix socket.

use crate::conninfo::params::Params;
use crate::error::{Error, Result};

const SUBJECT: &str = "connection URI";

/// `basebackup://` is our own name for the same thing where a URL says what to fetch.
const SCHEMES: [&str; 3] = ["postgresql://", "postgres://", "basebackup://"];

/// What follows the scheme, if the text starts with one that means PostgreSQL.
pub(crate) fn without_scheme(text: &str) -> Option<&str> {
    SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme))
}

pub(crate) fn parse(rest: &str) -> Result<Params> {
    let mut params = Params::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, dbname) = match rest.split_once('/') {
        Some((authority, dbname)) => (authority, Some(dbname)),
        None => (rest, None),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credentials, None),
            };
            set_unless_empty(&mut params, "user", user)?;
            if let Some(password) = password {
                set_unless_empty(&mut params, "password", password)?;
            }
            hosts
        }
        None => authority,
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for item in hosts.split(',') {
        let (name, port) = host_and_port(item)?;
        names.push(decode(name)?);
        ports.push(decode(port)?);
    }
    if names.iter().any(|name| !name.is_empty()) || names.len() > 1 {
        params.set("host", names.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        params.set("port", ports.join(","))?;
    }
    if let Some(dbname) = dbname {
        set_unless_empty(&mut params, "dbname", dbname)?;
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        if pair.is_empty() {
            continue;
        }
        match pair.split_once('=') {
            Some((name, value)) if !value.contains('=') => {
                params.set(&decode(name)?, decode(value)?)?;
            }
            _ => {
                return Err(Error::config(
                    SUBJECT,
                    "a parameter is not of the form name=value",
                ));
            }
        }
    }
    Ok(params)
}

fn set_unless_empty(params: &mut Params, name: &str, value: &str) -> Result<()> {
    if !value.is_empty() {
        params.set(name, decode(value)?)?;
    }
    Ok(())
}

fn host_and_port(item: &str) -> Result<(&str, &str)> {
    let (host, rest) = match item.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some(("", _)) | None => {
                return Err(Error::config(SUBJECT, "a bracket is empty or not closed"));
            }
            Some((host, rest)) => (host, rest),
        },
        None => item.split_at(item.find(':').unwrap_or(item.len())),
    };
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, port)),
        None if rest.is_empty() => Ok((host, "")),
        None => Err(Error::config(
            SUBJECT,
            "a bracket is followed by something else than a port",
        )),
    }
}

/// Replaces `%XX`; `%00` and what is not UTF-8 afterwards are errors.
fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digit = |byte: &u8| {
            char::from(*byte)
                .to_digit(16)
                .and_then(|n| u8::try_from(n).ok())
        };
        match after {
            [high, low, after @ ..] => match (digit(high), digit(low)) {
                (Some(0), Some(0)) => return Err(Error::config(SUBJECT, "%00 is not allowed")),
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => {
                    return Err(Error::config(
                        SUBJECT,
                        "a '%' is not followed by two hex digits",
                    ));
                }
            },
            _ => {
                return Err(Error::config(
                    SUBJECT,
                    "a '%' is not followed by two hex digits",
                ));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::config(SUBJECT, "it is not UTF-8 once decoded"))
}
