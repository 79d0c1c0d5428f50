//! Changing a share of the pages.

use crate::data::Data;
use crate::server::Server;

/// How much changes, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Change {
    /// Of the pages of the table that changes.
    pub(crate) share: f64,
    pub(crate) place: Place,
}

/// Where the pages that change lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// All over the table.
    Random,
    /// One after the other.
    Local,
}

impl Change {
    pub(crate) const fn new(share: f64, place: Place) -> Self {
        Self { share, place }
    }

    pub(crate) fn name(self) -> String {
        if self.share == 0.0 {
            return "nothing changed".to_owned();
        }
        let place = match self.place {
            Place::Random => "random",
            Place::Local => "local",
        };
        format!("{}% of pages, {place}", self.share * 100.0)
    }

    /// Updates one row in each page, in place, and writes them by a checkpoint. Seconds of that checkpoint.
    pub(crate) fn apply(self, server: &Server, data: Data) -> f64 {
        let changing = data.changing();
        let (table, key, set) = (changing.table, changing.key, changing.set);
        if self.share > 0.0 {
            let counts = server.sql(&format!(
                "select reltuples::bigint, relpages from pg_class where oid = '{table}'::regclass"
            ));
            let (rows, pages) = counts.split_once('|').unwrap();
            let keys = keys(
                self,
                rows.parse().unwrap(),
                pages.parse().unwrap(),
                &mut fastrand::Rng::new(),
            );
            let keys: Vec<String> = keys.iter().map(u64::to_string).collect();
            server.sql(&format!(
                "update {table} set {set} where {key} = any('{{{}}}'::bigint[]);",
                keys.join(",")
            ));
        }
        let log = server.log_position();
        server.checkpoint();
        server.checkpoints_since(&log)
    }
}

/// The keys of rows, from 1 on, of which each lies in another page if rows lie in the order of their keys.
fn keys(change: Change, rows: u64, pages: u64, random: &mut fastrand::Rng) -> Vec<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a number of pages"
    )]
    let wanted = ((pages as f64 * change.share).round() as u64).clamp(1, pages.max(1));
    let in_page = (rows / pages.max(1)).max(1);
    match change.place {
        // One in each of as many equal parts of the table.
        Place::Random => (0..wanted)
            .map(|part| {
                let (from, to) = (rows * part / wanted, rows * (part + 1) / wanted);
                1 + random.u64(from..to.max(from + 1))
            })
            .collect(),
        Place::Local => {
            let first = random.u64(0..=pages - wanted);
            (first..first + wanted)
                .map(|page| 1 + (page * in_page + in_page / 2).min(rows - 1))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_many_as_pages_are_wanted_and_exist() {
        for place in [Place::Random, Place::Local] {
            for share in [0.001, 0.01, 0.1, 1.0] {
                let mut random = fastrand::Rng::with_seed(7);
                let mut keys = keys(Change::new(share, place), 100_000, 2000, &mut random);
                let wanted = keys.len();
                keys.sort_unstable();
                keys.dedup();
                assert_eq!(keys.len(), wanted, "{place:?} {share}");
                assert_eq!(wanted as f64, 2000.0 * share);
                assert!(keys[0] >= 1 && keys[wanted - 1] <= 100_000);
            }
        }
    }

    #[test]
    fn local_pages_are_neighbours() {
        let mut random = fastrand::Rng::with_seed(7);
        let keys = keys(Change::new(0.01, Place::Local), 100_000, 2000, &mut random);
        assert!(keys.windows(2).all(|pair| pair[1] - pair[0] == 50));
    }

    #[test]
    fn a_change_is_called_what_it_is() {
        assert_eq!(
            Change::new(0.001, Place::Random).name(),
            "0.1% of pages, random"
        );
        assert_eq!(Change::new(0.0, Place::Local).name(), "nothing changed");
    }
}
