//! Durations and sizes as text: two readers, and two writers whose output the readers take back to
//! the same value.

use std::time::Duration;

/// Reads `30`, `0.25` (seconds) or what humantime takes (`"500ms"`, `"30s"`, `"1m 500ms"`). None
/// for anything else, for what is finer than a nanosecond, and for what overflows a [`Duration`].
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return seconds(text);
    }
    humantime::parse_duration(text).ok()
}

/// Decimal seconds, digit by digit: a float would turn 0.1 into something that is not 100 ms.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if (1..=NANO_DIGITS).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (text, "0"),
    };
    let nanos = format!("{fraction:0<NANO_DIGITS$}").parse().ok()?;
    Some(Duration::new(whole.parse().ok()?, nanos))
}

/// One number and the largest unit that divides the duration: `24h`, `75s`, `500ms`, `0s`.
pub(super) fn show_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".to_owned();
    }
    let nanos = duration.as_nanos();
    let (unit, name) = DURATION_UNITS
        .into_iter()
        .find(|(unit, _)| nanos.is_multiple_of(*unit))
        .expect("every whole number is a multiple of one nanosecond");
    format!("{}{name}", nanos / unit)
}

/// Reads whole bytes, alone or with a unit in any case: `65536`, `64KiB`, `10kB`, `1 GiB`. None for
/// anything else and for what overflows.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor = SIZE_UNITS.iter().find(|(_, name)| name.eq_ignore_ascii_case(unit))?.0;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// One number and the largest binary unit that divides the size; bytes go without a unit.
pub(super) fn show_size(size: u64) -> String {
    let (factor, name) = SIZE_UNITS
        .iter()
        .find(|(factor, name)| name.ends_with("iB") && size > 0 && size.is_multiple_of(*factor))
        .unwrap_or(&(1, ""));
    format!("{}{name}", size / factor)
}

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const TIB: u64 = 1 << 40;

const NANO_DIGITS: usize = 9;

/// Largest first. `h` and not `day`: a limit of `24h` is easier to compare with one of `1h`.
const DURATION_UNITS: [(u128, &str); 6] = [
    (3_600_000_000_000, "h"),
    (60_000_000_000, "m"),
    (1_000_000_000, "s"),
    (1_000_000, "ms"),
    (1_000, "us"),
    (1, "ns"),
];

/// Binary units largest first, then the decimal ones.
const SIZE_UNITS: [(u64, &str); 10] = [
    (TIB, "TiB"),
    (GIB, "GiB"),
    (MIB, "MiB"),
    (KIB, "KiB"),
    (1_000_000_000_000, "TB"),
    (1_000_000_000, "GB"),
    (1_000_000, "MB"),
    (1_000, "kB"),
    (1, "B"),
    (1, ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read() {
        let millis = |n| Some(Duration::from_millis(n));
        assert_eq!(duration("30"), millis(30_000));
        assert_eq!(duration("0.1"), millis(100));
        assert_eq!(duration("1.000000001"), Some(Duration::new(1, 1)));
        assert_eq!(duration("500ms"), millis(500));
        assert_eq!(duration("1m 500ms"), millis(60_500));
        assert_eq!(duration("0"), millis(0));
        for text in ["", ".", "1.", ".5", "1.2.3", "-1", "soon", "1.0000000001", "inf", "1e3"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
        assert_eq!(duration("99999999999999999999"), None);
        assert_eq!(duration("99999999999999999999s"), None);
    }

    #[test]
    fn sizes_read() {
        assert_eq!(size("65536"), Some(65_536));
        assert_eq!(size("64KiB"), Some(64 * KIB));
        assert_eq!(size("64 kib"), Some(64 * KIB));
        assert_eq!(size("10kB"), Some(10_000));
        assert_eq!(size("1GiB"), Some(GIB));
        assert_eq!(size("7B"), Some(7));
        assert_eq!(size("18446744073709551615"), Some(u64::MAX));
        for text in
            ["", "KiB", "-1", "1.5MiB", "1k", "1KiBs", "18446744073709551616", "99999999TiB"]
        {
            assert_eq!(size(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for nanos in [0, 1, 999, 1_000, 1_500_000, 100_000_000, 1_500_000_000, 75_000_000_000] {
            let value = Duration::from_nanos(nanos);
            assert_eq!(duration(&show_duration(value)), Some(value));
        }
        assert_eq!(show_duration(Duration::from_secs(86_400)), "24h");
        assert_eq!(show_duration(Duration::from_secs(75)), "75s");
        assert_eq!(show_duration(Duration::ZERO), "0s");
        for bytes in [0, 1, 500, 1_000, 1_024, 1_536, MIB, 3 * GIB, TIB, u64::MAX] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!(show_size(32 * KIB), "32KiB");
        assert_eq!(show_size(500), "500");
    }
}
