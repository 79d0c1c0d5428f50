//! Getting from a [`Config`] to a session: hosts in turn, TLS or not, login, and whether the server is
//! of the kind that is wanted.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use postgres_protocol::message::backend::{Message, PARAMETER_STATUS_TAG};
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use crate::client::auth::Login;
use crate::client::{Client, Peer};
use crate::conninfo::{
    ChannelBindingMode, Config, Host, LoadBalance, ProtocolVersion, Replication, SslMode,
    SslNegotiation, TargetSession,
};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Frame, Framed, Stream};
use crate::net::{self, Address};
use crate::server_error::ServerError;
use crate::tls;

/// The largest message before the login is through.
const LARGEST_BEFORE_LOGIN: usize = 64 << 10;
/// More parameters than any server reports.
const MOST_PARAMETERS: usize = 256;

/// Whether a connection is to be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Always,
}

impl Client {
    /// Connects to the first of the configured servers that will have us and is of the wanted kind.
    ///
    /// Hosts are tried in order (or at random), each within `connect_timeout`. A server that refuses
    /// the login ends the search, as in libpq.
    ///
    /// Dropping the future closes whatever was open.
    ///
    /// # Errors
    /// The last server's; if there were several, its message names them all, each with its causes.
    pub async fn connect(config: &Config) -> Result<Self> {
        let config = Arc::new(config.clone());
        let mut failures = Vec::new();
        let passes: &[TargetSession] = match config.target {
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
            ref target => std::slice::from_ref(target),
        };
        for target in passes {
            let mut hosts: Vec<&Host> = config.hosts.iter().collect();
            if config.load_balance == LoadBalance::Random {
                shuffle(&mut hosts);
            }
            for host in hosts {
                match connect_to_host(&config, host, *target).await {
                    Ok(client) => return Ok(client),
                    Err(error) => {
                        let is_final = error.kind() == ErrorKind::Authentication;
                        failures.push((host.to_string(), error));
                        if is_final {
                            return Err(summary(failures));
                        }
                    }
                }
            }
        }
        Err(summary(failures))
    }

    /// Starts a session over a byte stream that somebody else connected, without TLS.
    ///
    /// The host of the configuration is used for the password only.
    ///
    /// Dropping the future drops the stream.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin + 'static,
        config: &Config,
    ) -> Result<Self> {
        let config = Arc::new(config.clone());
        let Some(host) = config.hosts.first() else {
            return Err(Error::config("host", "there is none"));
        };
        let patience = config.connect_timeout.unwrap_or(config.limits.connect);
        let framed = Framed::new(Box::new(stream), patience, LARGEST_BEFORE_LOGIN);
        let login = Login::new(&config, host, None, false);
        let peer = Peer {
            config: Arc::clone(&config),
            host: host.clone(),
            address: None,
            encrypted: false,
        };
        match timeout(patience, start_session(framed, login, peer)).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "login",
                format!("not done within {patience:?}"),
            )),
        }
    }
}

fn summary(mut failures: Vec<(String, Error)>) -> Error {
    let Some((host, last)) = failures.pop() else {
        return Error::config("host", "there is none");
    };
    let kind = last.kind();
    if failures.is_empty() {
        return Error::new(kind, host, "no session could be started").caused_by(last);
    }
    let mut others = String::new();
    for (host, error) in failures {
        // Only the last error can be the cause of this one, so the others are told with theirs.
        others.push_str(&format!("; before that {error}"));
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            others.push_str(&format!(": {error}"));
            cause = error.source();
        }
        others.push_str(&format!(" ({host})"));
    }
    Error::new(kind, host, format!("no session could be started{others}")).caused_by(last)
}

fn shuffle<T>(items: &mut [T]) {
    // Seeded by the standard library at random; fair enough to spread load.
    let state = RandomState::new();
    for index in (1..items.len()).rev() {
        let mut hasher = state.build_hasher();
        hasher.write_usize(index);
        let bound = u64::try_from(index + 1).unwrap_or(1);
        let other = usize::try_from(hasher.finish() % bound).unwrap_or(0);
        items.swap(index, other);
    }
}

