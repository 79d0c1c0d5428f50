//! Sources for the server under test: a backup that our client captured, and a data directory that
//! was cleanly stopped.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use neon_pg_layout::{ControlFile, Lsn, TimelineId};
use neon_pgwire::{
    BackupRequest, BackupSource, ByteStream, SourceFacts, SourceTablespace, WalPiece,
};
use neon_testkit::Cluster;
use sha2::{Digest, Sha256};

use crate::support::{capture, capture_wal, fast, replication, segment_name};

/// Archives and manifest in a directory, segments in `pg_wal` beside them.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) facts: SourceFacts,
    pub(crate) directory: PathBuf,
    /// Where the current timeline began, if it is not the first.
    pub(crate) switch: Option<(TimelineId, Lsn)>,
}

/// Reads a file in pieces of an odd size, as a source might.
fn pieces(path: &Path) -> io::Result<ByteStream> {
    let file = fs::File::open(path)?;
    Ok(stream::unfold((file, 0), |(file, at)| async move {
        let mut buffer = vec![0; 100_001];
        match file.read_at(&mut buffer, at) {
            Ok(0) => None,
            Ok(read) => {
                buffer.truncate(read);
                Some((Ok(Bytes::from(buffer)), (file, at + read as u64)))
            }
            Err(error) => Some((Err(error), (file, at))),
        }
    })
    .boxed())
}

#[async_trait]
impl BackupSource for Stored {
    async fn facts(&self) -> io::Result<SourceFacts> {
        Ok(self.facts.clone())
    }

    async fn archive(
        &self,
        tablespace: Option<u32>,
        request: &BackupRequest,
    ) -> io::Result<ByteStream> {
        let name = match tablespace {
            Some(oid) => format!("{oid}.tar"),
            None if request.tablespace_map => "mapped.tar".to_owned(),
            None => "base.tar".to_owned(),
        };
        pieces(&self.directory.join(name))
    }

    async fn manifest(&self, request: &BackupRequest) -> io::Result<ByteStream> {
        let name = if request.tablespace_map {
            "mapped_manifest"
        } else {
            "backup_manifest"
        };
        pieces(&self.directory.join(name))
    }

