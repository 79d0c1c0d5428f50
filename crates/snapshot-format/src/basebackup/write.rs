//! Writing base backups in tar format, as `pg_basebackup -Ft` does.
//!
//! Unlike the server, which knows its label from the start, we write `global/pg_control` as the very last
//! member: somebody who unpacks a cut-off archive has no control file, and so nothing that starts without
//! its label.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use neon_pg_layout::{ControlFile, Oid};

use crate::basebackup::header::member_header;
use crate::basebackup::member::BLOCK;
use crate::compression::{Compression, Compressor};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Collected, Crc, MANIFEST};
use crate::path::SnapshotPath;
use crate::stream::{Chunk, ChunkData, End, Entry, EntryKind, Progress, Sink};

const CONTROL: &str = "global/pg_control";
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How to write a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarOptions {
    /// How archives are compressed.
    pub compression: Compression,
    /// Whether the log goes into `pg_wal.tar` instead of the base archive.
    pub separate_wal: bool,
    /// Whether a manifest is written.
    pub manifest: bool,
}

impl Default for TarOptions {
    fn default() -> Self {
        Self {
            compression: Compression::None,
            separate_wal: false,
            manifest: true,
        }
    }
}

/// Writes a base backup: into a directory as a set of archives with the manifest beside them, or into one
/// stream with the manifest as a member.
///
/// When [`end`](Sink::end) has returned, a set is durable and whole; its manifest is written last. A stream
/// was flushed.
pub struct BaseBackupWriter<'a> {
    options: TarOptions,
    output: Output<'a>,
    archives: BTreeMap<Place, Archive<'a>>,
    current: Option<Current>,
    progress: Progress,
    /// Written at the end: links only if no map says where tablespaces are; the control file last.
    links: Vec<Entry>,
    has_map: bool,
    control: Option<(Entry, Vec<u8>)>,
    manifest: Collected,
}

type Archive<'a> = Compressor<Box<dyn Target + 'a>>;

enum Output<'a> {
    Directory(PathBuf),
    Stream(Option<Box<dyn Target + 'a>>),
}

/// Something archives are written to.
trait Target: Write + Send {
    fn make_durable(&mut self) -> io::Result<()>;
}

impl Target for BufWriter<File> {
    fn make_durable(&mut self) -> io::Result<()> {
        self.flush()?;
        self.get_ref().sync_all()
    }
}

struct Stream<W>(W);

