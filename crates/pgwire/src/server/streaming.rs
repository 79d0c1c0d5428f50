//! Answering START_REPLICATION.

use std::time::{Duration, UNIX_EPOCH};

use neon_pg_layout::{Lsn, TimelineId};
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind};
use crate::io::Frame;
use crate::server::reply::{self, INT8, Refusal, TEXT, column};
use crate::server::session::{Failure, Session, source_failed};
use crate::server::source::WalPiece;
use crate::wal_message::{FromClient, keepalive, wal_header};

/// PostgreSQL's own `MAX_SEND_SIZE`.
const LARGEST_PIECE: usize = 128 << 10;
/// How often a source that had no more WAL is asked again.
const POLL: Duration = Duration::from_millis(100);

/// What the client has to say while WAL is streamed.
enum Said {
    Nothing,
    Done,
}

/// Streams WAL until the client has enough, or the timeline ends.
pub(super) async fn send(
    session: &mut Session<'_>,
    start: Lsn,
    timeline: Option<TimelineId>,
) -> std::result::Result<(), Failure> {
    let facts = session.facts().await?;
    let timeline = timeline.unwrap_or(facts.timeline);
    let source = std::sync::Arc::clone(&session.shared.source);
    // Whether the timeline is one of this server's, and whether there is anything to stream at all.
    let mut next_timeline = match source.wal(timeline, start, 1).await {
        Ok(WalPiece::TimelineEnd { next, at }) if at <= start && next > timeline => {
            Some((next, at))
        }
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("requested timeline {timeline} is not in this server's history");
            return Err(Refusal::new("XX000", message).into());
        }
        Err(error) => return Err(source_failed(&error)),
    };
    if next_timeline.is_none() {
        reply::copy_both(session.framed.output());
        if start > facts.position {
            let message = format!(
                "requested starting point {start} is ahead of the WAL flush position of this server {}",
                facts.position
            );
            return Err(Refusal::new("XX000", message).into());
        }
        session.framed.flush().await?;
        next_timeline = Stream::new(session, start, timeline, facts.stop)
            .run()
            .await?;
    }
    let out = session.framed.output();
    if let Some((next, at)) = next_timeline {
        let columns = [column("next_tli", INT8), column("next_tli_startpos", TEXT)];
        reply::row_description(out, &columns);
        let (next, at) = (next.to_string(), at.to_string());
        reply::data_row(out, &[Some(next.as_bytes()), Some(at.as_bytes())]);
    }
    reply::command_complete(out, "START_STREAMING");
    reply::command_complete(out, "START_REPLICATION");
    Ok(())
}

struct Stream<'a, 'b> {
    session: &'a mut Session<'b>,
    timeline: TimelineId,
    at: Lsn,
    end: Lsn,
    /// Up to here the source must have everything.
    stop: Lsn,
    last_heard: Instant,
    asked: bool,
}

impl<'a, 'b> Stream<'a, 'b> {
    fn new(session: &'a mut Session<'b>, at: Lsn, timeline: TimelineId, stop: Lsn) -> Self {
        Self {
            session,
            timeline,
            at,
            end: at,
            stop,
            last_heard: Instant::now(),
            asked: false,
        }
    }

