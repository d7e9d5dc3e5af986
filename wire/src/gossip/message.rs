//! The messages that travel inside a sealed envelope.

use std::net::SocketAddr;

use crate::gossip::codec::{DecodeError, Reader, put_optional_socket_addr, put_prefix};
use crate::gossip::record::{Record, RecordKey};
use crate::gossip::trace::{TraceAnswer, TracedPacket};
use crate::membership::SignedCertificate;
use crate::membership::join::{certificate, put_certificate};
use crate::{HostId, Prefix};

/// Buckets of the record digest.
pub const DIGEST_BUCKETS: usize = 64;
/// The most version entries in one message.
pub const MAX_VERSION_ENTRIES: usize = 30;
/// The most keys in one request for records.
pub const MAX_WANTED: usize = 50;
/// The most route verdicts in one message.
pub const MAX_VERDICTS: usize = 50;

/// What the sender thinks of carrying packets to the receiver without encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlainStatus {
    /// Not asked for, or not checked yet.
    #[default]
    Unknown,
    /// IPIP is asked for: the receiver's source address was validated and lies in a trusted underlay.
    Ipip,
    /// GRE is asked for, under the same conditions.
    Gre,
    /// Refused: the pair must use WireGuard.
    Refused,
}

/// What one host made of one announced prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteVerdict {
    /// In use.
    Accepted,
    /// No grant for the announcer covers it.
    OutsideAllow,
    /// Longer than the pool grant permits.
    TooLong,
    /// Another owner's claim wins.
    Lost,
    /// It overlaps what the judging host has configured for itself or a foreign peer.
    LocalConfiguration,
    /// Loopback, link-local, multicast or another range that is never routed.
    Reserved,
    /// The announcer has more prefixes than are counted.
    TooMany,
    /// The announcer's certificate is out of its time, and the prefix is new.
    Expired,
}

/// One line of a version list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionEntry {
    /// The record.
    pub key: RecordKey,
    /// The version held.
    pub version: u64,
    /// The first eight bytes of the record's hash.
    pub hash: u64,
}

/// A gossip message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Asks for an answer from the address it was sent to.
    Probe {
        /// Random; echoed by the answer.
        nonce: u64,
        /// See [`PlainStatus`].
        plain: PlainStatus,
    },
    /// Answers a probe.
    Ack {
        /// The probe's.
        nonce: u64,
        /// See [`PlainStatus`].
        plain: PlainStatus,
        /// The source address the probe came from, as seen by the answering host.
        observed: Option<SocketAddr>,
    },
    /// Asks the receiver to probe `target` for the sender.
    IndirectProbe {
        /// Random; echoed by the answer.
        nonce: u64,
        /// The host in question.
        target: HostId,
    },
    /// Reports that `target` answered.
    IndirectAck {
        /// The request's.
        nonce: u64,
        /// The host that answered.
        target: HostId,
    },
    /// The bucket hashes of all records the sender holds.
    Digest(Box<[u64; DIGEST_BUCKETS]>),
    /// All records the sender holds in one bucket, between two keys.
    Versions {
        /// Below [`DIGEST_BUCKETS`].
        bucket: u8,
        /// The range begins behind this key; `None`: at the start.
        after: Option<RecordKey>,
        /// The range ends with this key; `None`: at the end.
        through: Option<RecordKey>,
        /// Ascending by key.
        entries: Vec<VersionEntry>,
    },
    /// Asks for records, ascending by key.
    Want(Vec<RecordKey>),
    /// Carries records.
    Records(Vec<Record>),
    /// The sender could not reach `host`; the receiver may check for itself.
    Suspect {
        /// The host in question.
        host: HostId,
    },
    /// The sender is stopping.
    Leave,
    /// Asks what the receiver made of the sender's announced prefixes.
    VerdictRequest {
        /// The newest ROUTES version the sender has published.
        version: u64,
    },
    /// Answers a verdict request.
    Verdicts {
        /// The newest ROUTES version the sender knows of the receiver.
        version: u64,
        /// Ascending by prefix.
        entries: Vec<(Prefix, RouteVerdict)>,
    },
    /// Asks what the receiver's clock says; sent only to hosts with [`FEATURE_CLOCK`](super::body::FEATURE_CLOCK).
    ClockRequest {
        /// Random; echoed by the answer.
        nonce: u64,
    },
    /// Answers a clock request.
    Clock {
        /// The request's.
        nonce: u64,
        /// Milliseconds since 1970, by the wall clock of the answering host.
        unix_ms: u64,
    },
    /// Asks an issuer for a new certificate in the place of the one the sender has.
    CertificateRequest {
        /// Random; echoed by the answer.
        nonce: u64,
    },
    /// Carries a renewed certificate.
    Certificate {
        /// The request's.
        nonce: u64,
        /// The receiver's new certificate.
        certificate: Box<SignedCertificate>,
    },
    /// Asks for an answer from the address it was sent to, and moves nothing: the receiver goes on sending to where it
    /// sent before. Sent only to hosts with [`FEATURE_PATHS`](super::body::FEATURE_PATHS).
    PathProbe {
        /// Random; echoed by the answer.
        nonce: u64,
    },
    /// Answers a path probe, to where it came from, and moves nothing either.
    PathAck {
        /// The path probe's.
        nonce: u64,
        /// The source address the path probe came from, as seen by the answering host.
        observed: Option<SocketAddr>,
    },
    /// Asks what the receiver would do with a packet that the sender sends it, or gets from it. Sent only to hosts with
    /// [`FEATURE_TRACE`](super::body::FEATURE_TRACE).
    TraceRequest {
        /// Random; echoed by the answer.
        nonce: u64,
        /// The packet.
        packet: TracedPacket,
    },
    /// Answers a trace request.
    Trace {
        /// The request's.
        nonce: u64,
        /// What would become of the packet.
        answer: TraceAnswer,
    },
}

