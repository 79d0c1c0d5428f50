//! Which ranges of a pack are read in one request.

use std::ops::Range;

use crate::read::frames::FrameReaderOptions;

/// Decides which ranges of one pack, in ascending order, are read in one request: near ones, as long as no more is read
/// for nothing than is wanted.
pub(crate) struct Together {
    gap: u64,
    request: u64,
    start: u64,
    end: u64,
    pub(crate) wanted: u64,
}

impl Together {
    pub(crate) fn new(options: &FrameReaderOptions) -> Self {
        Self::of(options.gap, options.request)
    }

    pub(crate) fn of(gap: u64, request: u64) -> Self {
        Self {
            gap,
            request,
            start: 0,
            end: 0,
            wanted: 0,
        }
    }

    pub(crate) fn begin(&mut self, range: &Range<u64>) {
        (self.start, self.end) = (range.start, range.end);
        self.wanted = range.end.saturating_sub(range.start);
    }

    /// Whether the next range is read with those since the last beginning.
    pub(crate) fn joins(&mut self, next: &Range<u64>) -> bool {
        let end = self.end.max(next.end);
        let more = next.end.saturating_sub(next.start.max(self.end));
        let wanted = self.wanted.saturating_add(more);
        let all = end.saturating_sub(self.start);
        let joins = next.start <= self.end.saturating_add(self.gap)
            && all <= self.request
            && all.saturating_sub(wanted) <= wanted;
        if joins {
            (self.end, self.wanted) = (end, wanted);
        }
        joins
    }
}
