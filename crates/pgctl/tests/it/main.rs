//! Everything this crate does, against real servers of every major.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod adoption;
mod bracket;
mod concurrency;
mod creation;
mod discovery;
mod dropping;
mod drops;
mod facts;
mod failures;
mod flushes;
mod history;
mod lifecycle;
mod quarantine;
mod recovery;
mod replica;
mod scope;
mod sessions;
mod settings;
mod support;
mod unprivileged;
