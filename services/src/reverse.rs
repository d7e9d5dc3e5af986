//! Names below `in-addr.arpa` (RFC 1035, 3.5) and `ip6.arpa` (RFC 3596, 2.5), read as addresses and written from prefixes.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_wire::Prefix;

/// What the labels before `in-addr.arpa` or `ip6.arpa` stand for: an address, or a prefix of one. `labels` come with the
/// leftmost first, without the two last.
pub(crate) fn parse(labels: &[&[u8]], ipv4: bool) -> Option<Prefix> {
    let (most, bits_each, radix) = if ipv4 { (4, 8, 10) } else { (32, 4, 16) };
    if labels.len() > most {
        return None;
    }
    let mut bits = 0u128;
    for label in labels.iter().rev() {
        let text = std::str::from_utf8(label).ok()?;
        let plain = if ipv4 { text == "0" || !text.starts_with('0') } else { text.len() == 1 };
        if !plain || text.starts_with('+') {
            return None;
        }
        let value = u32::from_str_radix(text, radix).ok().filter(|value| *value < 1 << bits_each)?;
        bits = bits << bits_each | u128::from(value);
    }
    let len = labels.len() * bits_each;
    let width = if ipv4 { 32 } else { 128 };
    let bits = if len == 0 { 0 } else { bits << (width - len) };
    let ip = if ipv4 { IpAddr::V4(Ipv4Addr::from(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from(bits)) };
    Prefix::truncating(ip, len as u8).ok()
}

/// The name of the zone that holds the reverse names of a prefix: cut to whole labels.
pub(crate) fn zone_name(prefix: &Prefix) -> String {
    let mut text = String::new();
    let write = |text: &mut String, part: std::fmt::Arguments<'_>| {
        text.write_fmt(part).expect("writing to a String cannot fail");
    };
    match prefix.addr() {
        IpAddr::V4(v4) => {
            let count = usize::from(prefix.len()) / 8;
            v4.octets()[..count].iter().rev().for_each(|octet| write(&mut text, format_args!("{octet}.")));
            text.push_str("in-addr.arpa.");
        }
        IpAddr::V6(v6) => {
            let count = usize::from(prefix.len()) / 4;
            let bits = u128::from(v6);
            for at in (0..count).rev() {
                let nibble = (bits >> (124 - 4 * at)) & 15;
                write(&mut text, format_args!("{nibble:x}."));
            }
            text.push_str("ip6.arpa.");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, ipv4: bool) -> Option<String> {
        let labels: Vec<&[u8]> = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
        parse(&labels, ipv4).map(|prefix| prefix.to_string())
    }

    #[test]
    fn labels_are_addresses_backwards() {
        assert_eq!(read("4.1.42.10", true).unwrap(), "10.42.1.4/32");
        assert_eq!(read("42.10", true).unwrap(), "10.42.0.0/16");
        assert_eq!(read("", true).unwrap(), "0.0.0.0/0");
        assert_eq!(read("2.4.D.f", false).unwrap(), "fd42::/16");
        let whole = "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f";
        assert_eq!(read(whole, false).unwrap(), "fd42:0:0:1::4/128");
        for bad in ["256.1.1.1", "01.1", "a.1", "+1.1", "1.1.1.1.1", "-1"] {
            assert_eq!(read(bad, true), None, "{bad}");
        }
        for bad in ["g", "00", "+", "10"] {
            assert_eq!(read(bad, false), None, "{bad}");
        }
    }

    #[test]
    fn zone_of_a_prefix_ends_at_a_whole_label() {
        let name = |text: &str| zone_name(&text.parse().unwrap());
        assert_eq!(name("10.42.0.0/16"), "42.10.in-addr.arpa.");
        assert_eq!(name("10.42.16.0/20"), "42.10.in-addr.arpa.");
        assert_eq!(name("fd42::/48"), "0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa.");
    }
}
