//! Restoring: out of a repository into a data directory.

mod execute;
mod page_checks;

pub use execute::{RestoreOptions, Restored, restore};
