//! Answering BASE_BACKUP, in the form that goes with the version we say we are.

use bytes::Bytes;
use futures_util::StreamExt;
use neon_pg_layout::{Lsn, PgMajor, TimelineId};

use crate::server::reply::{self, INT8, OID, Refusal, TEXT, column};
use crate::server::session::{Failure, Session, source_failed};
use crate::server::source::{BackupRequest, ByteStream, SourceFacts, WalPiece};
use crate::server::tar::{BLOCK, TarFramer, file_header};

/// How much is sent in one message.
const PIECE: usize = 32 << 10;

type Sent = std::result::Result<(), Failure>;

/// Sends a whole backup.
///
/// A source that fails in the middle ends the command with an error, without a stop position: the
/// client does not take what it has for a backup.
pub(super) async fn send(session: &mut Session<'_>, request: &BackupRequest) -> Sent {
    let facts = session.facts().await?;
    position(session, facts.start, facts.start_timeline);
    tablespaces(session, &facts);
    session.framed.flush().await?;
    let new = session.shared.options.advertise >= PgMajor::V15;
    let mut sender = Sender { session, new };
    if sender.new {
        reply::copy_out(sender.session.framed.output());
    }
    for tablespace in &facts.tablespaces {
        sender
            .begin(Some((tablespace.oid, &tablespace.location)))
            .await?;
        sender.archive(Some(tablespace.oid), request).await?;
        sender.end().await?;
    }
    sender.begin(None).await?;
    sender.archive(None, request).await?;
    if request.wal {
        sender.wal(&facts).await?;
    }
    sender.end().await?;
    if request.manifest {
        sender.manifest(request).await?;
    }
    if sender.new {
        reply::copy_done(sender.session.framed.output());
    }
    position(session, facts.stop, facts.stop_timeline);
    reply::command_complete(session.framed.output(), "BASE_BACKUP");
    Ok(())
}

fn position(session: &mut Session<'_>, lsn: Lsn, timeline: TimelineId) {
    let columns = [column("recptr", TEXT), column("tli", INT8)];
    let row = [Some(lsn.to_string()), Some(timeline.to_string())];
    reply::one_row(session.framed.output(), &columns, &row, "SELECT");
}

fn tablespaces(session: &mut Session<'_>, facts: &SourceFacts) {
    let out = session.framed.output();
    let columns = [
        column("spcoid", OID),
        column("spclocation", TEXT),
        column("size", INT8),
    ];
    reply::row_description(out, &columns);
    for tablespace in &facts.tablespaces {
        let (oid, size) = (
            tablespace.oid.to_string(),
            tablespace.size.map(|size| size.to_string()),
        );
        let location = Some(tablespace.location.as_bytes());
        reply::data_row(
            out,
            &[
                Some(oid.as_bytes()),
                location,
                size.as_deref().map(str::as_bytes),
            ],
        );
    }
    let size = facts.size.map(|size| size.to_string());
    reply::data_row(out, &[None, None, size.as_deref().map(str::as_bytes)]);
    reply::command_complete(out, "SELECT");
}

struct Sender<'a, 'b> {
    session: &'a mut Session<'b>,
    /// The form of servers from 15 on.
    new: bool,
}

impl Sender<'_, '_> {
    /// Begins an archive.
    async fn begin(&mut self, tablespace: Option<(u32, &str)>) -> Sent {
        let framed = &mut self.session.framed;
        if !self.new {
            reply::copy_out(framed.output());
            return Ok(());
        }
        let (name, location) = match tablespace {
            Some((oid, location)) => (format!("{oid}.tar"), location),
            None => ("base.tar".to_owned(), ""),
        };
        framed
            .send_copy_data(b"n", format!("{name}\0{location}\0").as_bytes())
            .await?;
        Ok(())
    }

    /// Ends an archive: in the new form with the blocks of zeros, in the old one the client adds them.
    async fn end(&mut self) -> Sent {
        if self.new {
            self.piece(&[0; 2 * BLOCK]).await
        } else {
            reply::copy_done(self.session.framed.output());
            Ok(())
        }
    }

    async fn piece(&mut self, bytes: &[u8]) -> Sent {
        let prefix: &[u8] = if self.new { b"d" } else { b"" };
        self.session.framed.send_copy_data(prefix, bytes).await?;
        Ok(())
    }

    async fn archive(&mut self, tablespace: Option<u32>, request: &BackupRequest) -> Sent {
        let source = &self.session.shared.source;
        let mut archive = source
            .archive(tablespace, request)
            .await
            .map_err(|error| self.broken(&error))?;
        let mut framer = TarFramer::new();
        while let Some(bytes) = archive.next().await {
            let bytes = bytes.map_err(|error| self.broken(&error))?;
            for part in bytes.chunks(PIECE) {
                framer.push(part);
                while let Some(piece) = framer.next().map_err(|error| self.broken(&error))? {
                    self.piece(&piece).await?;
                }
            }
        }
        framer.finish().map_err(|error| self.broken(&error))
    }

