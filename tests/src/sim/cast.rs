//! Who takes part: identities, addresses, prefixes and grants, all following from a host's number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use overlay_routing::gossip::{OwnHost, StaticMember, cluster_id};
use overlay_routing::identity::IdentityKey;
use overlay_routing::membership::{CaKey, DEFAULT_VALIDITY_SECS, Issuer, IssuerConfig};
use overlay_wire::gossip::Grant;
use overlay_wire::membership::{CaId, Certificate, ClusterSettings, Labels, Rights, Serial, SignedCertificate};
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, Mtu, Prefix};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use super::disk::WALL_CLOCK_START;

/// The name of every simulated cluster.
pub(crate) const CLUSTER: &str = "simulated";
/// The shared UDP port.
const PORT: u16 = 51821;

/// The identity of a host; the same in every run.
pub(crate) fn identity(index: usize) -> IdentityKey {
    IdentityKey::generate(&mut ChaCha8Rng::seed_from_u64(0x0e11_ab1e + index as u64))
}

/// Where a host lives on the underlay.
pub(crate) fn address(index: usize) -> SocketAddr {
    let [high, low] = (index as u16).to_be_bytes();
    SocketAddr::from(([198, 18, high, low], PORT))
}

/// The host that lives at an address.
pub(crate) fn index_of(address: SocketAddr) -> Option<usize> {
    match address.ip() {
        IpAddr::V4(ip) if ip.octets()[..2] == [198, 18] => {
            Some(usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])))
        }
        _ => None,
    }
}

/// The subnet of a host's containers.
pub(crate) fn subnet(index: usize) -> Prefix {
    let [high, low] = (index as u16).to_be_bytes();
    prefix([10, 64 + high, low, 0], 24)
}

/// The range from which a host may announce prefixes; `part` numbers its sixteen /28.
pub(crate) fn announced(index: usize, part: u8) -> Prefix {
    let [high, low] = (index as u16).to_be_bytes();
    prefix([172, 16 + high, low, part % 16 * 16], 28)
}

/// What a host may announce.
pub(crate) fn grants(index: usize) -> Vec<Grant> {
    let [high, low] = (index as u16).to_be_bytes();
    vec![Grant::explicit(subnet(index)), Grant::explicit(prefix([172, 16 + high, low, 0], 24))]
}

fn prefix(octets: [u8; 4], len: u8) -> Prefix {
    Prefix::new(Ipv4Addr::from(octets).into(), len).expect("host bits are zero and the length is in range")
}

/// What a host says about itself.
pub(crate) fn own_host(index: usize) -> OwnHost {
    let mut wireguard_key = [7; 32];
    wireguard_key[..8].copy_from_slice(&(index as u64).to_be_bytes());
    OwnHost {
        name: format!("h{}", index + 1),
        endpoints: vec![address(index)],
        wireguard_key,
        encapsulation: Encapsulation::Wireguard,
        mtu: Mtu::new(1420).expect("1420 is a valid MTU"),
        features: 0,
        software: "0.1.0".into(),
        prefixes: vec![subnet(index)],
    }
}

/// A host as the others' configuration names it.
pub(crate) fn member(index: usize) -> StaticMember {
    StaticMember {
        name: format!("h{}", index + 1),
        identity: identity(index).public(),
        endpoints: vec![address(index)],
        allow: grants(index),
    }
}

/// The key that certifies hosts.
pub(crate) fn authority() -> CaKey {
    CaKey::from_bytes(&[0x0c; 32])
}

/// The issuer that holds this key.
pub(crate) fn issuer() -> Issuer {
    let settings = ClusterSettings {
        name: CLUSTER.into(),
        pool: vec![prefix([10, 64, 0, 0], 10)],
        encapsulation: Encapsulation::Wireguard,
        listen_port: PORT,
        policy_default: DefaultPolicy::Members,
        mtu: None,
    };
    let config = IssuerConfig { settings, subnet_v4: 24, subnet_v6: 64, validity_secs: DEFAULT_VALIDITY_SECS };
    Issuer::found(authority(), config).expect("the simulated settings are valid")
}

/// A host's certificate; it permits the same as the configuration.
pub(crate) fn certificate(index: usize) -> SignedCertificate {
    let member = member(index);
    let mut grants = member.allow;
    grants.sort_unstable();
    let start = WALL_CLOCK_START / 1000;
    let said = Certificate {
        ca: CaId([0; 16]),
        identity: *member.identity.as_bytes(),
        name: member.name,
        serial: Serial(index as u64 + 1),
        admitted: Serial(index as u64 + 1),
        grants,
        max_prefixes: 64,
        labels: Labels::new(),
        rights: if index == 0 { Rights::ISSUER } else { Rights::NONE },
        not_before: start - 300,
        not_after: start + DEFAULT_VALIDITY_SECS,
    };
    authority().certify(&cluster_id(CLUSTER), said).expect("the simulated certificate is within its limits")
}
