//! What the repository promises, shown on real storages and real clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod clocked;
mod collection;
mod copies;
mod encryption;
mod gated;
mod interleavings;
mod listing;
mod names;
mod repository;
mod support;
