//! Quoting of literals and identifiers in commands.
//!
//! The simple query protocol has no parameters; what comes from outside goes through here. Source:
//! `quote_literal_cstr`, `quote_identifier` and the replication grammar (`repl_scanner.l`), which
//! knows no `E''` literals.

use crate::error::{Error, Result};

/// `text` as an SQL string literal, whatever `standard_conforming_strings` is.
///
/// ```
/// assert_eq!(neon_pgwire::quote_literal("it's")?, "'it''s'");
/// assert_eq!(neon_pgwire::quote_literal(r"C:\x")?, r" E'C:\\x'");
/// # Ok::<(), neon_pgwire::Error>(())
/// ```
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config) for a NUL, which no command can carry.
pub fn quote_literal(text: &str) -> Result<String> {
    refuse_nul(text)?;
    let doubled = text.replace('\'', "''");
    Ok(if text.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', r"\\"))
    } else {
        format!("'{doubled}'")
    })
}

/// `name` as a quoted SQL identifier.
///
/// ```
/// assert_eq!(neon_pgwire::quote_identifier(r#"a "b""#)?, r#""a ""b""""#);
/// # Ok::<(), neon_pgwire::Error>(())
/// ```
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config) for an empty name or a NUL.
pub fn quote_identifier(name: &str) -> Result<String> {
    refuse_nul(name)?;
    if name.is_empty() {
        return Err(Error::config("identifier", "it is empty"));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// What a server keeps of a password for SCRAM-SHA-256, with a random salt. `ALTER ROLE … PASSWORD` takes it in place of the
/// password, which then is in no log of the server.
///
/// ```
/// assert!(neon_pgwire::scram_sha_256_verifier("secret").starts_with("SCRAM-SHA-256$4096:"));
/// ```
#[must_use]
pub fn scram_sha_256_verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// `text` as a literal of the replication grammar, in which a backslash is a plain character.
pub(crate) fn replication_literal(text: &str) -> Result<String> {
    refuse_nul(text)?;
    Ok(format!("'{}'", text.replace('\'', "''")))
}

fn refuse_nul(text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::config("text", "it contains a NUL"));
    }
    Ok(())
}
