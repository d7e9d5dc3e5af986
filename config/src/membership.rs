//! The layer of a membership: what `init` or `join` settled, kept by the daemon and laid below the file.
//!
//! The host's name and prefixes, the cluster and its pool come from the membership alone: a file that writes them too is
//! refused. Everything else here is a default of the cluster that the file may override.

use overlay_wire::policy::DefaultPolicy;
use overlay_wire::{Encapsulation, Prefix};

/// What a membership settles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipLayer {
    /// What problems and origins call it: the file it is kept in.
    pub place: String,
    /// The host's name in its certificate.
    pub name: String,
    /// The host's own prefixes.
    pub prefixes: Vec<Prefix>,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's pool.
    pub pool: Vec<Prefix>,
    /// The encapsulation asked for where a peer names none.
    pub encapsulation: Option<Encapsulation>,
    /// Underlay prefixes inside which unencrypted encapsulations are acceptable.
    pub trusted_underlay: Vec<Prefix>,
    /// The UDP port.
    pub listen_port: Option<u16>,
    /// What happens to packets that no rule matches.
    pub policy: Option<DefaultPolicy>,
}
