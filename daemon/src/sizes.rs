//! How large packets may be: what each encapsulation adds, the MTU of the TUN, the inner MTU of each peer.

use std::net::IpAddr;

use overlay_wire::{Encapsulation, Mtu, Prefix};

use crate::snapshot::GreOptions;
use crate::wireguard::DATA_OVERHEAD;

/// What the largest encapsulation adds (WireGuard over IPv6): 40 + 8 + 32 bytes.
const LARGEST_OVERHEAD: u16 = 80;

/// Bytes that an encapsulation adds to an inner packet, outer IP header included.
#[must_use]
pub fn overhead(encapsulation: Encapsulation, underlay: IpAddr, gre: &GreOptions) -> u16 {
    let outer = if underlay.is_ipv4() { 20 } else { 40 };
    outer
        + match encapsulation {
            Encapsulation::Wireguard => 8 + DATA_OVERHEAD as u16,
            Encapsulation::Ipip => 0,
            Encapsulation::Gre => {
                4 + 4 * (u16::from(gre.key.is_some()) + u16::from(gre.checksum) + u16::from(gre.sequence))
            }
        }
}

/// The MTU of the TUN and of containers on an underlay of this MTU, for a host with these prefixes. With IPv6 among them it
/// is 1,280 at least: the kernel turns IPv6 off on a smaller device, and what does not fit the underlay is fragmented.
#[must_use]
pub fn tun_mtu(underlay: u16, prefixes: &[Prefix]) -> Mtu {
    let fits = Mtu::new(underlay.saturating_sub(LARGEST_OVERHEAD)).unwrap_or(Mtu::MIN);
    if prefixes.iter().all(Prefix::is_ipv4) { fits } else { fits.max(Mtu::IPV6_MIN) }
}

/// The largest inner packet that reaches a peer in one piece and that its own TUN takes.
#[must_use]
pub fn inner_mtu(path: u16, overhead: u16, own: Mtu, theirs: Option<Mtu>) -> Mtu {
    let fits = Mtu::new(path.saturating_sub(overhead)).unwrap_or(Mtu::MIN);
    fits.min(own).min(theirs.unwrap_or(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overheads_are_those_of_the_formats() {
        let (v4, v6) = ("192.0.2.1".parse().expect("ip"), "2001:db8::1".parse().expect("ip"));
        let none = GreOptions::default();
        let all = GreOptions { key: Some(1), checksum: true, sequence: true, ..none };
        assert_eq!(overhead(Encapsulation::Wireguard, v4, &none), 60);
        assert_eq!(overhead(Encapsulation::Wireguard, v6, &none), 80);
        assert_eq!(overhead(Encapsulation::Ipip, v4, &none), 20);
        assert_eq!(overhead(Encapsulation::Gre, v4, &none), 24);
        assert_eq!(overhead(Encapsulation::Gre, v6, &all), 56);
    }

    #[test]
    fn inner_mtu_is_the_smallest_of_path_and_both_ends() {
        let own = tun_mtu(1500, &[]);
        assert_eq!(own.get(), 1420);
        assert_eq!(inner_mtu(1500, 60, own, None).get(), 1420);
        assert_eq!(inner_mtu(1400, 60, own, None).get(), 1340);
        assert_eq!(inner_mtu(1500, 60, own, Some(tun_mtu(1400, &[]))).get(), 1320);
        assert_eq!(tun_mtu(100, &[]), Mtu::MIN);
    }

    #[test]
    fn tun_of_a_host_with_ipv6_is_never_below_its_minimum() {
        let v4: Prefix = "10.42.1.0/24".parse().expect("a prefix");
        let v6: Prefix = "fd42:0:0:1::/64".parse().expect("a prefix");
        assert_eq!(tun_mtu(1300, &[v4]).get(), 1220);
        assert_eq!(tun_mtu(1300, &[v4, v6]).get(), 1280);
        assert_eq!(tun_mtu(1500, &[v4, v6]).get(), 1420);
    }
}