    async fn wal(&self, timeline: TimelineId, from: Lsn, max: usize) -> io::Result<WalPiece> {
        if let Some((next, at)) = self.switch {
            if timeline.get() + 1 == next.get() && from >= at {
                return Ok(WalPiece::TimelineEnd { next, at });
            }
        } else if timeline != self.facts.timeline {
            return Err(io::ErrorKind::NotFound.into());
        }
        let end = match self.switch {
            Some((next, at)) if timeline < next => at,
            _ => self.facts.position,
        };
        if from >= end {
            return Ok(WalPiece::CaughtUp);
        }
        let size = self.facts.wal_segment_size;
        let start = from.start_of(size);
        let path = self
            .directory
            .join("pg_wal")
            .join(segment_name(timeline.get(), start.0, size));
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WalPiece::Removed),
            other => other?,
        };
        let left = (start.0 + size).min(end.0) - from.0;
        let mut buffer = vec![0; max.min(left as usize)];
        file.read_exact_at(&mut buffer, from.0 - start.0)?;
        Ok(WalPiece::Data(buffer.into()))
    }

    async fn timeline_history(&self, timeline: TimelineId) -> io::Result<Option<Bytes>> {
        match fs::read(
            self.directory
                .join("pg_wal")
                .join(format!("{:08X}.history", timeline.get())),
        ) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Stored {
    /// Captures a running cluster with our own client: with links of tablespaces, and if there are
    /// tablespaces a second time with their map, which is then the one that counts.
    pub(crate) async fn capture(cluster: &Cluster, directory: &Path, mapped: bool) -> Self {
        let mut client = replication(&cluster.conninfo()).await;
        let identity = client.identify_system().await.unwrap();
        let mut options = fast();
        options.tablespace_map = mapped;
        options.progress = true;
        let captured = capture(client, &options, directory).await;
        // A request with a map gets the same archive where there are no tablespaces to map.
        fs::hard_link(directory.join("base.tar"), directory.join("mapped.tar")).unwrap();
        fs::hard_link(
            directory.join("backup_manifest"),
            directory.join("mapped_manifest"),
        )
        .unwrap();
        let size = 16 << 20;
        let client = capture_wal(
            captured.client,
            captured.timeline,
            captured.start,
            captured.end.stop,
            size,
            &directory.join("pg_wal"),
        )
        .await;
        client.close().await;
        let tablespaces = captured.archives.iter().filter_map(|(archive, path)| {
            Some(SourceTablespace {
                oid: archive.oid?,
                location: archive.location.clone()?,
                size: Some(fs::metadata(path).unwrap().len() / 1024),
            })
        });
        Self {
            facts: SourceFacts {
                system_identifier: identity.system_identifier,
                timeline: captured.timeline,
                position: captured.end.stop,
                start: captured.start,
                start_timeline: captured.timeline,
                stop: captured.end.stop,
                stop_timeline: captured.end.timeline,
                wal_segment_size: size,
                group_access: false,
                tablespaces: tablespaces.collect(),
                size: Some(fs::metadata(directory.join("base.tar")).unwrap().len() / 1024),
            },
            directory: directory.to_owned(),
            switch: None,
        }
    }

    /// A cleanly stopped cluster without tablespaces: no label, WAL from the shutdown checkpoint on.
    pub(crate) fn cold(cluster: &Cluster, directory: &Path) -> Self {
        let data = cluster.data_dir();
        fs::create_dir_all(directory.join("pg_wal")).unwrap();
        let control =
            ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
        let size = 16 << 20;
        let start = control.checkpoint.redo;
        let timeline = control.checkpoint.timeline;
        let position = Lsn(start.start_of(size).0 + size);
        let name = segment_name(timeline.get(), start.start_of(size).0, size);
        let segment = fs::read(data.join("pg_wal").join(&name)).unwrap();
        fs::write(directory.join("pg_wal").join(&name), &segment).unwrap();
        // The checkpoint record begins with its length.
        let at = start.offset_in(size) as usize;
        let length = u32::from_le_bytes(segment[at..at + 4].try_into().unwrap());
        let end = Lsn((start.0 + u64::from(length)).next_multiple_of(8));
        let (mut tar, mut manifest) = (Vec::new(), String::new());
        add(&data, "", &mut tar, &mut manifest);
        member(&mut tar, &mut manifest, &data, "global/pg_control");
        tar.resize(tar.len() + 1024, 0);
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{}\" }}\n],\n",
            manifest.trim_end_matches(",\n"),
            end,
        );
        let sum = Sha256::digest(text.as_bytes());
        text.push_str("\"Manifest-Checksum\": \"");
        sum.iter()
            .for_each(|byte| text.push_str(&format!("{byte:02x}")));
        text.push_str("\"}\n");
        for (name, content) in [("base.tar", &tar), ("backup_manifest", &text.into_bytes())] {
            fs::write(directory.join(name), content).unwrap();
        }
        fs::hard_link(directory.join("base.tar"), directory.join("mapped.tar")).unwrap();
        fs::hard_link(
            directory.join("backup_manifest"),
            directory.join("mapped_manifest"),
        )
        .unwrap();
        Self {
            facts: SourceFacts {
                system_identifier: control.system_identifier.get(),
                timeline,
                position,
                start,
                start_timeline: timeline,
                stop: position,
                stop_timeline: timeline,
                wal_segment_size: size,
                group_access: false,
                tablespaces: Vec::new(),
                size: None,
            },
            directory: directory.to_owned(),
            switch: None,
        }
    }
}

/// Adds a directory, all but WAL and what is of the running server only.
fn add(data: &Path, below: &str, tar: &mut Vec<u8>, manifest: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(data.join(below))
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if matches!(
            name.as_str(),
            "postmaster.pid" | "postmaster.opts" | "global/pg_control"
        ) {
            continue;
        }
        if !entry.file_type().unwrap().is_dir() {
            member(tar, manifest, data, &name);
            continue;
        }
        let path = format!("{name}/");
        header(tar, &path, 0, 0o700, b'5');
        if name == "pg_wal" {
            header(tar, "pg_wal/archive_status/", 0, 0o700, b'5');
        } else {
            add(data, &path, tar, manifest);
        }
    }
}

fn member(tar: &mut Vec<u8>, manifest: &mut String, data: &Path, name: &str) {
    let content = fs::read(data.join(name)).unwrap();
    let mode = fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
    header(tar, name, content.len(), mode, b'0');
    tar.extend_from_slice(&content);
    tar.resize(tar.len().next_multiple_of(512), 0);
    let sum: String = Sha256::digest(&content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    manifest.push_str(&format!(
        "{{ \"Path\": \"{name}\", \"Size\": {}, \"Last-Modified\": \"2026-11-20 00:00:00 GMT\", \
         \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{sum}\" }},\n",
        content.len()
    ));
}

fn header(tar: &mut Vec<u8>, name: &str, size: usize, mode: u32, kind: u8) {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
}
