//! Container addresses out of the own prefixes: the lowest free one, the first four reserved.
//!
//! Pure: the leases are the arguments. A released address is not given again before its cooldown has passed, so that
//! packets for the old holder do not reach the new one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay_wire::Prefix;

use super::PlumbingError;

/// Addresses at the start of every prefix that containers never get: network, host, service, spare.
pub const RESERVED: u128 = 4;

/// Picks one address per family that has a prefix.
///
/// # Errors
/// When there is no own prefix, or every address of a family is taken.
pub fn allocate(own: &[Prefix], taken: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, PlumbingError> {
    let mut found = Vec::new();
    for ipv4 in [true, false] {
        let prefixes: Vec<&Prefix> = own.iter().filter(|p| p.is_ipv4() == ipv4).collect();
        let Some(last) = prefixes.last() else { continue };
        let free = prefixes.iter().find_map(|prefix| lowest_free(prefix, taken));
        found.push(free.ok_or(PlumbingError::PrefixExhausted(**last))?);
    }
    if found.is_empty() { Err(PlumbingError::NoOwnPrefix) } else { Ok(found) }
}

/// Checks addresses that a caller asks for.
///
/// # Errors
/// When one is outside the own prefixes, reserved or taken, or two are of one family.
pub fn claim(own: &[Prefix], taken: &BTreeSet<IpAddr>, wanted: &[IpAddr]) -> Result<Vec<IpAddr>, PlumbingError> {
    for (position, address) in wanted.iter().enumerate() {
        let refuse = |why| PlumbingError::AddressRefused { address: *address, why };
        let prefix = own.iter().find(|p| p.contains(*address)).ok_or(refuse("it is outside this host's prefixes"))?;
        if is_reserved(prefix, *address) {
            return Err(refuse("it is reserved"));
        }
        if taken.contains(address) {
            return Err(refuse("it is in use or was released a moment ago"));
        }
        if wanted[..position].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(refuse("only one address per family is given"));
        }
    }
    Ok(wanted.to_vec())
}

/// Picks the lowest free address of a part of the own prefixes.
///
/// # Errors
/// When the part is not of this host, or every address of it is taken.
pub fn allocate_within(own: &[Prefix], taken: &BTreeSet<IpAddr>, within: Prefix) -> Result<IpAddr, PlumbingError> {
    let prefix = own.iter().find(|prefix| prefix.covers(&within));
    let prefix = prefix.ok_or(PlumbingError::NotOwnPrefix(within))?;
    let candidates = (0..).map_while(|index| within.nth(index));
    let free = |address: &IpAddr| !taken.contains(address) && !is_reserved(prefix, *address);
    // A large prefix has more addresses than can be taken.
    candidates.take(taken.len() + 8).find(free).ok_or(PlumbingError::PrefixExhausted(within))
}

/// Whether containers never get an address of an own prefix.
fn is_reserved(prefix: &Prefix, address: IpAddr) -> bool {
    (0..RESERVED).any(|index| prefix.nth(index) == Some(address)) || Some(address) == broadcast(prefix)
}

fn lowest_free(prefix: &Prefix, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let candidates = (RESERVED..).map_while(|index| prefix.nth(index));
    let last = broadcast(prefix);
    candidates.take_while(|addr| Some(*addr) != last).find(|addr| !taken.contains(addr))
}

fn broadcast(prefix: &Prefix) -> Option<IpAddr> {
    let host_bits = 32u8.checked_sub(prefix.len()).filter(|_| prefix.is_ipv4())?;
    prefix.nth((1u128 << host_bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn fresh_prefixes_give_the_fifth_address_of_each_family() {
        let own = prefixes(&["10.42.1.0/24", "fd42:0:0:1::/64"]);
        let got = allocate(&own, &BTreeSet::new()).unwrap();
        assert_eq!(got, ["10.42.1.4".parse::<IpAddr>().unwrap(), "fd42:0:0:1::4".parse().unwrap()]);
    }

    #[test]
    fn part_of_a_prefix_gives_its_own_lowest_address_and_never_reserved_ones() {
        let own = prefixes(&["10.42.1.0/24", "fd42:0:0:1::/64"]);
        let pick = |taken: &[&str], part: &str| {
            allocate_within(&own, &addresses(taken), part.parse().unwrap()).map(|found| found.to_string())
        };
        assert_eq!(pick(&[], "10.42.1.0/24").unwrap(), "10.42.1.4");
        assert_eq!(pick(&["10.42.1.128"], "10.42.1.128/25").unwrap(), "10.42.1.129");
        assert_eq!(pick(&[], "fd42:0:0:1::/64").unwrap(), "fd42:0:0:1::4");
        let last = pick(&["10.42.1.252", "10.42.1.253", "10.42.1.254"], "10.42.1.252/30");
        assert!(matches!(last, Err(PlumbingError::PrefixExhausted(_))), "{last:?}");
        for foreign in ["10.42.0.0/16", "10.42.2.0/24", "fd43::/64"] {
            assert!(matches!(pick(&[], foreign), Err(PlumbingError::NotOwnPrefix(_))), "{foreign}");
        }
    }

    #[test]
    fn gap_is_filled_before_the_end() {
        let own = prefixes(&["10.42.1.0/24"]);
        let got = allocate(&own, &addresses(&["10.42.1.4", "10.42.1.6"])).unwrap();
        assert_eq!(got, ["10.42.1.5".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn full_prefix_goes_on_in_the_next_and_then_refuses() {
        let own = prefixes(&["10.42.1.0/29", "10.42.9.0/29"]);
        let mut taken = addresses(&["10.42.1.4", "10.42.1.5", "10.42.1.6"]);
        assert_eq!(allocate(&own, &taken).unwrap(), ["10.42.9.4".parse::<IpAddr>().unwrap()]);
        taken.extend(addresses(&["10.42.9.4", "10.42.9.5", "10.42.9.6"]));
        assert!(matches!(allocate(&own, &taken), Err(PlumbingError::PrefixExhausted(_))));
        assert!(matches!(allocate(&prefixes(&["10.42.1.1/32"]), &taken), Err(PlumbingError::PrefixExhausted(_))));
        assert!(matches!(allocate(&[], &taken), Err(PlumbingError::NoOwnPrefix)));
    }

    #[test]
    fn claims_outside_reserved_or_taken_are_refused() {
        let own = prefixes(&["10.42.1.0/24"]);
        let taken = addresses(&["10.42.1.9"]);
        for bad in ["10.42.2.9", "10.42.1.0", "10.42.1.1", "10.42.1.3", "10.42.1.255", "10.42.1.9"] {
            let refused = claim(&own, &taken, &[bad.parse().unwrap()]);
            assert!(matches!(refused, Err(PlumbingError::AddressRefused { .. })), "{bad}");
        }
        assert!(claim(&own, &taken, &["10.42.1.8".parse().unwrap()]).is_ok());
        let two = ["10.42.1.8".parse().unwrap(), "10.42.1.10".parse().unwrap()];
        assert!(claim(&own, &taken, &two).is_err());
    }
}
