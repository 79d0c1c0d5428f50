//! Points in time as the server writes and reads them, always in UTC.
//!
//! The server gets no words (`now`, `yesterday`: recovery refuses them) and no zone names, only a full
//! date with an offset, to the microsecond it can store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

/// `2026-11-20 10:01:31.000123+00`; none outside the years 1 to 9999.
pub(crate) fn format(time: SystemTime) -> Option<String> {
    let micros = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_micros()).ok()?,
        // Rounded down, as the other side is.
        Err(before) => -i128::try_from(before.duration().as_nanos().div_ceil(1000)).ok()?,
    };
    let micros = i64::try_from(micros).ok()?;
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    if !(1..=9999).contains(&year) {
        return None;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{fraction:06}+00"
    ))
}

/// Reads a date and a time of day with the offset of their zone: what a server that was told `timezone=UTC`
/// writes (`2026-11-20 10:01:31.123456+00`), and RFC 3339 (`2026-11-20T12:01:31+02:00`).
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let (text, offset) = match text
        .strip_suffix(" UTC")
        .or_else(|| text.strip_suffix(['Z', 'z']))
    {
        Some(rest) => (rest, 0),
        None => {
            // A sign behind the date.
            let at = text
                .rfind(['+', '-'])
                .filter(|at| *at > "2026-11-20".len())?;
            (text.get(..at)?, parse_offset(text.get(at..)?)?)
        }
    };
    let local = parse_local(text.trim_end())?;
    let seconds = Duration::from_secs(offset.unsigned_abs());
    // East of Greenwich clocks are ahead.
    if offset >= 0 {
        local.checked_sub(seconds)
    } else {
        local.checked_add(seconds)
    }
}

/// `+02`, `-0330`, `+05:30` in seconds.
fn parse_offset(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let digits = digits.replace(':', "");
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let hours: i64 = digits.get(..2)?.parse().ok()?;
    let minutes: i64 = digits
        .get(2..)
        .filter(|rest| !rest.is_empty())
        .map_or(Ok(0), str::parse)
        .ok()?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn parse_local(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.split_once([' ', 'T', 't'])?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    if fraction.len() > 6 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}").parse().ok()?;
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let whole = if seconds >= 0 {
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds.unsigned_abs()))?
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs()))?
    };
    whole.checked_add(Duration::from_micros(micros))
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, years counted from March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_the_server_reads_them() {
        let at = |seconds, nanos| UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(format(at(0, 0)).unwrap(), "1970-01-01 00:00:00.000000+00");
        assert_eq!(
            format(at(951_782_400, 0)).unwrap(),
            "2000-02-29 00:00:00.000000+00"
        );
        assert_eq!(
            format(at(1_795_168_891, 123_456_999)).unwrap(),
            "2026-11-20 10:01:31.123456+00"
        );
        let before = UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(format(before).unwrap(), "1969-12-31 23:59:59.999999+00");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for seconds in (0..4_000_000_000_u64).step_by(86_399 * 13) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(7);
            assert_eq!(parse(&format(time).unwrap()), Some(time));
        }
        assert_eq!(
            parse("1970-01-01 00:00:01.5+00"),
            Some(UNIX_EPOCH + Duration::from_millis(1500))
        );
        let paris = parse("2026-11-20T11:01:31.5+01:00").unwrap();
        assert_eq!(parse("2026-11-20 10:01:31.5Z"), Some(paris));
        assert_eq!(parse("2026-11-20 06:31:31.5-0330"), Some(paris));
        for wrong in [
            "",
            "x",
            "2026-13-01 00:00:00+00",
            "2026-01-01 00:00:00",
            "2026-01-01 24:00:00+00",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
