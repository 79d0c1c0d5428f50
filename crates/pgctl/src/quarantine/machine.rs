//! What this machine has, as far as a server's settings must fit it.

use std::fs;

/// Memory sizes in settings: a number with a unit, or one in the setting's own unit.
pub(crate) fn parse_bytes(value: &str, own_unit: u64) -> Option<u64> {
    let value = value.trim();
    let end = value
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    let factor = match unit.trim() {
        "" => own_unit,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    // Units may have a fraction: `1.5GB`.
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let tenths = fraction
        .chars()
        .next()
        .and_then(|digit| digit.to_digit(10))
        .unwrap_or(0);
    whole.checked_add(factor / 10 * u64::from(tenths))
}

/// The memory that processes here may use in bytes: what is installed, or what the container is given.
pub(crate) fn memory() -> Option<u64> {
    let installed = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        parse_bytes(&line.trim().replace(" kB", "kB"), 1)
    });
    let given = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .into_iter()
    .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    given.chain(installed).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit() {
        assert_eq!(parse_bytes("64GB", 8192), Some(64 << 30));
        assert_eq!(parse_bytes("16384", 8192), Some(128 << 20));
        assert_eq!(parse_bytes(" 512 kB ", 1), Some(512 << 10));
        assert_eq!(
            parse_bytes("1.5GB", 1),
            Some((1 << 30) + (1 << 30) / 10 * 5)
        );
        assert_eq!(parse_bytes("-1", 1), None);
        assert_eq!(parse_bytes("99999999999TB", 1), None);
        assert_eq!(parse_bytes("one", 1), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(memory().unwrap() > 64 << 20);
    }
}
