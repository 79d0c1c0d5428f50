//! Everything this crate does, against real servers of every major.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod adoption;
mod concurrency;
mod creation;
mod discovery;
mod drops;
mod failures;
mod lifecycle;
mod quarantine;
mod scope;
mod settings;
mod support;
mod unprivileged;

mod bracket;
mod dropping;
mod facts;
mod history;
mod recovery;
mod replica;