async fn connect_to_host(
    config: &Arc<Config>,
    host: &Host,
    target: TargetSession,
) -> Result<Client> {
    let patience = config.connect_timeout.unwrap_or(config.limits.connect);
    let late = || {
        Error::new(
            ErrorKind::Timeout,
            host.to_string(),
            format!("no session within {patience:?}"),
        )
    };
    let mut addresses = match timeout(patience, net::resolve(host)).await {
        Ok(addresses) => addresses?,
        Err(_) => return Err(late()),
    };
    if config.load_balance == LoadBalance::Random {
        shuffle(&mut addresses);
    }
    let mut last = Error::new(ErrorKind::Io, host.to_string(), "the name has no address");
    for address in addresses {
        // Each address has the whole time, so that one that swallows packets does not starve the others.
        let attempt = async {
            let mut client = connect_to_address(config, host, &address).await?;
            check_target(&mut client, target).await?;
            Ok::<_, Error>(client)
        };
        match timeout(patience, attempt).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) if error.kind() == ErrorKind::Authentication => return Err(error),
            Ok(Err(error)) => last = error,
            Err(_) => last = late(),
        }
    }
    Err(last)
}

async fn connect_to_address(
    config: &Arc<Config>,
    host: &Host,
    address: &Address,
) -> Result<Client> {
    let may_be_plain = config.channel_binding != ChannelBindingMode::Require;
    let attempts: &[Encryption] = if host.is_unix() {
        &[Encryption::Never]
    } else {
        match config.ssl_mode {
            SslMode::Disable => &[Encryption::Never],
            SslMode::Allow => &[Encryption::Never, Encryption::Always],
            SslMode::Prefer if !cfg!(feature = "tls") => &[Encryption::Never],
            SslMode::Prefer if may_be_plain => &[Encryption::IfOffered, Encryption::Never],
            SslMode::Prefer => &[Encryption::IfOffered],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Always],
        }
    };
    let mut first = None;
    for encryption in attempts {
        match connect_once(config, host, address, *encryption).await {
            Ok(client) => return Ok(client),
            // Only a server that spoke to us, or a broken handshake, is worth a second attempt.
            Err((error, true)) if first.is_none() => first = Some(error),
            Err((error, _)) => return Err(first.unwrap_or(error)),
        }
    }
    Err(first.unwrap_or_else(Error::closed))
}

/// One attempt; an error says whether another with the other choice of encryption makes sense.
async fn connect_once(
    config: &Arc<Config>,
    host: &Host,
    address: &Address,
    encryption: Encryption,
) -> std::result::Result<Client, (Error, bool)> {
    let io = net::connect(address, config)
        .await
        .map_err(|error| (error, false))?;
    let secured = secure(io, config, host, encryption)
        .await
        .map_err(|error| {
            let retry = encryption == Encryption::IfOffered && error.kind() == ErrorKind::Tls;
            (error, retry)
        })?;
    let encrypted = secured.encrypted;
    let patience = config.connect_timeout.unwrap_or(config.limits.connect);
    let framed = Framed::new(secured.io, patience, LARGEST_BEFORE_LOGIN);
    let login = Login::new(config, host, secured.binding.as_deref(), encrypted);
    let peer = Peer {
        config: Arc::clone(config),
        host: host.clone(),
        address: Some(address.clone()),
        encrypted,
    };
    start_session(framed, login, peer).await.map_err(|error| {
        let spoke = error.server().is_some();
        // Trying again makes sense only if the other attempt would differ in encryption.
        let differs = encryption != Encryption::IfOffered || encrypted;
        (error, spoke && differs)
    })
}

/// A connection with what is known of its encryption.
struct Secured {
    io: Box<dyn Stream>,
    encrypted: bool,
    binding: Option<Vec<u8>>,
}

