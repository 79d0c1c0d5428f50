//! Collections: what no snapshot needs is deleted, beside writers and readers at work.
//!
//! See [`Repository::collect`](crate::Repository::collect). A run marks what is live, rewrites packs of which little is, and announces what can
//! go. A run that comes a grace later publishes what it is about to delete, marks again, and deletes what is
//! still not needed. Anything that cannot be read ends a run before it deletes.

mod execute;
mod inventory;
mod mark;
mod plan;
mod repack;
mod retained;

pub use execute::Collected;
pub use plan::{CollectionPlan, LeftPack, LeftReason};
pub use retained::Retained;

pub(crate) use inventory::{Inventory, list_packs};
pub(crate) use mark::{Marked, run};
