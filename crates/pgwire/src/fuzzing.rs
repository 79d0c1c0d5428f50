//! What the fuzz targets run, and the property tests with them. Not part of the interface.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use neon_pg_layout::{Lsn, TimelineId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::client::{BaseBackupOptions, Client, StreamOptions};
use crate::conninfo::{Config, Params, Replication, Surroundings};
use crate::server::command::Command;
use crate::server::tar::TarFramer;
use crate::server::{
    Access, BackupRequest, BackupSource, ByteStream, Server, ServerOptions, SourceFacts, WalPiece,
};

/// Says what it was given, then hangs up; takes everything and forgets it.
struct Script(Bytes);

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run(future: impl Future<Output = ()>) {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    {
        runtime.block_on(future);
    }
}

/// Connection strings, and service and password files.
pub fn conninfo(text: &str) {
    crate::conninfo::fuzz::conninfo(text);
    crate::conninfo::fuzz::files(text);
}

/// Certificates.
pub fn certificate(der: &[u8]) {
    #[cfg(feature = "tls")]
    if let Some(certificate) = crate::tls::certificate::Certificate::parse(der) {
        let _: bool = certificate.names("db.example.org") | certificate.names("10.0.0.1");
        drop(certificate.end_point(der));
    }
    #[cfg(not(feature = "tls"))]
    let _: &[u8] = der;
}

/// Commands for the server.
pub fn command(text: &str) {
    drop(Command::parse(text));
}

/// Archives, cut into pieces of every size: what comes out is what went in, up to its end.
pub fn tar(archive: &[u8], piece: usize) {
    let mut framer = TarFramer::new();
    let mut out = Vec::new();
    for piece in archive.chunks(piece.max(1)) {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(bytes)) => out.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    drop(framer.finish());
    assert!(archive.starts_with(&out), "an archive is cut, not changed");
}

/// A client of a server that says these bytes. The first two choose what the client does, and whether
/// the server has let it in already.
pub fn client(said: &[u8]) {
    let [choice, version, said @ ..] = said else {
        return;
    };
    let mut bytes = Vec::new();
    if choice & 0x80 == 0 {
        let version = format!("server_version\0{}.0\0", 13 + version % 6);
        bytes.extend_from_slice(b"R\0\0\0\x08\0\0\0\0S\0\0\0");
        bytes.push(u8::try_from(version.len() + 4).unwrap_or(0));
        bytes.extend_from_slice(version.as_bytes());
        bytes.extend_from_slice(b"Z\0\0\0\x05I");
    }
    bytes.extend_from_slice(said);
    run(async move {
        let mut params = Params::new();
        for (name, value) in [("user", "me"), ("password", "secret"), ("host", "none")] {
            if params.set(name, value).is_err() {
                return;
            }
        }
        let Ok(config) = Config::resolve(&params, &Surroundings::none()) else {
            return;
        };
        let config = config.with_replication(Replication::Physical);
        let Ok(mut client) = Client::over(Script(bytes.into()), &config).await else {
            return;
        };
        match choice % 4 {
            0 => drop(client.simple_query("SELECT").await),
            1 => drop(client.identify_system().await),
            2 => {
                if let Ok(mut backup) = client.base_backup(&BaseBackupOptions::default()).await {
                    while let Ok(Some(_)) = backup.next().await {}
                    drop(backup.finish());
                }
            }
            _ => {
                let options = StreamOptions::new(Lsn(0x100_0000), TimelineId::FIRST);
                if let Ok(mut stream) = client.start_replication(options).await {
                    while let Ok(Some(_)) = stream.next().await {}
                    drop(stream.finish().await);
                }
            }
        }
    });
}

/// Gives a little of everything.
#[derive(Debug)]
struct Little;

#[async_trait]
impl BackupSource for Little {
    async fn facts(&self) -> io::Result<SourceFacts> {
        Ok(SourceFacts {
            system_identifier: 1,
            timeline: TimelineId::FIRST,
            position: Lsn(0x100_1000),
            start: Lsn(0x100_0000),
            start_timeline: TimelineId::FIRST,
            stop: Lsn(0x100_1000),
            stop_timeline: TimelineId::FIRST,
            wal_segment_size: 1 << 20,
            group_access: false,
            tablespaces: Vec::new(),
            size: None,
        })
    }

    async fn archive(&self, _: Option<u32>, _: &BackupRequest) -> io::Result<ByteStream> {
        Ok(stream::iter([Ok(Bytes::from_static(&[0; 1024]))]).boxed())
    }

    async fn manifest(&self, _: &BackupRequest) -> io::Result<ByteStream> {
        Ok(stream::iter([Ok(Bytes::from_static(b"{}"))]).boxed())
    }

    async fn wal(&self, _: TimelineId, from: Lsn, max: usize) -> io::Result<WalPiece> {
        if from >= Lsn(0x100_1000) {
            return Ok(WalPiece::CaughtUp);
        }
        Ok(WalPiece::Data(
            Bytes::from_static(&[7; 512]).split_to(max.min(512)),
        ))
    }

    async fn timeline_history(&self, _: TimelineId) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

/// A server of a client that says these bytes, after a login if the first one is even.
pub fn server(said: &[u8]) {
    let Some((choice, said)) = said.split_first() else {
        return;
    };
    let mut bytes = Vec::new();
    if choice % 2 == 0 {
        bytes.extend_from_slice(b"\0\0\0\x22\0\x03\0\0user\0me\0replication\0true\0\0");
    }
    bytes.extend_from_slice(said);
    run(async move {
        let options = ServerOptions::new(Access::Anybody);
        if let Ok(server) = Server::new(Arc::new(Little), options) {
            drop(server.serve(Script(bytes.into())).await);
        }
    });
}
