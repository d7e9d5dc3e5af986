//! The certificate: what a cluster's authority says about one member.
//!
//! At most [`MAX_CERTIFICATE_BYTES`] with its signature. What the authority signs is a domain tag, the cluster id and every
//! byte before the signature.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::HostId;
use crate::gossip::body::{BODY_VERSION, BodyError, MAX_NAME_BYTES};
use crate::gossip::codec::{DecodeError, Reader, put_name, put_prefix};
use crate::gossip::{Grant, GrantKind};
use crate::id::HostIdError;

/// The largest signed certificate, so that it fits an INTRODUCE beside a HOST record.
pub const MAX_CERTIFICATE_BYTES: usize = 400;
/// The certificate format written today.
pub const CERTIFICATE_VERSION: u8 = 1;
/// What the authority's signature covers begins with this text.
pub const CERTIFICATE_DOMAIN: &[u8] = b"overlay certificate v1\0";
/// The most grants in one certificate.
pub const MAX_GRANTS: usize = 8;
/// The most labels in one certificate.
pub const MAX_LABELS: usize = 8;
/// The longest label key or value.
pub const MAX_LABEL_BYTES: usize = 31;
/// The most prefixes a certificate can let its subject claim.
pub const MAX_PREFIX_COUNT: u8 = 64;

/// Names a cluster authority for the life of its key: the first 16 bytes of BLAKE2s-256 over a domain tag and the
/// Ed25519 public key. Shown as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaId(pub [u8; 16]);

impl CaId {
    /// The same 16 bytes in the place of a record's owner: authority records belong to the authority itself.
    #[must_use]
    pub fn as_owner(&self) -> HostId {
        HostId(self.0)
    }
}

impl fmt::Display for CaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&HostId(self.0), f)
    }
}

impl fmt::Debug for CaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CaId {
    type Err = HostIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<HostId>().map(|id| Self(id.0))
    }
}

impl Serialize for CaId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CaId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A serial number: the issuer's slot in the upper 16 bits, that issuer's counter in the lower 48. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Serial(pub u64);

impl Serial {
    /// The largest counter.
    pub const MAX_COUNTER: u64 = (1 << 48) - 1;

    /// Puts a serial together; a counter above [`Self::MAX_COUNTER`] gives none.
    #[must_use]
    pub fn new(slot: u16, counter: u64) -> Option<Self> {
        (counter <= Self::MAX_COUNTER).then_some(Self(u64::from(slot) << 48 | counter))
    }

    /// The issuer's slot; 0 is the first issuer.
    #[must_use]
    pub fn slot(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The issuer's counter.
    #[must_use]
    pub fn counter(self) -> u64 {
        self.0 & Self::MAX_COUNTER
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.slot(), self.counter()))
    }
}

/// What a member may do beside carrying packets; unknown bits are kept and mean nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rights(pub u16);

impl Rights {
    /// No right.
    pub const NONE: Self = Self(0);
    /// Its host holds the authority's key, admits members and renews certificates.
    pub const ISSUER: Self = Self(1);
    /// It may publish the policy of the whole cluster.
    pub const POLICY: Self = Self(2);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The known rights by name.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [(Self::ISSUER, "issuer"), (Self::POLICY, "policy")]
            .into_iter()
            .filter(move |(right, _)| self.contains(*right))
            .map(|(_, name)| name)
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join("+"))
    }
}

/// Labels of a member, by key; keys and values are 1 to 31 printable ASCII characters without spaces or `=`.
pub type Labels = BTreeMap<String, String>;

