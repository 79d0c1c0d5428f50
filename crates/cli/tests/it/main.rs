//! The built `neon`, run as a person or a script would, against real servers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod contract;
mod documents;
mod flow;
mod help;
mod instances;
mod settings;
mod storages;
mod support;
mod texts;
