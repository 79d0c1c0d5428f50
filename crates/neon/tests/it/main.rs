//! What a home promises, shown with real servers.
#![allow(clippy::unwrap_used, reason = "tests panic on failure")]

mod adopt;
mod arrivals;
mod by_map;
mod checkouts;
mod details;
mod doctor;
mod ended;
mod first;
mod imports;
mod instances;
mod killed;
mod mended;
mod moving;
mod offers;
mod pinned;
mod places;
mod ports;
mod redo;
mod remotes;
mod restored;
mod rollbacks;
mod shared;
mod snapshots;
mod storages;
mod support;
mod taken;
mod trash;
mod undone;
mod visits;
