//! Sizes in few letters.

/// `0`, `812B`, `39.1M`, `5G`, `120G`: binary units, at most one digit after the point.
#[must_use]
pub fn bytes_in_words(count: u64) -> String {
    in_units(count, &["B", "K", "M", "G", "T", "P", "E"], 1024)
}

/// A count in the largest unit that it has one of, each `step` (at least 2) times the one before. Rounded half up, in integers: no float decides
/// what is shown.
#[must_use]
pub fn in_units(count: u64, units: &[&str], step: u64) -> String {
    if count == 0 {
        return "0".to_owned() + units.first().unwrap_or(&"").trim_start_matches('B');
    }
    let (mut divisor, mut chosen) = (1_u128, 0);
    let count = u128::from(count);
    let step = u128::from(step.max(2));
    // What would round up to a whole next unit is shown in that.
    while chosen + 1 < units.len() && count * 2 >= divisor.saturating_mul(step * 2 - 1) {
        divisor *= step;
        chosen += 1;
    }
    let unit = units.get(chosen).copied().unwrap_or_default();
    let tenths = (count * 20 + divisor) / (divisor * 2);
    if chosen == 0 || tenths >= 1000 || tenths % 10 == 0 {
        format!("{}{unit}", (count * 2 + divisor) / (divisor * 2))
    } else {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = |count| bytes_in_words(count);
        assert_eq!(shown(0), "0");
        assert_eq!(shown(812), "812B");
        assert_eq!(shown(1023), "1023B");
        assert_eq!(shown(1024), "1K");
        assert_eq!(shown(1536), "1.5K");
        assert_eq!(shown(41_000_000), "39.1M");
        assert_eq!(shown(5_476_083_302), "5.1G");
        assert_eq!(shown(5 << 30), "5G");
        assert_eq!(shown((1 << 20) - 1), "1M");
        assert_eq!(shown(300 << 20), "300M");
        assert_eq!(shown(u64::MAX), "16E");
    }

    #[test]
    fn units_that_never_grow_are_shown_all_the_same() {
        assert_eq!(in_units(5, &["a", "b"], 0), in_units(5, &["a", "b"], 2));
        assert_eq!(in_units(5, &["a", "b"], 1), in_units(5, &["a", "b"], 2));
        let most = in_units(u64::MAX, &["a"; 40], u64::MAX);
        assert!(most.ends_with('a'));
    }
}