async fn secure(
    io: Box<dyn Stream>,
    config: &Config,
    host: &Host,
    encryption: Encryption,
) -> Result<Secured> {
    let plain = |io| Secured {
        io,
        encrypted: false,
        binding: None,
    };
    if encryption == Encryption::Never {
        return Ok(plain(io));
    }
    let io = if config.ssl_negotiation == SslNegotiation::Direct {
        io
    } else {
        let patience = config.connect_timeout.unwrap_or(config.limits.connect);
        let mut framed = Framed::new(io, patience, LARGEST_BEFORE_LOGIN);
        frontend::ssl_request(framed.output());
        framed.flush().await?;
        // What comes before TLS comes from anybody, so one byte is read and no more, and the text of
        // an error is not shown.
        let answer = framed.read_byte().await?;
        let (io, _) = framed.into_parts();
        match (answer, encryption) {
            (b'S', _) => io,
            (b'N', Encryption::IfOffered) => return Ok(plain(io)),
            (b'N', _) => {
                return Err(Error::new(
                    ErrorKind::Tls,
                    "TLS",
                    "the server does not offer it",
                ));
            }
            (b'E', _) => {
                return Err(Error::new(
                    ErrorKind::Tls,
                    "TLS",
                    "the server answered with an error",
                ));
            }
            _ => return Err(Error::protocol("the answer to a request for TLS is none")),
        }
    };
    let secured = tls::client::connect(io, config, host).await?;
    Ok(Secured {
        io: secured.io,
        encrypted: true,
        binding: secured.binding,
    })
}

/// The connection to cancel something over: encrypted if the one to be cancelled was.
pub(super) async fn connect_for_cancel(peer: &Peer) -> Result<Framed> {
    let config = &peer.config;
    let Some(address) = &peer.address else {
        return Err(Error::unsupported(
            "cancel",
            "the server's address is not known",
        ));
    };
    let patience = config.connect_timeout.unwrap_or(config.limits.connect);
    let io = net::connect(address, config).await?;
    let encryption = if peer.encrypted {
        Encryption::Always
    } else {
        Encryption::Never
    };
    let secured = secure(io, config, &peer.host, encryption).await?;
    Ok(Framed::new(secured.io, patience, LARGEST_BEFORE_LOGIN))
}

async fn start_session(mut framed: Framed, mut login: Login<'_>, peer: Peer) -> Result<Client> {
    let config = Arc::clone(&peer.config);
    send_startup(&mut framed, &config).await?;
    let mut parameters = BTreeMap::new();
    let mut key = None;
    let mut authenticated = false;
    loop {
        let frame = framed.read().await?;
        match frame.tag() {
            b'E' => {
                let error = ServerError::parse(&frame.body());
                return Err(Error::from_server("login", error));
            }
            b'N' => {
                if let Some(handler) = &config.notices {
                    handler.call(&ServerError::parse(&frame.body()));
                }
            }
            b'v' if !authenticated => accept_older_protocol(&frame, &config)?,
            b'R' if !authenticated => {
                authenticated = login.answer(frame.decode()?, &mut framed).await?;
            }
            PARAMETER_STATUS_TAG if authenticated => {
                note_parameter(frame, &mut parameters)?;
            }
            b'K' if authenticated => {
                let mut body = frame.body();
                if body.len() < 5 || body.len() > 4 + 256 {
                    return Err(Error::protocol("the cancel key has an impossible length"));
                }
                key = Some((body.get_i32(), body));
            }
            b'Z' if authenticated => break,
            tag => {
                return Err(Error::protocol(format!(
                    "{:?} is not expected during login",
                    char::from(tag)
                )));
            }
        }
    }
    framed.largest = config.limits.message;
    framed.patience = config.limits.silence;
    Ok(Client::new(framed, peer, parameters, key))
}

