//! BASE_BACKUP: a whole cluster as tar archives, and a manifest.
//!
//! Servers before 15 send each archive in a copy of its own, without the two blocks of zeros that end
//! a tar; servers from 15 on send everything in one copy. Here both look the same, and every archive
//! is complete.

mod options;

use std::fmt;

use bytes::{Buf, Bytes};
use neon_pg_layout::{Lsn, PgMajor, TimelineId};

use crate::client::identify::{parsed, timeline};
use crate::client::{Client, Exchange, ResultSet, query, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Frame;
use crate::server_error::ServerError;

pub use options::{
    BackupTarget, BaseBackupOptions, Checkpoint, Compression, CompressionMethod, ManifestChecksum,
    ManifestOption,
};

const SUBJECT: &str = "BASE_BACKUP";
/// What ends a tar archive, and what servers before 15 leave to the receiver.
static END_OF_TAR: [u8; 1024] = [0; 1024];
/// SQLSTATE of pages whose checksums are wrong (`data_corrupted`).
const DATA_CORRUPTED: &str = "XX001";

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tablespace {
    /// Its object id; `None` for the data directory itself, which comes last.
    pub oid: Option<u32>,
    /// Where it is: an absolute path, or `pg_tblspc/<oid>` for one inside the data directory.
    pub location: Option<String>,
    /// How large it is, in KiB, if progress was asked for.
    pub size: Option<u64>,
}

/// An archive of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archive {
    /// The name of its file: `base.tar` or `<oid>.tar`, and `.gz`, `.lz4` or `.zst` if it is compressed.
    pub name: String,
    /// The tablespace in it; `None` for the data directory.
    pub oid: Option<u32>,
    /// Where the tablespace is.
    pub location: Option<String>,
}

/// What comes out of a [`BaseBackup`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackupEvent {
    /// An archive begins; the one before is complete.
    Archive(Archive),
    /// The manifest begins; the last archive is complete.
    Manifest,
    /// The next bytes of the archive or of the manifest.
    Data(Bytes),
    /// How many bytes the server has processed. Only if progress was asked for, servers from 15 on.
    Progress(u64),
}

/// How a base backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupEnd {
    /// Up to where WAL must be replayed before the backup is consistent.
    pub stop: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// Everything was received, but the server found pages whose checksums are wrong (SQLSTATE XX001).
    /// Such a backup must not pass for a sound one.
    pub suspect: Option<ServerError>,
}

/// Which of the parts is being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nothing,
    Archive,
    Manifest,
}

/// A base backup as it arrives. It reads from the connection only when asked to.
///
/// Dropping it before its end closes the connection; the server notices and ends the backup.
pub struct BaseBackup {
    client: Client,
    start: Lsn,
    timeline: TimelineId,
    tablespaces: Vec<Tablespace>,
    suffix: &'static str,
    /// Servers before 15: one copy per archive.
    separate: bool,
    with_manifest: bool,
    /// The backup comes to us.
    to_client: bool,
    /// How many archives have begun.
    begun: usize,
    manifest_begun: bool,
    part: Part,
    in_copy: bool,
    copies_done: bool,
    end: Option<BackupEnd>,
}

impl fmt::Debug for BaseBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BaseBackup")
            .field("client", &self.client)
            .field("start", &self.start)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Starts a base backup. Returns once the server has made its checkpoint, which may take as long as
    /// `checkpoint_timeout` unless it is fast; [`Limits::silence`](crate::Limits::silence) must allow
    /// for it.
    ///
    /// Dropping the future closes the connection and ends the backup.
    ///
    /// # Errors
    /// Options that this server cannot do, and what the server says; the connection is closed then.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackup> {
        let major = self.major()?;
        let command = options.command(major)?;
        let mut exchange = self.exchange()?;
        exchange.send_query(&command).await?;
        let head = exchange.result().await?;
        let (start, on) = (
            parsed(&head, 0, 0, SUBJECT)?,
            timeline(&head, 0, 1, SUBJECT)?,
        );
        let tablespaces = tablespaces(&exchange.result().await?)?;
        exchange.finish();
        Ok(BaseBackup {
            client: self,
            start,
            timeline: on,
            tablespaces,
            suffix: options
                .compression
                .map_or("", |compression| compression.method.suffix()),
            separate: major < PgMajor::V15,
            with_manifest: options.manifest != ManifestOption::No,
            to_client: options.target == BackupTarget::Client,
            begun: 0,
            manifest_begun: false,
            part: Part::Nothing,
            in_copy: false,
            copies_done: false,
            end: None,
        })
    }
}

