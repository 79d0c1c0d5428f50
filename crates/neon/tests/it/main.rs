//! What a home promises, shown with real servers.
#![allow(clippy::unwrap_used, reason = "tests panic on failure")]

mod instances;
mod snapshots;
mod restored;
mod storages;
mod support;
mod taken;
