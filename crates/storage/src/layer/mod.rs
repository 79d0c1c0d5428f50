//! Storages over storages. Each adds one behaviour and leaves the contract whole.

mod attempts;
mod limit;
mod meter;
mod prefix;
mod rate;
mod read_only;
mod retry;

#[cfg(feature = "testing")]
pub(crate) mod faulty;

pub use limit::Limit;
pub use meter::{Event, EventOutcome, Meter};
pub use prefix::Prefix;
pub use rate::RateLimit;
pub use read_only::ReadOnly;
#[cfg(feature = "http")]
pub(crate) use read_only::{refusal, refuse_all};
pub use retry::{RetryLayer, RetryPolicy};
