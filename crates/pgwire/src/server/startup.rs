//! From an accepted connection to a client that is let in.

use bytes::{Buf, Bytes};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Framed, Stream};
use crate::server::Shared;
#[cfg(feature = "tls")]
use crate::server::again::Again;
use crate::server::auth::{Access, ScramServer, random};
use crate::server::reply::{self, Refusal};

const SSL_REQUEST: i32 = 80_877_103;
const GSS_REQUEST: i32 = 80_877_104;
const CANCEL_REQUEST: i32 = 80_877_102;
/// PostgreSQL's own limit (`MAX_STARTUP_PACKET_LENGTH`).
const LARGEST_STARTUP: usize = 10_000;
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection with what is known of its encryption.
pub(super) struct Incoming {
    pub(super) framed: Framed,
    binding: Option<Vec<u8>>,
    encrypted: bool,
}

/// What a client says when it starts.
pub(super) struct Startup {
    pub(super) user: String,
    replication: String,
    /// Options of the protocol that we do not know.
    unknown: Vec<String>,
    minor: i32,
}

impl Incoming {
    pub(super) fn new(stream: Box<dyn Stream>, shared: &Shared) -> Self {
        let limits = &shared.options.limits;
        Self {
            framed: Framed::new(stream, limits.login.min(limits.patience), limits.message),
            binding: None,
            encrypted: false,
        }
    }

    /// Answers requests for encryption up to the startup message. `None` for a request to cancel,
    /// which is nothing to us.
    pub(super) async fn startup(mut self, shared: &Shared) -> Result<Option<(Self, Startup)>> {
        // TLS and GSSAPI may each be asked for once.
        for _ in 0..4 {
            let head = self.framed.read_exact(8).await?;
            if head.first() == Some(&TLS_HANDSHAKE) {
                self = self.encrypt(shared, Some(head)).await?;
                continue;
            }
            let mut fields = head;
            let (length, code) = (fields.get_i32(), fields.get_i32());
            let rest = usize::try_from(length)
                .ok()
                .and_then(|length| length.checked_sub(8));
            let rest = match rest {
                Some(rest) if rest <= LARGEST_STARTUP => rest,
                _ => return Err(Error::protocol("a startup message of an impossible length")),
            };
            match code {
                SSL_REQUEST if rest == 0 && !self.encrypted => {
                    self = self.answer_ssl(shared).await?;
                }
                GSS_REQUEST if rest == 0 => {
                    self.framed.output().extend_from_slice(b"N");
                    self.framed.flush().await?;
                }
                CANCEL_REQUEST => return Ok(None),
                version => {
                    let body = self.framed.read_exact(rest).await?;
                    let startup = parse_startup(version, &body);
                    return match startup {
                        Ok(startup) => Ok(Some((self, startup))),
                        Err(refusal) => Err(self.refuse(&refusal).await),
                    };
                }
            }
        }
        Err(Error::protocol(
            "the client asks for encryption again and again",
        ))
    }

    #[cfg(feature = "tls")]
    async fn answer_ssl(mut self, shared: &Shared) -> Result<Self> {
        if shared.options.tls.is_none() {
            return self.decline_ssl().await;
        }
        self.framed.output().extend_from_slice(b"S");
        self.framed.flush().await?;
        self.encrypt(shared, None).await
    }

    #[cfg(not(feature = "tls"))]
    async fn answer_ssl(self, _: &Shared) -> Result<Self> {
        self.decline_ssl().await
    }

    async fn decline_ssl(mut self) -> Result<Self> {
        self.framed.output().extend_from_slice(b"N");
        self.framed.flush().await?;
        Ok(self)
    }

    #[cfg(feature = "tls")]
    async fn encrypt(self, shared: &Shared, first: Option<Bytes>) -> Result<Self> {
        let Some(tls) = &shared.options.tls else {
            return Err(Error::new(
                ErrorKind::Tls,
                "TLS",
                "a handshake without being asked for",
            ));
        };
        let (patience, largest) = (self.framed.patience, self.framed.largest);
        let (stream, mut read) = self.framed.into_parts();
        let direct = first.is_some();
        let stream: Box<dyn Stream> = match first {
            // TLS from the first byte: what was read is part of it.
            Some(first) => {
                let mut all = first.to_vec();
                all.extend_from_slice(&read.split());
                Box::new(Again {
                    first: all.into(),
                    rest: stream,
                })
            }
            // Bytes that came before the handshake were put there by somebody else.
            None if !read.is_empty() => {
                return Err(Error::protocol("unencrypted data after a request for TLS"));
            }
            None => stream,
        };
        let (stream, agreed) = tls.accept(stream).await?;
        if direct && !agreed {
            return Err(Error::new(
                ErrorKind::Tls,
                "TLS",
                "direct TLS without PostgreSQL's ALPN name",
            ));
        }
        Ok(Self {
            framed: Framed::new(stream, patience, largest),
            binding: tls.binding().map(<[u8]>::to_vec),
            encrypted: true,
        })
    }

