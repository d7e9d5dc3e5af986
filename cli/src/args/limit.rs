//! Arguments of `overlayctl limit`.

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LimitDirection {
    /// What it sends and what it gets, each on its own.
    Both,
    /// What it sends.
    Egress,
    /// What it gets.
    Ingress,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Limit {
    /// Limit a container, addresses or a peer.
    Set {
        /// A container of this host, an address or prefix, or `peer:NAME`.
        selector: String,
        /// Bits per second, as `100mbit`, `1.5gbit` or `64kbit`.
        #[arg(long, value_parser = bit_rate, required_unless_present = "pps")]
        rate: Option<u64>,
        /// Bytes that may come at once, as `256k` or `1m`; default: 50 ms' worth, at least 128k.
        #[arg(long, value_parser = byte_count, requires = "rate")]
        burst: Option<u64>,
        /// Packets per second.
        #[arg(long)]
        pps: Option<u64>,
        /// What is limited; the other direction stays as it is.
        #[arg(long, value_enum, default_value = "both")]
        direction: LimitDirection,
    },
    /// Every limit, and what it dropped.
    List,
    /// Take a limit away.
    Rm {
        /// As it was set.
        selector: String,
    },
}

/// Parses a number with one of these units; without one the number is as it is.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.to_ascii_lowercase();
    let factor = if unit.is_empty() { 1 } else { units.iter().find(|(name, _)| *name == unit)?.1 };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.len() > 6 || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.checked_mul(factor)?.checked_add(u64::try_from(u128::from(part) * u128::from(factor) / 1_000_000).ok()?)
}

fn bit_rate(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("bit", 1), ("kbit", 1000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("tbit", 1_000_000_000_000)];
    with_unit(text, &UNITS).ok_or_else(|| "expected a number and a unit, as in 100mbit or 1.5gbit".to_owned())
}

fn byte_count(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] =
        [("b", 1), ("k", 1 << 10), ("kb", 1 << 10), ("m", 1 << 20), ("mb", 1 << 20), ("g", 1 << 30), ("gb", 1 << 30)];
    with_unit(text, &UNITS).ok_or_else(|| "expected a number and a unit, as in 256k or 1m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_bursts_parse_and_odd_ones_are_refused() {
        assert_eq!(bit_rate("100mbit"), Ok(100_000_000));
        assert_eq!(bit_rate("1.5Gbit"), Ok(1_500_000_000));
        assert_eq!(bit_rate("64000"), Ok(64_000));
        assert_eq!(byte_count("256k"), Ok(262_144));
        assert_eq!(byte_count("1m"), Ok(1 << 20));
        for text in ["", "mbit", "1..5mbit", "-1mbit", "1mb it", "99999999999999999tbit", ".", "1.1234567mbit"] {
            assert!(bit_rate(text).is_err(), "{text} was accepted");
        }
    }
}