    async fn run(mut self) -> std::result::Result<Option<(TimelineId, Lsn)>, Failure> {
        let source = std::sync::Arc::clone(&self.session.shared.source);
        loop {
            // Between pieces, whatever the client has said is heard.
            while let Some(frame) = self.session.framed.buffered()? {
                if matches!(self.hear(&frame).await?, Said::Done) {
                    return self.done().await.map(|()| None);
                }
            }
            let found = source.wal(self.timeline, self.at, LARGEST_PIECE).await;
            match found.map_err(|error| source_failed(&error))? {
                WalPiece::Data(data) if !data.is_empty() && data.len() <= LARGEST_PIECE => {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.end = self.end.max(self.at.saturating_add(length));
                    let header = wal_header(self.at, self.end, self.now());
                    self.session.framed.send_copy_data(&header, &data).await?;
                    self.session.framed.flush().await?;
                    self.at = self.at.saturating_add(length);
                    // Hear what has arrived, without waiting.
                    if let Some(frame) = self.arrived().await?
                        && let Said::Done = self.hear(&frame).await?
                    {
                        return self.done().await.map(|()| None);
                    }
                }
                // What a backup needs is there from the beginning: to wait for it would be to wait for ever.
                WalPiece::CaughtUp if self.at < self.stop => {
                    return Err(source_failed(&std::io::ErrorKind::InvalidData.into()));
                }
                WalPiece::CaughtUp => {
                    if let Said::Done = self.listen(POLL).await? {
                        return self.done().await.map(|()| None);
                    }
                }
                WalPiece::TimelineEnd { next, at } if at <= self.at && next > self.timeline => {
                    self.done().await?;
                    // The client's end of the copy, and whatever came before it.
                    loop {
                        let frame = self.session.framed.read().await?;
                        if let Said::Done = self.hear(&frame).await? {
                            return Ok(Some((next, at)));
                        }
                    }
                }
                // Nothing, too much, or an end that lies ahead.
                WalPiece::Data(_) | WalPiece::TimelineEnd { .. } => {
                    return Err(source_failed(&std::io::ErrorKind::InvalidData.into()));
                }
                WalPiece::Removed => {
                    let message = "requested WAL segment has already been removed";
                    return Err(Refusal::new("58P01", message).into());
                }
            }
        }
    }

    /// Tells the client that the copy is over.
    async fn done(&mut self) -> std::result::Result<(), Failure> {
        reply::copy_done(self.session.framed.output());
        self.session.framed.flush().await?;
        Ok(())
    }

    /// What the client has said already.
    async fn arrived(&mut self) -> std::result::Result<Option<Frame>, Failure> {
        tokio::select! {
            biased;
            frame = self.session.framed.read_on() => Ok(Some(frame?)),
            () = std::future::ready(()) => Ok(None),
        }
    }

    /// Waits for the client to say something, no longer than this, and asks it for a sign of life when
    /// it has been silent for too long.
    async fn listen(&mut self, patience: Duration) -> std::result::Result<Said, Failure> {
        let frame = tokio::select! {
            biased;
            frame = self.session.framed.read_on() => Some(frame?),
            () = sleep(patience) => None,
        };
        if let Some(frame) = frame {
            return self.hear(&frame).await;
        }
        let limit = self.session.shared.options.limits.receiver;
        let silence = self.last_heard.elapsed();
        if silence >= limit {
            let reason = format!("the receiver of WAL was silent for {limit:?}");
            return Err(Error::new(ErrorKind::Timeout, "client", reason).into());
        }
        if silence >= limit / 2 && !self.asked {
            self.asked = true;
            self.send_keepalive(true).await?;
        }
        Ok(Said::Nothing)
    }

    async fn hear(&mut self, frame: &Frame) -> std::result::Result<Said, Failure> {
        self.last_heard = Instant::now();
        self.asked = false;
        match frame.tag() {
            b'd' => {
                if let FromClient::Status {
                    reply_requested: true,
                    ..
                } = FromClient::parse(frame.body())?
                {
                    self.send_keepalive(false).await?;
                }
                Ok(Said::Nothing)
            }
            b'c' => Ok(Said::Done),
            b'X' => Err(Error::new(ErrorKind::Io, "client", "it ended the session").into()),
            _ => Err(Error::protocol("a message that has no place while WAL is streamed").into()),
        }
    }

    async fn send_keepalive(&mut self, reply_requested: bool) -> std::result::Result<(), Failure> {
        let message = keepalive(self.end, self.now(), reply_requested);
        self.session.framed.send_copy_data(&[], &message).await?;
        self.session.framed.flush().await?;
        Ok(())
    }

    fn now(&self) -> i64 {
        let clock = self.session.shared.options.clock.as_ref();
        let since = clock.and_then(|clock| {
            clock()
                .duration_since(UNIX_EPOCH + Duration::from_secs(946_684_800))
                .ok()
        });
        since
            .and_then(|since| i64::try_from(since.as_micros()).ok())
            .unwrap_or(0)
    }
}
