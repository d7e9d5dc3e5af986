//! First contact: INTRODUCE and its answer, also after a restart of either end.

use std::net::SocketAddr;
use std::time::Instant;

use overlay_wire::HostId;
use overlay_wire::gossip::envelope::{IntroduceAckContent, IntroduceContent, introduce_ack_header, introduce_header};
use overlay_wire::gossip::{Message, Record, RecordKey, RecordKind};
use rand_core::RngCore as _;
use x25519_dalek::{PublicKey, StaticSecret};

use super::Gossip;
use super::crypto::{AckTranscript, IntroduceKeys, Sealed, diffie_hellman, introduce_signed_bytes, seal};
use super::limiter::SourceKind;
use super::peer::{MAX_PENDING_CONTACTS, PendingContact};
use super::reunion;
use super::view::{GossipEvent, MemberState};
use crate::identity::IdentityPublic;

/// So many members down make sealed probes take the place of three first contacts in four.
const PROBE_CROWD: u32 = 16;

impl Gossip {
    /// Sends an INTRODUCE to every address of a member and schedules the next.
    pub(super) fn send_introduce(&mut self, host: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let hurried = peer.contact.sought.is_some_and(|at| now.saturating_duration_since(at) < reunion::GAP);
        let pause = peer.next_contact_pause(&mut self.rng);
        let (pause, crowd) = if hurried { (pause.min(reunion::LONGEST_PAUSE), 0) } else { (pause, self.crowd) };
        // With very many members down the pauses grow, so that trying them stays cheap. Where a channel exists a sealed
        // probe is far cheaper than a first contact, and finds a member that was only cut off.
        let turn = peer.contact.turn;
        peer.contact.turn = turn.wrapping_add(1);
        if peer.pair.is_none() || self.crowd < PROBE_CROWD {
            peer.contact.next = Some(now + pause * (1 + crowd / 64));
        } else {
            peer.contact.next = Some(now + pause * (1 + crowd / 512));
            if turn % 4 != 0 {
                self.start_probe(host, now);
                return;
            }
        }
        let addresses = peer.candidates();
        if addresses.is_empty() {
            return;
        }
        let secret = StaticSecret::random_from_rng(&mut self.rng);
        let ephemeral = PublicKey::from(&secret).to_bytes();
        let Some(keys) = IntroduceKeys::new(&secret, &peer.member.identity.to_x25519()) else { return };
        let Some(record) = self.store.get(&record_key(self.host)).cloned() else { return };
        self.introduce_counter += 1;
        let mut content = IntroduceContent {
            identity: *self.identity.public().as_bytes(),
            boot_epoch: self.boot_epoch,
            counter: self.introduce_counter,
            nonce: self.rng.next_u64(),
            record,
            certificate: self.store.get(&certificate_key(self.host)).filter(|held| !held.is_withdrawal()).cloned(),
            signature: [0; 64],
        };
        let signed = introduce_signed_bytes(&self.cluster, host, &ephemeral, &content.unsigned_bytes());
        content.signature = self.identity.sign(&signed);
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let key = keys.introduce_key(&self.cluster, host, &ephemeral);
        let datagram = seal(&key, &nonce, introduce_header(&ephemeral, &nonce), &content.encode());
        let tag = keys.tag(&ephemeral);
        peer.remember_contact(PendingContact { tag, nonce: content.nonce, secret, ephemeral, keys, sent: now });
        self.contact_tags.insert(tag, host);
        if self.contact_tags.len() > MAX_PENDING_CONTACTS * self.peers.len() {
            let peers = &self.peers;
            self.contact_tags
                .retain(|tag, host| peers.get(host).is_some_and(|peer| peer.awaits_contact(tag).is_some()));
        }
        addresses.into_iter().for_each(|to| self.transmit(to, datagram.clone()));
    }

