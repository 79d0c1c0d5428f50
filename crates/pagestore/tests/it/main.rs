//! What the repository promises, shown on real storages and real clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests panic on failure"
)]

mod cached;
mod changes;
mod checks;
mod clocked;
mod clusters;
mod collection;
mod copies;
mod cut;
mod damaged_commits;
#[path = "../../../storage/tests/it/disks.rs"]
#[allow(dead_code, unreachable_pub, reason = "of the storage's own tests")]
mod disks;
mod encryption;
mod exports;
mod faults;
mod files;
mod foreign_packs;
mod garbage;
mod gated;
mod given_up;
mod in_place;
mod interleavings;
mod kept;
mod listing;
mod locked;
mod names;
mod power;
mod processes;
mod repository;
mod scale;
mod scattered;
mod stopped;
mod support;
mod thinned;
mod told;
mod truth;
mod written;
