//! What PostgreSQL files look like, majors 13 to 18.
//!
//! Positions and names, the control file, pages and their checksums, the write-ahead log and what it
//! changed, backup labels, manifests and WAL summaries: types, parsers and writers over bytes and
//! text. Nothing here opens a file, allocates in proportion to anything but its input, or panics on
//! the bytes it is given.

mod cursor;
mod error;
mod lsn;
mod relation;
mod timeline;
mod version;

pub use error::{Error, ErrorKind, Result};
pub use lsn::Lsn;
pub use relation::{BlockNumber, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator};
pub use timeline::TimelineId;
pub use version::{ImageBits, PgMajor, VersionLayout};
