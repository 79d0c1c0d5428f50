//! What a home promises, shown with real servers.
#![allow(clippy::unwrap_used, reason = "tests panic on failure")]

mod adopt;
mod details;
mod instances;
mod snapshots;
mod storages;
mod support;
