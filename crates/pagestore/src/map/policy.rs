//! Which runs a new snapshot merges.
//!
//! With a fixed number of runs, each entry is written again least often when the runs grow together: the top
//! run takes every delta, and goes into the next one once it holds about `√(2·s·d)` bytes, where `s` is the size of that next one
//! and `d` that of a delta; the third and the fourth come later still. After n deltas of one size an entry has
//! been written about n^(1/3) times above the bottom, whatever n is ("binomial" merging: the run of level i holds C(m+i-1, i)
//! deltas in phase m). Nothing is kept beside the sizes, so a policy of another kind may follow at any time.

use crate::map::{MAX_RUNS, RunSize};

/// Deltas below this many bytes count as this many: a snapshot may cost some bytes whatever it changes, and
/// many small ones are better merged among themselves than with what is large.
const SMALL: u64 = 64 << 10;

/// How many of the newest runs a snapshot with this delta merges with it: 0 makes it a run of its own. What
/// comes out is never more than [`MAX_RUNS`]. `runs` are newest first.
#[must_use]
pub fn plan(runs: &[RunSize], delta: RunSize) -> usize {
    // In KiB, so that products of five of them fit.
    let kib = |bytes: u64| u128::from(bytes >> 10).max(1);
    let sizes: Vec<u128> = runs.iter().map(|run| kib(run.bytes)).collect();
    let least = (runs.len() + 1).saturating_sub(MAX_RUNS);
    let &[first, second, third, fourth] = sizes.as_slice() else {
        return least;
    };
    let unit = kib(delta.bytes.max(SMALL));
    let product = |factors: &[u128]| {
        let multiply = |product: u128, factor: &u128| product.saturating_mul(*factor);
        factors.iter().fold(1, multiply)
    };
    let mut moved = kib(delta.bytes) + first;
    if product(&[moved, moved]) <= product(&[2, second, unit]) {
        return 1;
    }
    moved += second;
    if product(&[2, moved, moved, moved]) <= product(&[9, third, third, unit]) {
        return 2;
    }
    moved += third;
    if product(&[3, moved, moved, moved, moved]) <= product(&[32, fourth, fourth, fourth, unit]) {
        return 3;
    }
    4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(bytes: u64) -> RunSize {
        RunSize {
            bytes,
            ..RunSize::default()
        }
    }

    #[test]
    fn there_is_room_for_the_delta_after_every_plan() {
        for count in 0..=9 {
            for bytes in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
                let runs = vec![size(bytes); count];
                for delta in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
                    let merged = plan(&runs, size(delta));
                    assert!(merged <= count && count - merged < MAX_RUNS);
                }
            }
        }
    }

    #[test]
    fn a_small_delta_leaves_large_runs_alone() {
        let runs = [1 << 20, 20 << 20, 300 << 20, 3 << 30].map(size);
        assert_eq!(plan(&runs, size(100 << 10)), 1);
        let runs = [3 << 20, 20 << 20, 300 << 20, 3 << 30].map(size);
        assert_eq!(plan(&runs, size(100 << 10)), 2);
    }

    /// Deltas of one size, each kept as it is: what is written over what came, above a bottom that is never reached.
    #[test]
    fn an_entry_is_written_again_about_as_often_as_the_third_root_of_the_deltas() {
        for (count, most) in [(200u64, 9.0), (2000, 20.0)] {
            let delta = 1 << 20;
            let mut runs = vec![1 << 40];
            let mut written = 0;
            for _ in 0..count {
                let sizes: Vec<_> = runs.iter().copied().map(size).collect();
                let merged = plan(&sizes, size(delta));
                let new = delta + runs.iter().take(merged).sum::<u64>();
                written += new;
                runs.splice(..merged, [new]);
            }
            let ratio = written as f64 / (count * delta) as f64;
            assert!(ratio < most, "{count}: {ratio}");
        }
    }
}