impl<W: Write> Write for Stream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write + Send> Target for Stream<W> {
    fn make_durable(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Base,
    Tablespace(Oid),
    Wal,
}

struct Current {
    entry: Entry,
    place: Place,
    crc: Crc,
    held: Option<Vec<u8>>,
    ignored: bool,
}

impl fmt::Debug for BaseBackupWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BaseBackupWriter")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'a> BaseBackupWriter<'a> {
    /// Into a directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when it is not empty.
    pub fn in_directory(directory: &Path, options: TarOptions) -> Result<Self> {
        let fail = |error| Error::io(directory.display().to_string(), "cannot be made", error);
        match std::fs::create_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail(error)),
        }
        if std::fs::read_dir(directory).map_err(fail)?.next().is_some() {
            return Err(Error::new(
                ErrorKind::Exists,
                directory.display().to_string(),
                "is not empty",
            ));
        }
        Ok(Self::new(Output::Directory(directory.to_owned()), options))
    }

    /// Into one stream, in one pass. Tablespaces outside the data directory are
    /// [`Unsupported`](ErrorKind::Unsupported), as they are for `pg_basebackup`; the log goes into the same
    /// archive.
    #[must_use]
    pub fn in_stream(stream: impl Write + Send + 'a, options: TarOptions) -> Self {
        let options = TarOptions {
            separate_wal: false,
            ..options
        };
        Self::new(Output::Stream(Some(Box::new(Stream(stream)))), options)
    }

    fn new(output: Output<'a>, options: TarOptions) -> Self {
        Self {
            options,
            output,
            archives: BTreeMap::new(),
            current: None,
            progress: Progress::default(),
            links: Vec::new(),
            has_map: false,
            control: None,
            manifest: Collected::default(),
        }
    }

    fn archive(&mut self, place: Place) -> Result<&mut Archive<'a>> {
        let fail = |error| Error::io("archive", "cannot be made", error);
        if !self.archives.contains_key(&place) {
            let target: Box<dyn Target + 'a> = match &mut self.output {
                Output::Directory(directory) => {
                    let name = archive_name(place, self.options.compression);
                    let path = directory.join(&name);
                    let file = OpenOptions::new().write(true).create_new(true).open(path);
                    Box::new(BufWriter::with_capacity(256 << 10, file.map_err(fail)?))
                }
                Output::Stream(stream) => stream.take().ok_or_else(|| {
                    Error::new(
                        ErrorKind::Unsupported,
                        "tar stream",
                        "holds one archive only",
                    )
                })?,
            };
            let archive = Compressor::new(target, self.options.compression).map_err(fail)?;
            self.archives.insert(place, archive);
        }
        self.archives
            .get_mut(&place)
            .ok_or_else(|| Error::new(ErrorKind::Inconsistent, "archive", "is closed"))
    }

    /// The archive of a path and its name in it.
    fn place<'p>(&self, path: &'p SnapshotPath) -> (Place, &'p [u8]) {
        if let Some((oid, inside)) = path.tablespace()
            && !inside.is_empty()
            && self
                .links
                .iter()
                .any(|link| link.path.tablespace() == Some((oid, b"")))
        {
            return (Place::Tablespace(oid), inside);
        }
        match path.as_bytes().strip_prefix(b"pg_wal/") {
            Some(name) if self.options.separate_wal && !name.contains(&b'/') => (Place::Wal, name),
            _ => (Place::Base, path.as_bytes()),
        }
    }

    fn header(&mut self, entry: &Entry, link: Option<&[u8]>) -> Result<Place> {
        let (place, name) = self.place(&entry.path);
        let mut name = name.to_vec();
        if !entry.is_file() {
            name.push(b'/');
        }
        let header = member_header(entry, &name, link)?;
        self.write(place, &header)?;
        Ok(place)
    }

    fn write(&mut self, place: Place, bytes: &[u8]) -> Result<()> {
        self.archive(place)?.write_all(bytes).map_err(|error| {
            Error::io(
                archive_name(place, Compression::None),
                "cannot be written",
                error,
            )
        })
    }

    fn zeros(&mut self, place: Place, mut count: u64) -> Result<()> {
        while count > 0 {
            let step = usize::try_from(count)
                .unwrap_or(ZEROS.len())
                .min(ZEROS.len());
            self.write(place, ZEROS.get(..step).unwrap_or(&ZEROS))?;
            count -= step as u64;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        self.progress.commit()?;
        if current.ignored {
            return Ok(());
        }
        self.manifest.add(&current.entry, current.crc);
        if let Some(held) = current.held {
            self.control = Some((current.entry, held));
            return Ok(());
        }
        self.pad(current.place, current.entry.size())
    }

    fn pad(&mut self, place: Place, size: u64) -> Result<()> {
        let over = size % BLOCK as u64;
        self.zeros(place, if over == 0 { 0 } else { BLOCK as u64 - over })
    }

    fn member(&mut self, entry: &Entry, content: &[u8]) -> Result<()> {
        let place = self.header(entry, None)?;
        self.write(place, content)?;
        self.pad(place, content.len() as u64)
    }
}

