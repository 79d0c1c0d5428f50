//! What connection parameters mean once every source was asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::conninfo::choices::{
    AuthPolicy, CertMode, ChannelBindingMode, LoadBalance, Replication, SslMode, SslNegotiation,
    TargetSession,
};
use crate::conninfo::hosts::{self, Host};
use crate::conninfo::params::{KEYWORDS, Params};
use crate::conninfo::pass_file::{self, Wanted};
use crate::conninfo::service;
use crate::conninfo::surroundings::Surroundings;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::notice::NoticeHandler;
use crate::secret::Secret;

/// A connection as it will be made: every parameter defaulted and checked.
///
/// `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) dbname: String,
    pub(crate) replication: Replication,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) target: TargetSession,
    pub(crate) load_balance: LoadBalance,
    pub(crate) ssl_mode: SslMode,
    pub(crate) ssl_negotiation: SslNegotiation,
    #[cfg_attr(
        not(feature = "tls"),
        allow(dead_code, reason = "checked in every build, used by TLS")
    )]
    pub(crate) tls: TlsFiles,
    pub(crate) channel_binding: ChannelBindingMode,
    pub(crate) auth: AuthPolicy,
    pub(crate) require_peer: Option<(String, u32)>,
    pub(crate) keepalive: Keepalive,
    pub(crate) protocol: (ProtocolVersion, ProtocolVersion),
    /// Further parameters of the startup message: names and values.
    pub(crate) settings: Vec<(&'static str, String)>,
    pub(crate) limits: Limits,
    pub(crate) notices: Option<NoticeHandler>,
    password: Option<Secret>,
    pass_file: Option<PathBuf>,
    dbname_is_given: bool,
}

/// The versions of the protocol that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProtocolVersion {
    V3_0,
    V3_2,
}

/// Keep-alive of TCP connections.
#[derive(Debug, Clone)]
pub(crate) struct Keepalive {
    pub(crate) enabled: bool,
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
    pub(crate) user_timeout: Option<Duration>,
}

/// Where the material of TLS is, and what is asked of it.
#[cfg_attr(
    not(feature = "tls"),
    allow(dead_code, reason = "checked in every build, used by TLS")
)]
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) root: Root,
    pub(crate) crl: Option<PathBuf>,
    pub(crate) crl_directory: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) cert_mode: CertMode,
    /// Certificate and key were named, so they must exist.
    pub(crate) cert_is_explicit: bool,
    pub(crate) sni: bool,
    pub(crate) min_1_3: bool,
    pub(crate) max_1_2: bool,
}

/// The certificate authorities that are trusted.
#[cfg_attr(
    not(feature = "tls"),
    allow(dead_code, reason = "checked in every build, used by TLS")
)]
#[derive(Debug, Clone)]
pub(crate) enum Root {
    /// A file; without one, nothing can be verified.
    File(PathBuf),
    /// The system's authorities, in this file.
    System(PathBuf),
    Missing,
}

