//! What a commit records about a snapshot besides its pages.

use std::collections::BTreeMap;

use neon_pg_layout::{Lsn, PgMajor, SystemIdentifier, TimelineId};
use neon_snapshot_format::SnapshotKind;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, LineageId};
use crate::name::SnapshotName;

/// The largest page that a server can be built with.
const MOST_BLOCK_SIZE: u32 = 32 << 10;

/// The facts of a snapshot. Stored as JSON: what a newer version adds, an older one reads over; what is not known
/// is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Facts {
    /// In what state the cluster was.
    #[serde(with = "text")]
    pub kind: SnapshotKind,
    /// When it was taken, in seconds since 1970, by the clock of who took it.
    pub taken: i64,
    /// The names it asked for. Which of them it has, the claims say.
    #[serde(default)]
    pub names: Vec<SnapshotName>,
    /// The snapshot whose pages it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<CommitId>,
    /// The id of the instance it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The history of log it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// The cluster.
    pub cluster: ClusterFacts,
    /// Where in the log it stands.
    pub log: LogFacts,
    /// What it needs of a machine to run.
    #[serde(default)]
    pub needs: Needs,
    /// Paths that were left out, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Noted>,
    /// Pages that are damaged and could not be explained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_pages: Vec<BadPage>,
    /// Pages that did not come may miss hints that were set since the parent ([`Hints::MayBeOlder`]): whoever turns a
    /// directory into this snapshot compares pages by content, whatever `wal_log_hints` says.
    ///
    /// [`Hints::MayBeOlder`]: crate::changes::Hints::MayBeOlder
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hints_may_be_older: bool,
    /// What it cost.
    #[serde(default)]
    pub cost: Cost,
    /// Free to use by the program that took it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What `pg_control` says that two snapshots must agree on to share pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClusterFacts {
    /// The system identifier.
    #[serde(with = "text")]
    pub system: SystemIdentifier,
    /// The major version.
    #[serde(with = "text")]
    pub major: PgMajor,
    /// The version of the catalogue.
    pub catalog_version: u32,
    /// Bytes of a page.
    pub block_size: u32,
    /// Pages of a segment of a relation.
    pub segment_blocks: u32,
    /// Bytes of a page of the log.
    pub wal_block_size: u32,
    /// Bytes of a segment of the log.
    pub wal_segment_size: u32,
    /// The version of page checksums; 0 when there are none.
    pub checksum_version: u32,
    /// The `wal_level` in `pg_control`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<String>,
    /// `wal_log_hints`.
    #[serde(default)]
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    #[serde(default)]
    pub track_commit_timestamp: bool,
}

/// Where in the log a snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub struct LogFacts {
    /// Its timeline and those before it, oldest first.
    #[serde(default)]
    pub timelines: Vec<TimelineStep>,
    /// Where replay begins.
    #[serde(default, with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub redo: Option<Lsn>,
    /// Where the bracket began.
    #[serde(default, with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub start: Option<Lsn>,
    /// Where the bracket ended, or the log of a stopped cluster.
    #[serde(default, with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub stop: Option<Lsn>,
    /// How far a standby must replay before its pages agree.
    #[serde(default, with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub min_recovery: Option<Lsn>,
    /// How the log ends before `stop`, as the text of a [`LogTail`](crate::changes::LogTail): what the live log must still
    /// show for this snapshot to be a parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_digest: Option<String>,
    /// The log it needs to start.
    #[serde(default)]
    pub ranges: Vec<LogRange>,
}

/// A timeline, and where the next one left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStep {
    /// Its number.
    #[serde(with = "timeline")]
    pub timeline: TimelineId,
    /// Where it was left; absent for the last.
    #[serde(default, with = "maybe_text", skip_serializing_if = "Option::is_none")]
    pub end: Option<Lsn>,
}

/// A piece of log that a snapshot needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    /// On which timeline.
    #[serde(with = "timeline")]
    pub timeline: TimelineId,
    /// Its first byte.
    #[serde(with = "text")]
    pub start: Lsn,
    /// The byte after its last.
    #[serde(with = "text")]
    pub end: Lsn,
    /// Where it is kept.
    pub place: LogPlace,
}

/// Where log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogPlace {
    /// Among the files of the snapshot.
    Snapshot,
    /// In the archive of the lineage, which must keep it as long as the snapshot is there.
    Archive,
}