    #[cfg(not(feature = "tls"))]
    async fn encrypt(self, _: &Shared, _: Option<Bytes>) -> Result<Self> {
        Err(Error::new(ErrorKind::Tls, "TLS", "this build has no TLS"))
    }

    /// Tells the client why it is not served, and gives the error to end the session with.
    pub(super) async fn refuse(mut self, refusal: &Refusal) -> Error {
        let message = refusal.message.clone();
        reply::error(self.framed.output(), "FATAL", refusal);
        self.framed.shutdown().await;
        let kind = match refusal.code {
            "28P01" | "28000" => ErrorKind::Authentication,
            _ => ErrorKind::Protocol,
        };
        Error::new(kind, "client", message)
    }

    /// Lets the client in, or not.
    pub(super) async fn authenticate(
        mut self,
        shared: &Shared,
        startup: &Startup,
    ) -> Result<Framed> {
        if startup.minor > 0 || !startup.unknown.is_empty() {
            reply::negotiate_version(self.framed.output(), &startup.unknown);
        }
        if shared.options.require_tls && !self.encrypted {
            return Err(self
                .refuse(&Refusal::new(
                    "28000",
                    "this server is reached over TLS only",
                ))
                .await);
        }
        if !matches!(startup.replication.as_str(), "true" | "on" | "yes" | "1") {
            let refusal = Refusal::unsupported("this server serves physical replication only");
            return Err(self.refuse(&refusal).await);
        }
        let access = &shared.options.access;
        if !matches!(access, Access::Anybody) {
            match self.scram(shared, &startup.user).await {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Authentication | ErrorKind::Protocol
                    ) =>
                {
                    let message = format!(
                        "password authentication failed for user \"{}\"",
                        startup.user
                    );
                    let refused = self.refuse(&Refusal::new("28P01", message)).await;
                    return Err(refused.caused_by(error));
                }
                Err(error) => return Err(error),
            }
        }
        reply::authentication(self.framed.output(), 0, &[]);
        Ok(self.framed)
    }

    async fn scram(&mut self, shared: &Shared, user: &str) -> Result<()> {
        let Self {
            framed, binding, ..
        } = self;
        let binding = binding.as_deref();
        reply::authentication(framed.output(), 10, &ScramServer::mechanisms(binding));
        framed.flush().await?;
        let frame = framed.read().await?;
        if frame.tag() != b'p' {
            return Err(Error::protocol(
                "something else than the answer to a request for authentication",
            ));
        }
        let nonce: [u8; 18] = random()?;
        let access = &shared.options.access;
        let (scram, answer) =
            ScramServer::start(access, user, &shared.secret, binding, &frame.body(), &nonce)?;
        reply::authentication(framed.output(), 11, answer.as_bytes());
        framed.flush().await?;
        let frame = framed.read().await?;
        if frame.tag() != b'p' {
            return Err(Error::protocol(
                "something else than the end of the authentication",
            ));
        }
        let last = scram.finish(&frame.body())?;
        reply::authentication(framed.output(), 12, last.as_bytes());
        Ok(())
    }
}

fn parse_startup(version: i32, body: &[u8]) -> std::result::Result<Startup, Refusal> {
    let (major, minor) = (version >> 16, version & 0xFFFF);
    if major != 3 {
        return Err(Refusal::unsupported(format!(
            "unsupported frontend protocol {major}.{minor}: server supports 3.0"
        )));
    }
    let malformed = || Refusal::new("08P01", "invalid startup packet layout");
    // Pairs of texts, each ended by a NUL, and one more at the end.
    let body = body.strip_suffix(&[0]).ok_or_else(malformed)?;
    let mut texts = match body {
        [] => None,
        body => Some(
            body.strip_suffix(&[0])
                .ok_or_else(malformed)?
                .split(|byte| *byte == 0),
        ),
    };
    let mut texts = std::iter::from_fn(|| texts.as_mut()?.next());
    let mut startup = Startup {
        user: String::new(),
        replication: String::new(),
        unknown: Vec::new(),
        minor,
    };
    while let Some(name) = texts.next() {
        let value = texts.next().ok_or_else(malformed)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| malformed());
        match name {
            b"user" => startup.user = text(value)?,
            b"replication" => startup.replication = text(value)?.to_ascii_lowercase(),
            name if name.starts_with(b"_pq_.") => startup.unknown.push(text(name)?),
            _ => {}
        }
    }
    if startup.user.is_empty() {
        return Err(Refusal::new(
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    Ok(startup)
}
