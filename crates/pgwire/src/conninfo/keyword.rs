//! `keyword = value` connection strings.
//!
//! Source: `conninfo_parse` in libpq: blanks around `=` are allowed, values with blanks or none at
//! all are quoted with `'`, and a backslash takes the next character as it is, in quotes and outside.

use crate::conninfo::params::Params;
use crate::error::{Error, Result};

const SUBJECT: &str = "connection string";

pub(crate) fn parse(text: &str) -> Result<Params> {
    let mut params = Params::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Ok(params);
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            name.push(c);
        }
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if rest.next_if_eq(&'=').is_none() {
            // What stands here may be the rest of a password that was not quoted.
            return Err(Error::config(SUBJECT, "a word is not followed by '='"));
        }
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match rest.peek() {
                None if quoted => return Err(Error::config(SUBJECT, "a quote is not closed")),
                None => break,
                Some('\'') if quoted => {
                    rest.next();
                    break;
                }
                Some(c) if !quoted && c.is_ascii_whitespace() => break,
                Some('\\') => {
                    rest.next();
                    value.extend(rest.next());
                }
                Some(_) => value.extend(rest.next()),
            }
        }
        params.set(&name, value)?;
    }
}
