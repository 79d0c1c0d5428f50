//! The write-ahead log: pages, records, and what the records changed.
//!
//! [`WalReader`] takes the bytes of the log in pieces of any size and yields [`Record`]s;
//! [`Record::changes`] says what one record changed, as [`Change`]s. The framing is checked as
//! PostgreSQL checks it (`xlogreader.c`), and what stock tools leave as comments is checked too.

pub mod changes;
mod end;
mod format;
pub(crate) mod fuzz;
mod page;
mod reader;
mod record;
mod rmgr;

pub use changes::Change;
pub use end::end_of_log;
pub use format::WalFormat;
pub use page::{LongWalPageHeader, PageFlags, WalPageHeader};
pub use reader::{EndOfWal, EndReason, Step, WalReader};
pub use record::{BlockImage, BlockRef, Blocks, Compression, Record, RecordHeader};
pub use rmgr::ResourceManager;