/// What an authority says about one member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The authority whose key signs it.
    pub ca: CaId,
    /// The member's Ed25519 identity.
    pub identity: [u8; 32],
    /// The member's name, 1 to 63 printable ASCII characters without spaces.
    pub name: String,
    /// The number of this certificate.
    pub serial: Serial,
    /// The number of the member's first certificate, which renewals keep: the lower one wins a conflict between owners.
    pub admitted: Serial,
    /// What the member may announce, ascending, at most 8.
    pub grants: Vec<Grant>,
    /// How many prefixes it may claim, 1 to 64.
    pub max_prefixes: u8,
    /// What selectors of the policy may match.
    pub labels: Labels,
    /// What it may do.
    pub rights: Rights,
    /// The first second of validity, Unix time.
    pub not_before: u64,
    /// The first second after the validity, Unix time.
    pub not_after: u64,
}

impl Certificate {
    /// Whether `unix_now` lies within the validity.
    #[must_use]
    pub fn is_valid_at(&self, unix_now: u64) -> bool {
        (self.not_before..self.not_after).contains(&unix_now)
    }

    /// When two thirds of the validity have passed.
    #[must_use]
    pub fn renewal_due(&self) -> u64 {
        self.not_before + (self.not_after - self.not_before) / 3 * 2
    }

    /// The bytes the authority signs.
    #[must_use]
    pub fn signed_bytes(&self, cluster: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(CERTIFICATE_DOMAIN.len() + 32 + MAX_CERTIFICATE_BYTES);
        out.extend_from_slice(CERTIFICATE_DOMAIN);
        out.extend_from_slice(cluster);
        self.put_unsigned(&mut out);
        out
    }

    /// Checks that the certificate can be encoded, and decoded again to the same value.
    ///
    /// # Errors
    /// When a limit is exceeded or a field is not valid.
    pub fn check(&self) -> Result<(), BodyError> {
        let signed = SignedCertificate { certificate: self.clone(), signature: [0; 64] };
        let mut bytes = Vec::new();
        signed.encode(&mut bytes);
        if bytes.len() > MAX_CERTIFICATE_BYTES {
            return Err(BodyError::TooLarge { bytes: bytes.len(), max: MAX_CERTIFICATE_BYTES });
        }
        let again = SignedCertificate::decode(&bytes)?;
        if again == signed { Ok(()) } else { Err(BodyError::Invalid(DecodeError::Value { field: "certificate" })) }
    }

    fn put_unsigned(&self, out: &mut Vec<u8>) {
        out.push(CERTIFICATE_VERSION);
        out.extend_from_slice(&self.ca.0);
        out.extend_from_slice(&self.identity);
        put_name(out, &self.name);
        out.extend_from_slice(&self.serial.0.to_be_bytes());
        out.extend_from_slice(&self.admitted.0.to_be_bytes());
        put_grants(out, &self.grants);
        out.push(self.max_prefixes);
        put_labels(out, &self.labels);
        out.extend_from_slice(&self.rights.0.to_be_bytes());
        out.extend_from_slice(&self.not_before.to_be_bytes());
        out.extend_from_slice(&self.not_after.to_be_bytes());
    }
}

/// A certificate with its authority's signature; whether the signature is right is not known by the type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedCertificate {
    /// What is said.
    pub certificate: Certificate,
    /// Ed25519 by the authority over [`Certificate::signed_bytes`].
    pub signature: [u8; 64],
}

impl SignedCertificate {
    /// Appends the certificate.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.certificate.put_unsigned(out);
        out.extend_from_slice(&self.signature);
    }

    /// The certificate's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Reads a certificate that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits, or too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_CERTIFICATE_BYTES {
            return Err(DecodeError::TooLong { field: "certificate", max: MAX_CERTIFICATE_BYTES });
        }
        let mut reader = Reader::new(bytes);
        let version = reader.u8("certificate format")?;
        if version != CERTIFICATE_VERSION {
            return Err(DecodeError::Version { what: "certificate", version });
        }
        let certificate = Certificate {
            ca: CaId(reader.array("authority")?),
            identity: reader.array("certified identity")?,
            name: reader.name("certified name", MAX_NAME_BYTES)?,
            serial: Serial(reader.u64("serial")?),
            admitted: Serial(reader.u64("first serial")?),
            grants: grants(&mut reader)?,
            max_prefixes: reader.u8("prefix count")?,
            labels: labels(&mut reader)?,
            rights: Rights(reader.u16("rights")?),
            not_before: reader.u64("not before")?,
            not_after: reader.u64("not after")?,
        };
        if !(1..=MAX_PREFIX_COUNT).contains(&certificate.max_prefixes) {
            return Err(DecodeError::Value { field: "prefix count" });
        }
        if certificate.not_before >= certificate.not_after {
            return Err(DecodeError::Value { field: "validity" });
        }
        let signature = reader.array("certificate signature")?;
        reader.finish()?;
        Ok(Self { certificate, signature })
    }
}

