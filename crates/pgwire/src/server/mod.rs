//! The server half: what unmodified `pg_basebackup` and `pg_receivewal` of 13 to 18 need, over any
//! [`BackupSource`], and nothing else.

#[cfg(feature = "tls")]
mod again;
mod auth;
mod base_backup;
pub(crate) mod command;
mod listener;
mod reply;
mod session;
mod source;
mod startup;
mod streaming;
pub(crate) mod tar;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime};

use neon_pg_layout::PgMajor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::io::Stream;
#[cfg(feature = "tls")]
pub use crate::tls::server::ServerTls;

pub use auth::{Access, OneTimeToken, ScramVerifier};
pub use listener::Listener;
pub use source::{
    BackupRequest, BackupSource, ByteStream, SourceFacts, SourceTablespace, WalPiece,
};

/// Bounds on what clients may cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerLimits {
    /// How long a client may take to log in.
    pub login: Duration,
    /// How long a client may take to accept what it is sent, or to send the rest of a message.
    pub patience: Duration,
    /// How long a session may be idle between commands.
    pub idle: Duration,
    /// How long a receiver of WAL may be silent; at half of it, it is asked for a sign of life.
    pub receiver: Duration,
    /// How many sessions there may be at once, logged in or not.
    pub sessions: usize,
    /// The largest message accepted, in bytes.
    pub message: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            login: Duration::from_secs(30),
            patience: Duration::from_secs(60),
            idle: Duration::from_secs(30 * 60),
            receiver: Duration::from_secs(60),
            sessions: 64,
            message: 64 << 10,
        }
    }
}

/// How a server behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Who is served.
    pub access: Access,
    /// The certificate to encrypt with; without one, requests for TLS are declined.
    #[cfg(feature = "tls")]
    pub tls: Option<ServerTls>,
    /// Serve nobody without TLS. Not for Unix sockets, whose clients never ask for it.
    pub require_tls: bool,
    /// The version the server says it is, which decides how archives are sent: a client takes servers
    /// up to its own major. 13, the default, serves the clients of 13 to 18.
    pub advertise: PgMajor,
    /// Bounds.
    pub limits: ServerLimits,
    /// The clock that WAL messages are stamped with. Without one they carry no time.
    pub clock: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl ServerOptions {
    /// Serves those that `access` lets in, as a server of 13, without TLS.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            #[cfg(feature = "tls")]
            tls: None,
            require_tls: false,
            advertise: PgMajor::V13,
            limits: ServerLimits::default(),
            clock: None,
        }
    }
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("access", &self.access)
            .field("advertise", &self.advertise)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A server of base backups. Cheap to clone; clones share limits and tokens.
#[derive(Debug, Clone)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: Arc<dyn BackupSource>,
    options: ServerOptions,
    sessions: Semaphore,
    /// Sessions that are only told that there are too many.
    refusals: Semaphore,
    next_process: AtomicI32,
    /// What salts for unknown users are made of.
    secret: [u8; 32],
}

impl Server {
    /// A server of this source.
    ///
    /// # Errors
    /// When the system has no random numbers, or `require_tls` is set without a certificate.
    pub fn new(source: Arc<dyn BackupSource>, options: ServerOptions) -> Result<Self> {
        #[cfg(feature = "tls")]
        let has_tls = options.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let has_tls = false;
        if options.require_tls && !has_tls {
            return Err(Error::config(
                "server",
                "TLS is required, but there is no certificate",
            ));
        }
        Ok(Self(Arc::new(Shared {
            source,
            sessions: Semaphore::new(options.limits.sessions),
            refusals: Semaphore::new(8),
            options,
            next_process: AtomicI32::new(1),
            secret: auth::random()?,
        })))
    }

    /// Serves one client over a connection that was accepted elsewhere, until it ends.
    ///
    /// Dropping the future closes the connection; nothing else is left behind.
    ///
    /// # Errors
    /// How the session failed: the client broke the protocol or went away, did not log in, was too
    /// slow, or was one too many.
    pub async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Result<()> {
        self.serve_stream(Box::new(stream)).await
    }

    async fn serve_stream(&self, stream: Box<dyn Stream>) -> Result<()> {
        let shared = &self.0;
        let process = shared.next_process.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let too_many = || Error::new(ErrorKind::Closed, "server", "there are too many sessions");
        match shared.sessions.try_acquire() {
            Ok(_permit) => session::run(shared, stream, process).await,
            // A few are told why; a flood is not worth that much.
            Err(_) => match shared.refusals.try_acquire() {
                Ok(_permit) => {
                    session::refuse(shared, stream).await;
                    Err(too_many())
                }
                Err(_) => Err(too_many()),
            },
        }
    }
}
