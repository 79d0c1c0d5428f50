//! UPLOAD_MANIFEST: telling a server from 17 on what an earlier backup had, for an incremental one.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use neon_pg_layout::PgMajor;
use postgres_protocol::message::frontend;

use crate::client::{Client, unexpected};
use crate::error::{Error, ErrorKind, Result};

const SUBJECT: &str = "UPLOAD_MANIFEST";
/// How much is sent in one message.
const PIECE: usize = 64 << 10;

impl Client {
    /// Uploads the manifest of an earlier backup. The next BASE_BACKUP of this session may then be
    /// [incremental](crate::BaseBackupOptions::incremental).
    ///
    /// Pieces are taken from `manifest` as fast as the server takes them.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) before 17. A failing source is reported to the server
    /// and then as [`Io`](ErrorKind::Io); the session goes on, as it does after what the server says
    /// (55000 without `summarize_wal`).
    pub async fn upload_manifest(
        &mut self,
        manifest: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<()> {
        if self.major()? < PgMajor::V17 {
            return Err(Error::unsupported(
                SUBJECT,
                "servers before 17 take no incremental backups",
            ));
        }
        let mut exchange = self.exchange()?;
        exchange.send_query(SUBJECT).await?;
        exchange.expect(b'G', SUBJECT).await?;
        let mut manifest = std::pin::pin!(manifest);
        let mut failure = None;
        while let Some(piece) = manifest.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            for piece in piece.chunks(PIECE) {
                exchange.client.framed()?.send_copy_data(&[], piece).await?;
            }
        }
        let framed = exchange.client.framed()?;
        match &failure {
            None => frontend::copy_done(framed.output()),
            Some(_) => frontend::copy_fail("the manifest could not be read", framed.output())
                .map_err(|error| Error::io(SUBJECT, error))?,
        }
        framed.flush().await?;
        let outcome = loop {
            match exchange.receive_or_fail(SUBJECT).await {
                Ok(frame) => match frame.tag() {
                    b'C' => {}
                    b'Z' => {
                        exchange.finish();
                        break Ok(());
                    }
                    _ => return Err(unexpected(SUBJECT, &frame)),
                },
                Err(error) => break Err(error),
            }
        };
        match failure {
            Some(error) => Err(
                Error::new(ErrorKind::Io, SUBJECT, "the manifest cannot be read")
                    .caused_by_io(error),
            ),
            None => outcome,
        }
    }
}
