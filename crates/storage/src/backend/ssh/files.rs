//! Files on the far side: open ones that close themselves, and the questions about names.

use std::sync::Arc;

use bytes::Bytes;

use super::client::{Connection, Lost, Said};
use super::wire::{self, Answer, Attrs, Status};
use crate::error::{Error, ErrorKind, Operation, Result};

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failed {
    Lost(Lost),
    Said(Said),
}

impl Failed {
    pub(super) fn status(&self) -> Option<Status> {
        match self {
            Self::Lost(_) => None,
            Self::Said(said) => Some(said.0),
        }
    }

    /// Lowers it for the caller.
    pub(super) fn lower(self, operation: Operation, subject: &str) -> Error {
        let kind = match self.status() {
            None => ErrorKind::Unavailable,
            Some(Status::NoSuchFile) => ErrorKind::NotFound,
            Some(Status::PermissionDenied) => ErrorKind::Denied,
            Some(Status::Unsupported) => ErrorKind::Unsupported,
            Some(Status::BadMessage | Status::Ok | Status::Eof) => ErrorKind::Corrupt,
            Some(Status::Failure | Status::Other(_)) => ErrorKind::Unavailable,
        };
        let error = Error::new(kind, operation).subject(subject);
        match self {
            Self::Lost(lost) => error.because(lost),
            Self::Said(said) => error.because(said),
        }
    }
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// An answer of another sort than the request calls for.
pub(super) fn unexpected(answer: Answer) -> Failed {
    Failed::Said(match answer {
        Answer::Status(status, message) => Said(status, message),
        _ => Said(Status::BadMessage, "an answer to something else".to_owned()),
    })
}

impl Connection {
    /// A request that is answered by nothing but success or failure.
    pub(super) async fn act(
        &self,
        kind: u8,
        fill: impl FnOnce(wire::Packet) -> wire::Packet,
    ) -> Result<(), Failed> {
        match self.ask(kind, fill).await? {
            Answer::Status(Status::Ok, _) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn extended(
        &self,
        name: &str,
        fill: impl FnOnce(wire::Packet) -> wire::Packet,
    ) -> Result<(), Failed> {
        self.act(wire::EXTENDED, |packet| fill(packet.bytes(name.as_bytes())))
            .await
    }

    pub(super) async fn lstat(&self, path: &str) -> Result<Attrs, Failed> {
        match self
            .ask(wire::LSTAT, |packet| packet.bytes(path.as_bytes()))
            .await?
        {
            Answer::Attrs(attrs) => Ok(attrs),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn remove(&self, path: &str) -> Result<(), Failed> {
        self.act(wire::REMOVE, |packet| packet.bytes(path.as_bytes()))
            .await
    }

    pub(super) async fn open_file(
        self: &Arc<Self>,
        path: &str,
        flags: u32,
        mode: u32,
    ) -> Result<File, Failed> {
        let fill = |packet: wire::Packet| packet.bytes(path.as_bytes()).u32(flags).mode(mode);
        match self.ask(wire::OPEN, fill).await? {
            Answer::Handle(handle) => Ok(File {
                connection: Arc::clone(self),
                handle,
            }),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn open_dir(self: &Arc<Self>, path: &str) -> Result<File, Failed> {
        match self
            .ask(wire::OPENDIR, |packet| packet.bytes(path.as_bytes()))
            .await?
        {
            Answer::Handle(handle) => Ok(File {
                connection: Arc::clone(self),
                handle,
            }),
            other => Err(unexpected(other)),
        }
    }
}

/// An open file or directory; closed when it goes.
#[derive(Debug)]
pub(super) struct File {
    pub(super) connection: Arc<Connection>,
    handle: Bytes,
}

impl Drop for File {
    fn drop(&mut self) {
        let handle = &self.handle;
        self.connection
            .tell(wire::CLOSE, |packet| packet.bytes(handle));
    }
}

impl File {
    pub(super) async fn stat(&self) -> Result<Attrs, Failed> {
        match self
            .connection
            .ask(wire::FSTAT, |packet| packet.bytes(&self.handle))
            .await?
        {
            Answer::Attrs(attrs) => Ok(attrs),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn write(&self, at: u64, bytes: Bytes) -> Result<(), Failed> {
        let fill = |packet: wire::Packet| packet.bytes(&self.handle).u64(at).bytes(&bytes);
        self.connection.act(wire::WRITE, fill).await
    }

    pub(super) async fn sync(&self) -> Result<(), Failed> {
        self.connection
            .extended("fsync@openssh.com", |packet| packet.bytes(&self.handle))
            .await
    }

    /// Up to `length` bytes; none at the end of the file.
    pub(super) async fn read(&self, at: u64, length: u32) -> Result<Bytes, Failed> {
        let fill = |packet: wire::Packet| packet.bytes(&self.handle).u64(at).u32(length);
        match self.connection.ask(wire::READ, fill).await? {
            Answer::Data(bytes) => Ok(bytes),
            Answer::Status(Status::Eof, _) => Ok(Bytes::new()),
            other => Err(unexpected(other)),
        }
    }

    /// The next names of a directory; none at its end.
    pub(super) async fn names(&self) -> Result<Vec<(Bytes, Attrs)>, Failed> {
        match self
            .connection
            .ask(wire::READDIR, |packet| packet.bytes(&self.handle))
            .await?
        {
            Answer::Names(names) => Ok(names),
            Answer::Status(Status::Eof, _) => Ok(Vec::new()),
            other => Err(unexpected(other)),
        }
    }
}
