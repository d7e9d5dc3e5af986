//! What is measured: a pair of containers on two hosts, joined by each of the contenders.

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::SigningKey;
use overlay_netns_harness::{Binaries, Cluster, Container, Host, HostSpec, Lab, Topology, ip, packages, wait_for};
use rand_core::OsRng;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

/// The inner MTU of every tunnel that is compared.
const TUNNEL_MTU: u32 = 1420;
const WIREGUARD_PORT: u16 = 51820;

/// One way to join two containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Kernel routing over the veth, no tunnel.
    Veth,
    /// Our daemon with an encapsulation.
    Ours(&'static str),
    /// Debian's wireguard-go.
    WireguardGo,
    /// boringtun-cli from crates.io.
    Boringtun,
}

impl Contender {
    pub(crate) const ALL: [Contender; 6] = [
        Contender::Ours("wireguard"),
        Contender::Ours("gre"),
        Contender::Ours("ipip"),
        Contender::WireguardGo,
        Contender::Boringtun,
        Contender::Veth,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Contender::Veth => "plain veth",
            Contender::Ours(encapsulation) => encapsulation,
            Contender::WireguardGo => "wireguard-go",
            Contender::Boringtun => "boringtun-cli",
        }
    }
}

/// A contender that runs, with its two containers.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) contender: Contender,
    pub(crate) lab: Lab,
    pub(crate) from: Container,
    pub(crate) to: Container,
    children: Vec<Child>,
}

impl Rig {
    /// Sets a contender up; `tag` makes the name of its lab.
    pub(crate) fn build(contender: Contender, tag: &str, binaries: &Binaries) -> Result<Rig> {
        let name = format!("b{}{tag}", std::process::id());
        let lab = Lab::create(&name, Topology::Direct, &HostSpec::numbered(2), binaries.clone())?;
        let mut children = Vec::new();
        let (from, to) = match contender {
            Contender::Ours(encapsulation) => {
                Cluster::new(2, encapsulation).write(&lab)?;
                lab.start_daemons()?;
                let containers = (lab.add_container("h1", "c")?, lab.add_container("h2", "c")?);
                lab.wait_ready(Duration::from_secs(20))?;
                containers
            }
            Contender::Veth => {
                let containers = plain(&lab, 1500)?;
                for (host, other) in both(&lab) {
                    let [v4, _] = other.prefixes();
                    let namespace = host.view().namespace();
                    ip(&format!("-n {namespace} route add {v4} via {}", other.underlay_v4()))?;
                }
                containers
            }
            Contender::WireguardGo => {
                let containers = plain(&lab, TUNNEL_MTU)?;
                children = wireguard(&lab, &["wireguard-go", "--foreground", "wg0"])?;
                containers
            }
            Contender::Boringtun => {
                let containers = plain(&lab, TUNNEL_MTU)?;
                let program = packages::boringtun_cli()?;
                let program = program.to_string_lossy();
                children = wireguard(&lab, &[&program, "--foreground", "--disable-drop-privileges", "wg0"])?;
                containers
            }
        };
        Ok(Rig { contender, lab, from, to, children })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn plain(lab: &Lab, mtu: u32) -> Result<(Container, Container)> {
    Ok((lab.add_plain_container("h1", "c", mtu)?, lab.add_plain_container("h2", "c", mtu)?))
}

/// Each host with the other one.
fn both(lab: &Lab) -> [(&Host, &Host); 2] {
    let hosts = lab.hosts();
    [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])]
}

/// Starts a WireGuard program on both hosts and configures it through its socket.
fn wireguard(lab: &Lab, argv: &[&str]) -> Result<Vec<Child>> {
    let keys = [SigningKey::generate(&mut OsRng), SigningKey::generate(&mut OsRng)];
    let mut children = Vec::new();
    for (host, other) in both(lab) {
        std::fs::create_dir_all(host.path("/run/wireguard"))?;
        let mut command = lab.command(host.name(), argv)?;
        // Debian's program would otherwise advise to use the kernel's and end.
        command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        children.push(command.spawn().with_context(|| format!("starting {}", argv[0]))?);
        let socket = host.path("/run/wireguard/wg0.sock");
        wait_for(&format!("the socket of {}", argv[0]), Duration::from_secs(10), || socket.exists().then_some(()))?;
        let (own, peer) = (&keys[host.index()], &keys[other.index()]);
        let mut settings = String::new();
        let _ = writeln!(settings, "set=1\nprivate_key={}", hex(&own.to_scalar_bytes()));
        let _ = writeln!(settings, "listen_port={WIREGUARD_PORT}");
        let _ = writeln!(settings, "public_key={}", hex(peer.verifying_key().to_montgomery().as_bytes()));
        let _ = writeln!(settings, "endpoint={}:{WIREGUARD_PORT}\nreplace_allowed_ips=true", other.underlay_v4());
        for prefix in other.prefixes() {
            let _ = writeln!(settings, "allowed_ip={prefix}");
        }
        configure(&socket, &settings)?;
        let namespace = host.view().namespace();
        ip(&format!("-n {namespace} link set wg0 mtu {TUNNEL_MTU} up"))?;
        for prefix in other.prefixes() {
            ip(&format!("-n {namespace} route add {prefix} dev wg0"))?;
        }
    }
    Ok(children)
}

fn configure(socket: &std::path::Path, settings: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{settings}\n").as_bytes())?;
    let mut answer = String::new();
    let mut buffer = [0; 256];
    while !answer.contains("errno=") {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    if !answer.contains("errno=0") {
        bail!("the WireGuard program refused its settings: {}", answer.trim());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
