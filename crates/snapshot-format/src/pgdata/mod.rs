//! Data directories: read per kind of snapshot, written so that they start.

mod place;
mod plan;
mod read;
mod relation_pages;
mod rules;
mod stop;
mod write;

pub use read::{Bracket, Copied, PgData};
pub use rules::{EXCLUSIONS, Exclusion};
pub use stop::{Stop, StopWal};
pub use write::{DirectoryOptions, DirectoryWriter, Ownership, TablespacePlaces, Written};