impl Message {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        match self {
            Self::Probe { nonce, plain } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                out.push(plain.code());
            }
            Self::Ack { nonce, plain, observed } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                out.push(plain.code());
                put_optional_socket_addr(out, *observed);
            }
            Self::IndirectProbe { nonce, target } | Self::IndirectAck { nonce, target } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                out.extend_from_slice(&target.0);
            }
            Self::Digest(hashes) => hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_be_bytes())),
            Self::Versions { bucket, after, through, entries } => {
                out.push(*bucket);
                put_optional_key(out, after.as_ref());
                put_optional_key(out, through.as_ref());
                out.push(entries.len().min(255) as u8);
                for entry in entries {
                    entry.key.encode(out);
                    out.extend_from_slice(&entry.version.to_be_bytes());
                    out.extend_from_slice(&entry.hash.to_be_bytes());
                }
            }
            Self::Want(keys) => {
                out.push(keys.len().min(255) as u8);
                keys.iter().for_each(|key| key.encode(out));
            }
            Self::Records(records) => {
                out.push(records.len().min(255) as u8);
                records.iter().for_each(|record| record.encode(out));
            }
            Self::Suspect { host } => out.extend_from_slice(&host.0),
            Self::Leave => {}
            Self::VerdictRequest { version } => out.extend_from_slice(&version.to_be_bytes()),
            Self::Verdicts { version, entries } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.push(entries.len().min(255) as u8);
                for (prefix, verdict) in entries {
                    put_prefix(out, prefix);
                    out.push(verdict.code());
                }
            }
            Self::ClockRequest { nonce } => out.extend_from_slice(&nonce.to_be_bytes()),
            Self::Clock { nonce, unix_ms } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                out.extend_from_slice(&unix_ms.to_be_bytes());
            }
            Self::CertificateRequest { nonce } => out.extend_from_slice(&nonce.to_be_bytes()),
            Self::Certificate { nonce, certificate } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                put_certificate(out, certificate);
            }
            Self::PathProbe { nonce } => out.extend_from_slice(&nonce.to_be_bytes()),
            Self::PathAck { nonce, observed } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                put_optional_socket_addr(out, *observed);
            }
            Self::TraceRequest { nonce, packet } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                packet.encode(out);
            }
            Self::Trace { nonce, answer } => {
                out.extend_from_slice(&nonce.to_be_bytes());
                answer.encode(out);
            }
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits, or the kind is unknown.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8("message kind")? {
            1 => Self::Probe { nonce: reader.u64("nonce")?, plain: PlainStatus::decode(&mut reader)? },
            2 => Self::Ack {
                nonce: reader.u64("nonce")?,
                plain: PlainStatus::decode(&mut reader)?,
                observed: reader.optional_socket_addr("observed address")?,
            },
            3 => Self::IndirectProbe { nonce: reader.u64("nonce")?, target: reader.host_id("target")? },
            4 => Self::IndirectAck { nonce: reader.u64("nonce")?, target: reader.host_id("target")? },
            5 => {
                let mut hashes = Box::new([0; DIGEST_BUCKETS]);
                for hash in hashes.iter_mut() {
                    *hash = reader.u64("bucket hash")?;
                }
                Self::Digest(hashes)
            }
            6 => Self::decode_versions(&mut reader)?,
            7 => {
                let count = reader.count("wanted keys", MAX_WANTED)?;
                let mut keys = Vec::new();
                for _ in 0..count {
                    push_ascending(&mut keys, RecordKey::decode(&mut reader)?, "wanted keys", |key| *key)?;
                }
                Self::Want(keys)
            }
            8 => {
                let count = reader.count("records", 255)?;
                let mut records = Vec::new();
                for _ in 0..count {
                    records.push(Record::decode(&mut reader)?);
                }
                Self::Records(records)
            }
            9 => Self::Suspect { host: reader.host_id("suspect")? },
            10 => Self::Leave,
            11 => Self::VerdictRequest { version: reader.u64("routes version")? },
            12 => {
                let version = reader.u64("routes version")?;
                let count = reader.count("verdicts", MAX_VERDICTS)?;
                let mut entries = Vec::new();
                for _ in 0..count {
                    let entry = (reader.prefix("verdict prefix")?, RouteVerdict::decode(&mut reader)?);
                    push_ascending(&mut entries, entry, "verdicts", |entry| entry.0)?;
                }
                Self::Verdicts { version, entries }
            }
            13 => Self::ClockRequest { nonce: reader.u64("nonce")? },
            14 => Self::Clock { nonce: reader.u64("nonce")?, unix_ms: reader.u64("clock")? },
            15 => Self::CertificateRequest { nonce: reader.u64("nonce")? },
            16 => {
                let nonce = reader.u64("nonce")?;
                Self::Certificate { nonce, certificate: Box::new(certificate(&mut reader)?) }
            }
            17 => Self::PathProbe { nonce: reader.u64("nonce")? },
            18 => Self::PathAck {
                nonce: reader.u64("nonce")?,
                observed: reader.optional_socket_addr("observed address")?,
            },
            19 => Self::TraceRequest { nonce: reader.u64("nonce")?, packet: TracedPacket::decode(&mut reader)? },
            20 => Self::Trace { nonce: reader.u64("nonce")?, answer: TraceAnswer::decode(&mut reader)? },
            kind => return Err(DecodeError::UnknownMessage(kind)),
        };
        reader.finish()?;
        Ok(message)
    }

    /// The name used in counters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Probe { .. } => "probe",
            Self::Ack { .. } => "ack",
            Self::IndirectProbe { .. } => "indirect-probe",
            Self::IndirectAck { .. } => "indirect-ack",
            Self::Digest(_) => "digest",
            Self::Versions { .. } => "versions",
            Self::Want(_) => "want",
            Self::Records(_) => "records",
            Self::Suspect { .. } => "suspect",
            Self::Leave => "leave",
            Self::VerdictRequest { .. } => "verdict-request",
            Self::Verdicts { .. } => "verdicts",
            Self::ClockRequest { .. } => "clock-request",
            Self::Clock { .. } => "clock",
            Self::CertificateRequest { .. } => "certificate-request",
            Self::Certificate { .. } => "certificate",
            Self::PathProbe { .. } => "path-probe",
            Self::PathAck { .. } => "path-ack",
            Self::TraceRequest { .. } => "trace-request",
            Self::Trace { .. } => "trace",
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Probe { .. } => 1,
            Self::Ack { .. } => 2,
            Self::IndirectProbe { .. } => 3,
            Self::IndirectAck { .. } => 4,
            Self::Digest(_) => 5,
            Self::Versions { .. } => 6,
            Self::Want(_) => 7,
            Self::Records(_) => 8,
            Self::Suspect { .. } => 9,
            Self::Leave => 10,
            Self::VerdictRequest { .. } => 11,
            Self::Verdicts { .. } => 12,
            Self::ClockRequest { .. } => 13,
            Self::Clock { .. } => 14,
            Self::CertificateRequest { .. } => 15,
            Self::Certificate { .. } => 16,
            Self::PathProbe { .. } => 17,
            Self::PathAck { .. } => 18,
            Self::TraceRequest { .. } => 19,
            Self::Trace { .. } => 20,
        }
    }

    fn decode_versions(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bucket = reader.u8("bucket")?;
        if usize::from(bucket) >= DIGEST_BUCKETS {
            return Err(DecodeError::Value { field: "bucket" });
        }
        let after = optional_key(reader)?;
        let through = optional_key(reader)?;
        let count = reader.count("version entries", MAX_VERSION_ENTRIES)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = VersionEntry {
                key: RecordKey::decode(reader)?,
                version: reader.u64("held version")?,
                hash: reader.u64("held hash")?,
            };
            push_ascending(&mut entries, entry, "version entries", |entry| entry.key)?;
        }
        Ok(Self::Versions { bucket, after, through, entries })
    }
}

