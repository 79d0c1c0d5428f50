//! Parts of a frame that are kept or dropped by themselves.

use std::fmt;
use std::ops::Range;

/// Cells of a frame: which pieces of 8 KiB of its plain bytes, the last of which may be shorter.
///
/// They depend on nothing but where bytes lie in the plain bytes: not on the size of pages, nor on what shares the frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cells(u16);

impl Cells {
    /// Bytes of a cell.
    pub const SIZE: u32 = 8192;
    /// None.
    pub const NONE: Self = Self(0);
    /// The most that a frame can have.
    pub const ALL: Self = Self(u16::MAX);

    /// Those of a bit each, the lowest for the first.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// A bit for each, the lowest for the first.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// All of a frame of so many plain bytes.
    #[must_use]
    pub fn whole(plain_length: u32) -> Self {
        Self::of(&(0..plain_length.into()))
    }

    /// All that a range of plain bytes touches.
    #[must_use]
    pub fn of(range: &Range<u64>) -> Self {
        if range.is_empty() {
            return Self::NONE;
        }
        let size = u64::from(Self::SIZE);
        let below = |count: u64| match u32::try_from(count) {
            Ok(count) if count < 16 => (1_u16 << count) - 1,
            _ => u16::MAX,
        };
        Self(below(range.end.div_ceil(size)) & !below(range.start / size))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether all of the others are among them.
    #[must_use]
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Those that are in either.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn common(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// Those that are not in the others.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Their numbers, in order.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..16).filter(move |number| self.0 >> number & 1 == 1)
    }

    /// Those with smaller numbers.
    #[must_use]
    pub fn before(self, number: u32) -> Self {
        self.common(Self::of(&(0..u64::from(number) * u64::from(Self::SIZE))))
    }

    /// Where one lies in the plain bytes of a frame of this length.
    pub(crate) fn range(number: u32, plain_length: u32) -> Range<u32> {
        let start = number.saturating_mul(Self::SIZE).min(plain_length);
        start..start.saturating_add(Self::SIZE).min(plain_length)
    }

    /// Bytes of these of a frame of this length.
    #[must_use]
    pub fn plain_bytes(self, plain_length: u32) -> u32 {
        self.numbers()
            .map(|number| Self::range(number, plain_length))
            .map(|range| range.end.saturating_sub(range.start))
            .fold(0, u32::saturating_add)
    }

    /// What of `stored` bytes that all of these take together is for `some` of them. The shares of parts add up to that of
    /// the whole.
    #[must_use]
    pub fn share(self, some: Self, stored: u32) -> u64 {
        let count = u64::from(self.count()).max(1);
        let until = |rank: u64| u64::from(stored).saturating_mul(rank) / count;
        self.numbers()
            .zip(0_u64..)
            .filter(|(number, _)| some.0 >> number & 1 == 1)
            .map(|(_, rank)| until(rank.saturating_add(1)).saturating_sub(until(rank)))
            .fold(0, u64::saturating_add)
    }
}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cells({:#018b})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_touches_the_cells_that_its_bytes_lie_in() {
        for (range, bits) in [
            (0..0, 0),
            (5..5, 0),
            (0..1, 1),
            (0..8192, 1),
            (0..8193, 0b11),
            (8191..8192, 1),
            (8192..16384, 0b10),
            (100..131_072, u16::MAX),
            (131_071..131_072, 1 << 15),
            (131_071..u64::MAX, 1 << 15),
        ] {
            assert_eq!(Cells::of(&range).bits(), bits, "{range:?}");
        }
        assert_eq!(Cells::whole(8193).plain_bytes(8193), 8193);
        assert_eq!(Cells::from_bits(0b10).plain_bytes(8193), 1);
    }

    proptest! {
        #[test]
        fn shares_of_cells_add_up(whole in 1..=u16::MAX, some: u16, stored in 0..200_000_u32) {
            let whole = Cells::from_bits(whole);
            let some = whole.common(Cells::from_bits(some));
            let both = whole.share(some, stored) + whole.share(whole.without(some), stored);
            prop_assert_eq!(both, u64::from(stored));
        }

        #[test]
        fn cells_of_a_range_are_those_that_overlap_it(start in 0..140_000_u64, length in 1..140_000_u64) {
            let cells = Cells::of(&(start..start + length));
            for number in 0..16_u64 {
                let overlaps = start < (number + 1) * 8192 && start + length > number * 8192;
                prop_assert_eq!(cells.bits() >> number & 1 == 1, overlaps);
            }
        }
    }
}