impl Config {
    /// Finds out what the parameters mean.
    ///
    /// A parameter that is not given is taken from its service, then from its environment variable,
    /// then from its default. Reads the service files and, for `requirepeer`, the user database if
    /// they are asked for; the password file is read when a server asks for a password.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for values that cannot be used,
    /// [`File`](crate::ErrorKind::File) for a service file that cannot be read, and
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for what this crate cannot do (GSSAPI, OAuth,
    /// encrypted keys, pass-through SCRAM keys, key logs).
    pub fn resolve(params: &Params, surroundings: &Surroundings) -> Result<Self> {
        let params = with_defaults(params, surroundings)?;
        refuse_unsupported(&params)?;
        let text = |name: &str| params.get(name).filter(|value| !value.is_empty());

        let ssl_mode = ssl_mode(&params)?;
        let ssl_negotiation =
            SslNegotiation::from_word(text("sslnegotiation").unwrap_or("postgres"))?;
        if ssl_negotiation == SslNegotiation::Direct
            && matches!(
                ssl_mode,
                SslMode::Disable | SslMode::Allow | SslMode::Prefer
            )
        {
            return Err(Error::config(
                "sslnegotiation",
                "\"direct\" needs sslmode require, verify-ca or verify-full",
            ));
        }
        let user = match text("user").or(surroundings.os_user.as_deref()) {
            Some(user) => user.to_owned(),
            None => return Err(Error::config("user", "no user is given and none is known")),
        };
        let replication = Replication::from_word(text("replication").unwrap_or("off"))?;
        Ok(Self {
            hosts: hosts::parse(&params, surroundings)?,
            dbname: text("dbname").unwrap_or(&user).to_owned(),
            user,
            replication,
            connect_timeout: seconds(&params, "connect_timeout")?,
            target: TargetSession::from_word(text("target_session_attrs").unwrap_or("any"))?,
            load_balance: LoadBalance::from_word(text("load_balance_hosts").unwrap_or("disable"))?,
            ssl_mode,
            ssl_negotiation,
            tls: tls_files(&params, surroundings, ssl_mode)?,
            channel_binding: ChannelBindingMode::from_word(
                text("channel_binding").unwrap_or("prefer"),
            )?,
            auth: AuthPolicy::parse(text("require_auth").unwrap_or(""))?,
            require_peer: require_peer(text("requirepeer"), surroundings)?,
            keepalive: keepalive(&params)?,
            protocol: protocol(&params)?,
            settings: settings(&params, surroundings),
            limits: Limits::default(),
            notices: None,
            password: text("password").map(Secret::new),
            pass_file: match text("passfile") {
                Some(path) => Some(PathBuf::from(path)),
                None => surroundings.home.as_ref().map(|home| home.join(".pgpass")),
            },
            dbname_is_given: text("dbname").is_some(),
        })
    }

    /// The same connection for another kind of session.
    #[must_use]
    pub fn with_replication(mut self, replication: Replication) -> Self {
        self.replication = replication;
        self
    }

    /// The same connection to another database.
    #[must_use]
    pub fn with_dbname(mut self, dbname: impl Into<String>) -> Self {
        self.dbname = dbname.into();
        self.dbname_is_given = true;
        self
    }

    /// The same connection with this password for every host.
    #[must_use]
    pub fn with_password(mut self, password: Secret) -> Self {
        self.password = Some(password);
        self
    }

    /// The same connection with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same connection, whose notices and warnings go to `handler` as they arrive.
    #[must_use]
    pub fn with_notices(mut self, handler: NoticeHandler) -> Self {
        self.notices = Some(handler);
        self
    }

    /// The user to log in as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to connect to.
    #[must_use]
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The servers to try, `host:port` or the path of a socket.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        self.hosts.iter().map(ToString::to_string).collect()
    }

    /// The kind of session.
    #[must_use]
    pub fn replication(&self) -> Replication {
        self.replication
    }

    /// The password for a host, looked up when a server asks for one: the one given, else the first
    /// that matches in the password file.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) for a password file that may not be used.
    pub(crate) fn password_for(&self, host: &Host) -> Result<Option<Secret>> {
        if self.password.is_some() {
            return Ok(self.password.clone());
        }
        let Some(file) = &self.pass_file else {
            return Ok(None);
        };
        // What libpq's programs look for when they ask for physical replication and no database is
        // named.
        let database = match (self.replication, self.dbname_is_given) {
            (Replication::Physical, false) => "replication",
            _ => &self.dbname,
        };
        pass_file::look_up(
            file,
            &Wanted {
                host: &host.name_in_pass_file(),
                port: host.port,
                database,
                user: &self.user,
            },
        )
    }
}

fn with_defaults(params: &Params, surroundings: &Surroundings) -> Result<Params> {
    let mut all = params.clone();
    let service = params
        .get("service")
        .or_else(|| surroundings.variable("PGSERVICE"));
    if let Some(service) = service
        .filter(|service| !service.is_empty())
        .map(str::to_owned)
    {
        let personal = match surroundings.variable("PGSERVICEFILE") {
            Some(path) => Some(PathBuf::from(path)),
            None => surroundings
                .home
                .as_ref()
                .map(|home| home.join(".pg_service.conf")),
        };
        let system = match surroundings.variable("PGSYSCONFDIR") {
            Some(directory) => Some(PathBuf::from(directory)),
            None => surroundings.system_config.clone(),
        };
        let system = system.map(|directory| directory.join("pg_service.conf"));
        let files: Vec<_> = [&personal, &system]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        service::apply(&mut all, &service, &files)?;
    }
    for keyword in KEYWORDS {
        if let Some(value) = keyword
            .variable
            .and_then(|name| surroundings.variable(name))
        {
            all.set_default(keyword.name, value)?;
        }
    }
    if let Some(value) = surroundings.variable("PGREQUIRESSL")
        && value.starts_with('1')
    {
        all.set_default("sslmode", "require")?;
    }
    Ok(all)
}

