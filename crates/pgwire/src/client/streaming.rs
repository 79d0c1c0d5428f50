//! START_REPLICATION PHYSICAL: WAL as the server writes it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use neon_pg_layout::{Lsn, TimelineId};
use postgres_protocol::message::frontend;
use tokio::time::{Instant, sleep_until};

use crate::client::identify::{parsed, timeline};
use crate::client::slot::SlotName;
use crate::client::{Client, ResultSet, query, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Frame, timed_out};
use crate::wal_message::{FromServer, status};

const SUBJECT: &str = "START_REPLICATION";
/// 2000-01-01, from which PostgreSQL counts, in seconds after 1970.
const POSTGRES_EPOCH: u64 = 946_684_800;

/// How WAL is to be streamed.
#[derive(Clone)]
#[non_exhaustive]
pub struct StreamOptions {
    /// The slot to use, so that the server keeps what we have not reported as flushed.
    pub slot: Option<SlotName>,
    /// Where to start. Any position will do; receivers that write segments start at a segment's.
    pub start: Lsn,
    /// The timeline to stream; it may be one in the server's past.
    pub timeline: TimelineId,
    /// How often positions are reported without being asked. At most half of the server's
    /// `wal_sender_timeout`.
    pub status_interval: Duration,
    /// How long the server may be silent. At half of it, it is asked for a sign of life.
    pub receive_timeout: Duration,
    /// The clock that reports are stamped with, which the server shows as `reply_time`. Without one
    /// they carry no time.
    pub clock: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl StreamOptions {
    /// From this position on this timeline, without a slot, reporting every 10 s, with a receive
    /// timeout of 60 s.
    #[must_use]
    pub fn new(start: Lsn, timeline: TimelineId) -> Self {
        Self {
            slot: None,
            start,
            timeline,
            status_interval: Duration::from_secs(10),
            receive_timeout: Duration::from_secs(60),
            clock: None,
        }
    }
}

impl fmt::Debug for StreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOptions")
            .field("slot", &self.slot)
            .field("start", &self.start)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

/// What a receiver reports: each position is that of the last byte plus one, zero for "unknown".
///
/// The server frees WAL of a slot up to `flush`, and lets commits that wait for us go on at it, so
/// only what is durable may be reported there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Received and written.
    pub write: Lsn,
    /// Durable.
    pub flush: Lsn,
    /// Replayed.
    pub apply: Lsn,
}

/// What comes out of a [`WalStream`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalEvent {
    /// WAL, always the continuation of what came before.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// The bytes.
        data: Bytes,
    },
    /// A sign of life. A reply, if one was asked for, is on its way already.
    Keepalive {
        /// The end of the server's WAL.
        server_end: Lsn,
    },
}

/// How streaming ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamEnd {
    /// We ended it, on whatever timeline; the session goes on.
    Stopped(Client),
    /// The server ended it, because the timeline ends here. Fetch the next one's history and start over on it, at the start of the
    /// segment that contains `start`.
    Timeline {
        /// The next timeline.
        next: TimelineId,
        /// Where it begins. It may lie before what was received, never after.
        start: Lsn,
        /// The session, which goes on.
        client: Client,
    },
    /// The server shuts down, after sending everything up to its shutdown checkpoint.
    ServerShutdown,
}

enum State {
    Streaming,
    /// The server has sent CopyDone.
    ServerDone,
    /// The server has sent that it is done, and goes away.
    ShuttingDown,
    /// Everything was received; the session is in step.
    Over(Option<ResultSet>),
}

/// A stream of WAL. It reads from the connection only when asked to.
///
/// Dropping it closes the connection; the server notices at once, frees the slot for others and drops
/// it if it is temporary.
pub struct WalStream {
    client: Client,
    options: StreamOptions,
    state: State,
    position: Lsn,
    server_end: Lsn,
    positions: Positions,
    last_sent: Instant,
    last_heard: Instant,
    asked: bool,
}

impl fmt::Debug for WalStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalStream")
            .field("client", &self.client)
            .field("timeline", &self.options.timeline)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Starts streaming WAL. The stream holds the session until its end.
    ///
    /// That the start lies ahead of the server's WAL, or behind what it still has (SQLSTATE 58P01),
    /// comes out of the stream.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// What the server says (a timeline that is not in its history, a slot that does not exist or is
    /// in use: 55006), after which the connection is closed.
    pub async fn start_replication(mut self, options: StreamOptions) -> Result<WalStream> {
        let slot = match &options.slot {
            Some(name) => format!("SLOT \"{name}\" "),
            None => String::new(),
        };
        let text = format!(
            "{SUBJECT} {slot}PHYSICAL {} TIMELINE {}",
            options.start, options.timeline
        );
        let mut exchange = self.exchange()?;
        exchange.send_query(&text).await?;
        let frame = exchange.receive_or_fail(SUBJECT).await?;
        let state = match frame.tag() {
            b'W' => State::Streaming,
            // The timeline ends exactly at the start: there is nothing to stream.
            b'T' => {
                let result = finish_result(exchange.client, Some(frame)).await?;
                State::Over(result)
            }
            _ => return Err(unexpected(SUBJECT, &frame)),
        };
        exchange.finish();
        if let Some(framed) = &mut self.framed {
            framed.patience = options.receive_timeout;
        }
        let now = Instant::now();
        Ok(WalStream {
            client: self,
            state,
            position: options.start,
            server_end: options.start,
            positions: Positions::default(),
            last_sent: now,
            last_heard: now,
            asked: false,
            options,
        })
    }
}

