//! A client's session.
//!
//! A [`Client`] is a connection: no task runs behind it. Operations take it by `&mut`, streams of WAL
//! and of base backups take it by value and give it back at their end. An operation that fails in the
//! protocol, and a future or stream that is dropped before its end, closes the connection at once, so
//! the server frees what the session held: its slot, its sender process, its backup.

mod auth;
mod backup;
mod cancel;
mod connect;
mod identify;
mod manifest;
mod query;
mod slot;
mod streaming;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use neon_pg_layout::PgMajor;
use postgres_protocol::message::frontend;

use crate::conninfo::{Config, Host};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Frame, Framed};
use crate::net::Address;
use crate::server_error::ServerError;

pub use backup::{
    Archive, BackupEnd, BackupEvent, BackupTarget, BaseBackup, BaseBackupOptions, Checkpoint,
    Compression, CompressionMethod, ManifestChecksum, ManifestOption, Tablespace,
};
pub use cancel::CancelToken;
pub use identify::{SystemIdentity, TimelineHistory};
pub use query::{Column, QueryEvent, QueryStream, ResultSet, Row};
pub use slot::{CreatedSlot, SlotName, SlotPosition};
pub use streaming::{Positions, StreamEnd, StreamOptions, WalEvent, WalStream};

/// Who is at the other end, and how we got there.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) config: Arc<Config>,
    pub(crate) host: Host,
    pub(crate) address: Option<Address>,
    pub(crate) encrypted: bool,
}

/// A session with a server. `Debug` shows no secret.
pub struct Client {
    /// `None` once the connection is closed.
    framed: Option<Framed>,
    peer: Peer,
    parameters: BTreeMap<String, String>,
    key: Option<(i32, Bytes)>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("host", &self.peer.host.to_string())
            .field("open", &self.framed.is_some())
            .finish_non_exhaustive()
    }
}

impl Client {
    fn new(
        framed: Framed,
        peer: Peer,
        parameters: BTreeMap<String, String>,
        key: Option<(i32, Bytes)>,
    ) -> Self {
        Self {
            framed: Some(framed),
            peer,
            parameters,
            key,
        }
    }

    /// The value the server last reported for a parameter, for example `server_version`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's version as it says it, for example `15.18 (Debian 15.18-0+deb12u1)`.
    #[must_use]
    pub fn server_version(&self) -> &str {
        self.parameter("server_version").unwrap_or_default()
    }

    /// The server's major version.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it is none of 13 to 18.
    pub fn major(&self) -> Result<PgMajor> {
        self.server_version().parse().map_err(|_| {
            Error::unsupported(
                "server version",
                format!("{:?} is none of PostgreSQL 13 to 18", self.server_version()),
            )
        })
    }

    /// The process id of the server's end, if it told.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.key.as_ref().map(|(process, _)| *process)
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.peer.encrypted
    }

    /// The server this session is with: `host:port` or the path of a socket.
    #[must_use]
    pub fn host(&self) -> String {
        self.peer.host.to_string()
    }

    /// Whether the connection was closed by a failure or a dropped operation.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.framed.is_none()
    }

    /// The right to cancel what this session does.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the server gave no key.
    pub fn cancel_token(&self) -> Result<CancelToken> {
        match &self.key {
            Some((process, key)) => Ok(CancelToken {
                peer: self.peer.clone(),
                process: *process,
                key: key.clone(),
            }),
            None => Err(Error::unsupported(
                "cancel",
                "the server gave no key to cancel with",
            )),
        }
    }

    /// Ends the session in order. Dropping the client ends it as well, without saying goodbye.
    ///
    /// Dropping the future closes the connection.
    pub async fn close(mut self) {
        if let Some(mut framed) = self.framed.take() {
            frontend::terminate(framed.output());
            framed.shutdown().await;
        }
    }

    /// Begins an exchange of messages. Until it is [finished](Exchange::finish), dropping it closes
    /// the connection.
    fn exchange(&mut self) -> Result<Exchange<'_>> {
        if self.framed.is_none() {
            return Err(Error::closed());
        }
        Ok(Exchange {
            client: self,
            finished: false,
        })
    }

    fn framed(&mut self) -> Result<&mut Framed> {
        self.framed.as_mut().ok_or_else(Error::closed)
    }

    /// The next message that belongs to the exchange: notices go to their handler and parameters are
    /// noted. Dropping the future loses nothing.
    #[inline]
    async fn receive(&mut self) -> Result<Frame> {
        loop {
            let frame = self.framed()?.read().await?;
            match frame.tag() {
                b'N' => self.note(&frame),
                b'S' => connect::note_parameter(frame, &mut self.parameters)?,
                b'A' => {}
                _ => return Ok(frame),
            }
        }
    }

    fn note(&self, frame: &Frame) {
        if let Some(handler) = &self.peer.config.notices {
            handler.call(&ServerError::parse(&frame.body()));
        }
    }

    /// Reads up to the end of the command after the server reported an error. The session goes on
    /// after it, unless the server has ended it.
    async fn after_error(&mut self, subject: &'static str, frame: &Frame) -> (Error, bool) {
        let error = Error::from_server(subject, ServerError::parse(&frame.body()));
        loop {
            match self.receive().await {
                Ok(frame) if frame.tag() == b'Z' => return (error, true),
                // Only what can be under way may still come.
                Ok(frame) if matches!(frame.tag(), b'E' | b'C' | b'd' | b'c') => {}
                Ok(_) | Err(_) => return (error, false),
            }
        }
    }
}

/// An exchange of messages that closes the connection unless it comes to its end.
struct Exchange<'a> {
    client: &'a mut Client,
    finished: bool,
}

impl Exchange<'_> {
    /// The connection is in step again.
    fn finish(mut self) {
        self.finished = true;
    }

    async fn send_query(&mut self, sql: &str) -> Result<()> {
        let framed = self.client.framed()?;
        frontend::query(sql, framed.output())
            .map_err(|error| Error::config("query", "it cannot be sent").caused_by_io(error))?;
        framed.flush().await
    }

    #[inline]
    async fn receive(&mut self) -> Result<Frame> {
        self.client.receive().await
    }

    /// The next message; an error of the server ends the exchange.
    async fn receive_or_fail(&mut self, subject: &'static str) -> Result<Frame> {
        let frame = self.receive().await?;
        if frame.tag() == b'E' {
            let (error, in_step) = self.client.after_error(subject, &frame).await;
            self.finished = in_step;
            return Err(error);
        }
        Ok(frame)
    }

    /// The next message, which must have this tag.
    async fn expect(&mut self, tag: u8, subject: &'static str) -> Result<Frame> {
        let frame = self.receive_or_fail(subject).await?;
        if frame.tag() != tag {
            return Err(unexpected(subject, &frame));
        }
        Ok(frame)
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.client.framed = None;
        }
    }
}

fn unexpected(subject: &'static str, frame: &Frame) -> Error {
    Error::new(
        ErrorKind::Protocol,
        subject,
        format!("{:?} is not expected here", char::from(frame.tag())),
    )
}
