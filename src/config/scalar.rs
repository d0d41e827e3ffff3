//! Durations and sizes.

use std::time::Duration;

/// The longest duration: no clock overflows by it.
pub(super) const ONE_YEAR: Duration = Duration::from_hours(365 * 24);

/// A duration: digits and one of `ms`, `s`, `m`, `h`, `d`. A bare number is refused, since it says
/// nothing about its unit.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(ms)?))
}

/// A size in bytes: digits and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`, or nothing for bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let power = match unit {
        "" | "B" => 0,
        unit => 1 + UNITS.iter().position(|known| *known == unit)?,
    };
    let factor = 1024_u64.checked_pow(u32::try_from(power).ok()?)?;
    number.checked_mul(factor)
}

const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];

/// A size as a problem shows it, in the largest unit that divides it.
pub(super) fn show_size(mut size: u64) -> String {
    let mut unit = "B";
    for next in UNITS {
        if size == 0 || !size.is_multiple_of(1024) {
            break;
        }
        size /= 1024;
        unit = next;
    }
    format!("{size}{unit}")
}

/// Whether `text` is made of digits only.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Some(Duration::from_mins(2)));
        assert_eq!(duration("1h"), Some(Duration::from_hours(1)));
        assert_eq!(duration("365d"), Some(ONE_YEAR));
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "5S",
            "-5s",
            "+5s",
            "1.5s",
            "5sec",
            "5s ",
            "none",
            "18446744073709551615d",
            "99999999999999999999s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("17B"), Some(17));
        assert_eq!(size("64KiB"), Some(64 * 1024));
        assert_eq!(size("256MiB"), Some(256 << 20));
        assert_eq!(size("1GiB"), Some(1 << 30));
        assert_eq!(size("1TiB"), Some(1 << 40));
        for bad in [
            "",
            "KiB",
            "64kb",
            "64KB",
            "64 KiB",
            "1.5GiB",
            "-1",
            "99999999999TiB",
        ] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(show_size(64 * 1024), "64KiB");
        assert_eq!(show_size(1000), "1000B");
        assert_eq!(show_size(0), "0B");
    }
}
