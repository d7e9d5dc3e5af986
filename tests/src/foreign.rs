//! One host with a daemon and a container, and beside it hosts that run something else.

use anyhow::{Result, anyhow, bail};
use overlay_control::api::{PeerStatus, Request, Response, Status};
use overlay_netns_harness::{Binaries, CONFIG_PATH, Container, HostSpec, Identity, Lab, Topology, ping, run_in};
use std::net::IpAddr;

/// The inner addresses of the foreign peer.
pub const FOREIGN_V4: &str = "10.99.0.1";
/// See [`FOREIGN_V4`].
pub const FOREIGN_V6: &str = "fd99::1";

/// What every configuration here begins with. A foreign peer is no member: rules say what it may do.
const HEAD: &str = r#"[node]
name = "h1"
prefixes = ["10.42.1.0/24", "fd42:0:0:1::/64"]

[overlay]
cluster = "lab"
pool = ["10.42.0.0/16", "fd42::/48"]
listen_port = 51821
trusted_underlay = ["192.0.2.0/24", "2001:db8::/64"]
private_key_file = "/run/overlay/wireguard.key"

[policy]
default = "members"
rules = [
  "allow any from 10.42.1.0/24 to 10.99.0.0/16",
  "allow any from 10.99.0.0/16 to 10.42.1.0/24",
  "allow any from fd42:0:0:1::/64 to fd99::/48",
  "allow any from fd99::/48 to fd42:0:0:1::/64",
]
"#;

/// The host `h1` with daemon and container `h1c1`, and others without.
#[derive(Debug)]
pub struct Foreign {
    /// The container on `h1`.
    pub container: Container,
    /// The public WireGuard key of `h1`.
    pub public_key: String,
    /// The hosts.
    pub lab: Lab,
}

impl Foreign {
    /// Starts `h1` without any peer, and `h2` beside it.
    pub fn start(name: &str, binaries: Binaries) -> Result<Foreign> {
        Foreign::with_hosts(name, binaries, 2)
    }

    /// Starts `h1` without any peer, and hosts beside it up to this number.
    pub fn with_hosts(name: &str, binaries: Binaries, count: usize) -> Result<Foreign> {
        let lab = Lab::create(name, Topology::Routed, &HostSpec::numbered(count), binaries)?;
        let host = lab.host("h1")?;
        Identity::generate().write(&host.path("/var/lib/overlay/identity.key"))?;
        std::fs::write(host.path(CONFIG_PATH), HEAD)?;
        let public_key = make_key(&lab, "h1", "/run/overlay/wireguard.key")?;
        lab.start_daemon("h1")?;
        let container = lab.add_container("h1", "c1")?;
        Ok(Foreign { container, public_key, lab })
    }

    /// Gives `h1` these `[[peer]]` sections while it runs.
    pub fn reload(&self, peers: &str) -> Result<()> {
        self.write(peers)?;
        self.lab.ctl_ok("h1", &["config", "reload"]).map(drop)
    }

    /// Kills the daemon and starts it with these `[[peer]]` sections, so that no session is left.
    pub fn restart(&self, peers: &str) -> Result<()> {
        self.write(peers)?;
        self.lab.kill_daemon("h1")?;
        self.lab.start_daemon("h1").map(drop)
    }

    fn write(&self, peers: &str) -> Result<()> {
        Ok(std::fs::write(self.lab.host("h1")?.path(CONFIG_PATH), format!("{HEAD}\n{peers}"))?)
    }

    /// The status of `h1`.
    pub fn status(&self) -> Result<Status> {
        match self.lab.control("h1")?.call(Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => bail!("an answer of the wrong kind: {}", other.name()),
        }
    }

    /// What `h1` knows about a peer.
    pub fn peer(&self, name: &str) -> Result<PeerStatus> {
        let peers = self.status()?.peers;
        peers.into_iter().find(|peer| peer.name == name).ok_or_else(|| anyhow!("no peer {name}"))
    }

    /// Whether the container gets one echo back from the foreign peer.
    pub fn reaches(&self, to: &str) -> bool {
        ping(&self.container.view, "-c 1 -W 0.3", to).is_ok_and(|report| report.is_lossless())
    }

    /// Whether the foreign host gets one echo back from the container.
    pub fn is_reached(&self, from: &str, to: IpAddr) -> bool {
        let view = self.lab.view("h2").expect("the lab has two hosts");
        ping(&view, &format!("-c 1 -W 0.3 -I {from}"), &to.to_string()).is_ok_and(|report| report.is_lossless())
    }

    /// The addresses of both ends, one pair per family: the foreign one, then the container's.
    pub fn pairs(&self) -> [(&'static str, IpAddr); 2] {
        [(FOREIGN_V4, self.container.v4.into()), (FOREIGN_V6, self.container.v6.into())]
    }
}

/// Makes a WireGuard key file on a host and returns the public half.
pub fn make_key(lab: &Lab, host: &str, path: &str) -> Result<String> {
    let script = format!("umask 077; wg genkey > {path}; wg pubkey < {path}");
    Ok(run_in(&lab.view(host)?, &["sh", "-c", &script])?.trim().to_owned())
}
