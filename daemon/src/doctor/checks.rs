//! The checks: pure functions from [`Facts`] to a verdict with its reason, fix and undo.

use overlay_control::api::FindingStatus;

use super::asked;
use super::facts::Facts;
use super::remedy::Action;
use crate::plumbing::desired::{Family, uses};
use crate::plumbing::interfaces::tunnels_in_the_way;
use crate::plumbing::{PlumbingConfig, firewall};
use crate::state::EARLIEST_UNIX;

/// Clocks further apart than this make certificates and logs hard to judge, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// The smallest MTU that IPv6 may be carried over, in bytes.
const IPV6_MIN_MTU: u32 = 1280;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Bad,
    /// Could not be looked at.
    Skipped,
}

/// One check with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, stable.
    pub name: &'static str,
    /// What it found.
    pub outcome: Outcome,
    /// What was seen, and what follows from it.
    pub why: String,
    /// What `--fix` does.
    pub actions: Vec<Action>,
    /// What only a person can do.
    pub advice: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, why: why.into(), actions: Vec::new(), advice: None }
    }

    pub(super) fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self { outcome: Outcome::Skipped, ..Self::ok(name, why) }
    }

    fn fixable(name: &'static str, why: impl Into<String>, actions: Vec<Action>) -> Self {
        Self { outcome: Outcome::Bad, actions, ..Self::ok(name, why) }
    }

    pub(super) fn advised(name: &'static str, why: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { outcome: Outcome::Bad, advice: Some(advice.into()), ..Self::ok(name, why) }
    }

    /// The outcome in the words of the control protocol.
    #[must_use]
    pub fn status(&self) -> FindingStatus {
        match self.outcome {
            Outcome::Ok => FindingStatus::Ok,
            Outcome::Bad => FindingStatus::Bad,
            Outcome::Skipped => FindingStatus::Skipped,
        }
    }
}

/// Every check, in the order they are shown.
#[must_use]
pub fn all(config: &PlumbingConfig, facts: &Facts) -> Vec<Check> {
    let mut checks = vec![forwarding_v4(config, facts), forwarding_v6(config, facts), rp_filter(config, facts)];
    checks.extend(forward_chains(config, facts));
    match &facts.inputs.asked {
        Some(peer) => checks.extend(asked::checks(peer)),
        None => checks.push(reach(facts)),
    }
    checks.extend([kernel_tunnel(facts), clock(facts), mtu(config, facts), machine(facts)]);
    checks
}

fn forwarding_v4(config: &PlumbingConfig, facts: &Facts) -> Check {
    let name = "forwarding-ipv4";
    match facts.ip_forward.as_deref() {
        _ if !uses(config, Family::V4) => Check::skipped(name, "the overlay has no IPv4 prefix"),
        Some("1") => Check::ok(name, "packets between interfaces are forwarded"),
        Some(old) => {
            let why = "net.ipv4.ip_forward is off: containers reach neither the overlay nor the outside";
            Check::fixable(name, why, vec![Action::sysctl("net.ipv4.ip_forward", "1", old)])
        }
        None => Check::skipped(name, "/proc/sys is not readable"),
    }
}

fn forwarding_v6(config: &PlumbingConfig, facts: &Facts) -> Check {
    let name = "forwarding-ipv6";
    match facts.ipv6_forwarding.as_deref() {
        _ if !uses(config, Family::V6) => Check::skipped(name, "the overlay has no IPv6 prefix"),
        Some("1") => Check::ok(name, "packets between interfaces are forwarded"),
        Some(old) => {
            let why = "net.ipv6.conf.all.forwarding is off: containers reach nothing over IPv6";
            Check::fixable(name, why, vec![Action::sysctl("net.ipv6.conf.all.forwarding", "1", old)])
        }
        None => Check::advised(
            name,
            "this kernel has IPv6 off, but the overlay has an IPv6 prefix",
            "boot without ipv6.disable=1, or remove the IPv6 prefixes from the configuration",
        ),
    }
}

