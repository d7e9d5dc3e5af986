//! The issuer: the ledger of tokens, the slice of the pool, and every certificate it signed.
//!
//! Nothing here changes an [`Issuer`] but [`Issuer::commit`]. An operation gives a [`Pending`] value: the caller writes its
//! state, and only then takes the answer out by committing it. What was not stored was never answered, so neither a token
//! nor a subnet can be given twice, whatever happens between.

mod authority;
mod join;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use overlay_wire::gossip::Grant;
use overlay_wire::gossip::body::BodyError;
use overlay_wire::gossip::codec::Reader;
use overlay_wire::membership::certificate::MAX_PREFIX_COUNT;
use overlay_wire::membership::join::MAX_ISSUER_ENDPOINTS;
use overlay_wire::membership::{
    CaId, Certificate, ClusterSettings, Labels, Rights, Serial, SignedCertificate, TokenId,
};
use overlay_wire::{HostId, Prefix};
use zeroize::Zeroizing;

pub use authority::Forgotten;
pub use join::{JoinContext, JoinDecision, JoinSilence};

use super::slice::Family;
use super::state::{Entry, State};
use super::{BACKDATE_SECS, CaKey, Slice, StateError, Token, verify_certificate};
use crate::gossip::cluster_id;
use crate::identity::{IdentityKey, IdentityPublic};

/// What a new cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerConfig {
    /// What is the same for all members.
    pub settings: ClusterSettings,
    /// The length of an IPv4 subnet; 24 by default.
    pub subnet_v4: u8,
    /// The length of an IPv6 subnet; 64 by default.
    pub subnet_v6: u8,
    /// How long a certificate is valid.
    pub validity_secs: u64,
}

/// What an invitation asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// How many hosts it may admit, at least 1.
    pub uses: u32,
    /// How long it may be redeemed.
    pub ttl_secs: u64,
    /// Labels of the hosts it admits.
    pub labels: Labels,
    /// Their rights.
    pub rights: Rights,
    /// The name of the one host it admits; `None`: the joiner chooses.
    pub name: Option<String>,
    /// The subnets of the one host it admits, one per family; a family that is not named gets one from the slice.
    pub subnets: Vec<Prefix>,
    /// What the hosts may announce beside their subnets.
    pub allow: Vec<Grant>,
}

/// A token as the ledger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenView {
    /// Its name.
    pub id: TokenId,
    /// How many hosts it may still admit.
    pub uses_left: u32,
    /// The first second in which it does not count any more, Unix time.
    pub expires: u64,
    /// Whether it was withdrawn.
    pub is_revoked: bool,
    /// What it asks for.
    pub request: TokenRequest,
    /// Who redeemed it, with the serial of the certificate.
    pub redeemed: BTreeMap<HostId, Serial>,
}

/// A change that does not count before it is stored; see [`Issuer::commit`].
#[must_use = "the change does not count before it is stored and committed"]
pub struct Pending<T> {
    next: Box<State>,
    value: T,
}

impl<T> Pending<T> {
    pub(super) fn new(next: Box<State>, value: T) -> Self {
        Self { next, value }
    }

    /// The issuer's new state: write it durably before [`Issuer::commit`]. It holds the authority's secret key.
    #[must_use]
    pub fn state_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.next.encode()
    }
}

/// Another change was committed since this one was prepared; prepare it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the issuer's state has moved on since the change was prepared")]
pub struct StaleError;

