//! The issuer: the ledger of tokens, the slice of the pool, and every certificate it signed.
//!
//! Nothing here changes an [`Issuer`] but [`Issuer::commit`]. An operation gives a [`Pending`] value: the caller writes its
//! state, and only then takes the answer out by committing it. What was not stored was never answered, so neither a token
//! nor a subnet can be given twice, whatever happens between.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use overlay_wire::gossip::body::BodyError;
use overlay_wire::gossip::{Grant, Record};
use overlay_wire::membership::{
    CaId, ClusterSettings, JoinRefusal, Labels, Rights, Serial, SignedCertificate, TokenId,
};
use overlay_wire::{HostId, Prefix};
use zeroize::Zeroizing;

use super::{CaKey, Slice, Token};
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
    /// The issuer's new state: write it durably before [`Issuer::commit`]. It holds the authority's secret key.
    #[must_use]
    pub fn state_bytes(&self) -> Zeroizing<Vec<u8>> {
        todo!()
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

/// What [`Issuer::handle_join`] needs beside the datagram.
#[derive(Debug, Clone, Copy)]
pub struct JoinContext<'a> {
    /// The issuer's host identity.
    pub identity: &'a IdentityKey,
    /// The issuer's own certificate.
    pub certificate: &'a SignedCertificate,
    /// Where the issuer can be reached; the first four are told.
    pub endpoints: &'a [SocketAddr],
    /// The names of all members this host knows, itself included.
    pub names: &'a BTreeMap<String, HostId>,
    /// The wall clock, Unix seconds.
    pub unix_now: u64,
    /// Fresh randomness for the answer's seal.
    pub nonce: [u8; 24],
}

/// Why a JOIN is met with silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinSilence {
    /// It is no JOIN.
    Malformed,
    /// The token is not in the ledger.
    UnknownToken,
    /// The seal, the secret, the identity or the signature is wrong.
    Unauthenticated,
}

/// What to do about a JOIN.
#[must_use = "an admission must be stored, and an answer sent"]
pub enum JoinDecision {
    /// Nothing.
    Silent(JoinSilence),
    /// Send this: a refusal, or the certificate that the same identity was given before.
    Answer {
        /// The datagram.
        datagram: Vec<u8>,
        /// Why the joiner is refused; `None` where it was admitted before.
        refusal: Option<JoinRefusal>,
    },
    /// Store the state, commit, and send what that gives.
    Admit {
        /// Gives the datagram with the certificate.
        pending: Pending<Vec<u8>>,
        /// The datagram to send where the state could not be stored.
        if_not_stored: Vec<u8>,
        /// Who is admitted.
        certificate: Box<SignedCertificate>,
    },
}

/// What [`Issuer::forget`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// The authority records to publish.
    pub records: Vec<Record>,
    /// Subnets that become free, and when (Unix seconds); none where another issuer gave them.
    pub freed: Vec<(Prefix, u64)>,
}

#[derive(Debug, Clone)]
struct State {}

/// The issuer of one host.
pub struct Issuer {
    state: Box<State>,
}

impl Issuer {
    /// The first issuer of a new cluster. Store [`Self::state_bytes`] before using it.
    ///
    /// # Errors
    /// When the settings are not valid.
    pub fn found(ca: CaKey, config: IssuerConfig) -> Result<Self, IssuerError> {
        todo!()
    }

    /// Takes the state that was last stored.
    ///
    /// # Errors
    /// When it is damaged or of a newer format.
    pub fn restore(state: &[u8]) -> Result<Self, super::StateError> {
        todo!()
    }

    /// The state to store. It holds the authority's secret key.
    #[must_use]
    pub fn state_bytes(&self) -> Zeroizing<Vec<u8>> {
        todo!()
    }

    /// Grows with every change; of two stored states the greater counts.
    #[must_use]
    pub fn generation(&self) -> u64 {
        todo!()
    }

    /// Makes a stored change count and gives its answer.
    ///
    /// # Errors
    /// When another change was committed in between; this one did not happen then.
    pub fn commit<T>(&mut self, pending: Pending<T>) -> Result<T, StaleError> {
        todo!()
    }

    /// The authority that signs.
    #[must_use]
    pub fn ca(&self) -> CaId {
        todo!()
    }

    /// The keys of all authorities that are trusted: the one that signs, and during a rotation the one before.
    #[must_use]
    pub fn trusted(&self) -> Vec<IdentityPublic> {
        todo!()
    }

    /// What is the same for all members.
    #[must_use]
    pub fn settings(&self) -> &ClusterSettings {
        todo!()
    }

