//! Restoring: out of a repository into a data directory.

mod execute;
mod plan;

pub use execute::{RestoreOptions, Restored, restore};
pub use plan::{Keep, RestorePlan};
