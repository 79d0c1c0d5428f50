//! Restoring: out of a repository into a data directory.

mod compare;
mod execute;
mod files;
mod plan;
mod told;

pub use execute::{RestoreOptions, Restored, restore};
pub use plan::{Keep, RestorePlan};