    async fn manifest(&mut self, request: &BackupRequest) -> Sent {
        let source = &self.session.shared.source;
        let manifest: ByteStream = source
            .manifest(request)
            .await
            .map_err(|error| self.broken(&error))?;
        if self.new {
            self.session.framed.send_copy_data(b"m", &[]).await?;
        } else {
            reply::copy_out(self.session.framed.output());
        }
        let mut manifest = manifest;
        while let Some(bytes) = manifest.next().await {
            let bytes = bytes.map_err(|error| self.broken(&error))?;
            for part in bytes.chunks(PIECE) {
                self.piece(part).await?;
            }
        }
        if !self.new {
            reply::copy_done(self.session.framed.output());
        }
        Ok(())
    }

    /// Adds the WAL from the start to the stop position to the base archive: whole segments, oldest
    /// first, each followed by the mark that it needs no archiving, and the histories of timelines.
    async fn wal(&mut self, facts: &SourceFacts) -> Sent {
        let size = facts.wal_segment_size;
        let mut at = facts.start.start_of(size);
        while at < facts.stop {
            // A segment in which the timeline changes is that of the new one.
            let end = at.saturating_add(size);
            let timeline = if end > facts.stop {
                facts.stop_timeline
            } else {
                self.timeline_at(facts, end).await?
            };
            let name = segment_name(timeline, at, size);
            self.header(&format!("pg_wal/{name}"), size).await?;
            self.segment(timeline, at, facts).await?;
            self.header(&format!("pg_wal/archive_status/{name}.done"), 0)
                .await?;
            at = end;
        }
        if facts.stop_timeline != TimelineId::FIRST {
            let timeline = facts.stop_timeline;
            let source = &self.session.shared.source;
            let history = source.timeline_history(timeline).await;
            if let Some(history) = history.map_err(|error| self.broken(&error))? {
                let name = format!("{:08X}.history", timeline.get());
                let length = u64::try_from(history.len()).unwrap_or(0);
                self.header(&format!("pg_wal/{name}"), length).await?;
                self.piece(&history).await?;
                let padding = history.len().next_multiple_of(BLOCK) - history.len();
                if let Some(padding) = [0; BLOCK]
                    .get(..padding)
                    .filter(|padding| !padding.is_empty())
                {
                    self.piece(padding).await?;
                }
                self.header(&format!("pg_wal/archive_status/{name}.done"), 0)
                    .await?;
            }
        }
        Ok(())
    }

    async fn header(&mut self, name: &str, size: u64) -> Sent {
        let header = file_header(name, size, 0o600).map_err(|error| self.broken(&error))?;
        self.piece(&header).await
    }

    /// The timeline of the segment that ends at this position.
    async fn timeline_at(
        &mut self,
        facts: &SourceFacts,
        end: Lsn,
    ) -> std::result::Result<TimelineId, Failure> {
        let mut timeline = facts.start_timeline;
        // No chain of timelines between start and stop of one backup is longer.
        for _ in 0..1024 {
            let last = Lsn(end.0.saturating_sub(1));
            match self.session.shared.source.wal(timeline, last, 1).await {
                Ok(WalPiece::TimelineEnd { next, at }) if at <= last => timeline = next,
                Ok(_) => return Ok(timeline),
                Err(error) => return Err(self.broken(&error)),
            }
        }
        Err(Failure::Refused(Refusal::new(
            "XX000",
            "the timelines go round in a circle",
        )))
    }

    /// One whole segment; what lies after the stop position, if the source has no more, is zeros. Before
    /// it nothing may be missing: zeros in its place would end recovery early.
    async fn segment(&mut self, timeline: TimelineId, start: Lsn, facts: &SourceFacts) -> Sent {
        let size = facts.wal_segment_size;
        let end = start.saturating_add(size);
        let mut at = start;
        while at < end {
            let left = usize::try_from(end.0 - at.0).unwrap_or(PIECE).min(PIECE);
            let found = self.session.shared.source.wal(timeline, at, left).await;
            let bytes = match found.map_err(|error| self.broken(&error))? {
                WalPiece::Data(bytes) if !bytes.is_empty() && bytes.len() <= left => bytes,
                WalPiece::CaughtUp | WalPiece::TimelineEnd { .. } if at >= facts.stop => {
                    Bytes::from(vec![0; left])
                }
                WalPiece::Data(_) | WalPiece::CaughtUp | WalPiece::TimelineEnd { .. } => {
                    return Err(self.broken(&std::io::ErrorKind::InvalidData.into()));
                }
                WalPiece::Removed => return Err(self.broken(&std::io::ErrorKind::NotFound.into())),
            };
            self.piece(&bytes).await?;
            at = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// The source failed in the middle.
    fn broken(&self, error: &std::io::Error) -> Failure {
        source_failed(error)
    }
}

pub(super) fn segment_name(timeline: TimelineId, start: Lsn, size: u64) -> String {
    let number = start.0 / size.max(1);
    let per_log = (1_u64 << 32) / size.max(1);
    format!(
        "{:08X}{:08X}{:08X}",
        timeline.get(),
        number / per_log.max(1),
        number % per_log.max(1)
    )
}
