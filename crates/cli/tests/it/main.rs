//! The built `neon`, run as a person or a script would, against real servers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

#[cfg(feature = "s3")]
mod adopted;
#[cfg(feature = "s3")]
mod buckets;
mod completions;
mod contract;
mod documents;
mod drivers;
mod failing;
mod flow;
mod help;
mod instances;
mod interrupted;
mod plans;
mod readme;
#[cfg(all(feature = "http", feature = "s3", feature = "ssh"))]
mod remotes;
mod settings;
mod sharing;
mod stopping;
mod storages;
mod support;
mod texts;
mod unmounted;
mod verbs;