async fn send_startup(framed: &mut Framed, config: &Config) -> Result<()> {
    let mut parameters = vec![("user", config.user.as_str())];
    // libpq's programs name the database "replication" when they name none.
    let dbname = match config.replication {
        Replication::Physical if config.dbname == config.user => "replication",
        _ => &config.dbname,
    };
    parameters.push(("database", dbname));
    if let Some(word) = config.replication.word() {
        parameters.push(("replication", word));
    }
    parameters.extend(
        config
            .settings
            .iter()
            .map(|(name, value)| (*name, value.as_str())),
    );
    let output = framed.output();
    frontend::startup_message(parameters, output).map_err(|error| {
        Error::config("startup", "a parameter cannot be sent").caused_by_io(error)
    })?;
    if config.protocol.1 == ProtocolVersion::V3_2 {
        // The library writes 3.0; the minor version is the last of the first eight bytes.
        if let Some(mut version) = output.get_mut(4..8) {
            version.put_i32(3 << 16 | 2);
        }
    }
    framed.flush().await
}

fn accept_older_protocol(frame: &Frame, config: &Config) -> Result<()> {
    let mut body = frame.body();
    if body.len() < 8 {
        return Err(Error::protocol(
            "the negotiation of the protocol version breaks off",
        ));
    }
    let (offered, options) = (body.get_i32(), body.get_i32());
    let minor = offered & 0xFFFF;
    let accepted = match config.protocol.0 {
        ProtocolVersion::V3_0 => true,
        ProtocolVersion::V3_2 => minor >= 2,
    };
    if options != 0 || !accepted || config.protocol.1 == ProtocolVersion::V3_0 {
        return Err(Error::unsupported(
            "protocol",
            format!("the server offers version 3.{minor}"),
        ));
    }
    Ok(())
}

/// Notes a parameter of the session; how many there can be is limited.
pub(super) fn note_parameter(
    frame: Frame,
    parameters: &mut BTreeMap<String, String>,
) -> Result<()> {
    let Message::ParameterStatus(body) = frame.decode()? else {
        return Err(Error::protocol("a parameter is none"));
    };
    let text = |text: std::io::Result<&str>| match text {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(Error::protocol("a parameter is not UTF-8").caused_by_io(error)),
    };
    parameters.insert(text(body.name())?, text(body.value())?);
    if parameters.len() > MOST_PARAMETERS {
        return Err(Error::protocol(
            "more session parameters than any server has",
        ));
    }
    Ok(())
}

/// Finds out whether the server is of the wanted kind, from what it reported or, before 14, by asking.
async fn check_target(client: &mut Client, target: TargetSession) -> Result<()> {
    let unwanted =
        |reason: &'static str| Error::new(ErrorKind::Server, "target_session_attrs", reason);
    let asks_writes = matches!(target, TargetSession::ReadWrite | TargetSession::ReadOnly);
    if target == TargetSession::Any {
        return Ok(());
    }
    let reported = |client: &Client, name: &str| client.parameter(name).map(|value| value == "on");
    let in_recovery = reported(client, "in_hot_standby");
    if asks_writes {
        let read_only = match (
            in_recovery,
            reported(client, "default_transaction_read_only"),
        ) {
            (Some(standby), Some(read_only)) => standby || read_only,
            _ => client.show("transaction_read_only").await? == "on",
        };
        return match (read_only, target) {
            (true, TargetSession::ReadWrite) => Err(unwanted("the session may not write")),
            (false, TargetSession::ReadOnly) => Err(unwanted("the session may write")),
            _ => Ok(()),
        };
    }
    let standby = match in_recovery {
        Some(standby) => standby,
        None => {
            let results = client
                .simple_query("SELECT pg_catalog.pg_is_in_recovery()")
                .await?;
            let value = results.first().and_then(|result| result.value(0, 0));
            value == Some("t")
        }
    };
    match (standby, target) {
        (true, TargetSession::Primary) => Err(unwanted("the server is in recovery")),
        (false, TargetSession::Standby) => Err(unwanted("the server is not in recovery")),
        _ => Ok(()),
    }
}