    /// Checks an INTRODUCE and answers it; everything that fails is met with silence.
    pub(super) fn handle_introduce(
        &mut self,
        from: SocketAddr,
        ephemeral: &[u8; 32],
        sealed: &Sealed<'_>,
        now: Instant,
    ) {
        let known = self.endpoints.contains(&from);
        let kind = if known { SourceKind::Member } else { SourceKind::Stranger };
        if !self.contacts.allow(from.ip(), kind, now) {
            self.counters.rate_limited += 1;
            return;
        }
        let Some((mut content, keys, host)) = self.open_introduce(ephemeral, sealed) else {
            self.counters.unauthenticated += 1;
            return;
        };
        let is_whole = content.record.key == record_key(host)
            && content.certificate.as_ref().is_none_or(|record| record.key == certificate_key(host));
        if !is_whole {
            self.counters.unauthenticated += 1;
            return;
        }
        // The certificate first: by it a host that is not known yet becomes a member.
        if let Some(certificate) = content.certificate.take() {
            self.accept_record(certificate, now);
        }
        let Some(peer) = self.peers.get_mut(&host) else {
            self.counters.unauthenticated += 1;
            return;
        };
        let stamp = (content.boot_epoch, content.counter);
        if peer.contact.newest_seen.is_some_and(|newest| stamp <= newest) {
            self.counters.replayed += 1;
            let older_run = peer.contact.newest_seen.is_some_and(|(epoch, _)| content.boot_epoch < epoch);
            let recent = peer.last_older_run.is_some_and(|at| now.saturating_duration_since(at) < super::ALARM_GAP);
            if older_run && !recent {
                peer.last_older_run = Some(now);
                self.emit(GossipEvent::IdentityInUseTwice { host, from });
            }
            return;
        }
        peer.contact.newest_seen = Some(stamp);
        self.counters.received += 1;
        self.accept_record(content.record, now);
        self.answer_introduce(host, from, ephemeral, content.nonce, &keys);
        self.heard_from(host, from, now);
        self.move_endpoint(host, from);
        self.prompt_probe(host, now);
    }

    /// Opens an INTRODUCE and verifies its signature; by a member, or by somebody who shows a certificate.
    fn open_introduce(
        &self,
        ephemeral: &[u8; 32],
        sealed: &Sealed<'_>,
    ) -> Option<(IntroduceContent, IntroduceKeys, HostId)> {
        let keys = IntroduceKeys::new(&self.identity.to_x25519(), &PublicKey::from(*ephemeral))?;
        let key = keys.introduce_key(&self.cluster, self.host, ephemeral);
        let bytes = sealed.open(&key)?;
        let content = IntroduceContent::decode(&bytes).ok()?;
        let identity = IdentityPublic::from_bytes(&content.identity).ok()?;
        let host = identity.host_id();
        let is_member = self.peers.get(&host).is_some_and(|peer| peer.member.identity == identity);
        if !is_member && (content.certificate.is_none() || self.trust.revoked.contains(&host)) {
            return None;
        }
        let signed = introduce_signed_bytes(&self.cluster, self.host, ephemeral, &content.unsigned_bytes());
        identity.verify(&signed, &content.signature).ok()?;
        Some((content, keys, host))
    }

    fn answer_introduce(
        &mut self,
        host: HostId,
        to: SocketAddr,
        ephemeral: &[u8; 32],
        nonce: u64,
        keys: &IntroduceKeys,
    ) {
        let Some(record) = self.store.get(&record_key(self.host)).cloned() else { return };
        let Some(box_shared) = diffie_hellman(&self.box_secret, &PublicKey::from(*ephemeral)) else { return };
        let box_key = self.box_public.to_bytes();
        let transcript = AckTranscript {
            cluster: &self.cluster,
            initiator: host,
            responder: self.host,
            ephemeral,
            responder_box: &box_key,
            nonce,
        };
        let key = keys.ack_key(&transcript, &box_shared);
        let content = IntroduceAckContent { nonce, boot_epoch: self.boot_epoch, observed: Some(to), record };
        let mut aead_nonce = [0; 24];
        self.rng.fill_bytes(&mut aead_nonce);
        let header = introduce_ack_header(&keys.tag(ephemeral), &box_key, &aead_nonce);
        let datagram = seal(&key, &aead_nonce, header, &content.encode());
        self.transmit(to, datagram);
    }

