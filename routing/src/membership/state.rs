//! The issuer's stored state: format, generation, content, checksum.
//!
//! The bytes hold the authority's secret key and are wiped when dropped. Every change of one byte and every truncation is
//! noticed by the checksum; a newer format is refused by name, so that it is never overwritten.

use std::collections::{BTreeMap, BTreeSet};

use blake2::{Blake2s256, Digest};
use overlay_wire::gossip::Grant;
use overlay_wire::gossip::codec::{DecodeError, Reader, put_name, put_prefix};
use overlay_wire::membership::certificate::{grants, labels, put_grants, put_labels};
use overlay_wire::membership::join::{certificate, put_certificate};
use overlay_wire::membership::{CaId, ClusterSettings, Rights, Serial, SignedCertificate, TokenId};
use overlay_wire::{HostId, Prefix};
use zeroize::Zeroizing;

use super::{IssuerConfig, Slice, TokenRequest};

const MAGIC: &[u8; 4] = b"OVIS";
const FORMAT: u8 = 1;
const CHECKSUM_DOMAIN: &[u8] = b"overlay issuer state v1\0";
const CHECKSUM_BYTES: usize = 32;
/// The most entries of any list in a stored state.
const MAX_LIST: usize = 1 << 20;

/// Why a stored state is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is cut short or changed.
    #[error("the issuer's state is damaged")]
    Damaged,
    /// It was written by newer software.
    #[error("the issuer's state is of format {0}, which is not known; it was written by newer software")]
    Newer(u8),
}

/// A token in the ledger; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) ca: CaId,
    pub(super) secret_digest: Zeroizing<[u8; 32]>,
    pub(super) uses_left: u32,
    pub(super) expires: u64,
    pub(super) is_revoked: bool,
    pub(super) request: TokenRequest,
    pub(super) redeemed: BTreeMap<HostId, Serial>,
}

/// Everything an issuer knows.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    /// Seeds of the authority that signs, and of the one before during a rotation.
    pub(super) ca: Zeroizing<[u8; 32]>,
    pub(super) previous: Option<Zeroizing<[u8; 32]>>,
    pub(super) retired: BTreeSet<CaId>,
    pub(super) config: IssuerConfig,
    /// The own slot, and the end of the slots that may be handed on.
    pub(super) slots: (u8, u16),
    pub(super) next_serial: u64,
    pub(super) slice: Slice,
    pub(super) tokens: BTreeMap<TokenId, Entry>,
    pub(super) issued: BTreeMap<HostId, SignedCertificate>,
    /// Subnets out of this slice, by host.
    pub(super) given: BTreeMap<HostId, Vec<Prefix>>,
    /// Subnets of forgotten hosts, with the time from which they are free again.
    pub(super) freeing: Vec<(u64, Prefix)>,
    /// In the order of revocation, so that full chunks never change.
    pub(super) revoked: Vec<HostId>,
    pub(super) exports: u32,
}

