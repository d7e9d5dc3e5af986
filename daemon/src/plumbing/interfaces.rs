//! The host's interfaces as others need to know them: which tunnels of the kernel would decapsulate beside us, and which
//! hardware this is.

use rtnetlink::packet_route::link::InfoKind;

use super::PlumbingError;
use super::netlink::{Kernel, Link};

/// A tunnel protocol of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelKind {
    /// IPv4 in IPv4, protocol 4.
    Ipip,
    /// IPv6 in IPv4, protocol 41.
    Sit,
    /// IPv4 or IPv6 in IPv6, protocols 4 and 41.
    Ip6Tunnel,
    /// GRE over IPv4, protocol 47.
    Gre,
    /// GRE over IPv6, protocol 47.
    Ip6Gre,
}

impl TunnelKind {
    /// The name `ip link` uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tunnel => "ip6tnl",
            Self::Gre => "gre",
            Self::Ip6Gre => "ip6gre",
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The tunnel it is, if it is one that decapsulates.
    pub tunnel: Option<TunnelKind>,
    /// The hardware address of a physical interface.
    pub hardware: Option<Vec<u8>>,
}

impl From<&Link> for Interface {
    fn from(link: &Link) -> Self {
        let physical = link.kind.is_none() && link.hardware.iter().any(|byte| *byte != 0);
        Self {
            name: link.name.clone(),
            up: link.up,
            mtu: link.mtu,
            tunnel: link.kind.as_ref().and_then(tunnel_kind),
            hardware: physical.then(|| link.hardware.clone()),
        }
    }
}

fn tunnel_kind(kind: &InfoKind) -> Option<TunnelKind> {
    match kind {
        InfoKind::IpIp => Some(TunnelKind::Ipip),
        InfoKind::SitTun => Some(TunnelKind::Sit),
        InfoKind::Ip6Tnl => Some(TunnelKind::Ip6Tunnel),
        InfoKind::GreTun | InfoKind::GreTap => Some(TunnelKind::Gre),
        InfoKind::GreTun6 | InfoKind::GreTap6 => Some(TunnelKind::Ip6Gre),
        _ => None,
    }
}

/// Every interface of this thread's network namespace; must run inside a tokio runtime.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn interfaces() -> Result<Vec<Interface>, PlumbingError> {
    Ok(Kernel::open()?.links().await?.iter().map(Interface::from).collect())
}

/// The tunnels that are up, and so would receive plain packets that are meant for us.
#[must_use]
pub fn tunnels_in_the_way(interfaces: &[Interface]) -> Vec<&Interface> {
    interfaces.iter().filter(|interface| interface.up && interface.tunnel.is_some()).collect()
}