impl Exchange<'_> {
    /// A result: its description, its rows and its end.
    async fn result(&mut self) -> Result<ResultSet> {
        let limit = self.client.peer.config.limits.result;
        self.expect(b'T', SUBJECT).await?;
        let (mut rows, mut size) = (Vec::new(), 0_usize);
        loop {
            let frame = self.receive_or_fail(SUBJECT).await?;
            match frame.tag() {
                b'D' => {
                    size = size.saturating_add(frame.body().len()).saturating_add(64);
                    if size > limit {
                        return Err(Error::protocol("a result is larger than the limit"));
                    }
                    rows.push(query::row(frame)?);
                }
                b'C' => return Ok(ResultSet::from_rows(rows)),
                _ => return Err(unexpected(SUBJECT, &frame)),
            }
        }
    }
}

fn tablespaces(result: &ResultSet) -> Result<Vec<Tablespace>> {
    let mut found = Vec::with_capacity(result.rows().len());
    for (index, row) in result.rows().iter().enumerate() {
        found.push(Tablespace {
            oid: match row.get(0) {
                Some(_) => Some(parsed(result, index, 0, SUBJECT)?),
                None => None,
            },
            location: row.get(1).map(str::to_owned),
            size: row.get(2).and_then(|size| size.parse().ok()),
        });
    }
    match found.split_last() {
        Some((base, others))
            if base.oid.is_none() && others.iter().all(|one| one.oid.is_some()) =>
        {
            Ok(found)
        }
        _ => Err(Error::protocol(
            "the data directory is not the last of the tablespaces",
        )),
    }
}

impl BaseBackup {
    /// Where replay of the backup begins.
    #[must_use]
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The timeline of that position.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The tablespaces, the data directory last.
    #[must_use]
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// The session that sends the backup: its parameters, its process id, its cancel token.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The next event; `None` when everything was received, then [`finish`](Self::finish).
    ///
    /// Dropping this future loses nothing.
    ///
    /// # Errors
    /// What the server says, and anything that breaks the protocol. The connection is closed then and
    /// what was received is not a backup.
    #[inline]
    pub async fn next(&mut self) -> Result<Option<BackupEvent>> {
        match self.next_or_fail().await {
            Ok(event) => Ok(event),
            Err(error) => {
                self.client.framed = None;
                Err(error)
            }
        }
    }