/// What is understood but cannot be done is refused, not ignored.
fn refuse_unsupported(params: &Params) -> Result<()> {
    for name in [
        "sslpassword",
        "scram_client_key",
        "scram_server_key",
        "oauth_issuer",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_scope",
        "sslkeylogfile",
    ] {
        if params.get(name).is_some_and(|value| !value.is_empty()) {
            return Err(Error::unsupported(name, "this parameter is not supported"));
        }
    }
    match params.get("gssencmode").unwrap_or("disable") {
        "disable" | "prefer" | "" => Ok(()),
        "require" => Err(Error::unsupported("gssencmode", "GSSAPI is not supported")),
        other => Err(Error::config(
            "gssencmode",
            format!("{other:?} is none of disable, prefer, require"),
        )),
    }
}

fn ssl_mode(params: &Params) -> Result<SslMode> {
    let mode = params.get("sslmode").filter(|value| !value.is_empty());
    let system = params.get("sslrootcert") == Some("system");
    match mode {
        Some(word) => {
            let mode = SslMode::from_word(word)?;
            if system && mode != SslMode::VerifyFull {
                return Err(Error::config(
                    "sslmode",
                    "sslrootcert=system needs verify-full, or nobody is verified",
                ));
            }
            if !cfg!(feature = "tls")
                && !matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
            {
                return Err(Error::unsupported("sslmode", "this build has no TLS"));
            }
            Ok(mode)
        }
        None if system => Ok(SslMode::VerifyFull),
        None => Ok(SslMode::Prefer),
    }
}

fn integer(params: &Params, name: &'static str) -> Result<Option<i32>> {
    match params.get(name).map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::config(name, format!("{text:?} is not an integer"))),
        },
    }
}

/// A positive number of seconds; zero and less mean none.
fn seconds(params: &Params, name: &'static str) -> Result<Option<Duration>> {
    let number = integer(params, name)?.and_then(|number| u64::try_from(number).ok());
    Ok(number.filter(|number| *number > 0).map(Duration::from_secs))
}

fn keepalive(params: &Params) -> Result<Keepalive> {
    let count = integer(params, "keepalives_count")?;
    let user_timeout =
        integer(params, "tcp_user_timeout")?.and_then(|number| u64::try_from(number).ok());
    Ok(Keepalive {
        enabled: integer(params, "keepalives")?.unwrap_or(1) != 0,
        idle: seconds(params, "keepalives_idle")?,
        interval: seconds(params, "keepalives_interval")?,
        count: count
            .and_then(|count| u32::try_from(count).ok())
            .filter(|count| *count > 0),
        user_timeout: user_timeout
            .filter(|number| *number > 0)
            .map(Duration::from_millis),
    })
}

fn protocol(params: &Params) -> Result<(ProtocolVersion, ProtocolVersion)> {
    let version = |name: &'static str| match params.get(name) {
        None | Some("" | "3.0") => Ok(ProtocolVersion::V3_0),
        Some("3.2" | "latest") => Ok(ProtocolVersion::V3_2),
        Some(other) => Err(Error::config(
            name,
            format!("{other:?} is none of 3.0, 3.2, latest"),
        )),
    };
    let (min, mut max) = (
        version("min_protocol_version")?,
        version("max_protocol_version")?,
    );
    if params.get("max_protocol_version").is_none() {
        max = max.max(min);
    }
    if min > max {
        return Err(Error::config(
            "min_protocol_version",
            "it is greater than max_protocol_version",
        ));
    }
    Ok((min, max))
}

