//! A session: login, then commands one by one.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Frame, Framed, Stream};
use crate::server::command::Command;
use crate::server::reply::{self, Column, INT8, Refusal, TEXT, column};
use crate::server::source::SourceFacts;
use crate::server::startup::Incoming;
use crate::server::{Shared, auth, base_backup, streaming};

const IDENTITY: [Column; 4] = [
    column("systemid", TEXT),
    column("timeline", INT8),
    column("xlogpos", TEXT),
    column("dbname", TEXT),
];
const SLOT: [Column; 4] = [
    column("slot_name", TEXT),
    column("consistent_point", TEXT),
    column("snapshot_name", TEXT),
    column("output_plugin", TEXT),
];
const SLOT_POSITION: [Column; 3] = [
    column("slot_type", TEXT),
    column("restart_lsn", TEXT),
    column("restart_tli", INT8),
];

/// A session of a client that was let in.
pub(super) struct Session<'a> {
    pub(super) shared: &'a Shared,
    pub(super) framed: Framed,
    /// The temporary slots it made. They hold nothing: a source keeps what it has.
    slots: Vec<String>,
}

/// How a command failed.
pub(super) enum Failure {
    /// The client is told, and the session goes on.
    Refused(Refusal),
    /// The session is over.
    Broken(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// What a source could not do. The reason stays on this side: it may name what is no client's business.
pub(super) fn source_failed(error: &io::Error) -> Failure {
    tracing::warn!(%error, "the source of a backup failed");
    Failure::Refused(Refusal::new("58030", "the source of the backup failed"))
}

/// Serves a client to its end.
pub(super) async fn run(shared: &Shared, stream: Box<dyn Stream>, process: i32) -> Result<()> {
    let login = shared.options.limits.login;
    let framed = match timeout(login, log_in(shared, stream, process)).await {
        Ok(Ok(Some(framed))) => framed,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                "client",
                format!("no login within {login:?}"),
            ));
        }
    };
    let mut session = Session {
        shared,
        framed,
        slots: Vec::new(),
    };
    session.framed.patience = shared.options.limits.patience;
    let result = session.commands().await;
    session.framed.shutdown().await;
    result
}

/// Tells a client that there are too many, as far as that takes no time.
pub(super) async fn refuse(shared: &Shared, stream: Box<dyn Stream>) {
    let tell = async {
        if let Ok(Some((incoming, _))) = Incoming::new(stream, shared).startup(shared).await {
            incoming
                .refuse(&Refusal::new("53300", "sorry, too many clients already"))
                .await;
        }
    };
    drop(timeout(Duration::from_secs(5), tell).await);
}

async fn log_in(shared: &Shared, stream: Box<dyn Stream>, process: i32) -> Result<Option<Framed>> {
    let Some((incoming, startup)) = Incoming::new(stream, shared).startup(shared).await? else {
        return Ok(None);
    };
    let mut framed = incoming.authenticate(shared, &startup).await?;
    let out = framed.output();
    let version = format!("{}.0", shared.options.advertise);
    for (name, value) in [
        ("server_version", version.as_str()),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        reply::parameter_status(out, name, value);
    }
    let key: [u8; 4] = auth::random()?;
    reply::backend_key(out, process, i32::from_be_bytes(key));
    reply::ready(out);
    framed.flush().await?;
    Ok(Some(framed))
}