impl Sink for BaseBackupWriter<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        match &entry.kind {
            EntryKind::Directory if entry.path.is_root() => Ok(()),
            EntryKind::Directory => self.header(entry, None).map(drop),
            EntryKind::Tablespace { oid, .. } => {
                if matches!(self.output, Output::Stream(_)) {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        entry.path.to_string(),
                        "one tar stream cannot hold tablespaces; write a set of archives",
                    ));
                }
                self.links.push(entry.clone());
                self.archive(Place::Tablespace(*oid)).map(drop)
            }
            EntryKind::File { size } => {
                self.progress.begin(entry, &(0..*size))?;
                let is = |name: &str| entry.path.as_bytes() == name.as_bytes();
                self.has_map |= is("tablespace_map");
                let (held, ignored) = (is(CONTROL).then(Vec::new), is(MANIFEST));
                if held.is_some() && *size != ControlFile::FILE_SIZE as u64 {
                    return Err(Error::malformed(CONTROL, "is not 8192 bytes long"));
                }
                let place = if held.is_some() || ignored {
                    Place::Base
                } else {
                    self.header(entry, None)?
                };
                let entry = entry.clone();
                self.current = Some(Current {
                    entry,
                    place,
                    crc: Crc::default(),
                    held,
                    ignored,
                });
                Ok(())
            }
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.progress.chunk(chunk)?;
        let Some(current) = &mut self.current else {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot stream",
                "data without a file",
            ));
        };
        current.crc.add(chunk.data);
        if current.ignored {
            return Ok(());
        }
        match (&mut current.held, chunk.data) {
            (Some(held), ChunkData::Bytes(bytes)) => held.extend_from_slice(bytes),
            (Some(held), ChunkData::Zeros(count)) => {
                held.resize(held.len() + usize::try_from(count).unwrap_or(0), 0);
            }
            (None, data) => {
                let place = current.place;
                match data {
                    ChunkData::Bytes(bytes) => self.write(place, bytes)?,
                    ChunkData::Zeros(count) => self.zeros(place, count)?,
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.close()?;
        let Some((entry, control)) = self.control.take() else {
            return Err(Error::malformed("snapshot", "it has no global/pg_control"));
        };
        let facts = ControlFile::decode(&control).map_err(|error| Error::layout(CONTROL, error))?;
        if !self.has_map {
            for link in self.links.clone() {
                let EntryKind::Tablespace {
                    location: Some(location),
                    ..
                } = &link.kind
                else {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        link.path.to_string(),
                        "the snapshot does not say where this tablespace was",
                    ));
                };
                self.header(&link, Some(location))?;
            }
        }
        let manifest = std::mem::take(&mut self.manifest).into_bytes(&facts, end)?;
        let in_stream = matches!(self.output, Output::Stream(_));
        if in_stream && self.options.manifest {
            let kind = EntryKind::File {
                size: manifest.len() as u64,
            };
            let listed = Entry {
                path: SnapshotPath::new(MANIFEST)?,
                kind,
                ..entry.clone()
            };
            self.member(&listed, &manifest)?;
        }
        self.member(&entry, &control)?;
        let places: Vec<Place> = self.archives.keys().copied().collect();
        for place in places {
            self.write(place, &[0; 2 * BLOCK])?;
        }
        for (place, archive) in std::mem::take(&mut self.archives) {
            let fail = |error| {
                Error::io(
                    archive_name(place, Compression::None),
                    "cannot be completed",
                    error,
                )
            };
            archive
                .finish()
                .and_then(|mut target| target.make_durable())
                .map_err(fail)?;
        }
        if let Output::Directory(directory) = &self.output {
            let fail = |error| Error::io(MANIFEST, "cannot be written", error);
            if self.options.manifest {
                let path = directory.join(MANIFEST);
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path)
                    .map_err(fail)?;
                file.write_all(&manifest)
                    .and_then(|()| file.sync_all())
                    .map_err(fail)?;
            }
            for directory in [Some(directory.as_path()), directory.parent()]
                .into_iter()
                .flatten()
            {
                let directory = if directory.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    directory
                };
                File::open(directory)
                    .and_then(|directory| directory.sync_all())
                    .map_err(fail)?;
            }
        }
        Ok(())
    }
}

fn archive_name(place: Place, compression: Compression) -> String {
    let extension = compression.extension();
    match place {
        Place::Base => format!("base.tar{extension}"),
        Place::Tablespace(oid) => format!("{oid}.tar{extension}"),
        Place::Wal => format!("pg_wal.tar{extension}"),
    }
}
