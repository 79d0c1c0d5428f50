//! Medians, and ratios of what ran in the same round.

/// The middle of some figures, and how far they reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// None of nothing.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = figures.into_iter().collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len().is_multiple_of(2) {
            f64::midpoint(all[middle - 1], all[middle])
        } else {
            all[middle]
        };
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// Of ours to theirs, round by round: what slows the machine for a while slows both.
    pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let pairs = ours.iter().zip(theirs);
        Self::of(
            pairs
                .filter(|(_, theirs)| **theirs > 0.0)
                .map(|(ours, theirs)| ours / theirs),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle_or_between_the_middle_two() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.least, odd.median, odd.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let spread = Spread::ratios(&[1.0, 10.0], &[2.0, 20.0]).unwrap();
        assert_eq!((spread.least, spread.most), (0.5, 0.5));
        assert_eq!(Spread::ratios(&[1.0], &[0.0]), None);
        assert_eq!(
            Spread::ratios(&[1.0, 2.0, 3.0], &[2.0]).unwrap().median,
            0.5
        );
    }
}