impl State {
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room from the start: a buffer that grows leaves copies of the secret behind.
        let room = 4096
            + self.issued.len() * 512
            + self.tokens.values().map(|entry| 512 + entry.redeemed.len() * 24).sum::<usize>()
            + self.revoked.len() * 16
            + self.given.len() * 128
            + self.slice.free().count() * 20
            + self.freeing.len() * 32;
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        out.extend_from_slice(MAGIC);
        out.push(FORMAT);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&*self.ca);
        out.push(u8::from(self.previous.is_some()));
        if let Some(previous) = &self.previous {
            out.extend_from_slice(&**previous);
        }
        put_list(&mut out, self.retired.iter(), |out, ca| out.extend_from_slice(&ca.0));
        self.config.settings.encode(&mut out);
        out.extend_from_slice(&[self.config.subnet_v4, self.config.subnet_v6]);
        out.extend_from_slice(&self.config.validity_secs.to_be_bytes());
        out.push(self.slots.0);
        out.extend_from_slice(&self.slots.1.to_be_bytes());
        out.extend_from_slice(&self.next_serial.to_be_bytes());
        put_list(&mut out, self.slice.free().collect::<Vec<_>>().iter(), put_prefix);
        put_list(&mut out, self.tokens.iter(), put_token);
        put_list(&mut out, self.issued.values(), put_certificate);
        put_list(&mut out, self.given.iter(), |out, (host, prefixes)| {
            out.extend_from_slice(&host.0);
            put_list(out, prefixes.iter(), put_prefix);
        });
        put_list(&mut out, self.freeing.iter(), |out, (at, prefix)| {
            out.extend_from_slice(&at.to_be_bytes());
            put_prefix(out, prefix);
        });
        put_list(&mut out, self.revoked.iter(), |out, host| out.extend_from_slice(&host.0));
        out.extend_from_slice(&self.exports.to_be_bytes());
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(StateError::Damaged);
        }
        match bytes.get(MAGIC.len()) {
            Some(&FORMAT) => {}
            Some(&format) if format > FORMAT => return Err(StateError::Newer(format)),
            _ => return Err(StateError::Damaged),
        }
        let at = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(StateError::Damaged)?;
        let (content, sum) = bytes.split_at(at);
        if content.len() <= MAGIC.len() || checksum(content) != sum {
            return Err(StateError::Damaged);
        }
        Self::decode_content(&content[MAGIC.len() + 1..]).map_err(|_| StateError::Damaged)
    }

    fn decode_content(content: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(content);
        let reader = &mut reader;
        let generation = reader.u64("generation")?;
        let ca = Zeroizing::new(reader.array("authority secret")?);
        let previous = match reader.u8("previous authority")? {
            0 => None,
            1 => Some(Zeroizing::new(reader.array("previous authority secret")?)),
            _ => return Err(DecodeError::Value { field: "previous authority" }),
        };
        let retired = list(reader, |reader| Ok(CaId(reader.array("retired authority")?)))?.into_iter().collect();
        let config = IssuerConfig {
            settings: ClusterSettings::decode(reader)?,
            subnet_v4: reader.u8("subnet length")?,
            subnet_v6: reader.u8("subnet length")?,
            validity_secs: reader.u64("validity")?,
        };
        let slots = (reader.u8("slot")?, reader.u16("last slot")?);
        let next_serial = reader.u64("next serial")?;
        let slice = Slice::new(&list(reader, |reader| reader.prefix("free block"))?);
        let tokens = list(reader, token)?.into_iter().collect();
        let issued: Vec<(HostId, SignedCertificate)> = list(reader, |reader| {
            let held = certificate(reader)?;
            let host = super::ca::subject(&held.certificate).ok_or(DecodeError::Value { field: "identity" })?;
            Ok((host, held))
        })?;
        let given: Vec<(HostId, Vec<Prefix>)> = list(reader, |reader| {
            let host = reader.host_id("host")?;
            Ok((host, list(reader, |reader| reader.prefix("given subnet"))?))
        })?;
        let freeing = list(reader, |reader| Ok((reader.u64("free from")?, reader.prefix("freed subnet")?)))?;
        let revoked = list(reader, |reader| reader.host_id("revoked host"))?;
        let exports = reader.u32("exports")?;
        reader.finish()?;
        Ok(Self {
            generation,
            ca,
            previous,
            retired,
            config,
            slots,
            next_serial,
            slice,
            tokens,
            issued: issued.into_iter().collect(),
            given: given.into_iter().collect(),
            freeing,
            revoked,
            exports,
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Blake2s256::new().chain_update(CHECKSUM_DOMAIN).chain_update(bytes).finalize().into()
}

fn put_list<T>(out: &mut Vec<u8>, items: impl ExactSizeIterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) {
    out.extend_from_slice(&(items.len() as u32).to_be_bytes());
    items.for_each(|item| put(out, item));
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    take: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.u32("list length")? as usize;
    if count > MAX_LIST {
        return Err(DecodeError::TooLong { field: "list", max: MAX_LIST });
    }
    (0..count).map(|_| take(reader)).collect()
}

fn put_token(out: &mut Vec<u8>, (id, entry): (&TokenId, &Entry)) {
    out.extend_from_slice(&id.0);
    out.extend_from_slice(&entry.ca.0);
    out.extend_from_slice(&*entry.secret_digest);
    out.extend_from_slice(&entry.uses_left.to_be_bytes());
    out.extend_from_slice(&entry.expires.to_be_bytes());
    out.push(u8::from(entry.is_revoked));
    let request = &entry.request;
    out.extend_from_slice(&request.uses.to_be_bytes());
    out.extend_from_slice(&request.ttl_secs.to_be_bytes());
    put_labels(out, &request.labels);
    out.extend_from_slice(&request.rights.0.to_be_bytes());
    out.push(u8::from(request.name.is_some()));
    request.name.iter().for_each(|name| put_name(out, name));
    put_list(out, request.subnets.iter(), put_prefix);
    put_grants(out, &request.allow);
    put_list(out, entry.redeemed.iter(), |out, (host, serial)| {
        out.extend_from_slice(&host.0);
        out.extend_from_slice(&serial.0.to_be_bytes());
    });
}

fn token(reader: &mut Reader<'_>) -> Result<(TokenId, Entry), DecodeError> {
    let flag = |reader: &mut Reader<'_>, field| match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Value { field }),
    };
    let id = TokenId(reader.array("token id")?);
    let ca = CaId(reader.array("authority")?);
    let secret_digest = Zeroizing::new(reader.array("secret digest")?);
    let uses_left = reader.u32("uses left")?;
    let expires = reader.u64("expiry")?;
    let is_revoked = flag(reader, "withdrawn")?;
    let uses = reader.u32("uses")?;
    let ttl_secs = reader.u64("lifetime")?;
    let labels = labels(reader)?;
    let rights = Rights(reader.u16("rights")?);
    let name = match flag(reader, "name")? {
        true => Some(reader.name("name", overlay_wire::gossip::body::MAX_NAME_BYTES)?),
        false => None,
    };
    let subnets = list(reader, |reader| reader.prefix("subnet"))?;
    let allow: Vec<Grant> = grants(reader)?;
    let redeemed = list(reader, |reader| Ok((reader.host_id("host")?, Serial(reader.u64("serial")?))))?;
    let request = TokenRequest { uses, ttl_secs, labels, rights, name, subnets, allow };
    let redeemed = redeemed.into_iter().collect();
    Ok((id, Entry { ca, secret_digest, uses_left, expires, is_revoked, request, redeemed }))
}
