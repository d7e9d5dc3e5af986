//! One attachment: how network, container and interface become the name and the owner of an endpoint.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// How much of a container id a person sees in `endpoint list`.
const SHOWN: usize = 24;

/// The owner of all endpoints of a network: GC looks at these only.
pub(super) fn owner(network: &str) -> String {
    format!("cni/{network}")
}

/// The name of an endpoint: the same for every call about it, and no two attachments share one.
pub(super) fn endpoint(network: &str, container: &str, interface: &str) -> String {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    for part in [network, container, interface] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    let shown: String = container.chars().take(SHOWN).collect();
    format!("{shown}-{interface}-{:032x}", hasher.finish128().as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_differ_in_each_part() {
        let name = endpoint("overlay", "abc", "eth0");
        assert_eq!(name, endpoint("overlay", "abc", "eth0"));
        assert!(name.starts_with("abc-eth0-"));
        for other in [("overlay2", "abc", "eth0"), ("overlay", "abcd", "eth0"), ("overlay", "abc", "eth1")] {
            assert_ne!(name, endpoint(other.0, other.1, other.2));
        }
        // What looks the same when joined is not.
        assert_ne!(endpoint("a", "b-c", "d"), endpoint("a", "b", "c-d"));
        assert!(endpoint(&"n".repeat(500), &"c".repeat(500), "fifteen-bytes-x").len() <= 128);
    }
}
