//! What a server serves: archives, a manifest and WAL, wherever they come from.

use std::fmt;
use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use neon_pg_layout::{Lsn, TimelineId};

/// Bytes as they become available; nothing is produced before it is asked for.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// A cluster that can be handed out as a base backup.
///
/// One implementation serves many clients at once. Each call stands for itself: what is dropped half
/// way leaves nothing behind.
#[async_trait]
pub trait BackupSource: fmt::Debug + Send + Sync + 'static {
    /// What there is. Asked at the beginning of every command, so the answers about one snapshot must
    /// agree.
    async fn facts(&self) -> io::Result<SourceFacts>;

    /// The tar archive of a tablespace, or of the data directory (`None`).
    ///
    /// Members are plain files, directories and symbolic links with names of at most 99 bytes, as
    /// PostgreSQL makes them: stock clients know no others. The two blocks of zeros at the end may be
    /// there or not. The archive of the data directory has `backup_label` first if the copy was made
    /// of a running cluster, and none if it was cleanly stopped; `global/pg_control` last; `pg_wal/`
    /// and `pg_wal/archive_status/` as directories, without segments: those are added by the server
    /// when the client asks for them.
    async fn archive(
        &self,
        tablespace: Option<u32>,
        request: &BackupRequest,
    ) -> io::Result<ByteStream>;

    /// The manifest of what [`archive`](Self::archive) gives.
    async fn manifest(&self, request: &BackupRequest) -> io::Result<ByteStream>;

    /// At most `max` bytes of WAL of a timeline, from a position on. A piece that is empty or too long
    /// ends the command with an error.
    async fn wal(&self, timeline: TimelineId, from: Lsn, max: usize) -> io::Result<WalPiece>;

    /// The history file of a timeline, if there is one.
    async fn timeline_history(&self, timeline: TimelineId) -> io::Result<Option<Bytes>>;
}

/// What a source has to say about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFacts {
    /// The system identifier of the cluster.
    pub system_identifier: u64,
    /// The timeline that is current.
    pub timeline: TimelineId,
    /// The end of the WAL there is; not before `stop`.
    pub position: Lsn,
    /// Where replay begins: the redo pointer of the label, or of the checkpoint of a clean stop.
    pub start: Lsn,
    /// The timeline of `start`.
    pub start_timeline: TimelineId,
    /// Up to where WAL must be replayed: the end of the backup, or of the checkpoint of a clean stop.
    pub stop: Lsn,
    /// The timeline of `stop`.
    pub stop_timeline: TimelineId,
    /// The size of a WAL segment in bytes.
    pub wal_segment_size: u64,
    /// Whether the data directory is open to its group (mode 0750).
    pub group_access: bool,
    /// The tablespaces besides the data directory.
    pub tablespaces: Vec<SourceTablespace>,
    /// How large the data directory is, in KiB, if known.
    pub size: Option<u64>,
}

impl SourceFacts {
    /// Why this describes no cluster; a server that went by it would not come to an end.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let size = self.wal_segment_size;
        if !size.is_power_of_two() || !(1 << 20..=1 << 30).contains(&size) {
            return Some("the size of a WAL segment is none");
        }
        let ordered = self.start <= self.stop && self.stop <= self.position;
        (!ordered).then_some("start, stop and end of WAL are not in that order")
    }
}

/// A tablespace of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTablespace {
    /// Its object id.
    pub oid: u32,
    /// Where it is.
    pub location: String,
    /// How large it is, in KiB, if known.
    pub size: Option<u64>,
}

/// What a client asked for, as far as it concerns the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BackupRequest {
    /// The label it gave.
    pub label: String,
    /// Links of tablespaces go into a file `tablespace_map` instead of the archive.
    pub tablespace_map: bool,
    /// It wants a manifest.
    pub manifest: bool,
    /// It wants the WAL in the archive. The server adds it.
    pub wal: bool,
}

/// A piece of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalPiece {
    /// The next bytes, at least one.
    Data(Bytes),
    /// There is no more now. Never before the stop position of the [facts](SourceFacts::stop).
    CaughtUp,
    /// The timeline ends here; the next one, of a higher number, begins at this position, which is not
    /// after the one that was asked for.
    TimelineEnd {
        /// The next timeline.
        next: TimelineId,
        /// Where it begins.
        at: Lsn,
    },
    /// What was asked for is not kept any more.
    Removed,
}
