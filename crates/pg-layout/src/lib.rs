//! What PostgreSQL files look like, majors 13 to 18.
//!
//! Positions and names, the control file, pages and their checksums, the write-ahead log and what it
//! changed, backup labels, manifests and WAL summaries: types, parsers and writers over bytes and
//! text. Nothing here opens a file, allocates in proportion to anything but its input, or panics on
//! the bytes it is given.

mod checkpoint;
mod checksum;
mod control;
mod cursor;
mod error;
#[doc(hidden)]
pub mod fuzz_targets;
mod lsn;
mod page;
mod relation;
mod segment;
mod system_identifier;
mod timeline;
mod timeline_history;
mod timestamp;
mod version;
pub mod wal;

pub use checkpoint::{CheckPoint, WalLevel};
pub use checksum::{page_checksum, page_checksums};
pub use control::{AuthenticationNonce, BuildFacts, ClusterState, ControlFile, RecordedSettings};
pub use error::{Error, ErrorKind, Result};
pub use lsn::Lsn;
pub use page::{BlockSize, PageCheck, PageHeader, PageVerdict};
pub use relation::{BlockNumber, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator};
pub use segment::{SegmentName, WalFileName, WalSegmentSize};
pub use system_identifier::SystemIdentifier;
pub use timeline::TimelineId;
pub use timeline_history::{TimelineHistory, TimelineRange, TimelineSwitch};
pub use timestamp::Timestamp;
pub use version::{ImageBits, PgMajor, VersionLayout};