    async fn next_or_fail(&mut self) -> Result<Option<BackupEvent>> {
        if self.end.is_some() {
            return Ok(None);
        }
        loop {
            let frame = self.client.receive().await?;
            let event = match (frame.tag(), self.in_copy) {
                (b'd', true) => self.data(&frame)?,
                (b'c', true) => self.copy_done(),
                (b'H', false) if !self.copies_done => self.copy_begins(&frame)?,
                (b'T', false) if self.is_complete() => {
                    self.end = Some(self.read_end().await?);
                    return Ok(None);
                }
                (b'E', _) => return Err(self.client.after_error(SUBJECT, &frame).await.0),
                _ => return Err(unexpected(SUBJECT, &frame)),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn is_complete(&self) -> bool {
        let all = self.begun == self.tablespaces.len() && self.manifest_begun == self.with_manifest;
        (all || !self.to_client) && (self.copies_done || self.separate)
    }

    /// A copy begins: the whole backup, or the next archive, or the manifest after the last.
    fn copy_begins(&mut self, frame: &Frame) -> Result<Option<BackupEvent>> {
        self.in_copy = true;
        if !self.separate {
            return Ok(None);
        }
        match self.tablespaces.get(self.begun) {
            Some(tablespace) => {
                self.begun += 1;
                self.part = Part::Archive;
                let name = match tablespace.oid {
                    Some(oid) => format!("{oid}.tar"),
                    None => "base.tar".to_owned(),
                };
                Ok(Some(BackupEvent::Archive(Archive {
                    name,
                    oid: tablespace.oid,
                    location: tablespace.location.clone(),
                })))
            }
            None if self.with_manifest => {
                self.manifest_begun = true;
                self.part = Part::Manifest;
                Ok(Some(BackupEvent::Manifest))
            }
            None => Err(unexpected(SUBJECT, frame)),
        }
    }

    fn copy_done(&mut self) -> Option<BackupEvent> {
        self.in_copy = false;
        let was = std::mem::replace(&mut self.part, Part::Nothing);
        if !self.separate || was == Part::Manifest {
            self.copies_done = true;
        }
        (self.separate && was == Part::Archive)
            .then(|| BackupEvent::Data(Bytes::from_static(&END_OF_TAR)))
    }

    fn data(&mut self, frame: &Frame) -> Result<Option<BackupEvent>> {
        let mut body = frame.body();
        if self.separate {
            return Ok((!body.is_empty()).then_some(BackupEvent::Data(body)));
        }
        if body.is_empty() {
            return Err(Error::protocol("a piece of the backup says nothing"));
        }
        match body.get_u8() {
            b'd' if self.part == Part::Nothing => {
                Err(Error::protocol("data that belong to no archive"))
            }
            b'd' => Ok((!body.is_empty()).then_some(BackupEvent::Data(body))),
            b'n' => self.archive_begins(&body).map(Some),
            b'm' if body.is_empty() && self.with_manifest && !self.manifest_begun => {
                self.manifest_begun = true;
                self.part = Part::Manifest;
                Ok(Some(BackupEvent::Manifest))
            }
            b'p' if body.len() == 8 => Ok(Some(BackupEvent::Progress(body.get_u64()))),
            _ => Err(Error::protocol("a piece of the backup is of no known kind")),
        }
    }

    /// The names are checked against what the server announced: they become those of files.
    fn archive_begins(&mut self, body: &Bytes) -> Result<BackupEvent> {
        let wrong = |reason: &'static str| Err(Error::new(ErrorKind::Protocol, SUBJECT, reason));
        let mut texts = body.split(|byte| *byte == 0).map(std::str::from_utf8);
        let (Some(Ok(name)), Some(Ok(_)), Some(Ok(""))) =
            (texts.next(), texts.next(), texts.next())
        else {
            return wrong("the name of an archive is malformed");
        };
        if self.part == Part::Manifest {
            return wrong("an archive comes after the manifest");
        }
        let Some(tablespace) = self.tablespaces.get(self.begun) else {
            return wrong("there are more archives than tablespaces");
        };
        let expected = match tablespace.oid {
            Some(oid) => format!("{oid}.tar{}", self.suffix),
            None => format!("base.tar{}", self.suffix),
        };
        if name != expected {
            return wrong("the archives are not those of the tablespaces");
        }
        self.begun += 1;
        self.part = Part::Archive;
        Ok(BackupEvent::Archive(Archive {
            name: expected,
            oid: tablespace.oid,
            location: tablespace.location.clone(),
        }))
    }

    /// The description of the stop position was read; its row and what follows it come now.
    async fn read_end(&mut self) -> Result<BackupEnd> {
        let client = &mut self.client;
        let frame = client.receive().await?;
        if frame.tag() != b'D' {
            return Err(unexpected(SUBJECT, &frame));
        }
        let row = ResultSet::from_rows(vec![query::row(frame)?]);
        let mut end = BackupEnd {
            stop: parsed(&row, 0, 0, SUBJECT)?,
            timeline: timeline(&row, 0, 1, SUBJECT)?,
            suspect: None,
        };
        let mut commands = 0;
        loop {
            let frame = client.receive().await?;
            match frame.tag() {
                b'C' if commands < 2 => commands += 1,
                b'E' => {
                    let error = ServerError::parse(&frame.body());
                    if error.code() != DATA_CORRUPTED {
                        return Err(client.after_error(SUBJECT, &frame).await.0);
                    }
                    end.suspect = Some(error);
                }
                b'Z' if commands == 2 || end.suspect.is_some() => return Ok(end),
                _ => return Err(unexpected(SUBJECT, &frame)),
            }
        }
    }

    /// How the backup ended, and the session back. Nothing was read ahead.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) before [`next`](Self::next) has returned `None`.
    pub fn finish(self) -> Result<(BackupEnd, Client)> {
        match self.end {
            Some(end) => Ok((end, self.client)),
            None => Err(Error::new(
                ErrorKind::Closed,
                SUBJECT,
                "it was not received to its end",
            )),
        }
    }
}
