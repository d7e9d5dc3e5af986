//! A member's gossip without its daemon: the real state machine with the identity and certificate that a host keeps on
//! disk, to say what no daemon of this release says.

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest as _};
use overlay_config::secret::read_key;
use overlay_netns_harness::{Lab, netns};
use overlay_routing::gossip::{Gossip, GossipConfig, Membership, OwnHost, cluster_id};
use overlay_routing::identity::{IdentityKey, IdentityPublic};
use overlay_wire::gossip::codec::Reader;
use overlay_wire::gossip::{Record, RecordKey, RecordKind};
use overlay_wire::membership::{PolicyShard, SignedCertificate};
use overlay_wire::{Encapsulation, HostId, Mtu};
use rand_core::{OsRng, RngCore as _};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a host keeps of its membership, as JSON; nothing before it is written.
pub fn kept_membership(lab: &Lab, host: &str) -> Option<serde_json::Value> {
    let whole = ["membership.a", "membership.b"].into_iter().filter_map(|file| {
        let bytes = std::fs::read(lab.host(host).ok()?.path("/var/lib/overlay").join(file)).ok()?;
        // Behind the head of a state file, which holds the generation at its tenth byte.
        let generation = u64::from_be_bytes(bytes.get(10..18)?.try_into().ok()?);
        Some((generation, serde_json::from_slice(bytes.get(54..)?).ok()?))
    });
    whole.max_by_key(|(generation, _)| *generation).map(|(_, kept)| kept)
}

/// The records that a host keeps.
pub fn kept_records(kept: &serde_json::Value) -> Vec<Record> {
    let records = kept["records"].as_array().cloned().unwrap_or_default();
    let bytes = records.iter().filter_map(|text| STANDARD.decode(text.as_str()?).ok());
    bytes.filter_map(|bytes| Record::decode(&mut Reader::new(&bytes)).ok()).collect()
}

/// The machine of one member, on a socket in its namespace.
pub struct Impostor {
    /// The machine.
    pub gossip: Gossip,
    identity: IdentityKey,
    socket: UdpSocket,
}

impl Impostor {
    /// Takes the place of a host whose daemon does not run. `forged` are records of its own that it claims to have
    /// published before.
    pub fn of(lab: &Lab, host: &str, forged: &[PolicyShard]) -> Result<Impostor> {
        let kept = kept_membership(lab, host).ok_or_else(|| anyhow!("{host} keeps no membership"))?;
        let directory = lab.host(host)?.path("/var/lib/overlay");
        let identity = IdentityKey::from_bytes(&*read_key(&directory.join("identity.key"))?);
        let name = kept["cluster"].as_str().context("a cluster")?;
        let cluster = cluster_id(name);
        let decoded = |value: &serde_json::Value| STANDARD.decode(value.as_str().unwrap_or_default());
        let certificate = SignedCertificate::decode(&decoded(&kept["certificate"])?).context("a certificate")?;
        let trusted = kept["authorities"].as_array().context("authorities")?.iter();
        let trusted: Vec<IdentityPublic> = trusted
            .filter_map(|text| <[u8; 32]>::try_from(STANDARD.decode(text.as_str()?).ok()?).ok())
            .filter_map(|key| IdentityPublic::from_bytes(&key).ok())
            .collect();
        let port = kept["listen_port"].as_u64().context("a port")? as u16;
        let address = SocketAddr::new(lab.host(host)?.underlay_v4().into(), port);
        let namespace = lab.host(host)?.view().namespace().to_owned();
        let socket = netns::within(&namespace, || UdpSocket::bind(address).with_context(|| format!("{address}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (mut seed, now) = ([0; 32], Instant::now());
        OsRng.fill_bytes(&mut seed);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
        // As a start of the daemon now would have: above every run before, below every later one.
        let epoch = unix.as_millis() as u64;
        let own = OwnHost {
            name: host.to_owned(),
            endpoints: vec![address],
            wireguard_key: [9; 32],
            encapsulation: Encapsulation::Wireguard,
            mtu: Mtu::ETHERNET,
            features: 0,
            software: "other".to_owned(),
            prefixes: Vec::new(),
        };
        let config = GossipConfig {
            identity: IdentityKey::from_bytes(&identity.to_bytes()),
            cluster,
            own,
            members: Vec::new(),
            foreign: Vec::new(),
        };
        let mut gossip = Gossip::new(config, seed, now, epoch)?;
        let mut remembered = kept_records(&kept);
        for (shard, piece) in (0..).zip(forged) {
            let key = RecordKey { owner: identity.host_id(), kind: RecordKind::POLICY, shard };
            let mut record = Record { key, version: epoch, body: piece.encode(), signature: [0; 64] };
            record.signature = identity.sign(&record.signed_bytes(&cluster));
            remembered.push(record);
        }
        let membership = Membership {
            unix_now: unix.as_secs(),
            trusted,
            certificate: Some(certificate),
            remembered,
            ..Membership::default()
        };
        gossip.set_membership(membership, now)?;
        Ok(Impostor { gossip, identity, socket })
    }

    /// The host it speaks for.
    pub fn host(&self) -> HostId {
        self.identity.host_id()
    }

    /// Sends what is due and takes what came within a moment.
    pub fn turn(&mut self) {
        let now = Instant::now();
        if self.gossip.poll_timeout().is_some_and(|due| due <= now) {
            self.gossip.handle_timeout(now);
        }
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            self.gossip.handle_datagram(from, &buffer[..length], Instant::now());
            self.flush();
        }
        self.flush();
    }

    fn flush(&mut self) {
        while self.gossip.poll_event().is_some() {}
        while let Some(transmit) = self.gossip.poll_transmit() {
            // What is not sent is lost, as any datagram may be.
            let _ = self.socket.send_to(&transmit.bytes, transmit.to);
        }
    }
}

/// A policy text in the pieces of its records.
pub fn policy_pieces(revision: u64, text: &str) -> Result<Vec<PolicyShard>> {
    let hash = Blake2s256::new().chain_update(b"overlay policy v1\0").chain_update(text.as_bytes()).finalize().into();
    Ok(PolicyShard::cut(revision, hash, text.as_bytes())?)
}
