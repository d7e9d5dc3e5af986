//! A copy of the part of the flow table that one packet can see, for a rehearsal: deciding with it changes nothing.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use overlay_wire::icmp::Quote;
use overlay_wire::packet::{Headers, Transport};
use parking_lot::Mutex;

use super::key::FlowKey;
use super::shard::Shard;
use super::{Conntrack, echo_ports, quoted_flow};

impl Conntrack {
    /// Copies the flow that a packet belongs to, or that it quotes, and the room there is for another.
    pub(crate) fn shadow(&self, headers: &Headers, bytes: &[u8], now: Instant) -> Self {
        let shares = self.shares.shadow();
        let now = self.tick(now);
        let shard = match key_of(headers, bytes) {
            None => Shard::new(1),
            Some(key) => {
                let hash = key.symmetric_hash(&self.secret);
                let mut real = self.shards[self.shard_of(hash)].lock();
                let found = real.find(&key, hash).and_then(|(handle, _)| real.get(handle).map(|entry| entry.clone()));
                let room = usize::from(real.would_take_another(now));
                drop(real);
                let mut shard = Shard::new(room + usize::from(found.is_some()));
                if let Some(entry) = found {
                    shard.insert(entry, hash, now, &shares);
                }
                shard
            }
        };
        Self {
            shards: Box::new([Mutex::new(shard)]),
            shares,
            secret: self.secret,
            start: self.start,
            pickup_until: AtomicU32::new(self.pickup_until.load(Ordering::Relaxed)),
            sweep: AtomicUsize::new(0),
        }
    }
}

/// The flow a packet is looked up by.
fn key_of(headers: &Headers, bytes: &[u8]) -> Option<FlowKey> {
    let ports = match &headers.transport {
        Transport::Icmp(icmp) if icmp.is_error => {
            return Quote::parse(bytes, headers).as_ref().and_then(quoted_flow).map(|(key, _)| key);
        }
        Transport::Tcp(tcp) => (tcp.src_port, tcp.dst_port),
        Transport::Udp(udp) => (udp.src_port, udp.dst_port),
        Transport::Icmp(icmp) => echo_ports(icmp.kind, icmp.id.unwrap_or(0))?,
        Transport::Other | Transport::None => (0, 0),
    };
    Some(FlowKey::new(headers.src, headers.dst, headers.protocol, ports.0, ports.1))
}
