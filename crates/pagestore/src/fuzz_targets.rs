//! The bodies of the fuzz targets: each takes any bytes and must neither panic, hang nor take memory out of
//! proportion.
//!
//! Public so that `fuzz/` and the property tests run the same code; not part of the crate's interface.

pub use crate::changes::fuzz::{log_tail, log_walk};
pub use crate::format_fuzz::{
    repository_body, repository_commit, repository_object, snapshot_name,
};
pub use crate::map::fuzz::{page_map_block, page_map_index, page_map_runs, page_map_view};
pub use crate::read::fuzz::thinned_frame;

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by name.
pub const ALL: &[Target] = &[
    ("log_tail", log_tail),
    ("log_walk", log_walk),
    ("page_map_block", page_map_block),
    ("page_map_index", page_map_index),
    ("page_map_runs", page_map_runs),
    ("page_map_view", page_map_view),
    ("repository_body", repository_body),
    ("repository_commit", repository_commit),
    ("repository_object", repository_object),
    ("snapshot_name", snapshot_name),
    ("thinned_frame", thinned_frame),
];
