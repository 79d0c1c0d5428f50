//! A snapshot offered over the replication protocol, so that a stock `pg_basebackup` takes it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use neon_pagestore::LogPlace;
use neon_pgwire::{Access, OneTimeToken, Secret, Server, ServerOptions};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::neon::Neon;
use crate::snapshots::offered::Offered;
use crate::snapshots::{Found, Snapshots};

/// How to offer a snapshot.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Where to listen; loopback and a free port if not said. There is no encryption: on another address, whoever sees
    /// the traffic sees the data.
    pub address: SocketAddr,
    /// How many backups may be taken before the offer ends.
    pub backups: u32,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            backups: 1,
        }
    }
}

/// An offer: who has the password takes the snapshot, as long as [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct Offer {
    listener: TcpListener,
    server: Server,
    source: Arc<Offered>,
    backups: u32,
    neon: Neon,
    about: OfferAbout,
    token: Secret,
    /// Counts the sessions that the token still lets in.
    admission: OneTimeToken,
}

/// What there is to know to take an offer.
#[derive(Clone, Serialize)]
#[non_exhaustive]
pub struct OfferAbout {
    /// The snapshot.
    pub snapshot: String,
    /// The major version: what `pg_basebackup` must at least be of.
    pub major: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The command that takes it, without the password.
    pub command: String,
    /// What to know before.
    pub notes: Vec<String>,
    /// What to act on before: that it can be reached from other machines.
    pub warnings: Vec<String>,
}

impl fmt::Debug for OfferAbout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfferAbout")
            .field("snapshot", &self.snapshot)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Snapshots<'_> {
    /// Offers a snapshot over the replication protocol. It is served once [`Offer::run`] is called.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a snapshot that nobody could start from such a copy; [`Busy`](ErrorKind::Busy)
    /// when the address is taken; what the storage answers.
    pub async fn serve(&self, found: &Found, options: &ServeOptions) -> Result<Offer> {
        let subject = found.subject();
        let snapshot = found.open().await?;
        let facts = snapshot.facts();
        let elsewhere = |place| place == LogPlace::Archive;
        if facts.log.ranges.iter().any(|range| elsewhere(range.place)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "has its log in an archive, and could not be taken with it",
            )
            .hinted("create an instance from it and take a snapshot of that"));
        }
        let source = Arc::new(Offered::new(&snapshot, &subject).await?);
        let token = Secret::new(format!("{}{}", random_id()?, random_id()?));
        // One session copies, one streams the log.
        let sessions = options.backups.saturating_mul(2);
        let wire = |error| Error::wire(&*subject, error);
        let admission = OneTimeToken::for_sessions(&token, sessions).map_err(wire)?;
        let access = Access::Token(admission.clone());
        let server = Server::new(Arc::clone(&source) as _, ServerOptions::new(access));
        let server = server.map_err(wire)?;
        let listener = TcpListener::bind(options.address).await;
        let listener = listener.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::AddrInUse => ErrorKind::Busy,
                io::ErrorKind::PermissionDenied | io::ErrorKind::AddrNotAvailable => {
                    ErrorKind::Environment
                }
                _ => ErrorKind::Failed,
            };
            let subject = format!("address {}", options.address);
            Error::new(kind, subject, "cannot be listened on").caused_by(error)
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Failed, &*subject, "has no address").caused_by(error)
        })?;
        let about = OfferAbout {
            snapshot: found.asked.clone(),
            major: facts.cluster.major.to_string(),
            address,
            command: command(address, &source),
            notes: source.notes(),
            warnings: exposed(address).into_iter().collect(),
        };
        Ok(Offer {
            listener,
            server,
            source,
            backups: options.backups,
            neon: self.0.clone(),
            about,
            token,
            admission,
        })
    }
}

/// That others can see what is sent, unless only this machine can connect.
fn exposed(address: SocketAddr) -> Option<String> {
    // An address of version 4 written as one of version 6 is still what it is.
    (!address.ip().to_canonical().is_loopback()).then(|| {
        format!(
            "{address} can be reached from other machines, and nothing is encrypted: whoever sees the traffic sees the data. \
             Listen on loopback and tunnel (ssh -L) unless the network is yours alone."
        )
    })
}

fn command(address: SocketAddr, source: &Offered) -> String {
    let host = if address.ip().is_unspecified() {
        // Every address of this machine; which of them the other one sees is not known here.
        "HOST".to_owned()
    } else {
        address.ip().to_string()
    };
    let mut command = format!(
        "pg_basebackup -h {host} -p {} -U neon -D DIRECTORY -X stream",
        address.port()
    );
    for location in source.locations() {
        // Where it was, somebody else's files may be.
        let quoted = location.replace('=', "\\=").replace('\'', "'\\''");
        command.push_str(&format!(" -T '{quoted}'=/NEW/PLACE"));
    }
    command
}

impl Offer {
    /// What to tell who is to take it.
    #[must_use]
    pub fn about(&self) -> &OfferAbout {
        &self.about
    }

    /// The password, good for as many backups as were offered. For `PGPASSWORD`.
    #[must_use]
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// Serves until the backups that were offered have been taken.
    ///
    /// Dropped: all sessions end at once; what somebody took in part is no backup, and their program says so.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled); [`Failed`](ErrorKind::Failed) when programs that broke off have used up the
    /// password, so that nobody could come any more.
    pub async fn run(&self) -> Result<()> {
        let mut sessions: JoinSet<std::result::Result<(), neon_pgwire::Error>> = JoinSet::new();
        loop {
            let pause = std::time::Duration::from_millis(100);
            let accepted = tokio::time::timeout(pause, self.listener.accept()).await;
            self.neon.go_on()?;
            if let Ok(Ok((stream, from))) = accepted {
                drop(stream.set_nodelay(true));
                self.neon.tell(Event::Note(format!(
                    "{from} connected for {}.",
                    self.about.snapshot
                )));
                let server = self.server.clone();
                sessions.spawn(async move { server.serve(stream).await });
            }
            while let Some(ended) = sessions.try_join_next() {
                if let Ok(Err(error)) = ended {
                    self.neon
                        .tell(Event::Note(format!("A session ended: {error}.")));
                }
            }
            let taken = self.source.taken.load(Ordering::Relaxed);
            if taken >= self.backups && sessions.is_empty() {
                return Ok(());
            }
            if self.admission.sessions_left() == 0 && sessions.is_empty() {
                let message = format!(
                    "was taken {taken} times of {}, and its password is used up: somebody connected and broke off",
                    self.backups
                );
                let subject = format!("offer of {}", self.about.snapshot);
                return Err(Error::new(ErrorKind::Failed, subject, message)
                    .hinted("offer it again, for more --backups if several try"));
            }
        }
    }
}
