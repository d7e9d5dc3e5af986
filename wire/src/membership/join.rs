//! The join exchange: what a new host asks an issuer, and what it is told.
//!
//! Both are one datagram. A JOIN always has the full size of a datagram, so that no answer is ever longer than what
//! caused it.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::gossip::body::{BodyError, MAX_NAME_BYTES};
use crate::gossip::codec::{DecodeError, Reader, put_name, put_prefix, put_socket_addr};
use crate::gossip::envelope::{AEAD_TAG_BYTES, JOIN_HEADER_BYTES, MAX_SENT_BYTES};
use crate::membership::certificate::SignedCertificate;
use crate::policy::DefaultPolicy;
use crate::{Encapsulation, Prefix};

/// The size of a JOIN's content, so that every JOIN is [`MAX_SENT_BYTES`] long.
pub const JOIN_CONTENT_BYTES: usize = MAX_SENT_BYTES - JOIN_HEADER_BYTES - AEAD_TAG_BYTES;
/// The most pool prefixes of one cluster.
pub const MAX_POOL_PREFIXES: usize = 4;
/// The most endpoints of an issuer in a token or an answer.
pub const MAX_ISSUER_ENDPOINTS: usize = 4;
/// What the joiner's signature covers begins with this text.
pub const JOIN_SIGNATURE_DOMAIN: &[u8] = b"overlay join signature v1\0";
/// The format of contents written today.
const JOIN_VERSION: u8 = 1;

/// Names a token; travels in clear in a JOIN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token id is 16 hexadecimal digits")]
pub struct TokenIdError;

impl std::str::FromStr for TokenId {
    type Err = TokenIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TokenIdError);
        }
        u64::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| TokenIdError)
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a new host asks.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinContent {
    /// The joiner's Ed25519 identity.
    pub identity: [u8; 32],
    /// The name it would like, 1 to 63 printable ASCII characters without spaces.
    pub name: String,
    /// The token's secret.
    pub secret: [u8; 16],
    /// Ed25519 by the identity; see docs/gossip.md.
    pub signature: [u8; 64],
}

impl fmt::Debug for JoinContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinContent").field("name", &self.name).finish_non_exhaustive()
    }
}

impl JoinContent {
    /// Every field before the signature.
    #[must_use]
    pub fn unsigned_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(JOIN_CONTENT_BYTES);
        out.push(JOIN_VERSION);
        out.extend_from_slice(&self.identity);
        put_name(&mut out, &self.name);
        out.extend_from_slice(&self.secret);
        out
    }

    /// The bytes to seal, padded with zeros.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.unsigned_bytes();
        out.extend_from_slice(&self.signature);
        out.resize(JOIN_CONTENT_BYTES, 0);
        out
    }

    /// Reads opened bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        version(&mut reader, "JOIN")?;
        let content = Self {
            identity: reader.array("identity")?,
            name: reader.name("wanted name", MAX_NAME_BYTES)?,
            secret: reader.array("token secret")?,
            signature: reader.array("signature")?,
        };
        if bytes.len() != JOIN_CONTENT_BYTES || reader.rest().iter().any(|byte| *byte != 0) {
            return Err(DecodeError::Value { field: "padding" });
        }
        Ok(content)
    }
}

/// Why a joiner that knows the token's secret is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinRefusal {
    /// The token's time is over.
    #[error("the token has expired")]
    Expired,
    /// The token was redeemed as often as it may be.
    #[error("the token is used up")]
    UsedUp,
    /// Another member has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The issuer has no subnet left, or the one asked for is not free.
    #[error("no subnet is free")]
    NoSubnet,
    /// The token was withdrawn, or the joiner's identity was revoked.
    #[error("the token or the identity is revoked")]
    Revoked,
    /// The cluster holds as many members as it can.
    #[error("the cluster is full")]
    Full,
    /// The issuer could not store the admission; asking again may help.
    #[error("the issuer cannot store the admission")]
    Unavailable,
}

impl JoinRefusal {
    const ALL: [Self; 7] =
        [Self::Expired, Self::UsedUp, Self::NameTaken, Self::NoSubnet, Self::Revoked, Self::Full, Self::Unavailable];

    /// A short name for output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::UsedUp => "used-up",
            Self::NameTaken => "name-taken",
            Self::NoSubnet => "no-subnet",
            Self::Revoked => "revoked",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What is the same for all members of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterSettings {
    /// The cluster's name.
    pub name: String,
    /// The prefixes all subnets come from, 1 to 4, ascending.
    pub pool: Vec<Prefix>,
    /// The encapsulation hosts ask for unless told otherwise.
    pub encapsulation: Encapsulation,
    /// The UDP port of the cluster.
    pub listen_port: u16,
    /// What the policy says where no rule matches.
    pub policy_default: DefaultPolicy,
    /// The MTU of TUN devices where it was set by hand.
    pub mtu: Option<u16>,
}

/// What an admitted host is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admission {
    /// The authority's Ed25519 key; believed only when its hash is the one in the token.
    pub ca: [u8; 32],
    /// A second authority that is trusted while one follows the other.
    pub other_ca: Option<[u8; 32]>,
    /// The joiner's certificate.
    pub certificate: SignedCertificate,
    /// What is the same for all members.
    pub settings: ClusterSettings,
    /// The issuer's own certificate.
    pub issuer: SignedCertificate,
    /// Where the issuer can be reached, at most 4.
    pub endpoints: Vec<SocketAddr>,
}

