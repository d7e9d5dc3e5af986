//! An introduction without datagrams, for simulations of clusters too large to start cold in every run.
//!
//! Nothing has to be verified: what is taken over comes from a state machine that signed it itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use overlay_wire::gossip::Record;
use rand_core::RngCore as _;
use x25519_dalek::PublicKey;

use super::config::StaticMember;
use super::crypto::diffie_hellman;
use super::membership::Authority;
use super::pair::{OwnSide, Pair};
use super::peer::{Peer, Verdicts};
use super::publish::idle_verdict_pause;
use super::view::MemberState;
use super::{Gossip, MAX_MEMBERS};
use crate::membership::ca_id;

impl Gossip {
    /// Introduces two state machines of one process to each other, as if a first contact and a probe in each direction had
    /// been answered after `round_trip` and all records exchanged. Each must have the other as a member, or know an authority
    /// that certified it; otherwise nothing happens.
    pub fn introduce_in_memory(
        &mut self,
        address: SocketAddr,
        other: &mut Self,
        other_address: SocketAddr,
        round_trip: Duration,
        now: Instant,
    ) {
        self.admit_in_memory(other, now);
        other.admit_in_memory(self, now);
        let known = self.peers.contains_key(&other.host) && other.peers.contains_key(&self.host);
        if !known || self.cluster != other.cluster {
            return;
        }
        let Some(shared) = diffie_hellman(&self.box_secret, &other.box_public) else { return };
        let side = |of: &Self| (of.host, of.box_public, of.boot_epoch, of.own.wireguard_key, of.own_records());
        let (ours, theirs) = (side(self), side(other));
        self.take_over(theirs, other_address, &shared, round_trip, now);
        other.take_over(ours, address, &shared, round_trip, now);
    }

    /// Takes a certified host in, as if it had shown its certificate.
    fn admit_in_memory(&mut self, other: &Self, now: Instant) {
        let Some(certificate) = &other.trust.certificate else { return };
        let said = &certificate.certificate;
        let is_trusted = self.trust.trusted.iter().any(|key| ca_id(key) == said.ca);
        let is_out = self.trust.revoked.contains(&other.host) || self.peers.len() >= MAX_MEMBERS;
        if self.peers.contains_key(&other.host) || !is_trusted || is_out {
            return;
        }
        let (identity, endpoints) = (other.identity.public(), other.own.endpoints.clone());
        let member = StaticMember { name: said.name.clone(), identity, endpoints, allow: said.grants.clone() };
        let authority = Authority::Certificate(Box::new(certificate.clone()));
        self.peers.insert(other.host, Peer::new(member, authority, now, now));
    }

    fn own_records(&self) -> Vec<Record> {
        self.store.of_owner(self.host).cloned().collect()
    }

    fn take_over(
        &mut self,
        (host, box_key, epoch, wireguard_key, records): (overlay_wire::HostId, PublicKey, u64, [u8; 32], Vec<Record>),
        address: SocketAddr,
        shared: &x25519_dalek::SharedSecret,
        round_trip: Duration,
        now: Instant,
    ) {
        let own =
            OwnSide { cluster: &self.cluster, host: self.host, secret: &self.box_secret, public: &self.box_public };
        let pair = Pair::from_shared(&own, host, box_key.to_bytes(), epoch, shared);
        let first_question = idle_verdict_pause(self.peers.len()) / 1024 * (self.rng.next_u32() % 1024);
        let version = self.own_version;
        let Some(peer) = self.peers.get_mut(&host) else { return };
        self.tags.insert(pair.receive_tag(), host);
        peer.pair = Some(pair);
        peer.state = MemberState::Up;
        peer.since = now;
        peer.endpoint = Some(address);
        peer.validated_source = Some(address);
        peer.last_heard = Some(now);
        peer.measure(round_trip);
        peer.contact.next = None;
        peer.contact.newest_seen = Some((epoch, 0));
        peer.verdicts = Verdicts { version, next_request: Some(now + first_question), ..Verdicts::default() };
        self.wireguard_keys.insert(host, wireguard_key);
        self.endpoints.insert(address);
        records.into_iter().for_each(|record| {
            self.store.merge(record);
        });
        // The other machine has them.
        self.pushes.clear();
        self.next_push = None;
        self.routes_stale = true;
    }
}