    /// Takes the answer to one of our INTRODUCEs.
    pub(super) fn handle_introduce_ack(
        &mut self,
        from: SocketAddr,
        tag: [u8; 8],
        box_key: &[u8; 32],
        sealed: &Sealed<'_>,
        now: Instant,
    ) {
        let host = self.contact_tags.get(&tag).copied();
        let found = host.and_then(|host| Some((host, self.peers.get(&host)?.awaits_contact(&tag)?)));
        let Some((host, at)) = found else {
            self.counters.unknown_sender += 1;
            return;
        };
        let Some((content, sent)) = self.open_introduce_ack(host, at, box_key, sealed) else {
            self.counters.unauthenticated += 1;
            return;
        };
        self.counters.received += 1;
        self.accept_record(content.record, now);
        let Some(peer) = self.peers.get_mut(&host) else { return };
        // One answer per INTRODUCE: a copy finds no pending entry any more.
        peer.contact.pending.clear();
        peer.measure(now.saturating_duration_since(sent));
        if peer.endpoint != Some(from) {
            // What is under way goes to an address that is left.
            peer.probe = None;
        }
        self.note_observed(host, content.observed, now);
        self.heard_from(host, from, now);
        self.move_endpoint(host, from);
        self.member_answers(host, now);
        self.prompt_probe(host, now);
    }

    fn open_introduce_ack(
        &self,
        host: HostId,
        at: usize,
        box_key: &[u8; 32],
        sealed: &Sealed<'_>,
    ) -> Option<(IntroduceAckContent, Instant)> {
        let peer = self.peers.get(&host)?;
        let pending = peer.contact.pending.get(at)?;
        let box_shared = diffie_hellman(&pending.secret, &PublicKey::from(*box_key))?;
        let transcript = AckTranscript {
            cluster: &self.cluster,
            initiator: self.host,
            responder: host,
            ephemeral: &pending.ephemeral,
            responder_box: box_key,
            nonce: pending.nonce,
        };
        let bytes = sealed.open(&pending.keys.ack_key(&transcript, &box_shared))?;
        let content = IntroduceAckContent::decode(&bytes).ok()?;
        let is_theirs = content.record.key == record_key(host) && content.nonce == pending.nonce;
        is_theirs.then_some((content, pending.sent))
    }

    /// Sends a probe at once, at most every 200 ms, to a member that we hear but who has not answered us yet.
    pub(super) fn prompt_probe(&mut self, host: HostId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let recent = peer.last_prompt_probe.is_some_and(|last| now.saturating_duration_since(last) < super::PROMPT_GAP);
        if peer.probe.is_some() || recent || (peer.state == MemberState::Up && peer.validated_source.is_some()) {
            return;
        }
        peer.last_prompt_probe = Some(now);
        self.start_probe(host, now);
    }

    /// Compares what each holds with a member.
    pub(super) fn greet(&mut self, host: HostId) {
        let digest = Message::Digest(Box::new(*self.store.digest()));
        self.send(host, &digest);
    }
}

fn certificate_key(host: HostId) -> RecordKey {
    RecordKey { owner: host, kind: RecordKind::CERTIFICATE, shard: 0 }
}

fn record_key(host: HostId) -> RecordKey {
    RecordKey { owner: host, kind: RecordKind::HOST, shard: 0 }
}

/// Whether a record is a host's own description.
pub(super) fn is_host_record(record: &Record) -> bool {
    record.key.kind == RecordKind::HOST
}
