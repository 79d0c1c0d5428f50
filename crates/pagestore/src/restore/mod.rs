//! Restoring: out of a repository into a data directory.

mod execute;
mod page_checks;
mod plan;

pub use execute::{RestoreOptions, Restored, restore};
pub use plan::{Keep, RestorePlan};