/// What a snapshot needs of the machine it is to run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub struct Needs {
    /// Architecture, as `uname -m` calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The C library with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<String>,
    /// The version of ICU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu: Option<String>,
    /// Collations in use with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collations: BTreeMap<String, String>,
    /// Extensions with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
    /// Libraries that the server preloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preload_libraries: Vec<String>,
    /// The role that `initdb` made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install_user: Option<String>,
}

/// A path, with something to say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The path, bytes that are not UTF-8 replaced.
    pub path: String,
    /// What there is to say.
    pub reason: String,
}

/// A damaged page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, bytes that are not UTF-8 replaced.
    pub path: String,
    /// The page, counted within the file.
    pub block: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What taking a snapshot cost, and how it was found out what to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub struct Cost {
    /// Files in the snapshot.
    #[serde(default)]
    pub files: u64,
    /// Bytes that the snapshot shows: the sum of its files' sizes.
    #[serde(default)]
    pub bytes: u64,
    /// Pages that are new since the parent.
    #[serde(default)]
    pub changed_pages: u64,
    /// Bytes read from the cluster for pages that changed.
    #[serde(default)]
    pub read_changed: u64,
    /// Bytes read from the cluster for other reasons: whole files, forks that no record names.
    #[serde(default)]
    pub read_other: u64,
    /// Bytes of frames written for data.
    #[serde(default)]
    pub written_data: u64,
    /// Bytes of frames written for maps.
    #[serde(default)]
    pub written_metadata: u64,
    /// The source that said what changed; absent when all was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Why better sources could not be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_sources: Vec<Noted>,
}

impl ClusterFacts {
    /// What every control file says; the rest is to be filled in.
    #[must_use]
    pub fn new(
        system: SystemIdentifier,
        major: PgMajor,
        block_size: u32,
        segment_blocks: u32,
    ) -> Self {
        Self {
            system,
            major,
            catalog_version: major.layout().catalog_version,
            block_size,
            segment_blocks,
            wal_block_size: 8192,
            wal_segment_size: 16 << 20,
            checksum_version: 0,
            wal_level: None,
            wal_log_hints: false,
            track_commit_timestamp: false,
        }
    }
}

impl Facts {
    /// Facts of which only these are known; the rest is to be filled in.
    #[must_use]
    pub fn new(kind: SnapshotKind, taken: i64, cluster: ClusterFacts) -> Self {
        Self {
            kind,
            taken,
            names: Vec::new(),
            parent: None,
            instance: None,
            lineage: None,
            cluster,
            log: LogFacts::default(),
            needs: Needs::default(),
            skipped: Vec::new(),
            bad_pages: Vec::new(),
            hints_may_be_older: false,
            cost: Cost::default(),
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                "facts of a snapshot",
                "cannot be written",
            )
            .caused_by(error)
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let facts: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::malformed("facts of a snapshot", "cannot be read").caused_by(error)
        })?;
        let block_size = facts.cluster.block_size;
        if !block_size.is_power_of_two() || block_size > MOST_BLOCK_SIZE {
            return Err(Error::malformed(
                "facts of a snapshot",
                format!("no cluster has pages of {block_size} bytes"),
            ));
        }
        Ok(facts)
    }
}

pub(crate) use text as text_of;

/// Values as their text.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Values as their text, if they are there.
mod maybe_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    #[expect(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom))
            .transpose()
    }
}

/// Timelines as their number.
mod timeline {
    use neon_pg_layout::TimelineId;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature is serde's"
    )]
    pub(super) fn serialize<S: Serializer>(
        value: &TimelineId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(value.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<TimelineId, D::Error> {
        TimelineId::new(u32::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_pages_that_no_server_has_are_malformed() {
        let system = SystemIdentifier::new(1).unwrap();
        for (block_size, good) in [
            (1024, true),
            (8192, true),
            (32768, true),
            (0, false),
            (8191, false),
            (65536, false),
            (2 << 20, false),
        ] {
            let cluster = ClusterFacts::new(system, PgMajor::V17, block_size, 131_072);
            let facts = Facts::new(SnapshotKind::Cold, 0, cluster);
            let read = Facts::decode(&facts.encode().unwrap());
            assert_eq!(read.is_ok(), good, "{block_size}");
        }
    }
}
