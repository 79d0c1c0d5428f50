//! The grammar of `postgresql.conf` (`src/backend/utils/misc/guc-file.l`): one setting a line, an optional
//! `=`, values bare or quoted, `#` starts a comment.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// One line that sets something (or includes a file: those look the same).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// As written; the server compares without regard to case.
    pub(crate) name: String,
    /// Without quotes and escapes.
    pub(crate) value: String,
}

/// The lines that set something with their numbers, counted from 1; for a line that is not understood the
/// text where that begins.
pub(crate) fn parse_leniently(
    text: &str,
) -> impl Iterator<Item = (usize, std::result::Result<Line, &str>)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let parsed = parse_line(line).transpose()?;
        Some((index + 1, parsed.map(|(name, value)| Line { name, value })))
    })
}

/// Parses the text of a configuration file.
///
/// # Errors
/// [`BadSetting`](ErrorKind::BadSetting) with file and line where the server would complain too.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Vec<Line>> {
    let lines = parse_leniently(text).map(|(number, line)| {
        line.map_err(|near| {
            Error::new(
                ErrorKind::BadSetting,
                format!("{} line {number}", path.display()),
                format!("syntax error near {near:?}"),
            )
        })
    });
    lines.collect()
}

/// Name and value of a line, nothing for an empty one; or the text that was not understood.
fn parse_line(line: &str) -> std::result::Result<Option<(String, String)>, &str> {
    let rest = line.trim_start_matches(is_blank);
    if rest.is_empty() || rest.starts_with('#') {
        return Ok(None);
    }
    // A letter (or any byte above ASCII), then also digits, `$` and, for names of extensions, `.`.
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.') || !c.is_ascii()))
        .unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let starts_well =
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii());
    if !starts_well {
        return Err(line);
    }
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest
        .strip_prefix('=')
        .unwrap_or(rest)
        .trim_start_matches(is_blank);
    let (value, rest) = if let Some(quoted) = rest.strip_prefix('\'') {
        unquote(quoted).ok_or(rest)?
    } else {
        let end = rest.find(|c: char| !is_bare(c)).unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        if value.is_empty() {
            return Err(line);
        }
        (value.to_owned(), rest)
    };
    let rest = rest.trim_start_matches(is_blank);
    if rest.is_empty() || rest.starts_with('#') {
        Ok(Some((name.to_owned(), value)))
    } else {
        Err(rest)
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

/// Numbers with units, words, and the characters that paths and addresses may have without quotes.
fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.' | ':' | '/') || !c.is_ascii()
}

/// The value up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => {
                if chars.next_if(|(_, next)| *next == '\'').is_some() {
                    value.push('\'');
                } else {
                    return Some((value, text.get(at + 1..)?));
                }
            }
            '\\' => {
                let (_, escaped) = chars.next()?;
                match escaped {
                    'b' => value.push('\u{8}'),
                    'f' => value.push('\u{c}'),
                    'n' => value.push('\n'),
                    'r' => value.push('\r'),
                    't' => value.push('\t'),
                    '0'..='7' => {
                        let mut code = escaped.to_digit(8)?;
                        for _ in 0..2 {
                            match chars.next_if(|(_, next)| next.is_digit(8)) {
                                Some((_, digit)) => code = code * 8 + digit.to_digit(8)?,
                                None => break,
                            }
                        }
                        value.push(char::from_u32(code)?);
                    }
                    other => value.push(other),
                }
            }
            other => value.push(other),
        }
    }
    None
}

/// A value as it is written into a file, whatever it holds.
pub(crate) fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('\'');
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            other => text.push(other),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Option<(String, String)> {
        parse_line(line).unwrap()
    }

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(one("port = 5433\t\t# comment"), pair("port", "5433"));
        assert_eq!(
            one("  Shared_Buffers 128MB"),
            pair("Shared_Buffers", "128MB")
        );
        assert_eq!(
            one("a.b='it''s \\'so\\' \\\\ \\101\\n'"),
            pair("a.b", "it's 'so' \\ A\n")
        );
        assert_eq!(
            one("listen_addresses = '' # nothing"),
            pair("listen_addresses", "")
        );
        assert_eq!(one("include_dir conf.d"), pair("include_dir", "conf.d"));
        assert_eq!(one("x=-1"), pair("x", "-1"));
        assert_eq!(one("   # comment"), None);
        assert_eq!(one(""), None);
        for wrong in [
            "port",
            "= 3",
            "port = 'open",
            "port = 1 2",
            "9a = 1",
            "port = 'a' b",
        ] {
            assert!(parse_line(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_quoted_value_is_read_back_as_it_was() {
        for value in [
            "",
            "plain",
            "it's",
            "back\\slash",
            "two\nlines\r",
            "#",
            "ü'\\''",
        ] {
            let line = format!("x = {}", quote(value));
            assert_eq!(one(&line).unwrap().1, value);
        }
    }
}
