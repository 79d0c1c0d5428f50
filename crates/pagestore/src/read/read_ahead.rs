//! Notices that pages are read one after the other, and says which are likely next.

use std::ops::Range;

use neon_snapshot_format::SnapshotPath;

/// Pages read in order before anything is read ahead.
const PATIENCE: u32 = 3;
const FIRST_WINDOW: u32 = 32;
const LAST_WINDOW: u32 = 512;

/// What was read last.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    path: Option<SnapshotPath>,
    next: u32,
    in_order: u32,
    window: u32,
    /// Pages before it were asked for.
    asked: u32,
}

impl ReadAhead {
    /// Notes that a page is read; returns the pages to read ahead of it, if any.
    pub(crate) fn note(&mut self, path: &SnapshotPath, page: u32) -> Option<Range<u32>> {
        if self.path.as_ref() != Some(path) || page != self.next {
            if self.path.as_ref() != Some(path) {
                self.path = Some(path.clone());
            }
            self.next = page.saturating_add(1);
            self.in_order = 1;
            self.window = FIRST_WINDOW;
            self.asked = self.next;
            return None;
        }
        self.next = page.saturating_add(1);
        self.in_order = self.in_order.saturating_add(1);
        if self.in_order < PATIENCE || self.asked > self.next.saturating_add(self.window / 2) {
            return None;
        }
        let start = self.asked.max(self.next);
        let end = self.next.saturating_add(self.window);
        self.asked = end;
        self.window = (self.window * 2).min(LAST_WINDOW);
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_order_are_read_ahead_once_each_and_others_not() {
        let path = SnapshotPath::new("base/5/1").unwrap();
        let mut ahead = ReadAhead::default();
        for page in [7, 3, 9, 1, 5, 5, 6] {
            assert_eq!(ahead.note(&path, page), None);
        }
        let mut asked = 7;
        for page in 7..2000 {
            if let Some(range) = ahead.note(&path, page) {
                assert!(range.start == asked.max(page + 1) && range.end > page);
                asked = range.end;
            }
        }
        assert!(asked > 2000 && asked < 2000 + 2 * LAST_WINDOW);
        assert_eq!(
            ahead.note(&SnapshotPath::new("base/5/2").unwrap(), 2000),
            None
        );
    }
}