fn rp_filter(config: &PlumbingConfig, facts: &Facts) -> Check {
    let name = "rp-filter";
    if !facts.rp_filter_strict {
        return Check::ok(name, "reverse path filtering lets replies in over the overlay interface");
    }
    let key = format!("net.ipv4.conf.{}.rp_filter", config.interface);
    let why = format!("{key} is strict: containers' packets to the outside are dropped behind the filter");
    Check::fixable(name, why, vec![Action::sysctl(&key, "2", facts.rp_filter.as_deref().unwrap_or("1"))])
}

fn forward_chains(config: &PlumbingConfig, facts: &Facts) -> Vec<Check> {
    let name = "forward-chain";
    let ruleset = match &facts.ruleset {
        Some(Ok(ruleset)) => ruleset,
        Some(Err(why)) => return vec![Check::skipped(name, why.clone())],
        None => return vec![Check::skipped(name, "the ruleset was not read")],
    };
    let (ours, tun) = (&config.nft_table, &config.interface);
    let dropping: Vec<_> = firewall::dropping_chains(ruleset, ours)
        .into_iter()
        .filter(|chain| !firewall::accepts(ruleset, &chain.family, ours, tun))
        .collect();
    if dropping.is_empty() {
        return vec![Check::ok(name, "no other firewall drops forwarded overlay packets")];
    }
    let check = |chain: &firewall::DroppingChain| {
        let why = format!(
            "chain {} of table {} {} drops what it does not know: packets between containers and the overlay die there",
            chain.chain, chain.family, chain.table
        );
        Check::fixable(name, why, Action::admit(chain, firewall::keeper(ruleset, chain), tun))
    };
    dropping.iter().map(check).collect()
}

fn reach(facts: &Facts) -> Check {
    let name = "reachable";
    let reach = &facts.inputs.reach;
    if reach.is_empty() {
        return Check::skipped(name, "no peer was asked; `doctor --peer NAME` asks one");
    }
    let lost: Vec<String> =
        reach.iter().filter(|r| !r.arrived).map(|r| format!("{} from {}", r.what, r.peer)).collect();
    if lost.is_empty() {
        let asked: Vec<String> = reach.iter().map(|r| format!("{} from {}", r.what, r.peer)).collect();
        return Check::ok(name, format!("arrived: {}", asked.join(", ")));
    }
    Check::advised(
        name,
        format!("did not arrive: {}; a firewall or provider on the way drops it", lost.join(", ")),
        "open it in the firewall of both hosts and of the network between, or use encapsulation = \"wireguard\"",
    )
}

fn kernel_tunnel(facts: &Facts) -> Check {
    let name = "kernel-tunnel";
    let tunnels = tunnels_in_the_way(&facts.interfaces);
    if tunnels.is_empty() {
        return Check::ok(name, "no tunnel of the kernel takes packets meant for overlayd");
    }
    let names: Vec<&str> = tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
    let why = format!("{} would decapsulate IPIP or GRE packets without the checks of overlayd", names.join(", "));
    if !facts.inputs.plain_in_use {
        return Check::ok(name, format!("{why}; no peer uses them, so nothing is lost"));
    }
    let set = |name: &&str, state: &str| ["ip", "link", "set", name, state].map(str::to_owned).to_vec();
    let actions = names.iter().map(|name| Action::Run { apply: set(name, "down"), undo: set(name, "up") }).collect();
    Check::fixable(name, why, actions)
}

