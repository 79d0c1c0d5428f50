//! What PostgreSQL files look like, majors 13 to 18.
//!
//! Positions and names, the control file, pages and their checksums, the write-ahead log and what it
//! changed, backup labels, manifests and WAL summaries: types, parsers and writers over bytes and
//! text. Nothing here opens a file, allocates in proportion to anything but its input, or panics on
//! the bytes it is given.

mod backup_label;
mod block_ref_table;
mod checkpoint;
mod checksum;
mod control;
mod cursor;
mod data_file;
mod error;
mod file_checksum;
#[doc(hidden)]
pub mod fuzz_targets;
mod lsn;
mod manifest;
mod page;
mod postmaster_pid;
mod relation;
mod relation_map;
mod relation_path;
mod segment;
mod system_identifier;
mod tablespace_map;
mod timeline;
mod timeline_history;
mod version;
mod wal_summary;

pub use backup_label::{BackupHistory, BackupLabel, BackupMethod, BackupSource};
pub use block_ref_table::{BlockRefTable, BlockRefs};
pub use checkpoint::{CheckPoint, WalLevel};
pub use checksum::{page_checksum, page_checksums};
pub use control::{AuthenticationNonce, BuildFacts, ClusterState, ControlFile, RecordedSettings};
pub use data_file::{DataFile, Slru};
pub use error::{Error, ErrorKind, Result};
pub use file_checksum::{ChecksumAlgorithm, FileChecksum, FileHasher};
pub use lsn::Lsn;
pub use manifest::{Manifest, ManifestFile, ManifestItem, ManifestReader, ManifestWriter, gmt};
pub use page::{BlockSize, PageCheck, PageHeader, PageVerdict};
pub use postmaster_pid::{PostmasterPid, PostmasterStatus};
pub use relation::{BlockNumber, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator};
pub use relation_map::RelationMap;
pub use relation_path::{RelationPath, database_directory, tablespace_version_directory};
pub use segment::{SegmentName, WalFileName, WalSegmentSize};
pub use system_identifier::SystemIdentifier;
pub use tablespace_map::TablespaceMap;
pub use timeline::TimelineId;
pub use timeline_history::{TimelineHistory, TimelineRange, TimelineSwitch};
pub use version::{ImageBits, PgMajor, VersionLayout};
pub use wal_summary::{WalSummaryItem, WalSummaryName, WalSummaryReader};