    /// The cluster id.
    #[must_use]
    pub fn cluster(&self) -> [u8; 32] {
        todo!()
    }

    /// This issuer's slot: 0 for the first.
    #[must_use]
    pub fn slot(&self) -> u16 {
        todo!()
    }

    /// What is left of its slice.
    #[must_use]
    pub fn slice(&self) -> &Slice {
        todo!()
    }

    /// How often this authority was exported from here, as the warning about a missing backup asks.
    #[must_use]
    pub fn exports(&self) -> u32 {
        todo!()
    }

    /// Every certificate it signed that is the newest of its host.
    pub fn issued(&self) -> impl Iterator<Item = &SignedCertificate> {
        std::iter::empty()
    }

    /// Every token of the ledger.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenView> {
        todo!()
    }

    /// The hosts this issuer revoked.
    #[must_use]
    pub fn revoked(&self) -> Vec<HostId> {
        todo!()
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
        todo!()
    }

    /// Takes a prefix out of the slice for ever, as for static members.
    ///
    /// # Errors
    /// When it lies outside the pool.
    pub fn reserve(&self, prefix: Prefix) -> Result<Pending<()>, IssuerError> {
        todo!()
    }

    /// Makes a token; `random` must come from the operating system's generator.
    ///
    /// # Errors
    /// When the request is not valid or the ledger is full.
    pub fn invite(
        &self,
        request: TokenRequest,
        issuer: &IdentityPublic,
        endpoints: &[SocketAddr],
        random: &[u8; 24],
        unix_now: u64,
    ) -> Result<Pending<Token>, IssuerError> {
        todo!()
    }

    /// Withdraws a token; hosts that it admitted stay members.
    ///
    /// # Errors
    /// When it is not in the ledger.
    pub fn revoke_token(&self, id: TokenId) -> Result<Pending<()>, IssuerError> {
        todo!()
    }

    /// Decides about a JOIN datagram.
    pub fn handle_join(&self, datagram: &[u8], context: &JoinContext<'_>) -> JoinDecision {
        todo!()
    }

    /// Certifies a member anew: same grants, labels, rights and name, new serial and validity.
    ///
    /// # Errors
    /// When its certificate is not of a trusted authority, or it is revoked.
    pub fn renew(&self, held: &SignedCertificate, unix_now: u64) -> Result<Pending<SignedCertificate>, IssuerError> {
        todo!()
    }

    /// Revokes a host for ever; gives the authority records to publish.
    ///
    /// # Errors
    /// When the list is full.
    pub fn revoke(&self, host: HostId) -> Result<Pending<Vec<Record>>, IssuerError> {
        todo!()
    }

    /// Revokes a host and frees its subnets after the end of its certificate and a cooldown.
    ///
    /// # Errors
    /// When the list is full.
    pub fn forget(&self, host: HostId, unix_now: u64) -> Result<Pending<Forgotten>, IssuerError> {
        todo!()
    }

    /// The authority records this issuer has to publish, as after a start.
    #[must_use]
    pub fn authority_records(&self) -> Vec<Record> {
        todo!()
    }

    /// Makes `next` the authority that signs, trusted beside the one so far; gives the records to publish. `revoked` are all
    /// hosts known to be revoked, by whatever issuer.
    ///
    /// # Errors
    /// When a rotation is under way.
    pub fn begin_rotation(&self, next: CaKey, revoked: &[HostId]) -> Result<Pending<Vec<Record>>, IssuerError> {
        todo!()
    }

    /// Retires the authority before; its certificates count no more. Gives the records to publish.
    ///
    /// # Errors
    /// When no rotation is under way.
    pub fn finish_rotation(&self) -> Result<Pending<Vec<Record>>, IssuerError> {
        todo!()
    }

    /// Puts the authority's key, a new slot and half of the remaining slice into a file sealed with a passphrase.
    ///
    /// `random` must come from the operating system's generator.
    ///
    /// # Errors
    /// When there is nothing left to split.
    pub fn export(
        &self,
        passphrase: &[u8],
        cost: super::KdfCost,
        random: &[u8; 40],
    ) -> Result<Pending<Vec<u8>>, super::ExportError> {
        todo!()
    }

    /// Makes an issuer of an exported file. Store [`Self::state_bytes`] before using it.
    ///
    /// # Errors
    /// When the passphrase is wrong or the file is damaged.
    pub fn import(file: &[u8], passphrase: &[u8]) -> Result<Self, super::ExportError> {
        todo!()
    }
}
