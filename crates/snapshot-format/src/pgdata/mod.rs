//! Data directories: read per kind of snapshot, written so that they start.

mod bracket;
mod control;
mod copied;
mod existing;
mod files;
mod parallel;
mod place;
mod plan;
mod read;
mod relation_pages;
mod rules;
mod select;
mod stop;
mod write;
mod write_files;
mod write_options;

pub use bracket::Bracket;
pub use copied::Copied;
pub use existing::ExistingDirectory;
pub use files::{DataFiles, OpenDataFile};
pub use read::PgData;
pub use rules::{EXCLUSIONS, Exclusion, holds_data};
pub use select::Select;
pub use stop::{Stop, StopWal};
pub use write::DirectoryWriter;
pub use write_options::{DirectoryOptions, Flush, Ownership, TablespacePlaces, Written};
