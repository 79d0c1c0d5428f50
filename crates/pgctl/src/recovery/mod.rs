//! Recovery runs: a private server replays WAL up to a target, and whether it got there is told truthfully.

mod folder;
mod job;
mod log;
mod plan;
mod run;
mod settings;
mod source;
mod target;
mod verdict;
mod watch;

pub use log::StopPoint;
pub use plan::{Recovered, RecoveryEnd, RecoveryEvent, RecoveryPlan};
pub use source::WalSource;
pub use target::{RecoveryTarget, RecoveryTimeline};
