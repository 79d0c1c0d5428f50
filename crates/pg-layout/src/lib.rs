//! What PostgreSQL files look like, majors 13 to 18.
//!
//! Positions and names, the control file, pages and their checksums, the write-ahead log and what it
//! changed, backup labels, manifests and WAL summaries: types, parsers and writers over bytes and
//! text. Nothing here opens a file, allocates in proportion to anything but its input, or panics on
//! the bytes it is given.

mod checkpoint;
mod cursor;
mod error;
#[doc(hidden)]
pub mod fuzz_targets;
mod lsn;
mod relation;
mod segment;
mod timeline;
mod timestamp;
mod version;
pub mod wal;

pub use checkpoint::{CheckPoint, WalLevel};
pub use error::{Error, ErrorKind, Result};
pub use lsn::Lsn;
pub use relation::{BlockNumber, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator};
pub use segment::{SegmentName, WalFileName, WalSegmentSize};
pub use timeline::TimelineId;
pub use timestamp::Timestamp;
pub use version::{ImageBits, PgMajor, VersionLayout};