fn clock(facts: &Facts) -> Check {
    let name = "clock";
    let advice = "turn on time synchronisation: timedatectl set-ntp true";
    if facts.now_unix < EARLIEST_UNIX {
        return Check::advised(name, "the clock is years behind; logs and validity times are wrong", advice);
    }
    let offsets = &facts.inputs.clock_offsets;
    let far: Vec<String> = offsets
        .iter()
        .filter(|(_, offset)| offset.abs() > CLOCK_TOLERANCE)
        .map(|(peer, offset)| format!("{peer} is {} s {}", offset.abs(), if *offset > 0 { "ahead" } else { "behind" }))
        .collect();
    match (offsets.len(), far.len()) {
        // One other clock of many may be the wrong one; half of them may not.
        (peers, wrong) if wrong > 0 && wrong * 2 >= peers => Check::advised(
            name,
            format!(
                "this clock is not that of peers: {}; logs do not fit together, validity times are judged wrongly",
                far.join(", ")
            ),
            if peers == 1 { format!("{advice}, on both hosts") } else { advice.to_owned() },
        ),
        _ if facts.clock_synchronised == Some(false) => {
            Check::advised(name, "the system says that its clock is not synchronised", advice)
        }
        (0, _) => match facts.inputs.asked.as_ref().and_then(|asked| asked.no_clock.clone()) {
            Some(why) => Check::skipped(name, why),
            None => Check::ok(name, "nothing speaks against the clock; no peer told its own"),
        },
        (peers, wrong) => {
            let others = if wrong == 0 { String::new() } else { format!("; {}", far.join(", ")) };
            let agree = peers - wrong;
            Check::ok(name, format!("within a minute of the clocks of {agree} of {peers} peers asked{others}"))
        }
    }
}

fn mtu(config: &PlumbingConfig, facts: &Facts) -> Check {
    let name = "mtu";
    let mut underlay: Vec<_> = facts.interfaces.iter().filter(|i| facts.underlay.contains(&i.name)).collect();
    underlay.sort_by_key(|interface| interface.mtu);
    let Some(narrow) = underlay.first() else {
        return Check::skipped(name, "no peer's address is known, so the way to peers is not");
    };
    let room = narrow.mtu.saturating_sub(facts.inputs.overhead);
    if uses(config, Family::V6) && config.mtu < IPV6_MIN_MTU {
        let why = format!("the overlay MTU {} is below {IPV6_MIN_MTU}: the kernel has IPv6 off on it", config.mtu);
        let advice = format!("set mtu = {IPV6_MIN_MTU} or more under [overlay] and restart, or leave it out");
        return Check::advised(name, why, advice);
    }
    if uses(config, Family::V6) && room < IPV6_MIN_MTU {
        let why = format!(
            "{} has MTU {}: {room} bytes remain inside, so IPv6 packets of {} to {IPV6_MIN_MTU} bytes go in two fragments",
            narrow.name,
            narrow.mtu,
            room + 1
        );
        let enough = IPV6_MIN_MTU + facts.inputs.overhead;
        let advice = format!("ip link set {} mtu {enough}, or more, if the network carries it", narrow.name);
        return Check::advised(name, why, advice);
    }
    if config.mtu > room {
        let why = format!(
            "the overlay MTU {} is more than the {room} bytes that {} leaves: large packets are refused one by one",
            config.mtu, narrow.name
        );
        return Check::advised(name, why, format!("set mtu = {room} under [overlay] and restart, or leave it out"));
    }
    Check::ok(name, format!("the overlay MTU {} fits {} (MTU {})", config.mtu, narrow.name, narrow.mtu))
}

fn machine(facts: &Facts) -> Check {
    let name = "machine-id";
    let own_identity = "stop overlayd, remove identity.key from its state directory, start it, and list the new key";
    let own_id = "rm /etc/machine-id && systemd-machine-id-setup, then restart";
    if let Some(place) = &facts.inputs.twin {
        let why = format!("another host at {place} has the identity of this one: a cloned machine");
        return Check::advised(name, why, own_identity);
    }
    if facts.machine.id.is_empty() || facts.machine.id == "uninitialized" {
        return Check::advised(name, "/etc/machine-id is empty: clones of this machine cannot be told apart", own_id);
    }
    let Some(first) = &facts.first_machine else {
        return Check::skipped(name, "this state directory remembers no machine yet");
    };
    if first.id != facts.machine.id {
        let why = "the state directory was made on another machine, identity key included";
        return Check::advised(name, why, own_identity);
    }
    let known = !first.hardware.is_empty() && !facts.machine.hardware.is_empty();
    if known && first.hardware.is_disjoint(&facts.machine.hardware) {
        let why = "no network interface is the same as when this state was made, but /etc/machine-id is: a cloned disk";
        return Check::advised(name, why, own_id);
    }
    Check::ok(name, "this is the machine whose state it is")
}
