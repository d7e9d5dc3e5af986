//! The bodies of the record kinds this version knows: HOST and ROUTES.
//!
//! A body starts with its own format version and may end with bytes that a newer version added: they are kept as they
//! are and ignored.

use std::net::SocketAddr;

use crate::gossip::codec::{DecodeError, Reader, put_name, put_prefix, put_socket_addr};
use crate::gossip::record::MAX_BODY_BYTES;
use crate::{Encapsulation, Mtu, Prefix};

/// The body format written today.
pub const BODY_VERSION: u8 = 1;
/// The largest HOST body, so that it also fits the INTRODUCE datagram.
pub const MAX_HOST_BODY_BYTES: usize = 896;
/// The largest HOST body of a host with a certificate: both travel in one INTRODUCE.
///
/// 1,232 bytes less header and seal (74), identity, boot epoch, counter, nonce, presence and signature (121), the frames of
/// two records (190), and the certificate with its body format (401).
pub const MAX_CERTIFIED_HOST_BODY_BYTES: usize = 446;
/// The longest host name.
pub const MAX_NAME_BYTES: usize = 63;
/// The longest software version text.
pub const MAX_SOFTWARE_BYTES: usize = 32;
/// The most endpoints of one host.
pub const MAX_ENDPOINTS: usize = 8;
/// The most own prefixes of one host.
pub const MAX_HOST_PREFIXES: usize = 16;
/// The most routes in one ROUTES record: what fits the body with IPv6 prefixes.
pub const MAX_ROUTES_PER_RECORD: usize = 46;
/// Feature bit: the host answers clock requests.
pub const FEATURE_CLOCK: u64 = 1;
/// Feature bit: the host answers path probes.
pub const FEATURE_PATHS: u64 = 2;
/// Feature bit: members see the host at an address that is not its own, so it is behind a NAT.
pub const FEATURE_NAT: u64 = 4;
/// Feature bit: the host answers trace requests.
pub const FEATURE_TRACE: u64 = 16;

/// What a host says about itself in its HOST record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostBody {
    /// The host's name, 1 to 63 printable ASCII characters without spaces.
    pub name: String,
    /// Grows with every start of the daemon.
    pub boot_epoch: u64,
    /// The X25519 key that seals gossip in this run.
    pub box_key: [u8; 32],
    /// The X25519 WireGuard key of this run.
    pub wireguard_key: [u8; 32],
    /// The encapsulation the host asks for; the stronger of the two ends' wishes is used.
    pub encapsulation: Encapsulation,
    /// The fixed MTU of its TUN device.
    pub mtu: Mtu,
    /// The oldest and newest protocol version it speaks.
    pub versions: (u16, u16),
    /// Feature bits; unknown bits are ignored.
    pub features: u64,
    /// The software version, for display.
    pub software: String,
    /// Where it can be reached, best first, without duplicates.
    pub endpoints: Vec<SocketAddr>,
    /// Its own prefixes, ascending.
    pub prefixes: Vec<Prefix>,
    /// Bytes added by newer versions, kept as they are.
    pub extension: Vec<u8>,
}