/// Appends grants: count, then kind (1 explicit, 2 pool), prefix and for a pool the longest length.
pub fn put_grants(out: &mut Vec<u8>, grants: &[Grant]) {
    out.push(grants.len().min(255) as u8);
    for grant in grants {
        out.push(if grant.kind() == GrantKind::Explicit { 1 } else { 2 });
        put_prefix(out, &grant.prefix());
        if grant.kind() == GrantKind::Pool {
            out.push(grant.longest());
        }
    }
}

/// Takes ascending grants, at most [`MAX_GRANTS`].
///
/// # Errors
/// When too many, out of order, or not valid.
pub fn grants(reader: &mut Reader<'_>) -> Result<Vec<Grant>, DecodeError> {
    let mut grants: Vec<Grant> = Vec::new();
    for _ in 0..reader.count("grants", MAX_GRANTS)? {
        let kind = reader.u8("grant kind")?;
        let prefix = reader.prefix("granted prefix")?;
        let grant = match kind {
            1 => Grant::explicit(prefix),
            2 => {
                let longest = reader.u8("longest length")?;
                Grant::pool(prefix, longest).map_err(|_| DecodeError::Value { field: "longest length" })?
            }
            _ => return Err(DecodeError::Value { field: "grant kind" }),
        };
        if grants.last().is_some_and(|last| *last >= grant) {
            return Err(DecodeError::Value { field: "grants" });
        }
        grants.push(grant);
    }
    Ok(grants)
}

/// Appends labels: count, then key and value of each.
pub fn put_labels(out: &mut Vec<u8>, labels: &Labels) {
    out.push(labels.len().min(255) as u8);
    for (key, value) in labels {
        put_name(out, key);
        put_name(out, value);
    }
}

/// Takes labels in ascending order of their keys, at most [`MAX_LABELS`].
///
/// # Errors
/// When too many, out of order, or not valid.
pub fn labels(reader: &mut Reader<'_>) -> Result<Labels, DecodeError> {
    let mut labels = Labels::new();
    for _ in 0..reader.count("labels", MAX_LABELS)? {
        let key = reader.name("label key", MAX_LABEL_BYTES)?;
        let value = reader.name("label value", MAX_LABEL_BYTES)?;
        let is_odd = key.contains('=') || value.contains('=');
        if is_odd || labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return Err(DecodeError::Value { field: "labels" });
        }
        labels.insert(key, value);
    }
    Ok(labels)
}

/// The body of a CERTIFICATE record is the signed certificate behind the body format.
#[must_use]
pub fn certificate_body(certificate: &SignedCertificate) -> Vec<u8> {
    let mut out = vec![BODY_VERSION];
    certificate.encode(&mut out);
    out
}

/// Reads the body of a CERTIFICATE record.
///
/// # Errors
/// When the bytes are not exactly what [`certificate_body`] emits.
pub fn decode_certificate_body(body: &[u8]) -> Result<SignedCertificate, DecodeError> {
    let mut reader = Reader::new(body);
    match reader.u8("CERTIFICATE body")? {
        BODY_VERSION => SignedCertificate::decode(reader.rest()),
        version => Err(DecodeError::Version { what: "CERTIFICATE body", version }),
    }
}