fn push_ascending<T, K: Ord>(
    list: &mut Vec<T>,
    value: T,
    field: &'static str,
    key: impl Fn(&T) -> K,
) -> Result<(), DecodeError> {
    if list.last().is_some_and(|last| key(last) >= key(&value)) {
        return Err(DecodeError::Value { field });
    }
    list.push(value);
    Ok(())
}

fn put_optional_key(out: &mut Vec<u8>, key: Option<&RecordKey>) {
    match key {
        Some(key) => {
            out.push(1);
            key.encode(out);
        }
        None => out.push(0),
    }
}

fn optional_key(reader: &mut Reader<'_>) -> Result<Option<RecordKey>, DecodeError> {
    match reader.u8("range bound")? {
        0 => Ok(None),
        1 => RecordKey::decode(reader).map(Some),
        _ => Err(DecodeError::Value { field: "range bound" }),
    }
}

impl PlainStatus {
    fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Ipip => 1,
            Self::Gre => 2,
            Self::Refused => 3,
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8("plain status")? {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Ipip),
            2 => Ok(Self::Gre),
            3 => Ok(Self::Refused),
            _ => Err(DecodeError::Value { field: "plain status" }),
        }
    }
}

impl RouteVerdict {
    const ALL: [Self; 8] = [
        Self::Accepted,
        Self::OutsideAllow,
        Self::TooLong,
        Self::Lost,
        Self::LocalConfiguration,
        Self::Reserved,
        Self::TooMany,
        Self::Expired,
    ];

    /// A short name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::OutsideAllow => "outside-allow",
            Self::TooLong => "too-long",
            Self::Lost => "lost",
            Self::LocalConfiguration => "local-configuration",
            Self::Reserved => "reserved",
            Self::TooMany => "too-many",
            Self::Expired => "expired",
        }
    }

    fn code(self) -> u8 {
        Self::ALL.iter().zip(0..).find(|(verdict, _)| **verdict == self).map_or(0, |(_, code)| code)
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = reader.u8("verdict")?;
        Self::ALL.get(usize::from(code)).copied().ok_or(DecodeError::Value { field: "verdict" })
    }
}