/// Why an operation is not possible; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// A certificate or record would exceed a limit.
    #[error("the certificate or record does not fit: {0}")]
    Body(#[from] BodyError),
    /// No subnet of the wanted length is free in this issuer's slice, or the one asked for is not.
    #[error("no subnet is free for the request")]
    NoSubnet,
    /// A subnet was asked for that lies outside the pool.
    #[error("{0} lies outside the pool")]
    OutsidePool(Prefix),
    /// The request contradicts itself.
    #[error("{0}")]
    Request(&'static str),
    /// The ledger, the list of revoked hosts, or the serial numbers are full.
    #[error("no more {0} can be kept")]
    Full(&'static str),
    /// No such token or host is known.
    #[error("it is not known here")]
    Unknown,
    /// The host is revoked.
    #[error("the host is revoked")]
    Revoked,
    /// A rotation is under way, or none is.
    #[error("{0}")]
    Rotation(&'static str),
    /// The slice or the slots cannot be split any more.
    #[error("the slice is too small to be split")]
    NothingToSplit,
}

/// The most tokens in a ledger.
const MAX_TOKENS: usize = 1024;
/// The most hosts one issuer certifies.
const MAX_ISSUED: usize = 4096;
/// How long a token that expired stays in the ledger, for repeated requests of hosts it admitted.
const TOKEN_KEPT_SECS: u64 = 7 * 24 * 3600;
/// The longest life of a token.
const MAX_TTL_SECS: u64 = 365 * 24 * 3600;
/// The longest name, to ask whether a certificate would fit.
const LONGEST_NAME: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
/// Slots of issuers: each has revocation records of its own.
const SLOTS: u16 = 256;

/// The issuer of one host.
pub struct Issuer {
    state: Box<State>,
    ca: CaKey,
    previous: Option<CaKey>,
    cluster: [u8; 32],
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("ca", &self.ca)
            .field("slot", &self.state.slots.0)
            .field("generation", &self.state.generation)
            .finish_non_exhaustive()
    }
}

impl Issuer {
    /// The first issuer of a new cluster. Store [`Self::state_bytes`] before using it.
    ///
    /// # Errors
    /// When the settings are not valid.
    pub fn found(ca: CaKey, mut config: IssuerConfig) -> Result<Self, IssuerError> {
        config.settings.pool.sort_unstable();
        config.settings.pool.dedup();
        check(&config)?;
        let slice = Slice::new(&config.settings.pool);
        Ok(Self::new(State {
            generation: 1,
            ca: ca.to_bytes(),
            previous: None,
            retired: BTreeSet::new(),
            config,
            slots: (0, SLOTS),
            next_serial: 1,
            slice,
            tokens: BTreeMap::new(),
            issued: BTreeMap::new(),
            given: BTreeMap::new(),
            freeing: Vec::new(),
            revoked: Vec::new(),
            exports: 0,
        }))
    }

    /// Takes the state that was last stored.
    ///
    /// # Errors
    /// When it is damaged or of a newer format.
    pub fn restore(state: &[u8]) -> Result<Self, StateError> {
        let state = State::decode(state)?;
        if check(&state.config).is_err() {
            return Err(StateError::Damaged);
        }
        Ok(Self::new(state))
    }

    pub(super) fn new(state: State) -> Self {
        Self {
            ca: CaKey::from_bytes(&state.ca),
            previous: state.previous.as_ref().map(|seed| CaKey::from_bytes(seed)),
            cluster: cluster_id(&state.config.settings.name),
            state: Box::new(state),
        }
    }

    /// The state to store. It holds the authority's secret key.
    #[must_use]
    pub fn state_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.state.encode()
    }

    /// Grows with every change; of two stored states the greater counts.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Makes a stored change count and gives its answer.
    ///
    /// # Errors
    /// When another change was committed in between; this one did not happen then.
    pub fn commit<T>(&mut self, pending: Pending<T>) -> Result<T, StaleError> {
        let Pending { next, value } = pending;
        if next.generation != self.state.generation + 1 || next.slots.0 != self.state.slots.0 {
            return Err(StaleError);
        }
        *self = Self::new(*next);
        Ok(value)
    }

    /// The authority that signs.
    #[must_use]
    pub fn ca(&self) -> CaId {
        self.ca.id()
    }

    /// The keys of all authorities that are trusted: the one that signs, and during a rotation the one before.
    #[must_use]
    pub fn trusted(&self) -> Vec<IdentityPublic> {
        self.previous.iter().chain([&self.ca]).map(CaKey::public).rev().collect()
    }

    /// What is the same for all members.
    #[must_use]
    pub fn settings(&self) -> &ClusterSettings {
        &self.state.config.settings
    }

    /// The cluster id.
    #[must_use]
    pub fn cluster(&self) -> [u8; 32] {
        self.cluster
    }

    /// This issuer's slot: 0 for the first.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.state.slots.0.into()
    }

    /// What is left of its slice.
    #[must_use]
    pub fn slice(&self) -> &Slice {
        &self.state.slice
    }

    /// How often this authority was exported from here, as the warning about a missing backup asks.
    #[must_use]
    pub fn exports(&self) -> u32 {
        self.state.exports
    }

    /// Every certificate it signed that is the newest of its host.
    pub fn issued(&self) -> impl Iterator<Item = &SignedCertificate> {
        self.state.issued.values()
    }

    /// Every token of the ledger.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenView> {
        let view = |(id, entry): (&TokenId, &Entry)| TokenView {
            id: *id,
            uses_left: entry.uses_left,
            expires: entry.expires,
            is_revoked: entry.is_revoked,
            request: entry.request.clone(),
            redeemed: entry.redeemed.clone(),
        };
        self.state.tokens.iter().map(view).collect()
    }

    /// The hosts this issuer revoked.
    #[must_use]
    pub fn revoked(&self) -> &[HostId] {
        &self.state.revoked
    }

    /// Certifies a host without a token, as the founder of a cluster does with its own; rights, labels and subnets are those
    /// of the request, whose uses and lifetime do not matter.
    ///
    /// # Errors
    /// When no subnet is free or a limit is exceeded.
    pub fn admit(
        &self,
        identity: &IdentityPublic,
        name: &str,
        request: &TokenRequest,
        unix_now: u64,
    ) -> Result<Pending<SignedCertificate>, IssuerError> {
        let mut next = self.next(unix_now);
        let signed = self.certify(&mut next, identity, name, request, unix_now)?;
        Ok(Pending { next, value: signed })
    }

    /// Takes a prefix out of the slice for ever, as for static members.
    ///
    /// # Errors
    /// When it lies outside the pool.
    pub fn reserve(&self, prefix: Prefix) -> Result<Pending<()>, IssuerError> {
        self.in_pool(&prefix)?;
        let mut next = self.next(0);
        next.slice.exclude(&prefix);
        Ok(Pending { next, value: () })
    }

    /// Makes a token; `random` must come from the operating system's generator.
    ///
    /// # Errors
    /// When the request is not valid or the ledger is full.
    pub fn invite(
        &self,
        mut request: TokenRequest,
        issuer: &IdentityPublic,
        endpoints: &[SocketAddr],
        random: &[u8; 24],
        unix_now: u64,
    ) -> Result<Pending<Token>, IssuerError> {
        if request.uses == 0 || request.ttl_secs == 0 || request.ttl_secs > MAX_TTL_SECS {
            return Err(IssuerError::Request("a token admits at least one host, and lives at most a year"));
        }
        if endpoints.is_empty() {
            return Err(IssuerError::Request("a token needs an endpoint of the issuer"));
        }
        if request.uses > 1 && (request.name.is_some() || !request.subnets.is_empty()) {
            return Err(IssuerError::Request("a token with a name or subnet admits one host"));
        }
        request.allow.sort_unstable();
        request.allow.dedup();
        let mut next = self.next(unix_now);
        next.tokens.retain(|_, entry| entry.expires.saturating_add(TOKEN_KEPT_SECS) > unix_now);
        if next.tokens.len() >= MAX_TOKENS {
            return Err(IssuerError::Full("tokens"));
        }
        // Whether a certificate with the longest name would fit is found out now and not by the joiner.
        let name = request.name.as_deref().unwrap_or(LONGEST_NAME);
        let nobody = IdentityKey::from_bytes(&[0; 32]).public();
        self.certify(&mut next.clone(), &nobody, name, &request, unix_now).map(drop)?;
        let (id, secret) = random.split_at(8);
        let mut token = Token {
            ca: self.ca.id(),
            issuer: *issuer,
            endpoints: endpoints.iter().copied().take(MAX_ISSUER_ENDPOINTS).collect(),
            id: TokenId([0; 8]),
            secret: Zeroizing::new([0; 16]),
        };
        token.id.0.copy_from_slice(id);
        token.secret.copy_from_slice(secret);
        if next.tokens.contains_key(&token.id) {
            return Err(IssuerError::Request("the token id is taken: the randomness was used before"));
        }
        let entry = Entry {
            ca: token.ca,
            secret_digest: token.secret_digest(),
            uses_left: request.uses,
            expires: unix_now.saturating_add(request.ttl_secs),
            is_revoked: false,
            request,
            redeemed: BTreeMap::new(),
        };
        next.tokens.insert(token.id, entry);
        Ok(Pending { next, value: token })
    }

    /// Withdraws a token; hosts that it admitted stay members.
    ///
    /// # Errors
    /// When it is not in the ledger.
    pub fn revoke_token(&self, id: TokenId) -> Result<Pending<()>, IssuerError> {
        let mut next = self.next(0);
        next.tokens.get_mut(&id).ok_or(IssuerError::Unknown)?.is_revoked = true;
        Ok(Pending { next, value: () })
    }

    /// Certifies a member anew: same grants, labels, rights and name, new serial and validity.
    ///
    /// # Errors
    /// When its certificate is not of a trusted authority, or it is revoked.
    pub fn renew(&self, held: &SignedCertificate, unix_now: u64) -> Result<Pending<SignedCertificate>, IssuerError> {
        self.renew_with(held, held.certificate.rights, unix_now)
    }

    /// Certifies a member anew with other rights, as a host that becomes an issuer does with its own certificate.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn renew_with(
        &self,
        held: &SignedCertificate,
        rights: Rights,
        unix_now: u64,
    ) -> Result<Pending<SignedCertificate>, IssuerError> {
        let identity = verify_certificate(held, &self.cluster, &self.trusted()).map_err(|_| IssuerError::Unknown)?;
        let host = identity.host_id();
        if self.state.revoked.contains(&host) {
            return Err(IssuerError::Revoked);
        }
        let mut next = self.next(unix_now);
        let mut certificate = held.certificate.clone();
        certificate.serial = take_serial(&mut next)?;
        certificate.rights = rights;
        (certificate.not_before, certificate.not_after) = self.validity(unix_now);
        let signed = self.ca.certify(&self.cluster, certificate)?;
        next.issued.insert(host, signed.clone());
        if next.issued.len() > MAX_ISSUED {
            return Err(IssuerError::Full("certificates"));
        }
        Ok(Pending { next, value: signed })
    }

    /// A copy of the state for the next change, with subnets freed whose time has come.
    pub(super) fn next(&self, unix_now: u64) -> Box<State> {
        let mut next = self.state.clone();
        next.generation += 1;
        let slice = &mut next.slice;
        next.freeing.retain(|(at, prefix)| {
            let keep = *at > unix_now;
            if !keep {
                slice.release(*prefix);
            }
            keep
        });
        next
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn keys(&self) -> (&CaKey, Option<&CaKey>) {
        (&self.ca, self.previous.as_ref())
    }

    fn in_pool(&self, prefix: &Prefix) -> Result<(), IssuerError> {
        let covered = self.state.config.settings.pool.iter().any(|pool| pool.covers(prefix));
        if covered { Ok(()) } else { Err(IssuerError::OutsidePool(*prefix)) }
    }

    fn validity(&self, unix_now: u64) -> (u64, u64) {
        (unix_now.saturating_sub(BACKDATE_SECS), unix_now.saturating_add(self.state.config.validity_secs))
    }

    /// Certifies a host in the next state: its subnets of before where it has some, else those asked for or the first free.
    pub(super) fn certify(
        &self,
        next: &mut State,
        identity: &IdentityPublic,
        name: &str,
        request: &TokenRequest,
        unix_now: u64,
    ) -> Result<SignedCertificate, IssuerError> {
        let host = identity.host_id();
        if next.revoked.contains(&host) {
            return Err(IssuerError::Revoked);
        }
        let subnets = match next.given.get(&host) {
            Some(held) => held.clone(),
            None => self.allocate(next, &request.subnets)?,
        };
        let mut grants: Vec<Grant> = subnets.iter().copied().map(Grant::explicit).collect();
        grants.extend(request.allow.iter().copied());
        grants.sort_unstable();
        grants.dedup();
        let serial = take_serial(next)?;
        let (not_before, not_after) = self.validity(unix_now);
        let certificate = Certificate {
            ca: self.ca.id(),
            identity: *identity.as_bytes(),
            name: name.to_owned(),
            serial,
            admitted: next.issued.get(&host).map_or(serial, |held| held.certificate.admitted),
            grants,
            max_prefixes: MAX_PREFIX_COUNT,
            labels: request.labels.clone(),
            rights: request.rights,
            not_before,
            not_after,
        };
        let signed = self.ca.certify(&self.cluster, certificate)?;
        next.given.insert(host, subnets);
        next.issued.insert(host, signed.clone());
        if next.issued.len() > MAX_ISSUED {
            return Err(IssuerError::Full("certificates"));
        }
        Ok(signed)
    }

    /// One subnet per family of the pool.
    fn allocate(&self, next: &mut State, asked: &[Prefix]) -> Result<Vec<Prefix>, IssuerError> {
        let config = &self.state.config;
        let mut subnets = Vec::new();
        for prefix in asked {
            self.in_pool(prefix)?;
            if subnets.iter().any(|other: &Prefix| other.is_ipv4() == prefix.is_ipv4()) {
                return Err(IssuerError::Request("at most one subnet of each address family can be asked for"));
            }
            if !next.slice.take_exactly(prefix) {
                return Err(IssuerError::NoSubnet);
            }
            subnets.push(*prefix);
        }
        for (family, len) in [(Family::V4, config.subnet_v4), (Family::V6, config.subnet_v6)] {
            let in_pool = config.settings.pool.iter().any(|pool| Family::of(pool) == family);
            if in_pool && !subnets.iter().any(|subnet| Family::of(subnet) == family) {
                subnets.push(next.slice.take(family, len).ok_or(IssuerError::NoSubnet)?);
            }
        }
        subnets.sort_unstable();
        Ok(subnets)
    }
}