/// Why a body cannot be emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body exceeds its size limit.
    #[error("the record body takes {bytes} bytes; at most {max} fit")]
    TooLarge {
        /// Bytes needed.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A field would not decode again.
    #[error("the record body is not valid: {0}")]
    Invalid(#[from] DecodeError),
}

impl HostBody {
    /// The body's bytes; prefixes are sorted and made unique first.
    ///
    /// # Errors
    /// When a limit is exceeded or the name is not valid.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut out = vec![BODY_VERSION];
        put_name(&mut out, &self.name);
        out.extend_from_slice(&self.boot_epoch.to_be_bytes());
        out.extend_from_slice(&self.box_key);
        out.extend_from_slice(&self.wireguard_key);
        out.push(match self.encapsulation {
            Encapsulation::Wireguard => 1,
            Encapsulation::Gre => 2,
            Encapsulation::Ipip => 3,
        });
        out.extend_from_slice(&self.mtu.get().to_be_bytes());
        out.extend_from_slice(&self.versions.0.to_be_bytes());
        out.extend_from_slice(&self.versions.1.to_be_bytes());
        out.extend_from_slice(&self.features.to_be_bytes());
        put_name(&mut out, &self.software);
        out.push(self.endpoints.len().min(255) as u8);
        self.endpoints.iter().for_each(|endpoint| put_socket_addr(&mut out, *endpoint));
        let mut prefixes = self.prefixes.clone();
        prefixes.sort_unstable();
        prefixes.dedup();
        out.push(prefixes.len().min(255) as u8);
        prefixes.iter().for_each(|prefix| put_prefix(&mut out, prefix));
        out.extend_from_slice(&self.extension);
        if out.len() > MAX_HOST_BODY_BYTES {
            return Err(BodyError::TooLarge { bytes: out.len(), max: MAX_HOST_BODY_BYTES });
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = body_reader("HOST body", body, MAX_HOST_BODY_BYTES)?;
        let name = reader.name("host name", MAX_NAME_BYTES)?;
        let boot_epoch = reader.u64("boot epoch")?;
        let box_key = reader.array("box key")?;
        let wireguard_key = reader.array("wireguard key")?;
        let encapsulation = match reader.u8("encapsulation")? {
            1 => Encapsulation::Wireguard,
            2 => Encapsulation::Gre,
            3 => Encapsulation::Ipip,
            _ => return Err(DecodeError::Value { field: "encapsulation" }),
        };
        let mtu = Mtu::new(reader.u16("mtu")?).map_err(|_| DecodeError::Value { field: "mtu" })?;
        let versions = (reader.u16("oldest version")?, reader.u16("newest version")?);
        if versions.0 > versions.1 {
            return Err(DecodeError::Value { field: "version range" });
        }
        let features = reader.u64("features")?;
        let software = reader.name("software version", MAX_SOFTWARE_BYTES)?;
        let mut endpoints = Vec::new();
        for _ in 0..reader.count("endpoints", MAX_ENDPOINTS)? {
            let endpoint = reader.socket_addr("endpoint")?;
            if endpoints.contains(&endpoint) {
                return Err(DecodeError::Value { field: "endpoints" });
            }
            endpoints.push(endpoint);
        }
        let mut prefixes: Vec<Prefix> = Vec::new();
        for _ in 0..reader.count("prefixes", MAX_HOST_PREFIXES)? {
            let prefix = reader.prefix("prefix")?;
            if prefixes.last().is_some_and(|last| *last >= prefix) {
                return Err(DecodeError::Value { field: "prefixes" });
            }
            prefixes.push(prefix);
        }
        Ok(Self {
            name,
            boot_epoch,
            box_key,
            wireguard_key,
            encapsulation,
            mtu,
            versions,
            features,
            software,
            endpoints,
            prefixes,
            extension: reader.rest().to_vec(),
        })
    }
}

/// One prefix a host announces beside its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteAnnouncement {
    /// The prefix behind the host.
    pub prefix: Prefix,
    /// The host's own preference, lower is better; shown, and never decides between owners.
    pub metric: u32,
}

/// The prefixes in one ROUTES record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoutesBody {
    /// Ascending by prefix, without duplicates.
    pub routes: Vec<RouteAnnouncement>,
    /// Bytes added by newer versions, kept as they are.
    pub extension: Vec<u8>,
}

impl RoutesBody {
    /// The body's bytes; routes are sorted by prefix, the first of equal prefixes counts.
    ///
    /// # Errors
    /// When a limit is exceeded.
    pub fn encode(&self) -> Result<Vec<u8>, BodyError> {
        let mut routes = self.routes.clone();
        routes.sort_by_key(|route| route.prefix);
        routes.dedup_by_key(|route| route.prefix);
        let mut out = vec![BODY_VERSION, routes.len().min(255) as u8];
        for route in &routes {
            put_prefix(&mut out, &route.prefix);
            out.extend_from_slice(&route.metric.to_be_bytes());
        }
        out.extend_from_slice(&self.extension);
        if out.len() > MAX_BODY_BYTES {
            return Err(BodyError::TooLarge { bytes: out.len(), max: MAX_BODY_BYTES });
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`Self::encode`] emits.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = body_reader("ROUTES body", body, MAX_BODY_BYTES)?;
        let mut routes: Vec<RouteAnnouncement> = Vec::new();
        for _ in 0..reader.count("routes", MAX_ROUTES_PER_RECORD)? {
            let route = RouteAnnouncement { prefix: reader.prefix("route prefix")?, metric: reader.u32("metric")? };
            if routes.last().is_some_and(|last| last.prefix >= route.prefix) {
                return Err(DecodeError::Value { field: "routes" });
            }
            routes.push(route);
        }
        Ok(Self { routes, extension: reader.rest().to_vec() })
    }
}

fn body_reader<'a>(what: &'static str, body: &'a [u8], max: usize) -> Result<Reader<'a>, DecodeError> {
    if body.len() > max {
        return Err(DecodeError::TooLong { field: what, max });
    }
    let mut reader = Reader::new(body);
    match reader.u8(what)? {
        BODY_VERSION => Ok(reader),
        version => Err(DecodeError::Version { what, version }),
    }
}
