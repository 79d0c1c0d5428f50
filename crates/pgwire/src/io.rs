//! Messages over a byte stream, both directions, with limits.
//!
//! Reading and writing keep their state in here, so a future that is dropped between two polls loses
//! nothing: what was read stays in the input buffer, what was not written in the output buffer.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Stream for T {}

/// How much is read at a time. A base backup comes in messages of 32 KiB, WAL in up to 128 KiB.
const READ_SIZE: usize = 128 << 10;
/// The length of a message's tag and length field.
pub(crate) const HEADER: usize = 5;

/// One message, header included.
#[derive(Clone)]
pub(crate) struct Frame {
    raw: Bytes,
    tag: u8,
}

impl Frame {
    pub(crate) fn tag(&self) -> u8 {
        self.tag
    }

    /// What follows the header.
    pub(crate) fn body(&self) -> Bytes {
        self.raw.slice(HEADER.min(self.raw.len())..)
    }

    /// The message decoded, for the tags that `postgres-protocol` knows.
    pub(crate) fn decode(self) -> Result<Message> {
        let tag = self.tag;
        match Message::parse(&mut BytesMut::from(self.raw)) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Error::protocol(format!(
                "message {:?} breaks off",
                char::from(tag)
            ))),
            Err(error) => {
                let reason = format!("message {:?} cannot be decoded", char::from(tag));
                Err(Error::protocol(reason).caused_by_io(error))
            }
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies may be passwords.
        write!(
            f,
            "Frame({:?}, {} bytes)",
            char::from(self.tag),
            self.raw.len()
        )
    }
}

/// A byte stream cut into messages.
pub(crate) struct Framed {
    io: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    /// How long a message may take to arrive, or to be taken by the peer.
    pub(crate) patience: Duration,
    /// The largest message accepted.
    pub(crate) largest: usize,
}

impl fmt::Debug for Framed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed").finish_non_exhaustive()
    }
}

impl Framed {
    pub(crate) fn new(io: Box<dyn Stream>, patience: Duration, largest: usize) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            output: BytesMut::new(),
            patience,
            largest,
        }
    }

    /// Gives the byte stream back, with what was read from it and not used.
    pub(crate) fn into_parts(self) -> (Box<dyn Stream>, BytesMut) {
        (self.io, self.input)
    }

    /// Where messages are put until [`flush`](Self::flush).
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Writes out what was put in the output buffer.
    ///
    /// Dropping the future keeps what was not written; flush again.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let patience = self.patience;
        match timeout(patience, self.flush_patiently()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::io("sending", error)),
            Err(_) => Err(timed_out("sending", patience)),
        }
    }

    async fn flush_patiently(&mut self) -> io::Result<()> {
        while self.output.has_remaining() {
            if self.io.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.io.flush().await
    }

    /// Writes `data` as the body of a CopyData message without copying it, `prefix` before it.
    pub(crate) async fn send_copy_data(&mut self, prefix: &[u8], data: &[u8]) -> Result<()> {
        let Ok(length) = i32::try_from(4 + prefix.len() + data.len()) else {
            return Err(Error::config("copy data", "more than a message can hold"));
        };
        self.output.extend_from_slice(b"d");
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(prefix);
        if self.output.len() + data.len() <= READ_SIZE {
            self.output.extend_from_slice(data);
            if self.output.len() < READ_SIZE / 2 {
                return Ok(());
            }
            return self.flush().await;
        }
        let patience = self.patience;
        let write = async {
            self.flush_patiently().await?;
            self.io.write_all(data).await
        };
        match timeout(patience, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::io("sending", error)),
            Err(_) => Err(timed_out("sending", patience)),
        }
    }

    /// The next message, waiting for it no longer than `patience`.
    ///
    /// Dropping the future loses nothing. A message longer than allowed is an error before any of it
    /// is buffered.
    #[inline]
    pub(crate) async fn read(&mut self) -> Result<Frame> {
        if let Some(frame) = self.buffered()? {
            return Ok(frame);
        }
        let patience = self.patience;
        match timeout(patience, self.read_on()).await {
            Ok(result) => result,
            Err(_) => Err(timed_out("receiving", patience)),
        }
    }

    /// The next message, however long it takes.
    pub(crate) async fn read_on(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// A message that has been read already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>> {
        let header = Header::parse(&self.input)
            .map_err(|error| Error::protocol("its length is impossible").caused_by_io(error))?;
        let Some(header) = header else {
            return Ok(None);
        };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > self.largest {
            return Err(Error::protocol(format!(
                "{:?} of {length} bytes, the limit is {}",
                char::from(header.tag()),
                self.largest
            )));
        }
        let total = length + 1;
        if self.input.len() < total {
            return Ok(None);
        }
        Ok(Some(Frame {
            tag: header.tag(),
            raw: self.input.split_to(total).freeze(),
        }))
    }

    /// Exactly `length` bytes, outside any message.
    pub(crate) async fn read_exact(&mut self, length: usize) -> Result<Bytes> {
        let patience = self.patience;
        let read = async {
            while self.input.len() < length {
                self.fill().await?;
            }
            Ok(self.input.split_to(length).freeze())
        };
        match timeout(patience, read).await {
            Ok(result) => result,
            Err(_) => Err(timed_out("receiving", patience)),
        }
    }

    /// A single byte, reading not one more: what comes after it may be for TLS.
    pub(crate) async fn read_byte(&mut self) -> Result<u8> {
        match timeout(self.patience, self.io.read_u8()).await {
            Ok(Ok(byte)) => Ok(byte),
            Ok(Err(error)) => Err(Error::io("receiving", error)),
            Err(_) => Err(timed_out("receiving", self.patience)),
        }
    }

    async fn fill(&mut self) -> Result<()> {
        // With nobody holding on to earlier messages, this gives the same memory again.
        self.input.reserve(READ_SIZE);
        match self.io.read_buf(&mut self.input).await {
            Ok(0) => Err(Error::io("receiving", io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io("receiving", error)),
        }
    }

    /// Says goodbye as far as that is possible without waiting for long.
    pub(crate) async fn shutdown(mut self) {
        let patience = Duration::from_secs(2).min(self.patience);
        let goodbye = async {
            self.flush_patiently().await?;
            self.io.shutdown().await
        };
        drop(timeout(patience, goodbye).await);
    }
}

pub(crate) fn timed_out(subject: &'static str, patience: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        subject,
        format!("nothing for {patience:?}"),
    )
}