fn take_serial(next: &mut State) -> Result<Serial, IssuerError> {
    let serial = Serial::new(next.slots.0.into(), next.next_serial).ok_or(IssuerError::Full("serial numbers"))?;
    next.next_serial += 1;
    Ok(serial)
}

fn check(config: &IssuerConfig) -> Result<(), IssuerError> {
    let mut bytes = Vec::new();
    config.settings.encode(&mut bytes);
    let again = ClusterSettings::decode(&mut Reader::new(&bytes)).map_err(BodyError::from)?;
    if again != config.settings {
        return Err(IssuerError::Request("the cluster's name or pool is not valid"));
    }
    let pool = &config.settings.pool;
    if pool.iter().enumerate().any(|(at, prefix)| pool[..at].iter().any(|other| other.overlaps(prefix))) {
        return Err(IssuerError::Request("the pool's prefixes overlap"));
    }
    let (v4, v6) = (config.subnet_v4, config.subnet_v6);
    let fits = |prefix: &Prefix| {
        if prefix.is_ipv4() { (prefix.len()..=30).contains(&v4) } else { (prefix.len()..=126).contains(&v6) }
    };
    if !pool.iter().all(fits) {
        return Err(IssuerError::Request("a subnet is at least as long as the pool, and holds four addresses or more"));
    }
    if config.validity_secs < 60 {
        return Err(IssuerError::Request("a certificate is valid for a minute at least"));
    }
    Ok(())
}
