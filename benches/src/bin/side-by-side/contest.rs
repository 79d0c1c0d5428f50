//! Who took part in what, and what it cost.

use crate::measure::Usage;
use crate::repository::Kept;
use crate::statistics::Spread;

/// One run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) usage: Usage,
    /// What the run added to the repository; none where it adds nothing by its nature.
    pub(crate) added: Option<Kept>,
}

/// All runs of one contender at one thing.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) data: String,
    pub(crate) stage: String,
    pub(crate) who: String,
    /// Which of ours it is compared with; its own name for ours.
    pub(crate) peer_of: String,
    pub(crate) samples: Vec<Sample>,
}

/// All rows, in the order in which they came up.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
    /// What there was no room for on the disk, in words.
    pub(crate) passed_over: Vec<String>,
}

pub(crate) const FIRST: &str = "first snapshot";
pub(crate) const RESTORE: &str = "restore into an empty directory";
pub(crate) const INCREMENTAL: &str = "18, next snapshot, 0.1% of pages, random";
pub(crate) const COMBINE: &str = "18, making the last one usable";
pub(crate) const ROLLBACK: &str = "rollback, 1% of pages changed";
pub(crate) const CLONE: &str = "clone to first query";
pub(crate) const LIST: &str = "list";
/// What all stages with a bucket begin with.
pub(crate) const BUCKET: &str = "to a bucket: ";
const NEXT: &str = "next snapshot";

/// The stage of next snapshots after this change.
pub(crate) fn next_after(change: &str) -> String {
    format!("{NEXT}, {change}")
}

impl Results {
    pub(crate) fn add(
        &mut self,
        data: &str,
        stage: &str,
        who: &str,
        peer_of: &str,
        sample: Sample,
    ) {
        let same = |row: &&mut Row| row.data == data && row.stage == stage && row.who == who;
        if let Some(row) = self.rows.iter_mut().find(same) {
            row.samples.push(sample);
            return;
        }
        self.rows.push(Row {
            data: data.to_owned(),
            stage: stage.to_owned(),
            who: who.to_owned(),
            peer_of: peer_of.to_owned(),
            samples: vec![sample],
        });
    }

    pub(crate) fn row(&self, data: &str, stage: &str, who: &str) -> Option<&Row> {
        let wanted = |row: &&Row| row.data == data && row.stage == stage && row.who == who;
        self.rows.iter().find(wanted)
    }

    /// The time of ours to that of this row; none for our own rows.
    pub(crate) fn ratio(&self, row: &Row) -> Option<Spread> {
        self.ratio_of(row, |sample| sample.usage.wall)
    }

    /// A figure of ours to that of this row.
    pub(crate) fn ratio_of(&self, row: &Row, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        if row.peer_of == row.who {
            return None;
        }
        let ours = self.row(&row.data, &row.stage, &row.peer_of)?;
        let figures = |row: &Row| row.samples.iter().map(&figure).collect::<Vec<f64>>();
        Spread::ratios(&figures(ours), &figures(row))
    }

    /// The time of one to that of another, where both took part.
    pub(crate) fn between(&self, data: &str, stage: &str, who: &str, other: &str) -> Option<f64> {
        let times = |who: &str| -> Option<Vec<f64>> {
            let row = self.row(data, stage, who)?;
            Some(row.samples.iter().map(|run| run.usage.wall).collect())
        };
        Some(Spread::ratios(&times(who)?, &times(other)?)?.median)
    }

    /// Each data set with its stages, in order.
    pub(crate) fn stages(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        for row in &self.rows {
            let stage = (row.data.clone(), row.stage.clone());
            if !all.contains(&stage) {
                all.push(stage);
            }
        }
        all
    }
}

impl Row {
    /// The spread of a figure over the rounds.
    pub(crate) fn spread(&self, figure: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(figure)).expect("a row has a sample")
    }

    /// The bytes that all rounds together added.
    pub(crate) fn growth(&self) -> u64 {
        let added = self.samples.iter().filter_map(|sample| sample.added);
        added.map(|kept| kept.bytes).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run of so many seconds that adds so many bytes.
    pub(crate) fn sample(wall: f64, bytes: u64) -> Sample {
        Sample {
            usage: Usage {
                wall,
                ..Usage::default()
            },
            added: Some(Kept { bytes, objects: 1 }),
        }
    }

    #[test]
    fn ours_has_no_ratio_and_others_have_that_to_their_match() {
        let mut results = Results::default();
        for (who, of, wall) in [
            ("a", "a", 1.0),
            ("b", "a", 4.0),
            ("a", "a", 1.0),
            ("b", "a", 2.0),
        ] {
            results.add("d", FIRST, who, of, sample(wall, 10));
        }
        assert_eq!(results.rows.len(), 2);
        assert_eq!(results.ratio(&results.rows[0]), None);
        let ratio = results.ratio(&results.rows[1]).unwrap();
        assert_eq!((ratio.least, ratio.most), (0.25, 0.5));
        assert_eq!(results.rows[1].growth(), 20);
        assert_eq!(results.stages(), [("d".to_owned(), FIRST.to_owned())]);
    }
}
