//! What names a flow: addresses, protocol and ports, hashed with a secret so that nobody can aim at one bucket.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv6Addr};

use overlay_wire::packet::protocol;
use siphasher::sip::SipHasher13;

use crate::policy::Tuple;

/// One direction of a flow. IPv4 addresses are kept in IPv4-mapped form, which never appears on the overlay.
///
/// For an ICMP echo request the source port is the identifier and the destination port 0; the reply is the reverse.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct FlowKey {
    src: [u64; 2],
    dst: [u64; 2],
    src_port: u16,
    dst_port: u16,
    protocol: u8,
}

#[inline]
fn pack(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, 0xffff_0000_0000 | u64::from(u32::from(v4))],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

fn unpack([high, low]: [u64; 2]) -> IpAddr {
    unpack_bits(u128::from(high) << 64 | u128::from(low))
}

fn unpack_bits(bits: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bits)).to_canonical()
}

/// Bytes of a key: two addresses, two ports, the protocol.
pub(crate) const KEY_BYTES: usize = 37;

impl FlowKey {
    #[inline]
    pub(crate) fn new(src: IpAddr, dst: IpAddr, protocol: u8, src_port: u16, dst_port: u16) -> Self {
        Self { src: pack(src), dst: pack(dst), src_port, dst_port, protocol }
    }

    #[inline]
    pub(crate) fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, protocol: self.protocol }
    }

    /// The source, packed; what a share of the table is counted by.
    #[inline]
    pub(crate) fn source(&self) -> [u64; 2] {
        self.src
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Writes exactly [`KEY_BYTES`].
    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        for word in self.src.into_iter().chain(self.dst) {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.src_port.to_be_bytes());
        out.extend_from_slice(&self.dst_port.to_be_bytes());
        out.push(self.protocol);
    }

    /// Reads what [`Self::emit`] wrote; `None` for a key that no packet has.
    pub(crate) fn parse(bytes: &[u8; KEY_BYTES]) -> Option<Self> {
        let address = |at: usize| {
            let bytes: [u8; 16] = *bytes[at..].first_chunk()?;
            Some(unpack_bits(u128::from_be_bytes(bytes)))
        };
        let port = |at: usize| bytes[at..].first_chunk().map(|port| u16::from_be_bytes(*port));
        let (src, dst, protocol) = (address(0)?, address(16)?, bytes[36]);
        let genuine = src.is_ipv4() == dst.is_ipv4() && !src.is_unspecified() && !dst.is_unspecified() && src != dst;
        genuine.then_some(Self::new(src, dst, protocol, port(32)?, port(34)?))
    }

    /// The tuple the filter sees.
    pub(crate) fn tuple(&self) -> Tuple {
        let echo = matches!(self.protocol, protocol::ICMP | protocol::ICMPV6);
        let port = |port| if echo { 0 } else { port };
        Tuple {
            src: unpack(self.src),
            dst: unpack(self.dst),
            protocol: self.protocol,
            src_port: port(self.src_port),
            dst_port: port(self.dst_port),
        }
    }

    /// A hash equal for both directions.
    #[inline]
    pub(crate) fn symmetric_hash(&self, secret: &[u8; 16]) -> u64 {
        let forward = (self.src, self.src_port) <= (self.dst, self.dst_port);
        let (low, high) = if forward {
            ((self.src, self.src_port), (self.dst, self.dst_port))
        } else {
            ((self.dst, self.dst_port), (self.src, self.src_port))
        };
        let mut hasher = SipHasher13::new_with_key(secret);
        hasher.write_u64(low.0[0]);
        hasher.write_u64(low.0[1]);
        hasher.write_u64(high.0[0]);
        hasher.write_u64(high.0[1]);
        hasher.write_u64(u64::from(low.1) << 24 | u64::from(high.1) << 8 | u64::from(self.protocol));
        hasher.finish()
    }

    /// A cheap hash for the last-flow cache; not keyed, so it may only choose where a full comparison is made.
    #[inline]
    pub(crate) fn cache_slot(&self, slots: usize) -> usize {
        let mix =
            self.src[1] ^ self.dst[1].rotate_left(7) ^ u64::from(self.src_port) << 3 ^ u64::from(self.dst_port) << 17;
        (mix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (slots - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_directions_hash_alike_and_the_tuple_survives(
            src in any::<[u8; 4]>(), dst in any::<IpAddr>(), ports in any::<(u16, u16)>(), secret in any::<[u8; 16]>(),
        ) {
            let src = IpAddr::from(src);
            let key = FlowKey::new(src, dst, 6, ports.0, ports.1);
            prop_assert_eq!(key.symmetric_hash(&secret), key.reversed().symmetric_hash(&secret));
            prop_assert_eq!(key.reversed().reversed(), key);
            let tuple = key.tuple();
            prop_assert_eq!((tuple.src, tuple.dst, tuple.src_port, tuple.dst_port), (src, dst.to_canonical(), ports.0, ports.1));
        }
    }
}
