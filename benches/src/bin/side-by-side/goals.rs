//! What was set as a goal, and whether this run met it.

use crate::contest::{FIRST, INCREMENTAL, RESTORE, ROLLBACK, Results, Row, Sample, next_after};
use crate::floors::{PACK_LZ4, PACK_ZSTD, WRITE};
use crate::ours::{LZ4, ZSTD};
use crate::statistics::Spread;

/// One goal: at most so much of what a peer takes.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) data: String,
    pub(crate) text: String,
    pub(crate) asked: f64,
    /// None where the run did not measure it.
    pub(crate) ratio: Option<f64>,
    /// The least that has to be done, to the peer: below that nobody gets on this machine. None where there is no such measure.
    pub(crate) floor: Option<f64>,
}

impl Goal {
    /// None where it was not measured.
    pub(crate) fn met(&self) -> Option<bool> {
        self.ratio.map(|ratio| ratio <= self.asked)
    }
}

const ZST: &str = "pgbackrest zst:1";
const SERVER_ZSTD: &str = "pg_basebackup server zstd:1, 2 workers";

/// All goals for each data set.
pub(crate) fn judge(results: &Results) -> Vec<Goal> {
    let mut sets: Vec<&str> = Vec::new();
    for row in &results.rows {
        if !sets.contains(&row.data.as_str()) {
            sets.push(&row.data);
        }
    }
    sets.into_iter()
        .flat_map(|data| of(results, data))
        .collect()
}

fn of(results: &Results, data: &str) -> Vec<Goal> {
    let series = next_after("0.1% of pages, random");
    let wall = |sample: &Sample| sample.usage.wall;
    let bare = |sample: &Sample| sample.usage.wall - sample.usage.checkpoint;
    let ratio = |stage: &str, who: &str, figure: &dyn Fn(&Sample) -> f64| {
        let row = results.row(data, stage, who)?;
        results.ratio_of(row, figure).map(|spread| spread.median)
    };
    let growth = |who: &str| {
        let added = |row: &Row| u32::try_from(row.growth() / 1024).ok().map(f64::from);
        let (ours, theirs) = (
            results.row(data, &series, ZSTD)?,
            results.row(data, &series, who)?,
        );
        let spread: Option<Spread> = Spread::ratios(&[added(ours)?], &[added(theirs)?]);
        spread.map(|spread| spread.median)
    };
    let goal = |text: &str, asked: f64, ratio: Option<f64>| Goal {
        data: data.to_owned(),
        text: text.to_owned(),
        asked,
        ratio,
        floor: None,
    };
    let above = |goal: Goal, stage: &str, floor: &str, peer: &str| Goal {
        floor: results.between(data, stage, floor, peer),
        ..goal
    };
    let lz4 = "pgbackrest lz4:1";
    vec![
        above(
            goal(
                "first snapshot, to pgbackrest, zstd",
                0.4,
                ratio(FIRST, ZST, &wall),
            ),
            FIRST,
            PACK_ZSTD,
            ZST,
        ),
        above(
            goal(
                &format!("first snapshot, to pgbackrest, lz4 ({LZ4})"),
                0.4,
                ratio(FIRST, lz4, &wall),
            ),
            FIRST,
            PACK_LZ4,
            lz4,
        ),
        above(
            goal(
                "first snapshot, to pg_basebackup with server zstd on two workers",
                0.5,
                ratio(FIRST, SERVER_ZSTD, &wall),
            ),
            FIRST,
            PACK_ZSTD,
            SERVER_ZSTD,
        ),
        goal(
            "next snapshot at 0.1%, to pgbackrest incr (asked at scale 700)",
            0.05,
            ratio(&series, ZST, &wall),
        ),
        goal(
            "next snapshot at 0.1% without the checkpoints, to pg_basebackup --incremental on 18",
            0.7,
            ratio(INCREMENTAL, "pg_basebackup --incremental", &bare),
        ),
        above(
            goal("restore, to pgbackrest", 0.5, ratio(RESTORE, ZST, &wall)),
            RESTORE,
            WRITE,
            ZST,
        ),
        goal(
            "rollback after 1%, to pgbackrest delta restore",
            0.15,
            ratio(ROLLBACK, "pgbackrest --delta restore, zst:1", &wall),
        ),
        goal(
            "growth by ten next snapshots, to pgbackrest",
            0.5,
            growth(ZST),
        ),
        goal(
            "growth by ten next snapshots, to restic",
            0.1,
            growth("restic"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::tests::sample;

    #[test]
    fn a_goal_is_met_by_its_ratio_and_open_without_one() {
        let mut results = Results::default();
        results.add("d", RESTORE, ZSTD, ZSTD, sample(1.0, 0));
        results.add("d", RESTORE, ZST, ZSTD, sample(2.5, 0));
        results.add("d", RESTORE, WRITE, ZSTD, sample(0.5, 0));
        results.add("d", ROLLBACK, ZSTD, ZSTD, sample(1.0, 0));
        results.add(
            "d",
            ROLLBACK,
            "pgbackrest --delta restore, zst:1",
            ZSTD,
            sample(2.0, 0),
        );
        let series = next_after("0.1% of pages, random");
        for _ in 0..10 {
            results.add("d", &series, ZSTD, ZSTD, sample(1.0, 10_240));
            results.add("d", &series, "restic", ZSTD, sample(1.0, 1 << 20));
        }
        let goals = judge(&results);
        let found = |part: &str| {
            goals
                .iter()
                .find(|goal| goal.text.starts_with(part))
                .unwrap()
        };
        assert_eq!(found("restore").met(), Some(true));
        assert_eq!(found("restore").floor, Some(0.2));
        assert_eq!(found("first").floor, None);
        assert_eq!(found("rollback").met(), Some(false));
        assert_eq!(
            found("growth by ten next snapshots, to pgbackrest").met(),
            None
        );
        let restic = found("growth by ten next snapshots, to restic");
        assert!((restic.ratio.unwrap() - 10.0 / 1024.0).abs() < 1e-9);
    }
}