impl Session<'_> {
    async fn commands(&mut self) -> Result<()> {
        loop {
            let Some(frame) = self.next_command().await? else {
                return Ok(());
            };
            match frame.tag() {
                b'Q' => {}
                b'X' => return Ok(()),
                // What is left of a copy that was ended by an error.
                b'd' | b'c' | b'f' => continue,
                _ => {
                    let refusal = Refusal::new("08P01", "this server takes simple queries only");
                    reply::error(self.framed.output(), "FATAL", &refusal);
                    self.framed.flush().await?;
                    return Err(Error::protocol("a message that is no query"));
                }
            }
            match self.execute(&frame).await {
                Ok(()) => {}
                Err(Failure::Refused(refusal)) => {
                    reply::error(self.framed.output(), "ERROR", &refusal);
                }
                Err(Failure::Broken(error)) => return Err(error),
            }
            reply::ready(self.framed.output());
            self.framed.flush().await?;
        }
    }

    /// The next command; nothing when the client is gone, or has said nothing for too long.
    async fn next_command(&mut self) -> Result<Option<Frame>> {
        let idle = self.shared.options.limits.idle;
        match timeout(idle, self.framed.read_on()).await {
            Ok(Ok(frame)) => Ok(Some(frame)),
            Ok(Err(error)) if error.kind() == ErrorKind::Io => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "client",
                format!("idle for {idle:?}"),
            )),
        }
    }

    pub(super) async fn facts(&self) -> std::result::Result<SourceFacts, Failure> {
        let facts = self.shared.source.facts().await;
        let facts = facts.map_err(|error| source_failed(&error))?;
        match facts.contradiction() {
            None => Ok(facts),
            Some(reason) => Err(source_failed(&io::Error::other(reason))),
        }
    }

    async fn execute(&mut self, frame: &Frame) -> std::result::Result<(), Failure> {
        let body = frame.body();
        let text = body
            .strip_suffix(&[0])
            .and_then(|text| std::str::from_utf8(text).ok());
        let text = text.ok_or_else(|| Refusal::new("08P01", "the command is not a text"))?;
        match Command::parse(text)? {
            Command::IdentifySystem => {
                let facts = self.facts().await?;
                let row = [
                    Some(facts.system_identifier.to_string()),
                    Some(facts.timeline.to_string()),
                    Some(facts.position.to_string()),
                    None,
                ];
                reply::one_row(self.framed.output(), &IDENTITY, &row, "IDENTIFY_SYSTEM");
            }
            Command::Show(name) => self.show(&name).await?,
            Command::TimelineHistory(timeline) => {
                let history = self.shared.source.timeline_history(timeline).await;
                let content = history.map_err(|error| source_failed(&error))?;
                let name = format!("{:08X}.history", timeline.get());
                let Some(content) = content else {
                    let message =
                        format!("could not open file \"pg_wal/{name}\": No such file or directory");
                    return Err(Refusal::new("58P01", message).into());
                };
                let out = self.framed.output();
                reply::row_description(out, &[column("filename", TEXT), column("content", TEXT)]);
                reply::data_row(out, &[Some(name.as_bytes()), Some(&content)]);
                reply::command_complete(out, "TIMELINE_HISTORY");
            }
            Command::CreateSlot(name) => {
                if self.slots.contains(&name) {
                    let message = format!("replication slot \"{name}\" already exists");
                    return Err(Refusal::new("42710", message).into());
                }
                if self.slots.len() >= 16 {
                    return Err(Refusal::new("53400", "all replication slots are in use").into());
                }
                let row = [Some(name.clone()), Some("0/0".to_owned()), None, None];
                reply::one_row(self.framed.output(), &SLOT, &row, "CREATE_REPLICATION_SLOT");
                self.slots.push(name);
            }
            // A slot that does not exist is a row of nothing.
            Command::ReadSlot => {
                let row = [None, None, None];
                reply::one_row(
                    self.framed.output(),
                    &SLOT_POSITION,
                    &row,
                    "READ_REPLICATION_SLOT",
                );
            }
            Command::BaseBackup(request) => base_backup::send(self, &request).await?,
            Command::StartReplication {
                slot,
                start,
                timeline,
            } => {
                if let Some(slot) = slot.filter(|slot| !self.slots.contains(slot)) {
                    let message = format!("replication slot \"{slot}\" does not exist");
                    return Err(Refusal::new("42704", message).into());
                }
                streaming::send(self, start, timeline).await?;
            }
        }
        Ok(())
    }

    async fn show(&mut self, name: &str) -> std::result::Result<(), Failure> {
        let value = match name {
            "data_directory_mode" if self.facts().await?.group_access => "0750".to_owned(),
            "data_directory_mode" => "0700".to_owned(),
            "wal_segment_size" => match self.facts().await?.wal_segment_size >> 20 {
                1024 => "1GB".to_owned(),
                mib => format!("{mib}MB"),
            },
            _ => {
                let message = format!("unrecognized configuration parameter \"{name}\"");
                return Err(Refusal::new("42704", message).into());
            }
        };
        let out = self.framed.output();
        reply::row_description(out, &[(SHOWN, TEXT.0, TEXT.1)]);
        reply::data_row(out, &[Some(value.as_bytes())]);
        reply::command_complete(out, "SHOW");
        Ok(())
    }
}

/// The name of the column of SHOW, which nobody looks at.
const SHOWN: &str = "setting";
