//! Which runs a new snapshot merges.

use crate::map::{MAX_RUNS, RunSize};

/// How many of the newest runs a snapshot with this delta merges with it: 0 makes it a run of its own. What
/// comes out is never more than [`MAX_RUNS`].
#[must_use]
pub fn plan(runs: &[RunSize], delta: RunSize) -> usize {
    let _ = delta;
    if runs.len() < MAX_RUNS {
        0
    } else {
        1 + runs.len() - MAX_RUNS
    }
}
