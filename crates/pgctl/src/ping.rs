//! Asking a server whether it takes connections, without logging in.
//!
//! A start-up packet is sent and the first answer looked at, as `pg_isready` does: any request for
//! authentication means that the server serves; an error says why it does not.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// What a server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It takes connections.
    Accepting,
    /// It is there and does not: it starts, stops, or recovers.
    Rejecting,
    /// Nobody answers.
    Silent,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

/// A start-up packet of protocol 3.0 (`src/include/libpq/pqcomm.h`) for user and database `postgres`.
const STARTUP: &[u8] = b"\x00\x00\x00\x3f\x00\x03\x00\x00user\0postgres\0database\0postgres\0application_name\0neon\0\0";

/// An answer that takes longer is none.
const LIMIT: Duration = Duration::from_secs(5);

/// `ERRCODE_CANNOT_CONNECT_NOW`.
const CANNOT_CONNECT_NOW: &[u8] = b"C57P03\0";

/// Asks. Dropping the future closes the connection.
pub(crate) async fn ping(address: &Address) -> Answer {
    let asked = async {
        match address {
            Address::Socket(path) => ask(UnixStream::connect(path).await?).await,
            Address::Tcp(host, port) => {
                ask(TcpStream::connect((host.as_str(), *port)).await?).await
            }
        }
    };
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<Answer> {
    stream.write_all(STARTUP).await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    let [kind, length @ ..] = answer;
    if kind != b'E' {
        return Ok(if kind == b'R' {
            Answer::Accepting
        } else {
            Answer::Silent
        });
    }
    // An error other than "not now" (unknown user, no entry in pg_hba, too many clients) comes from a
    // server that serves.
    let length = u64::from(u32::from_be_bytes(length)).clamp(4, 65_536) - 4;
    let mut fields = Vec::new();
    stream.take(length).read_to_end(&mut fields).await?;
    let not_now = fields
        .windows(CANNOT_CONNECT_NOW.len())
        .any(|window| window == CANNOT_CONNECT_NOW);
    Ok(if not_now {
        Answer::Rejecting
    } else {
        Answer::Accepting
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_packet_states_its_own_length() {
        let length = u32::from_be_bytes(STARTUP[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), STARTUP.len());
    }
}
