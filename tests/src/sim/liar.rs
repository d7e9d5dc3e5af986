//! A member that lies: it holds a valid key, answers probes, and signs and sends whatever could hurt.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use overlay_routing::gossip::{Gossip, cluster_id};
use overlay_routing::identity::IdentityKey;
use overlay_wire::HostId;
use overlay_wire::gossip::envelope::Envelope;
use overlay_wire::gossip::message::VersionEntry;
use overlay_wire::gossip::{
    HostBody, Message, PlainStatus, Record, RecordKey, RecordKind, RouteAnnouncement, RouteVerdict, RoutesBody,
};
use rand_chacha::{ChaCha8Rng, ChaCha20Rng};
use rand_core::{RngCore as _, SeedableRng as _};
use x25519_dalek::{PublicKey, StaticSecret};

use super::cast;
use super::link::below;
use super::sealing::{Channel, End};

/// Pause between two lies.
pub(crate) const LIE_GAP: Duration = Duration::from_secs(1);
/// Members told one lie.
const AUDIENCE: usize = 6;
/// Datagrams kept for replay.
const RECORDED: usize = 64;
/// A record kind that nobody knows.
const UNKNOWN_KIND: RecordKind = RecordKind(77);

/// A datagram to send.
pub(crate) type Outgoing = (SocketAddr, Vec<u8>);

/// The liar's state.
pub(crate) struct Liar {
    index: usize,
    identity: IdentityKey,
    host: HostId,
    cluster: [u8; 32],
    secret: StaticSecret,
    epoch: u64,
    version: u64,
    channels: BTreeMap<HostId, (SocketAddr, [u8; 32], Channel)>,
    tags: BTreeMap<[u8; 8], HostId>,
    recorded: VecDeque<Vec<u8>>,
    /// Whether it still lies; afterwards it only answers probes.
    pub(crate) is_active: bool,
    rng: ChaCha8Rng,
}

impl Liar {
    /// Takes over from a state machine that was started with `seed` and introduced to everybody.
    pub(crate) fn take_over(index: usize, engine: &Gossip, seed: [u8; 32], epoch: u64) -> Self {
        let identity = cast::identity(index);
        // The state machine draws its box key first.
        let secret = StaticSecret::random_from_rng(ChaCha20Rng::from_seed(seed));
        let mut liar = Self {
            index,
            host: identity.host_id(),
            identity,
            cluster: cluster_id(cast::CLUSTER),
            secret,
            epoch,
            version: epoch + 1_000_000,
            channels: BTreeMap::new(),
            tags: BTreeMap::new(),
            recorded: VecDeque::new(),
            is_active: true,
            rng: ChaCha8Rng::from_seed(seed),
        };
        engine.records().for_each(|record| liar.note_host(record));
        liar
    }

    /// Opens the channel to the owner of a HOST record.
    fn note_host(&mut self, record: &Record) {
        let owner = record.key.owner;
        let Ok(body) = HostBody::decode(&record.body) else { return };
        let Some(address) = body.endpoints.first().copied() else { return };
        let known = self.channels.get(&owner).is_some_and(|(_, box_key, _)| *box_key == body.box_key);
        if record.key.kind != RecordKind::HOST || owner == self.host || known {
            return;
        }
        let us = End { host: self.host, box_key: PublicKey::from(&self.secret).to_bytes() };
        let channel = Channel::new(&self.cluster, &self.secret, us, End { host: owner, box_key: body.box_key });
        self.tags.insert(channel.receive_tag, owner);
        self.channels.insert(owner, (address, body.box_key, channel));
    }

