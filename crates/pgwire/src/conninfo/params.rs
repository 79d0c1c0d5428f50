//! The parameters of a connection as written: names and texts, before they mean anything.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::conninfo::{keyword, uri};
use crate::error::{Error, Result};

/// Connection parameters by libpq's names, from a connection string or set one by one.
///
/// Understands `host=a port=1` and the URIs `postgresql://`, `postgres://` and `basebackup://`. Names
/// that libpq does not know are refused. `Debug` hides secrets; there is no `Display`.
///
/// ```
/// use neon_pgwire::Params;
/// let params: Params = "postgresql://me@db1:5433,db2/app?sslmode=verify-full".parse()?;
/// assert_eq!(params.get("host"), Some("db1,db2"));
/// assert_eq!(params.get("port"), Some("5433,"));
/// # Ok::<(), neon_pgwire::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<&'static str, String>);

/// A keyword that libpq knows, and the environment variable that sets it.
#[derive(Debug)]
pub(crate) struct Keyword {
    pub(crate) name: &'static str,
    pub(crate) variable: Option<&'static str>,
    secret: bool,
}

const fn keyword(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        secret: false,
    }
}

const fn secret(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        secret: true,
    }
}

/// The union of what libpq 13 to 18 know (`PQconninfoOptions` in `fe-connect.c`).
pub(crate) const KEYWORDS: &[Keyword] = &[
    keyword("service", Some("PGSERVICE")),
    keyword("user", Some("PGUSER")),
    secret("password", Some("PGPASSWORD")),
    keyword("passfile", Some("PGPASSFILE")),
    keyword("channel_binding", Some("PGCHANNELBINDING")),
    keyword("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    keyword("dbname", Some("PGDATABASE")),
    keyword("host", Some("PGHOST")),
    keyword("hostaddr", Some("PGHOSTADDR")),
    keyword("port", Some("PGPORT")),
    keyword("client_encoding", Some("PGCLIENTENCODING")),
    keyword("options", Some("PGOPTIONS")),
    keyword("application_name", Some("PGAPPNAME")),
    keyword("fallback_application_name", None),
    keyword("keepalives", None),
    keyword("keepalives_idle", None),
    keyword("keepalives_interval", None),
    keyword("keepalives_count", None),
    keyword("tcp_user_timeout", None),
    keyword("sslmode", Some("PGSSLMODE")),
    keyword("sslnegotiation", Some("PGSSLNEGOTIATION")),
    keyword("sslcompression", Some("PGSSLCOMPRESSION")),
    keyword("sslcert", Some("PGSSLCERT")),
    keyword("sslkey", Some("PGSSLKEY")),
    keyword("sslcertmode", Some("PGSSLCERTMODE")),
    secret("sslpassword", None),
    keyword("sslrootcert", Some("PGSSLROOTCERT")),
    keyword("sslcrl", Some("PGSSLCRL")),
    keyword("sslcrldir", Some("PGSSLCRLDIR")),
    keyword("sslsni", Some("PGSSLSNI")),
    keyword("requirepeer", Some("PGREQUIREPEER")),
    keyword("require_auth", Some("PGREQUIREAUTH")),
    keyword("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    keyword("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    keyword("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    keyword("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    keyword("gssencmode", Some("PGGSSENCMODE")),
    keyword("krbsrvname", Some("PGKRBSRVNAME")),
    keyword("gsslib", Some("PGGSSLIB")),
    keyword("gssdelegation", Some("PGGSSDELEGATION")),
    keyword("replication", None),
    keyword("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    keyword("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    secret("scram_client_key", None),
    secret("scram_server_key", None),
    keyword("oauth_issuer", None),
    keyword("oauth_client_id", None),
    secret("oauth_client_secret", None),
    keyword("oauth_scope", None),
    keyword("sslkeylogfile", None),
    keyword("authtype", None),
    keyword("tty", None),
];

pub(crate) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

impl Params {
    /// No parameters at all: everything comes from the surroundings and the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a parameter, replacing what it was.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for a name that libpq does not know, or a NUL in the value.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> Result<&mut Self> {
        // Two names that libpq's URIs know besides.
        let (name, value) = match (name, value.into()) {
            ("ssl", value) if value == "true" => ("sslmode", "require".to_owned()),
            ("requiressl", value) => {
                let mode = if value.starts_with('1') {
                    "require"
                } else {
                    "prefer"
                };
                ("sslmode", mode.to_owned())
            }
            other => other,
        };
        let Some(keyword) = find(name) else {
            return Err(Error::config(
                "connection parameters",
                format!("{name:?} is not a parameter of PostgreSQL connections"),
            ));
        };
        if value.contains('\0') {
            return Err(Error::config(keyword.name, "the value contains a NUL"));
        }
        self.0.insert(keyword.name, value);
        Ok(self)
    }

    /// The value of a parameter, if it was given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The names and values given, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Sets a parameter unless it has a value already.
    pub(crate) fn set_default(&mut self, name: &str, value: &str) -> Result<()> {
        if self.get(name).is_none() {
            self.set(name, value)?;
        }
        Ok(())
    }
}

impl FromStr for Params {
    type Err = Error;

    /// Parses a connection string: a URI if it starts with a known scheme, else keywords and values.
    fn from_str(text: &str) -> Result<Self> {
        match uri::without_scheme(text) {
            Some(rest) => uri::parse(rest),
            None => keyword::parse(text),
        }
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().map(|(name, value)| {
            let hidden = find(name).is_none_or(|keyword| keyword.secret);
            (name, if hidden { "***" } else { value })
        });
        f.debug_map().entries(shown).finish()
    }
}
