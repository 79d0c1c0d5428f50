//! Rates, ages and durations in few letters.

use std::time::Duration;

use neon_pg::in_units;

/// `20MB/s`, decimal as rates are.
pub(crate) fn rate(per_second: u64) -> String {
    format!(
        "{}/s",
        in_units(per_second, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 1000)
    )
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
