//! The protocol against real servers and real clients, and against peers that misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests panic on failure"
)]

mod connections;
mod hostile_clients;
mod hostile_servers;
mod odd_sources;
mod parameters;
mod properties;
mod real_servers;
mod source;
mod stock_clients;
mod support;
mod transcripts;
