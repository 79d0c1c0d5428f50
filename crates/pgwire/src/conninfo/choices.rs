//! The values of parameters that are one of a few words.

use std::fmt;

use crate::error::{Error, Result};

/// Declares an enum whose values are words of a parameter.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis enum $name:ident of $parameter:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub(crate) fn from_word(word: &str) -> Result<Self> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Error::config($parameter, format!(
                        "{word:?} is none of {}", [$($word),+].join(", ")
                    ))),
                }
            }

            /// The word as written in a connection string.
            #[must_use]
            $vis const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// How much TLS is wanted. Unix sockets never use it.
    pub enum SslMode of "sslmode" {
        /// Never.
        Disable = "disable",
        /// Only if the server does not let us in without.
        Allow = "allow",
        /// If the server offers it; without if it does not, or if it does not let us in with it.
        Prefer = "prefer",
        /// Always, whoever the server is (with a root certificate file: as verify-ca).
        Require = "require",
        /// Always, with a certificate from a known authority.
        VerifyCa = "verify-ca",
        /// Always, with a certificate from a known authority that names the host.
        VerifyFull = "verify-full",
    }
}

words! {
    /// How TLS begins.
    pub enum SslNegotiation of "sslnegotiation" {
        /// A request of PostgreSQL's own comes first.
        Postgres = "postgres",
        /// TLS from the first byte, servers from 17 on.
        Direct = "direct",
    }
}

words! {
    /// Whether a client certificate is sent.
    pub enum CertMode of "sslcertmode" {
        /// Never.
        Disable = "disable",
        /// If the server asks and there is one.
        Allow = "allow",
        /// The server must ask for it.
        Require = "require",
    }
}

words! {
    /// Whether the login is tied to the TLS connection it runs over.
    pub enum ChannelBindingMode of "channel_binding" {
        /// Never.
        Disable = "disable",
        /// If the server offers it.
        Prefer = "prefer",
        /// Always; logins that cannot be tied are refused.
        Require = "require",
    }
}

words! {
    /// Which server of several is acceptable.
    pub enum TargetSession of "target_session_attrs" {
        /// The first that lets us in.
        Any = "any",
        /// One whose sessions may write.
        ReadWrite = "read-write",
        /// One whose sessions may not write.
        ReadOnly = "read-only",
        /// One that is not in recovery.
        Primary = "primary",
        /// One that is in recovery.
        Standby = "standby",
        /// A standby if there is one, else any.
        PreferStandby = "prefer-standby",
    }
}

words! {
    /// In which order hosts are tried.
    pub enum LoadBalance of "load_balance_hosts" {
        /// As written.
        Disable = "disable",
        /// At random.
        Random = "random",
    }
}

words! {
    /// How a server may make sure of who we are.
    pub(crate) enum AuthMethod of "require_auth" {
        Password = "password",
        Md5 = "md5",
        Gss = "gss",
        Sspi = "sspi",
        ScramSha256 = "scram-sha-256",
        Oauth = "oauth",
        None = "none",
    }
}

/// Which methods of authentication are acceptable (`require_auth`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AuthPolicy {
    Any,
    Only(Vec<AuthMethod>),
    AllBut(Vec<AuthMethod>),
}

impl AuthPolicy {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let negated = words.iter().filter(|word| word.starts_with('!')).count();
        if negated != 0 && negated != words.len() {
            return Err(Error::config(
                "require_auth",
                "methods with and without '!' cannot be mixed",
            ));
        }
        let mut methods = Vec::with_capacity(words.len());
        for word in words {
            let method = AuthMethod::from_word(word.strip_prefix('!').unwrap_or(word))?;
            if methods.contains(&method) {
                return Err(Error::config(
                    "require_auth",
                    format!("{method} is given twice"),
                ));
            }
            methods.push(method);
        }
        Ok(if negated == 0 {
            Self::Only(methods)
        } else {
            Self::AllBut(methods)
        })
    }

    pub(crate) fn allows(&self, method: AuthMethod) -> bool {
        match self {
            Self::Any => true,
            Self::Only(methods) => methods.contains(&method),
            Self::AllBut(methods) => !methods.contains(&method),
        }
    }
}

/// What kind of session is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Replication {
    /// An ordinary session: SQL only.
    #[default]
    Off,
    /// `replication=true`: replication commands only, no database.
    Physical,
    /// `replication=database`: replication commands and SQL.
    Database,
}

impl Replication {
    pub(crate) fn from_word(word: &str) -> Result<Self> {
        match word {
            "true" | "on" | "yes" | "1" => Ok(Self::Physical),
            "false" | "off" | "no" | "0" | "" => Ok(Self::Off),
            "database" => Ok(Self::Database),
            _ => Err(Error::config(
                "replication",
                format!("{word:?} is not a boolean or \"database\""),
            )),
        }
    }

    pub(crate) const fn word(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Physical => Some("true"),
            Self::Database => Some("database"),
        }
    }
}