impl WalStream {
    /// Where the next byte will be from.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The end of the server's WAL as far as it told.
    #[must_use]
    pub fn server_end(&self) -> Lsn {
        self.server_end
    }

    /// The timeline that is streamed.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.options.timeline
    }

    /// The next event; `None` when the server has ended the stream, then [`finish`](Self::finish).
    ///
    /// Reports positions and answers the server's questions while it waits, so call it often enough:
    /// the server hangs up on a receiver that is silent for its `wal_sender_timeout`. Dropping this
    /// future loses nothing.
    ///
    /// # Errors
    /// [`Server`](ErrorKind::Server) for what the server says instead (58P01: the WAL is gone),
    /// [`Timeout`](ErrorKind::Timeout) for a silent one. The connection is closed then.
    pub async fn next(&mut self) -> Result<Option<WalEvent>> {
        match self.next_or_fail().await {
            Ok(event) => Ok(event),
            Err(error) => {
                self.client.framed = None;
                Err(error)
            }
        }
    }

    async fn next_or_fail(&mut self) -> Result<Option<WalEvent>> {
        loop {
            if !matches!(self.state, State::Streaming) {
                return Ok(None);
            }
            if self.last_sent.elapsed() >= self.options.status_interval {
                self.send_status(false).await?;
            }
            let Some(frame) = self.wait().await? else {
                continue;
            };
            self.last_heard = Instant::now();
            self.asked = false;
            match frame.tag() {
                b'd' => return self.take(frame).await.map(Some),
                b'c' => self.state = State::ServerDone,
                // A server that shuts down ends the command without ending the copy.
                b'C' => self.state = State::ShuttingDown,
                b'E' => return Err(self.client.after_error(SUBJECT, &frame).await.0),
                b'N' => self.client.note(&frame),
                b'S' | b'A' => {}
                _ => return Err(unexpected(SUBJECT, &frame)),
            }
        }
    }

    /// The next message, or nothing when something is due first.
    async fn wait(&mut self) -> Result<Option<Frame>> {
        let framed = self.client.framed()?;
        if let Some(frame) = framed.buffered()? {
            return Ok(Some(frame));
        }
        let patience = self.options.receive_timeout;
        let silent_at = self.last_heard + patience;
        let ask_at = self.last_heard + patience / 2;
        let report_at = self.last_sent + self.options.status_interval;
        let due = if self.asked {
            report_at.min(silent_at)
        } else {
            report_at.min(ask_at)
        };
        tokio::select! {
            biased;
            frame = framed.read_on() => return frame.map(Some),
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        if now >= silent_at {
            return Err(timed_out("WAL stream", patience));
        }
        if now >= ask_at && !self.asked {
            self.asked = true;
            self.send_status(true).await?;
        }
        Ok(None)
    }

    async fn take(&mut self, frame: Frame) -> Result<WalEvent> {
        match FromServer::parse(frame.body())? {
            FromServer::Wal {
                start,
                server_end,
                data,
                ..
            } => {
                if start != self.position {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        SUBJECT,
                        format!("WAL from {start} came where {} was due", self.position),
                    ));
                }
                let end = u64::try_from(data.len())
                    .ok()
                    .and_then(|length| start.checked_add(length));
                self.position =
                    end.ok_or_else(|| Error::protocol("WAL past the end of the log"))?;
                self.server_end = self.server_end.max(server_end);
                Ok(WalEvent::Data { start, data })
            }
            FromServer::Keepalive {
                server_end,
                reply_requested,
                ..
            } => {
                self.server_end = self.server_end.max(server_end);
                if reply_requested {
                    self.send_status(false).await?;
                }
                Ok(WalEvent::Keepalive { server_end })
            }
        }
    }

    /// Reports positions now, and from now on whenever a report is due.
    ///
    /// Dropping the future may leave the report to the next one. That the server has hung up is told by
    /// [`next`](Self::next), after what it said before.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) when it cannot be sent.
    pub async fn report(&mut self, positions: Positions) -> Result<()> {
        self.positions = positions;
        if matches!(self.state, State::Streaming) {
            self.send_status(false).await?;
        }
        Ok(())
    }

    /// Sets what is reported whenever a report is due, without sending one.
    pub fn set_positions(&mut self, positions: Positions) {
        self.positions = positions;
    }

    async fn send_status(&mut self, reply_requested: bool) -> Result<()> {
        let now = self
            .options
            .clock
            .as_ref()
            .map_or(0, |clock| microseconds(clock()));
        let Positions {
            write,
            flush,
            apply,
        } = self.positions;
        let message = status(write, flush, apply, now, reply_requested);
        self.last_sent = Instant::now();
        let framed = self.client.framed()?;
        let sent = match framed.send_copy_data(&[], &message).await {
            Ok(()) => framed.flush().await,
            Err(error) => Err(error),
        };
        unless_closed(sent)
    }

    /// Ends the stream: reports positions, tells the server if it has not ended it itself, discards
    /// what is still under way, and gives the session back.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// What the server says instead, and [`Protocol`](ErrorKind::Protocol) for a next timeline that cannot
    /// follow this one or begins after what was received; the connection is closed then.
    pub async fn finish(mut self) -> Result<StreamEnd> {
        let by_server = match self.state {
            State::Over(ref mut result) => {
                let result = result.take();
                return self.end(result, true);
            }
            State::ShuttingDown => return Ok(StreamEnd::ServerShutdown),
            State::ServerDone => true,
            State::Streaming => {
                self.send_status(false).await?;
                false
            }
        };
        let mut done = by_server;
        let framed = self.client.framed()?;
        frontend::copy_done(framed.output());
        unless_closed(framed.flush().await)?;
        loop {
            let frame = self.client.receive().await?;
            match frame.tag() {
                b'd' if !done => {}
                b'C' if !done => return Ok(StreamEnd::ServerShutdown),
                b'c' if !done => done = true,
                b'E' => return Err(self.client.after_error(SUBJECT, &frame).await.0),
                b'T' | b'C' if done => {
                    let result = finish_result(&mut self.client, Some(frame)).await?;
                    let silence = self.client.peer.config.limits.silence;
                    self.client.framed()?.patience = silence;
                    return self.end(result, by_server);
                }
                _ => return Err(unexpected(SUBJECT, &frame)),
            }
        }
    }

    /// Tells what the end means. On a historic timeline the server names the next one whoever ended the
    /// stream, and wherever: only when it did, everything was received.
    fn end(self, result: Option<ResultSet>, by_server: bool) -> Result<StreamEnd> {
        let wrong = |reason: String| Err(Error::new(ErrorKind::Protocol, SUBJECT, reason));
        let Some(result) = result else {
            return Ok(StreamEnd::Stopped(self.client));
        };
        let next = timeline(&result, 0, 0, SUBJECT)?;
        let start: Lsn = parsed(&result, 0, 1, SUBJECT)?;
        if next <= self.options.timeline {
            return wrong(format!(
                "timeline {next} cannot follow timeline {}",
                self.options.timeline
            ));
        }
        if !by_server {
            return Ok(StreamEnd::Stopped(self.client));
        }
        if start > self.position {
            return wrong(format!(
                "the next timeline begins at {start}, but WAL came up to {} only",
                self.position
            ));
        }
        Ok(StreamEnd::Timeline {
            next,
            start,
            client: self.client,
        })
    }
}

