//! What a home promises, shown with real servers.
#![allow(clippy::unwrap_used, reason = "tests panic on failure")]

mod instances;
mod moving;
mod restored;
mod snapshots;
mod storages;
mod support;
mod taken;
