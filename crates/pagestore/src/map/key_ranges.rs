//! A set of keys made of ranges.

use crate::map::PageKey;

/// Ranges of keys: sorted, without their ends, not touching each other.
#[derive(Debug, Default)]
pub(crate) struct KeyRanges(Vec<(PageKey, Option<PageKey>)>);

/// Whether a key lies before an end; none is the end of all keys.
fn before(key: &PageKey, end: Option<&PageKey>) -> bool {
    end.is_none_or(|end| key < end)
}

impl KeyRanges {
    /// Appends a range that does not begin before the last one.
    pub(crate) fn push(&mut self, first: &PageKey, end: Option<&PageKey>) {
        match self.0.last_mut() {
            Some((_, last)) if last.as_ref().is_none_or(|last| first <= last) => {
                let longer = match (&*last, end) {
                    (Some(last), Some(end)) => last < end,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if longer {
                    *last = end.cloned();
                }
            }
            _ => self.0.push((first.clone(), end.cloned())),
        }
    }

    /// Whether a range has keys in common with it.
    pub(crate) fn overlap(&self, first: &PageKey, end: Option<&PageKey>) -> bool {
        let over = |range: &(PageKey, Option<PageKey>)| !before(first, range.1.as_ref());
        let next = self.0.get(self.0.partition_point(over));
        next.is_some_and(|(start, _)| before(start, end))
    }

    /// Adds others.
    pub(crate) fn extend(&mut self, others: Self) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(others.0);
        all.sort_by(|one, other| one.0.cmp(&other.0));
        for (first, end) in &all {
            self.push(first, end.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use neon_snapshot_format::SnapshotPath;
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> PageKey {
        PageKey {
            path: SnapshotPath::new(format!("{}", number / 10)).unwrap(),
            page: u32::from(number % 10),
        }
    }

    proptest! {
        #[test]
        fn ranges_overlap_where_a_key_is_in_both(
            ranges in prop::collection::vec((0u8..90, 1u8..20), 0..12),
            probe in (0u8..80, 1u8..20),
            open_end: bool,
        ) {
            let mut set = KeyRanges::default();
            for (first, length) in &ranges {
                let mut one = KeyRanges::default();
                let end = key((first + length).min(99));
                one.push(&key(*first), (first + length < 90).then_some(&end));
                set.extend(one);
            }
            let (first, length) = probe;
            let end = if open_end { 99 } else { (first + length).min(89) };
            let inside = |number: u8| ranges.iter().any(|(first, length)| {
                *first <= number && (number < first + length || first + length >= 90)
            });
            let end_key = key(end);
            prop_assert_eq!(
                set.overlap(&key(first), (!open_end).then_some(&end_key)),
                (first..end).any(inside)
            );
        }
    }
}
