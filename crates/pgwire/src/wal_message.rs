//! What travels inside CopyData while WAL is streamed, both directions.
//!
//! Source: "Streaming Replication Protocol"; integers are big-endian, times are microseconds since
//! 2000-01-01 00:00 UTC.

use bytes::{Buf, BufMut, Bytes};
use neon_pg_layout::Lsn;

use crate::error::{Error, Result};

/// The header of a WAL message: kind, start, end of the server's WAL, time.
pub(crate) const WAL_HEADER: usize = 25;

/// From the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromServer {
    Wal {
        start: Lsn,
        server_end: Lsn,
        sent_at: i64,
        data: Bytes,
    },
    Keepalive {
        server_end: Lsn,
        sent_at: i64,
        reply_requested: bool,
    },
}

impl FromServer {
    #[inline]
    pub(crate) fn parse(mut body: Bytes) -> Result<Self> {
        match (body.first(), body.len()) {
            (Some(b'w'), WAL_HEADER..) => {
                body.advance(1);
                Ok(Self::Wal {
                    start: Lsn(body.get_u64()),
                    server_end: Lsn(body.get_u64()),
                    sent_at: body.get_i64(),
                    data: body,
                })
            }
            (Some(b'k'), 18) => {
                body.advance(1);
                Ok(Self::Keepalive {
                    server_end: Lsn(body.get_u64()),
                    sent_at: body.get_i64(),
                    reply_requested: body.get_u8() != 0,
                })
            }
            _ => Err(Error::protocol(
                "a message in the stream of WAL is malformed",
            )),
        }
    }
}

/// The header of WAL data for a client.
pub(crate) fn wal_header(start: Lsn, server_end: Lsn, now: i64) -> [u8; WAL_HEADER] {
    let mut header = [0; WAL_HEADER];
    let mut buffer = header.as_mut_slice();
    buffer.put_u8(b'w');
    buffer.put_u64(start.0);
    buffer.put_u64(server_end.0);
    buffer.put_i64(now);
    header
}

/// A keep-alive for a client.
pub(crate) fn keepalive(server_end: Lsn, now: i64, reply_requested: bool) -> [u8; 18] {
    let mut message = [0; 18];
    let mut buffer = message.as_mut_slice();
    buffer.put_u8(b'k');
    buffer.put_u64(server_end.0);
    buffer.put_i64(now);
    buffer.put_u8(u8::from(reply_requested));
    message
}

/// From the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromClient {
    Status {
        write: Lsn,
        flush: Lsn,
        apply: Lsn,
        reply_requested: bool,
    },
    /// Feedback of a hot standby, of no concern to us.
    Feedback,
}

impl FromClient {
    pub(crate) fn parse(mut body: Bytes) -> Result<Self> {
        match (body.first(), body.len()) {
            (Some(b'r'), 34) => {
                body.advance(1);
                let (write, flush, apply) = (body.get_u64(), body.get_u64(), body.get_u64());
                body.advance(8);
                Ok(Self::Status {
                    write: Lsn(write),
                    flush: Lsn(flush),
                    apply: Lsn(apply),
                    reply_requested: body.get_u8() != 0,
                })
            }
            (Some(b'h'), 25) => Ok(Self::Feedback),
            _ => Err(Error::protocol(
                "a message of the receiver of WAL is malformed",
            )),
        }
    }
}

/// A status message for a server.
pub(crate) fn status(
    write: Lsn,
    flush: Lsn,
    apply: Lsn,
    now: i64,
    reply_requested: bool,
) -> [u8; 34] {
    let mut message = [0; 34];
    let mut buffer = message.as_mut_slice();
    buffer.put_u8(b'r');
    buffer.put_u64(write.0);
    buffer.put_u64(flush.0);
    buffer.put_u64(apply.0);
    buffer.put_i64(now);
    buffer.put_u8(u8::from(reply_requested));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_round_trip() {
        let mut wal = wal_header(Lsn(1), Lsn(2), 3).to_vec();
        wal.extend_from_slice(b"data");
        let expected = FromServer::Wal {
            start: Lsn(1),
            server_end: Lsn(2),
            sent_at: 3,
            data: Bytes::from_static(b"data"),
        };
        assert_eq!(FromServer::parse(wal.into()).unwrap(), expected);
        let sent = keepalive(Lsn(9), -1, true).to_vec();
        assert!(matches!(
            FromServer::parse(sent.into()).unwrap(),
            FromServer::Keepalive {
                server_end: Lsn(9),
                sent_at: -1,
                reply_requested: true
            }
        ));
        let sent = status(Lsn(3), Lsn(2), Lsn(1), 0, false).to_vec();
        assert!(matches!(
            FromClient::parse(sent.into()).unwrap(),
            FromClient::Status {
                write: Lsn(3),
                flush: Lsn(2),
                apply: Lsn(1),
                reply_requested: false
            }
        ));
    }

    #[test]
    fn other_lengths_and_kinds_are_errors() {
        for body in [&b""[..], b"w", b"k0123456789012345678", b"x", &[b'k'; 17]] {
            assert!(FromServer::parse(Bytes::copy_from_slice(body)).is_err());
            assert!(FromClient::parse(Bytes::copy_from_slice(body)).is_err());
        }
    }
}
