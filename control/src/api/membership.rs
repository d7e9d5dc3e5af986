//! Membership: founding a cluster, inviting, joining, certificates, the authority's key.

use std::collections::BTreeMap;
use std::fmt;

use overlay_config::PublicKey;
use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, HostId, Prefix};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::time::Timestamp;

/// A text that must not be logged: a token or a passphrase. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// What a new cluster is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRequest {
    /// The cluster's name.
    pub cluster: String,
    /// This host's name; absent: the machine's.
    pub name: Option<String>,
    /// The prefixes that all subnets come from.
    pub pool: Vec<Prefix>,
    /// Underlay prefixes inside which unencrypted encapsulations are acceptable, for this host.
    pub trusted_underlay: Vec<Prefix>,
    /// What hosts ask for where nothing else is said.
    pub encapsulation: Encapsulation,
    /// What happens to packets that no rule matches.
    pub policy: DefaultPolicy,
}

/// What an invitation allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRequest {
    /// How many hosts it admits.
    pub uses: u32,
    /// How long it counts, in seconds.
    pub ttl_s: u64,
    /// Labels that the hosts get.
    pub labels: BTreeMap<String, String>,
    /// The subnets of the host, at most one per family; empty: the next free ones.
    pub subnets: Vec<Prefix>,
    /// The host's name; absent: what the host asks for.
    pub name: Option<String>,
    /// Whether the hosts may change the policy of the whole cluster.
    pub may_change_policy: bool,
}

/// What can be asked about membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembershipRequest {
    /// Founds a cluster with this host as its first issuer. Answer: `Joined`.
    Init(InitRequest),
    /// Becomes a member with a token. Answer: `Joined`.
    Join {
        /// The token.
        token: SecretText,
        /// The name asked for; absent: the machine's.
        name: Option<String>,
        /// Underlay prefixes inside which unencrypted encapsulations are acceptable, for this host.
        trusted_underlay: Vec<Prefix>,
    },
    /// Gives the membership up. Answer: `Done`.
    Leave {
        /// Whether the identity stays on disk.
        keep_identity: bool,
    },
    /// Makes a token. Answer: `Invitation`.
    Invite(InviteRequest),
    /// The tokens of this issuer. Answer: `Tokens`.
    TokenList,
    /// Withdraws a token. Answer: `Done`.
    TokenRevoke {
        /// Its id.
        id: String,
    },
    /// The certificates known here. Answer: `Certificates`.
    CertList,
    /// Asks an issuer for a new certificate for this host now. Answer: `Done`.
    CertRenew,
    /// Cuts a member off for good. Answer: `Done`.
    CertRevoke {
        /// Its name or host id.
        member: String,
    },
    /// Cuts a member off for good and gives its subnets back after a while. Answer: `Done`.
    NodeForget {
        /// Its name or host id.
        member: String,
    },
    /// The authority's key and half of what this issuer has left to give, encrypted. Answer: `Export`.
    CaExport {
        /// What it is encrypted with.
        passphrase: SecretText,
    },
    /// Makes this member an issuer. Answer: `Done`.
    CaImport {
        /// What `CaExport` gave, in base64.
        export: SecretText,
        /// What it was encrypted with.
        passphrase: SecretText,
    },
    /// Replaces the authority's key, with the old one still trusted; or retires the old one. Answer: `Done`.
    CaRotate {
        /// Whether the old key is retired now.
        finish: bool,
    },
}

impl MembershipRequest {
    /// Whether the request changes anything, or shows what only those may see who may change things.
    #[must_use]
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::CertList)
    }

    /// Whether the answer may take longer than others: other hosts are asked, or a passphrase is stretched.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        !matches!(self, Self::CertList | Self::TokenList)
    }
}

/// What this host is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The cluster's name.
    pub cluster: String,
    /// The host's name.
    pub name: String,
    /// Its host id.
    pub id: HostId,
    /// Its public identity.
    pub identity: PublicKey,
    /// Its subnets.
    pub prefixes: Vec<Prefix>,
    /// When its certificate ends.
    pub expires: Timestamp,
}

/// A token as it was made; the text is shown once and stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// What `join` takes.
    pub token: SecretText,
    /// The id that `token list` shows.
    pub id: String,
    /// When it ends.
    pub expires: Timestamp,
    /// How many hosts it admits.
    pub uses: u32,
}

/// One token of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// How many hosts it still admits.
    pub uses_left: u32,
    /// When it ends.
    pub expires: Timestamp,
    /// `open`, `used`, `expired` or `revoked`.
    pub state: String,
    /// Labels that the hosts get.
    pub labels: BTreeMap<String, String>,
    /// The name it is bound to.
    pub name: Option<String>,
    /// The host ids of those it admitted.
    pub redeemed_by: Vec<HostId>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// The member's name.
    pub name: String,
    /// Its host id.
    pub id: HostId,
    /// Its public identity.
    pub identity: PublicKey,
    /// The certificate's number, as ISSUER-COUNTER.
    pub serial: String,
    /// What the member may announce.
    pub grants: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Rights: `issuer`, `policy`.
    pub rights: Vec<String>,
    /// The id of the authority that signed it.
    pub ca: String,
    /// From when it counts.
    pub from: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// `valid`, `expired`, `early` or `revoked`.
    pub state: String,
    /// Whether it is this host's own.
    pub own: bool,
}

/// The answers about membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembershipResponse {
    /// This host is a member; packets flow soon.
    Joined(Joined),
    /// A token.
    Invitation(Invitation),
    /// Tokens.
    Tokens(Vec<TokenInfo>),
    /// Certificates.
    Certificates(Vec<CertificateInfo>),
    /// An encrypted export in base64.
    Export(SecretText),
}

impl MembershipResponse {
    /// The name of the variant.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Joined(_) => "joined",
            Self::Invitation(_) => "invitation",
            Self::Tokens(_) => "tokens",
            Self::Certificates(_) => "certificates",
            Self::Export(_) => "export",
        }
    }
}
