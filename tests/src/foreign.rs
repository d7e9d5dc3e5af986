//! One host with a daemon and a container, and beside it a host that runs something else.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use overlay_control::api::{PeerStatus, Request, Response, Status};
use overlay_netns_harness::{Binaries, CONFIG_PATH, Container, HostSpec, Identity, Lab, Topology, netns, ping, run_in};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::shared::can_make_namespaces;

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
  "allow any from 10.42.1.0/24 to 10.99.0.0/24",
  "allow any from 10.99.0.0/24 to 10.42.1.0/24",
  "allow any from fd42:0:0:1::/64 to fd99::/64",
  "allow any from fd99::/64 to fd42:0:0:1::/64",
]
"#;

/// The host `h1` with daemon and container `h1c1`, and the host `h2` without.
#[derive(Debug)]
pub struct Foreign {
    /// The container on `h1`.
    pub container: Container,
    /// The public WireGuard key of `h1`.
    pub public_key: String,
    /// Both hosts.
    pub lab: Lab,
}

impl Foreign {
    /// Starts `h1` without any peer.
    pub fn start(name: &str, binaries: Binaries) -> Result<Foreign> {
        let lab = Lab::create(name, Topology::Routed, &HostSpec::numbered(2), binaries)?;
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

/// A WireGuard implementation on `h2`, behind the interface `wg0`.
#[derive(Debug)]
pub struct WireguardDevice<'a> {
    lab: &'a Lab,
    child: Child,
    /// Its public key.
    pub public_key: String,
}

impl<'a> WireguardDevice<'a> {
    /// Starts a program that makes `wg0` and stays in the foreground.
    pub fn start(lab: &'a Lab, argv: &[&str]) -> Result<WireguardDevice<'a>> {
        let public_key = make_key(lab, "h2", "/run/wg0.key")?;
        let mut command = lab.command("h2", argv)?;
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn().with_context(|| format!("{argv:?} could not be started"))?;
        let device = WireguardDevice { lab, child, public_key };
        let up = || device.wg("show wg0").is_ok().then_some(());
        overlay_netns_harness::wait_for("wg0 to answer", Duration::from_secs(10), up)?;
        device.wg("set wg0 private-key /run/wg0.key listen-port 51820")?;
        let namespace = lab.host("h2")?.view().namespace();
        overlay_netns_harness::ip_batch(
            namespace,
            &[
                format!("addr add {FOREIGN_V4}/24 dev wg0"),
                format!("addr add {FOREIGN_V6}/64 dev wg0 nodad"),
                "link set wg0 up mtu 1420".to_owned(),
                "route replace 10.42.0.0/16 dev wg0".to_owned(),
                "route replace fd42::/48 dev wg0".to_owned(),
            ],
        )?;
        Ok(device)
    }

    /// Runs `wg` with these words on `h2`.
    pub fn wg(&self, words: &str) -> Result<String> {
        let argv: Vec<&str> = std::iter::once("wg").chain(words.split_whitespace()).collect();
        run_in(&self.lab.view("h2")?, &argv)
    }

    /// Sets up `h1` as its only peer; `more` are further words of `wg set`.
    pub fn set_peer(&self, public_key: &str, more: &str) -> Result<()> {
        self.wg(&format!("set wg0 peer {public_key} allowed-ips 10.42.0.0/16,fd42::/48 {more}")).map(drop)
    }

    /// The number in the last column of `wg show wg0 WHAT`.
    pub fn number(&self, what: &str, column: usize) -> u64 {
        let text = self.wg(&format!("show wg0 {what}")).unwrap_or_default();
        text.split_whitespace().nth(column).and_then(|word| word.parse().ok()).unwrap_or(0)
    }
}

impl Drop for WireguardDevice<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let gone = || self.lab.exec("h2", &["ip", "link", "show", "wg0"]).is_ok_and(|it| !it.status.success());
        let _ = overlay_netns_harness::wait_for("wg0 to vanish", Duration::from_secs(5), || gone().then_some(()));
    }
}

/// Whether a test may run: root, and these Debian packages installed (they are installed where they are missing). What
/// cannot be had skips the test with a loud line, and fails it where `CI=true` says that nothing may be skipped.
pub fn can_use(test: &str, needed: &[(&str, &str)]) -> bool {
    if !can_make_namespaces(test) {
        return false;
    }
    for (probe, package) in needed {
        if let Err(error) = ensure_package(probe, package) {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {error:#}");
            eprintln!("SKIPPED {test}: {error:#}");
            return false;
        }
    }
    true
}

/// `probe` is a shell command that succeeds where the package is there.
fn ensure_package(probe: &str, package: &str) -> Result<()> {
    let there = || Command::new("sh").args(["-c", probe]).output().is_ok_and(|output| output.status.success());
    if there() {
        return Ok(());
    }
    let words = ["install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", package];
    let output = Command::new("apt-get").args(words).output().context("apt-get could not be started")?;
    ensure!(there(), "the package {package} is missing: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A raw socket that sends whole IPv6 packets from a namespace.
pub fn raw_sender_v6(namespace: &str) -> Result<impl Fn(&[u8], IpAddr) -> std::io::Result<usize>> {
    use socket2::{Domain, Protocol, SockAddr, Socket, Type};
    let socket = netns::within(namespace, || {
        let raw = Protocol::from(libc::IPPROTO_RAW);
        Socket::new(Domain::IPV6, Type::RAW, Some(raw)).context("opening a raw socket")
    })?;
    Ok(move |packet: &[u8], to: IpAddr| socket.send_to(packet, &SockAddr::from(std::net::SocketAddr::new(to, 0))))
}