/// What a server that has hung up said before, that it shuts down or why it fails, is still to be read and
/// tells more than that nothing can be sent to it. When it said nothing, reading fails as well.
fn unless_closed(sent: Result<()>) -> Result<()> {
    match sent {
        Err(error) if error.kind() == ErrorKind::Io => Ok(()),
        sent => sent,
    }
}

/// Reads what follows the copy: perhaps a result with the next timeline, then one or two ends of
/// commands, then that the session is ready.
async fn finish_result(client: &mut Client, mut first: Option<Frame>) -> Result<Option<ResultSet>> {
    let mut rows: Option<Vec<query::Row>> = None;
    loop {
        let frame = match first.take() {
            Some(frame) => frame,
            None => client.receive().await?,
        };
        match (frame.tag(), &mut rows) {
            (b'T', None) => rows = Some(Vec::new()),
            (b'D', Some(rows)) if rows.is_empty() => rows.push(query::row(frame)?),
            (b'C', _) => {}
            (b'Z', _) => return Ok(rows.map(ResultSet::from_rows)),
            (b'E', _) => return Err(client.after_error(SUBJECT, &frame).await.0),
            _ => return Err(unexpected(SUBJECT, &frame)),
        }
    }
}

fn microseconds(time: SystemTime) -> i64 {
    let since = time
        .duration_since(UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH))
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