/// The answer to a JOIN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinAnswer {
    /// The host is a member.
    Admitted(Box<Admission>),
    /// It is not.
    Refused(JoinRefusal),
}

impl JoinAnswer {
    /// The bytes to seal.
    ///
    /// # Errors
    /// When a list or text is too long.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut out = vec![JOIN_VERSION];
        match self {
            Self::Admitted(admission) => {
                out.push(1);
                out.extend_from_slice(&admission.ca);
                match &admission.other_ca {
                    Some(key) => {
                        out.push(1);
                        out.extend_from_slice(key);
                    }
                    None => out.push(0),
                }
                put_certificate(&mut out, &admission.certificate);
                admission.settings.encode(&mut out);
                put_certificate(&mut out, &admission.issuer);
                out.push(admission.endpoints.len().min(255) as u8);
                admission.endpoints.iter().for_each(|endpoint| put_socket_addr(&mut out, *endpoint));
            }
            Self::Refused(refusal) => {
                out.push(2);
                let code = JoinRefusal::ALL.iter().zip(1..).find(|(known, _)| *known == refusal);
                out.push(code.map_or(0, |(_, code)| code));
            }
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads opened bytes.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        version(&mut reader, "JOIN-ACK")?;
        let answer = match reader.u8("join answer")? {
            1 => {
                let ca = reader.array("authority key")?;
                let other_ca = match reader.u8("second authority")? {
                    0 => None,
                    1 => Some(reader.array("second authority key")?),
                    _ => return Err(DecodeError::Value { field: "second authority" }),
                };
                let certificate = certificate(&mut reader)?;
                let settings = ClusterSettings::decode(&mut reader)?;
                let issuer = self::certificate(&mut reader)?;
                let mut endpoints = Vec::new();
                for _ in 0..reader.count("issuer endpoints", MAX_ISSUER_ENDPOINTS)? {
                    endpoints.push(reader.socket_addr("issuer endpoint")?);
                }
                Self::Admitted(Box::new(Admission { ca, other_ca, certificate, settings, issuer, endpoints }))
            }
            2 => {
                let code = usize::from(reader.u8("refusal")?);
                let refusal = code.checked_sub(1).and_then(|place| JoinRefusal::ALL.get(place));
                Self::Refused(*refusal.ok_or(DecodeError::Value { field: "refusal" })?)
            }
            _ => return Err(DecodeError::Value { field: "join answer" }),
        };
        reader.finish()?;
        Ok(answer)
    }
}

impl ClusterSettings {
    /// Appends the settings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_name(out, &self.name);
        out.push(self.pool.len().min(255) as u8);
        self.pool.iter().for_each(|prefix| put_prefix(out, prefix));
        out.push(match self.encapsulation {
            Encapsulation::Wireguard => 1,
            Encapsulation::Gre => 2,
            Encapsulation::Ipip => 3,
        });
        out.extend_from_slice(&self.listen_port.to_be_bytes());
        out.push(match self.policy_default {
            DefaultPolicy::Members => 1,
            DefaultPolicy::Open => 2,
            DefaultPolicy::Deny => 3,
        });
        out.extend_from_slice(&self.mtu.unwrap_or(0).to_be_bytes());
    }

    /// Takes the settings.
    ///
    /// # Errors
    /// When cut short or a field is not valid.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = reader.name("cluster name", MAX_NAME_BYTES)?;
        let mut pool: Vec<Prefix> = Vec::new();
        for _ in 0..reader.count("pool", MAX_POOL_PREFIXES)? {
            let prefix = reader.prefix("pool prefix")?;
            if pool.last().is_some_and(|last| *last >= prefix) {
                return Err(DecodeError::Value { field: "pool" });
            }
            pool.push(prefix);
        }
        let encapsulation = match reader.u8("encapsulation")? {
            1 => Encapsulation::Wireguard,
            2 => Encapsulation::Gre,
            3 => Encapsulation::Ipip,
            _ => return Err(DecodeError::Value { field: "encapsulation" }),
        };
        let listen_port = reader.u16("listen port")?;
        let policy_default = match reader.u8("policy default")? {
            1 => DefaultPolicy::Members,
            2 => DefaultPolicy::Open,
            3 => DefaultPolicy::Deny,
            _ => return Err(DecodeError::Value { field: "policy default" }),
        };
        if pool.is_empty() || listen_port == 0 {
            return Err(DecodeError::Value { field: "cluster settings" });
        }
        let mtu = Some(reader.u16("mtu")?).filter(|mtu| *mtu != 0);
        Ok(Self { name, pool, encapsulation, listen_port, policy_default, mtu })
    }
}

/// Appends a certificate behind its two-byte length.
pub fn put_certificate(out: &mut Vec<u8>, certificate: &SignedCertificate) {
    let bytes = certificate.to_bytes();
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Takes a certificate behind its length.
///
/// # Errors
/// When cut short or not valid.
pub fn certificate(reader: &mut Reader<'_>) -> Result<SignedCertificate, DecodeError> {
    let len = usize::from(reader.u16("certificate length")?);
    SignedCertificate::decode(reader.bytes("certificate", len)?)
}

fn version(reader: &mut Reader<'_>, what: &'static str) -> Result<(), DecodeError> {
    match reader.u8(what)? {
        JOIN_VERSION => Ok(()),
        version => Err(DecodeError::Version { what, version }),
    }
}
