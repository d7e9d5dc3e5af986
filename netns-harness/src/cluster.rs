//! Configuration files for the daemons of a lab: identities, members, grants, policy.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use rand_core::OsRng;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::daemon::CONFIG_PATH;
use crate::lab::{Host, Lab};

/// The UDP port of every daemon in a lab.
const PORT: u16 = 51821;

/// The identity of a host.
#[derive(Debug, Clone)]
pub struct Identity(SigningKey);

impl Identity {
    /// A fresh identity.
    pub fn generate() -> Identity {
        Identity(SigningKey::generate(&mut OsRng))
    }

    /// The public half, as configuration files write it.
    pub fn public(&self) -> String {
        STANDARD.encode(self.0.verifying_key().as_bytes())
    }

    /// Writes the secret half to a file that only its owner may read.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, format!("{}\n", STANDARD.encode(self.0.to_bytes())))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }
}

/// The family of the members' underlay endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 192.0.2.N
    V4,
    /// 2001:db8::N
    V6,
}

/// What the configuration files of a lab's daemons say. Members know each other by identity; which prefixes a member has
/// is learned by gossip, within the grant.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `wireguard`, `gre` or `ipip`.
    pub encapsulation: String,
    /// The family the daemons use between each other.
    pub underlay: Family,
    /// What every member may announce.
    pub allow: Vec<String>,
    /// What single members may announce instead, by name.
    pub grants: BTreeMap<String, Vec<String>>,
    /// `open`, `members` or `deny`.
    pub policy: String,
    /// Filter rules, first match first.
    pub rules: Vec<String>,
    /// More lines for the `[overlay]` section.
    pub overlay: String,
    /// More sections at the end, per host name.
    pub extra: BTreeMap<String, String>,
    identities: Vec<Identity>,
}

impl Cluster {
    /// The configuration of a lab with fresh identities and the default policy.
    pub fn new(hosts: usize, encapsulation: &str) -> Cluster {
        Cluster {
            encapsulation: encapsulation.to_owned(),
            underlay: Family::V4,
            allow: vec!["10.42.0.0/16 max 24".to_owned(), "fd42::/48 max 64".to_owned()],
            grants: BTreeMap::new(),
            policy: "members".to_owned(),
            rules: Vec::new(),
            overlay: String::new(),
            extra: BTreeMap::new(),
            identities: (0..hosts).map(|_| Identity::generate()).collect(),
        }
    }

    /// The identity of the host with this index.
    pub fn identity(&self, index: usize) -> &Identity {
        &self.identities[index]
    }

    /// Writes identity and configuration of every host.
    pub fn write(&self, lab: &Lab) -> Result<()> {
        for host in lab.hosts() {
            self.identity(host.index()).write(&host.path("/var/lib/overlay/identity.key"))?;
            self.write_config(lab, host)?;
        }
        Ok(())
    }

    /// Writes the configuration of one host anew; a running daemon is not told.
    pub fn write_config(&self, lab: &Lab, host: &Host) -> Result<()> {
        fs::write(host.path(CONFIG_PATH), self.text(lab, host))?;
        Ok(())
    }

    /// The configuration file of one host.
    pub fn text(&self, lab: &Lab, host: &Host) -> String {
        let mut text = String::new();
        let list = |items: &[String]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
        let _ = write!(
            text,
            "[node]\nname = \"{}\"\nprefixes = [{}]\n\n[overlay]\ncluster = \"lab\"\n\
             pool = [\"10.42.0.0/16\", \"fd42::/48\"]\nlisten_port = {PORT}\nencapsulation = \"{}\"\n\
             trusted_underlay = [\"192.0.2.0/24\", \"2001:db8::/64\"]\n{}\n",
            host.name(),
            list(&host.prefixes()),
            self.encapsulation,
            self.overlay
        );
        for member in lab.hosts() {
            let endpoint = match (member.nat(), self.underlay) {
                // Nobody outside can reach it first.
                (Some(_), _) => String::new(),
                (None, Family::V4) => format!("endpoint = \"{}:{PORT}\"\n", member.underlay_v4()),
                (None, Family::V6) => format!("endpoint = \"[{}]:{PORT}\"\n", member.underlay_v6()),
            };
            let _ = write!(
                text,
                "[[member]]\nname = \"{}\"\nidentity = \"{}\"\n{endpoint}allow = [{}]\n\n",
                member.name(),
                self.identity(member.index()).public(),
                list(self.grants.get(member.name()).unwrap_or(&self.allow))
            );
        }
        let _ = write!(text, "[policy]\ndefault = \"{}\"\nrules = [{}]\n", self.policy, list(&self.rules));
        if let Some(extra) = self.extra.get(host.name()) {
            let _ = write!(text, "\n{extra}");
        }
        text
    }
}
