//! Sizes, rates, ages and durations in few letters.

use std::time::Duration;

/// `0`, `812B`, `39.1M`, `5G`, `120G`: binary units, at most one digit after the point.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count, &["B", "K", "M", "G", "T", "P", "E"], 1024)
}

/// `20MB/s`, decimal as rates are.
pub(crate) fn rate(per_second: u64) -> String {
    format!(
        "{}/s",
        scaled(per_second, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 1000)
    )
}

/// Rounded half up, in integers: no float decides what is shown.
fn scaled(count: u64, units: &[&str], step: u64) -> String {
    if count == 0 {
        return "0".to_owned() + units.first().unwrap_or(&"").trim_start_matches('B');
    }
    let (mut divisor, mut chosen) = (1_u128, 0);
    let count = u128::from(count);
    let step = u128::from(step);
    // What would round up to a whole next unit is shown in that.
    while chosen + 1 < units.len() && count * 2 >= divisor * (step * 2 - 1) {
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

/// How long ago: `12s`, `3m`, `2h`, `5d`.
pub(crate) fn age(then: u64, now: u64) -> String {
    match now.saturating_sub(then) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// How long it takes: `0.4s`, `12s`, `2m10s`, `3h05m`.
pub(crate) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", length.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = |count| bytes(count);
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
    fn rates_ages_and_durations_are_short() {
        assert_eq!(rate(20_000_000), "20MB/s");
        assert_eq!(rate(1_250), "1.3kB/s");
        assert_eq!(age(100, 103), "3s");
        assert_eq!(age(100, 50), "0s");
        assert_eq!(age(0, 7_300), "2h");
        assert_eq!(age(0, 86_400 * 5), "5d");
        assert_eq!(duration(Duration::from_millis(420)), "0.4s");
        assert_eq!(duration(Duration::from_secs(130)), "2m10s");
        assert_eq!(duration(Duration::from_secs(11_100)), "3h05m");
    }
}
