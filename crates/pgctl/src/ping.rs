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
    let (kind, body) = message(&mut stream).await?;
    match kind {
        // An error other than "not now" (unknown user, no entry in pg_hba, too many clients) comes from a
        // server that serves.
        b'E' if holds(&body, CANNOT_CONNECT_NOW) => Ok(Answer::Rejecting),
        b'E' => Ok(Answer::Accepting),
        b'R' => {
            // Nothing it says may stay unread, or it logs a connection that was reset.
            if body == AUTHENTICATED {
                while message(&mut stream).await?.0 != b'Z' {}
                stream.write_all(TERMINATE).await?;
            }
            Ok(Answer::Accepting)
        }
        _ => Ok(Answer::Silent),
    }
}

/// `AuthenticationOk`, of a server that asks for no password.
const AUTHENTICATED: [u8; 4] = [0; 4];

/// `Terminate`.
const TERMINATE: &[u8] = b"X\x00\x00\x00\x04";

/// A message of the server: its kind, and what follows the length.
async fn message(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let [kind, length @ ..] = head;
    let length = u64::from(u32::from_be_bytes(length)).clamp(4, 65_536) - 4;
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body).await?;
    Ok((kind, body))
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
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