fn tls_files(params: &Params, surroundings: &Surroundings, mode: SslMode) -> Result<TlsFiles> {
    let path = |name: &str| {
        params
            .get(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = match params.get("sslrootcert").filter(|value| !value.is_empty()) {
        Some("system") => match &surroundings.system_roots {
            Some(path) => Root::System(path.clone()),
            None => {
                return Err(Error::config(
                    "sslrootcert",
                    "no file with the system's authorities is known",
                ));
            }
        },
        Some(path) => Root::File(path.into()),
        None => match surroundings.personal("root.crt") {
            Some(path) => Root::File(path),
            None => Root::Missing,
        },
    };
    if matches!(
        (&root, mode),
        (Root::Missing, SslMode::VerifyCa | SslMode::VerifyFull)
    ) {
        return Err(Error::config(
            "sslrootcert",
            format!("sslmode {mode} needs a root certificate file"),
        ));
    }
    let tls_version =
        |name: &'static str| match params.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("") => Ok(None),
            Some("tlsv1" | "tlsv1.1") => Ok(Some(11)),
            Some("tlsv1.2") => Ok(Some(12)),
            Some("tlsv1.3") => Ok(Some(13)),
            Some(_) => Err(Error::config(
                name,
                "it is none of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3",
            )),
        };
    let (min, max) = (
        tls_version("ssl_min_protocol_version")?,
        tls_version("ssl_max_protocol_version")?,
    );
    if max == Some(11) {
        return Err(Error::unsupported(
            "ssl_max_protocol_version",
            "versions before TLSv1.2 are not supported",
        ));
    }
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        return Err(Error::config(
            "ssl_min_protocol_version",
            "it is greater than ssl_max_protocol_version",
        ));
    }
    let explicit_cert = path("sslcert");
    Ok(TlsFiles {
        root,
        crl: path("sslcrl").or_else(|| {
            surroundings
                .personal("root.crl")
                .filter(|path| path.exists())
        }),
        crl_directory: path("sslcrldir"),
        cert_is_explicit: explicit_cert.is_some(),
        cert: explicit_cert.or_else(|| surroundings.personal("postgresql.crt")),
        key: path("sslkey").or_else(|| surroundings.personal("postgresql.key")),
        cert_mode: CertMode::from_word(
            params
                .get("sslcertmode")
                .filter(|value| !value.is_empty())
                .unwrap_or("allow"),
        )?,
        sni: params.get("sslsni") != Some("0"),
        min_1_3: min == Some(13),
        max_1_2: max == Some(12),
    })
}

fn require_peer(name: Option<&str>, surroundings: &Surroundings) -> Result<Option<(String, u32)>> {
    let Some(name) = name else { return Ok(None) };
    let Some(database) = &surroundings.user_database else {
        return Err(Error::config(
            "requirepeer",
            "no user database is known to look the name up in",
        ));
    };
    let text = std::fs::read_to_string(database)
        .map_err(|error| Error::file(database, "the user database cannot be read", error))?;
    let uid = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        is_it
            .then(|| fields.nth(1).and_then(|uid| uid.parse().ok()))
            .flatten()
    });
    match uid {
        Some(uid) => Ok(Some((name.to_owned(), uid))),
        None => Err(Error::config(
            "requirepeer",
            format!("there is no user {name:?}"),
        )),
    }
}

fn settings(params: &Params, surroundings: &Surroundings) -> Vec<(&'static str, String)> {
    let text = |name: &str| params.get(name).filter(|value| !value.is_empty());
    let mut settings = Vec::new();
    if let Some(options) = text("options") {
        settings.push(("options", options.to_owned()));
    }
    if let Some(name) = text("application_name").or(text("fallback_application_name")) {
        settings.push(("application_name", name.to_owned()));
    }
    // "auto" would mean the locale of the process, which is not looked at; our texts are UTF-8.
    if let Some(encoding) = text("client_encoding") {
        let encoding = if encoding == "auto" { "UTF8" } else { encoding };
        settings.push(("client_encoding", encoding.to_owned()));
    }
    for (variable, setting) in [
        ("PGDATESTYLE", "datestyle"),
        ("PGTZ", "timezone"),
        ("PGGEQO", "geqo"),
    ] {
        if let Some(value) = surroundings.variable(variable) {
            settings.push((setting, value.to_owned()));
        }
    }
    settings
}
