//! The facts that the checks judge, and the gatherer that looks them up without changing anything.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::asked::Asked;
use crate::plumbing::interfaces::{Interface, interfaces};
use crate::plumbing::{PlumbingConfig, firewall, sysctl::Sysctl};

/// What the daemon knows and a look at the host cannot tell.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Underlay addresses of peers.
    pub endpoints: Vec<IpAddr>,
    /// Whether a peer uses IPIP or GRE.
    pub plain_in_use: bool,
    /// Bytes that the largest encapsulation in use adds to a packet.
    pub overhead: u32,
    /// What peers said about packets sent to and from us.
    pub reach: Vec<Reach>,
    /// How far peers' clocks are ahead of ours, in seconds, by name.
    pub clock_offsets: Vec<(String, i64)>,
    /// What the peer answered that `--peer` names.
    pub asked: Option<Asked>,
    /// Where another host speaks with this host's identity, if one was seen.
    pub twin: Option<String>,
}

/// The outcome of asking a peer to send one kind of packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The peer.
    pub peer: String,
    /// What was sent, as in `UDP port 51821` or `protocol 47`.
    pub what: String,
    /// Whether it arrived.
    pub arrived: bool,
}

/// Which machine a state directory was first used on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The content of `/etc/machine-id`.
    pub id: String,
    /// Hardware addresses of physical interfaces.
    pub hardware: BTreeSet<Vec<u8>>,
}

/// Everything the checks look at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<String>,
    /// `net.ipv6.conf.all.forwarding`; absent without IPv6.
    pub ipv6_forwarding: Option<String>,
    /// Whether reverse path filtering on the TUN is strict.
    pub rp_filter_strict: bool,
    /// `rp_filter` of the TUN now.
    pub rp_filter: Option<String>,
    /// The nft ruleset, or why it cannot be read.
    pub ruleset: Option<Result<String, String>>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Names of the interfaces that lead to peers.
    pub underlay: BTreeSet<String>,
    /// The clock.
    pub now_unix: u64,
    /// Whether the system says that its clock is synchronised.
    pub clock_synchronised: Option<bool>,
    /// This machine.
    pub machine: Machine,
    /// The machine that first used the state directory.
    pub first_machine: Option<Machine>,
    /// What the daemon knows.
    pub inputs: Inputs,
}

/// Looks at the host. The machine is remembered in the state directory when it is not yet.
pub async fn gather(config: &PlumbingConfig, inputs: Inputs) -> Facts {
    let mut facts = Facts { inputs, ..Facts::default() };
    if let Ok(sysctl) = Sysctl::open(&config.state_dir) {
        facts.ip_forward = sysctl.get("net/ipv4/ip_forward");
        facts.ipv6_forwarding = sysctl.get("net/ipv6/conf/all/forwarding");
        facts.rp_filter_strict = sysctl.rp_filter_is_strict(&config.interface);
        facts.rp_filter = sysctl.get(&format!("net/ipv4/conf/{}/rp_filter", config.interface));
    }
    facts.ruleset = Some(firewall::ruleset().map_err(|error| error.to_string()));
    facts.interfaces = interfaces().await.unwrap_or_default();
    facts.underlay =
        facts.inputs.endpoints.iter().filter_map(|addr| outgoing_interface(*addr, config.mark_socket)).collect();
    facts.now_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    facts.clock_synchronised = clock_synchronised();
    facts.machine = Machine {
        id: fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned(),
        hardware: facts.interfaces.iter().filter_map(|interface| interface.hardware.clone()).collect(),
    };
    facts.first_machine = first_machine(&config.state_dir, &facts.machine);
    facts
}

fn outgoing_interface(addr: IpAddr, mark: u32) -> Option<String> {
    let text = route_get(addr, mark)?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "dev")?;
    words.next().map(str::to_owned)
}

fn route_get(addr: IpAddr, mark: u32) -> Option<String> {
    said("ip", &["-o", "route", "get", &addr.to_string(), "mark", &mark.to_string()])
}

/// The route to an address in the words of `ip route`, for a command that gives it another MTU.
#[must_use]
pub fn route_words(addr: IpAddr, mark: u32) -> Option<String> {
    let text = route_get(addr, mark)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let behind = |key: &str| words.windows(2).find(|pair| pair[0] == key).map(|pair| pair[1]);
    let device = behind("dev")?;
    // A gateway need not lie in a prefix of the device, as with a default route set `onlink`.
    Some(match behind("via") {
        Some(gateway) => format!("{addr} via {gateway} dev {device} onlink"),
        None => format!("{addr} dev {device}"),
    })
}

fn clock_synchronised() -> Option<bool> {
    match said("timedatectl", &["show", "--property=NTPSynchronized", "--value"])?.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env("PATH", super::remedy::PATH).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_machine(state_dir: &Path, now: &Machine) -> Option<Machine> {
    let path = state_dir.join("machine.json");
    if let Ok(bytes) = fs::read(&path) {
        return serde_json::from_slice(&bytes).ok();
    }
    // Not remembered yet, or not writable: then there is nothing to compare with.
    let bytes = serde_json::to_vec(now).ok()?;
    fs::write(&path, bytes).ok()?;
    Some(now.clone())
}
