//! Numbers for people.

/// Bytes with a binary unit and one digit behind the point, as in `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A rate in bits per second with its largest decimal unit, as in `100 Mbit/s`.
pub(crate) fn bit_rate(bits: u64) -> String {
    let (unit, name) = match bits {
        0..1000 => (1, "bit/s"),
        1000..1_000_000 => (1000, "kbit/s"),
        1_000_000..1_000_000_000 => (1_000_000, "Mbit/s"),
        _ => (1_000_000_000, "Gbit/s"),
    };
    let text = format!("{:.3}", bits as f64 / f64::from(unit));
    format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A round trip in microseconds as milliseconds, as in `0.41 ms`.
pub(crate) fn rtt(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// An age in milliseconds with its largest unit, as in `12 s`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A share in percent without needless digits.
pub(crate) fn percent(value: f64) -> String {
    if value == value.trunc() { format!("{value:.0} %") } else { format!("{value:.1} %") }
}

/// A list with commas, or `-`.
pub(crate) fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The text of a value, or `-`.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_at_their_borders() {
        assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(1 << 20)], ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"]);
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!([bit_rate(100_000_000), bit_rate(1_500)], ["100 Mbit/s", "1.5 kbit/s"]);
        assert_eq!([rtt(409), rtt(9_990), rtt(12_000)], ["0.41 ms", "9.99 ms", "12 ms"]);
        assert_eq!([age(999), age(119_999), age(120_000), age(7_200_000)], ["0 s", "119 s", "2 min", "2 h"]);
        assert_eq!([percent(0.0), percent(12.5)], ["0 %", "12.5 %"]);
    }
}