    /// Answers what keeps it alive in the eyes of others, and lies where it is asked something.
    pub(crate) fn handle_datagram(&mut self, bytes: Vec<u8>) -> Vec<Outgoing> {
        let Ok(Envelope::Sealed { header, tag, nonce, ciphertext }) = Envelope::parse(&bytes) else {
            return Vec::new();
        };
        let Some(from) = self.tags.get(&tag).copied() else { return Vec::new() };
        let message = self.channels.get(&from).and_then(|(_, _, channel)| channel.open(header, &nonce, ciphertext));
        if self.recorded.len() == RECORDED {
            self.recorded.pop_front();
        }
        self.recorded.push_back(bytes);
        let answer = match message {
            Some(Message::Probe { nonce, .. }) => {
                Message::Ack { nonce, plain: PlainStatus::Ipip, observed: Some(cast::address(9999)) }
            }
            // It reaches everybody, it says, the dead as well.
            Some(Message::IndirectProbe { nonce, target }) if self.is_active => Message::IndirectAck { nonce, target },
            Some(Message::VerdictRequest { version }) if self.is_active => {
                Message::Verdicts { version, entries: vec![(cast::subnet(0), RouteVerdict::OutsideAllow)] }
            }
            Some(Message::Records(records)) => {
                records.iter().for_each(|record| self.note_host(record));
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        self.seal(from, &answer).into_iter().collect()
    }

    /// Tells one lie to a few members.
    pub(crate) fn lie(&mut self, nodes: usize) -> Vec<Outgoing> {
        if !self.is_active || self.channels.is_empty() {
            return Vec::new();
        }
        let victim = below(&mut self.rng, nodes);
        let victim_host = cast::identity(victim).host_id();
        match self.rng.next_u32() % 8 {
            0 => self.tell(&[Message::Suspect { host: victim_host }]),
            1 => {
                let record = self.routes(vec![cast::subnet(victim), cast::announced(victim, 3)]);
                self.tell(&[Message::Records(vec![record])])
            }
            2 => {
                let key = RecordKey { owner: victim_host, kind: RecordKind::ROUTES, shard: 0 };
                let forged = self.sign(Record { key, version: u64::MAX - 1, body: Vec::new(), signature: [0; 64] });
                self.tell(&[Message::Records(vec![forged])])
            }
            3 => self.equivocate(),
            4 => {
                let Some(bytes) = self.recorded.get(below(&mut self.rng, RECORDED)).cloned() else {
                    return Vec::new();
                };
                vec![(cast::address(victim), bytes)]
            }
            5 => {
                let key = RecordKey { owner: victim_host, kind: RecordKind::HOST, shard: 0 };
                let entries = vec![VersionEntry { key, version: u64::MAX, hash: 1 }];
                let bucket = (self.rng.next_u32() % 64) as u8;
                self.tell(&[Message::Versions { bucket, after: None, through: None, entries }])
            }
            6 => {
                let mut digest = Box::new([0; 64]);
                digest.iter_mut().for_each(|hash| *hash = self.rng.next_u64());
                self.tell(&[Message::Digest(digest)])
            }
            _ => {
                let shard = (self.rng.next_u32() % 200) as u16;
                let key = RecordKey { owner: self.host, kind: UNKNOWN_KIND, shard };
                let version = self.next_version();
                let record = self.sign(Record { key, version, body: vec![9; 200], signature: [0; 64] });
                self.tell(&[Message::Records(vec![record])])
            }
        }
    }

    /// Two different records of one version, one to each half of its audience.
    fn equivocate(&mut self) -> Vec<Outgoing> {
        let version = self.next_version();
        let records = [1, 2].map(|part| self.routes_at(version, vec![cast::announced(self.index, part)]));
        records.into_iter().flat_map(|record| self.tell(&[Message::Records(vec![record])])).collect()
    }

    fn routes(&mut self, prefixes: Vec<overlay_wire::Prefix>) -> Record {
        let version = self.next_version();
        self.routes_at(version, prefixes)
    }

    fn routes_at(&mut self, version: u64, prefixes: Vec<overlay_wire::Prefix>) -> Record {
        let mut routes: Vec<RouteAnnouncement> =
            prefixes.into_iter().map(|prefix| RouteAnnouncement { prefix, metric: 0 }).collect();
        routes.sort_by_key(|route| route.prefix);
        let body = RoutesBody { routes, extension: Vec::new() }.encode().expect("a few valid routes fit a record");
        let key = RecordKey { owner: self.host, kind: RecordKind::ROUTES, shard: 0 };
        self.sign(Record { key, version, body, signature: [0; 64] })
    }

    fn sign(&self, mut record: Record) -> Record {
        record.signature = self.identity.sign(&record.signed_bytes(&self.cluster));
        record
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn tell(&mut self, messages: &[Message]) -> Vec<Outgoing> {
        let hosts: Vec<HostId> = self.channels.keys().copied().collect();
        let mut out = Vec::new();
        for _ in 0..AUDIENCE.min(hosts.len()) {
            let to = hosts[below(&mut self.rng, hosts.len())];
            out.extend(messages.iter().filter_map(|message| self.seal(to, message)));
        }
        out
    }

    fn seal(&mut self, to: HostId, message: &Message) -> Option<Outgoing> {
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let (address, _, channel) = self.channels.get_mut(&to)?;
        Some((*address, channel.seal(message, self.epoch, nonce)?))
    }
}
