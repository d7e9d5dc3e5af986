//! The nft tables `inet NAME` and `arp NAME`, and the installation and comparison of all our tables.
//!
//! Both are replaced whole in one transaction, so that there is never a moment without the guard. What they do:
//! containers are bound to their addresses, packets for overlay addresses are accepted from the TUN, containers and this
//! host only, containers' packets are marked so that routing sends all of them through the TUN, and own prefixes are
//! masqueraded towards the outside. What passes between containers and this host is up to [`super::host_policy`].

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};

use overlay_wire::Prefix;
use parking_lot::Mutex;

use super::desired::Attachment;
use super::{LearnedRoutes, Masquerade, PlumbingConfig, PlumbingError, UnderlayTracking, ports};

/// The whole script that installs both tables.
#[must_use]
pub fn script(config: &PlumbingConfig, learned: &LearnedRoutes, attachments: &[Attachment]) -> String {
    let name = &config.nft_table;
    let mut text = String::with_capacity(4096);
    for family in ["inet", "arp"] {
        // Adding first makes the deletion succeed on a host that has no such table.
        line(&mut text, 0, format_args!("table {family} {name}"));
        line(&mut text, 0, format_args!("delete table {family} {name}"));
    }
    line(&mut text, 0, format_args!("table inet {name} {{"));
    sets(&mut text, config, learned, attachments);
    raw_chains(&mut text, config);
    forward_chain(&mut text, config, attachments);
    nat_chain(&mut text, config);
    line(&mut text, 0, format_args!("}}"));
    arp_table(&mut text, config, attachments);
    text
}

pub(super) fn line(text: &mut String, depth: usize, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{:width$}{content}", "", width = depth * 2).expect("writing to a String cannot fail");
}

fn prefix_set(text: &mut String, name: &str, prefixes: impl Iterator<Item = Prefix>) {
    let (v4, v6): (Vec<Prefix>, Vec<Prefix>) = prefixes.partition(Prefix::is_ipv4);
    for (suffix, kind, list) in [("4", "ipv4_addr", v4), ("6", "ipv6_addr", v6)] {
        let elements: Vec<String> = list.iter().map(ToString::to_string).collect();
        line(
            text,
            1,
            format_args!("set {name}{suffix} {{ type {kind}; flags interval; auto-merge;{} }}", list_of(&elements)),
        );
    }
}

fn list_of(elements: &[String]) -> String {
    if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }}", elements.join(", ")) }
}

fn bindings(attachments: &[Attachment], wanted: impl Fn(&IpAddr) -> bool) -> Vec<String> {
    let sources = |a: &'_ Attachment| a.addresses.iter().chain(&a.siblings).copied().collect::<Vec<IpAddr>>();
    let pairs = attachments.iter().flat_map(|a| sources(a).into_iter().map(move |addr| (a.interface(), addr)));
    pairs.filter(|(_, addr)| wanted(addr)).map(|(ifname, addr)| format!("\"{ifname}\" . {addr}")).collect()
}

fn sets(text: &mut String, config: &PlumbingConfig, learned: &LearnedRoutes, attachments: &[Attachment]) {
    prefix_set(text, "overlay", config.pool.iter().chain(&config.own_prefixes).copied());
    prefix_set(text, "own", config.own_prefixes.iter().copied());
    prefix_set(text, "behind", learned.announced.iter().copied());
    let v4 = list_of(&bindings(attachments, IpAddr::is_ipv4));
    let v6 = list_of(&bindings(attachments, IpAddr::is_ipv6));
    line(text, 1, format_args!("set bound4 {{ typeof iifname . ip saddr;{v4} }}"));
    line(text, 1, format_args!("set bound6 {{ typeof iifname . ip6 saddr;{v6} }}"));
    let internal =
        attachments.iter().filter(|a| a.internal).map(|a| format!("\"{}\"", a.host_ifname)).collect::<Vec<_>>();
    line(text, 1, format_args!("set internal {{ type ifname;{} }}", list_of(&internal)));
}

/// Answers to the host itself are tracked, because some of them were translated on their way out.
fn tracked_answers(config: &PlumbingConfig) -> Vec<String> {
    let own: Vec<IpAddr> = config.host_addresses.iter().copied().chain(ports::service_addresses(config)).collect();
    let rule = |(ipv4, family)| {
        let own: Vec<String> = own.iter().filter(|ip| ip.is_ipv4() == ipv4).map(ToString::to_string).collect();
        let tun = &config.interface;
        (!own.is_empty()).then(|| format!("  iifname \"{tun}\" {family} daddr {{ {} }} accept", own.join(", ")))
    };
    [(true, "ip"), (false, "ip6")].into_iter().filter_map(rule).collect()
}

fn raw_chains(text: &mut String, config: &PlumbingConfig) {
    let (tun, group, port) = (&config.interface, config.group, config.listen_port);
    let first = [
        "chain raw {".to_owned(),
        "  type filter hook prerouting priority raw; policy accept;".to_owned(),
        format!("  iifgroup {group} jump from_container"),
    ];
    for content in first.into_iter().chain(tracked_answers(config)) {
        line(text, 1, format_args!("{content}"));
    }
    let lines = [
        format!("  iifname \"{tun}\" ip daddr @own4 notrack accept"),
        format!("  iifname \"{tun}\" ip6 daddr @own6 notrack accept"),
        format!("  iifname {{ \"{tun}\", \"lo\" }} accept"),
        "  ip saddr @behind4 ip daddr @overlay4 fib saddr . iif oif != 0 accept".to_owned(),
        "  ip6 saddr @behind6 ip6 daddr @overlay6 fib saddr . iif oif != 0 accept".to_owned(),
        "  ip daddr @overlay4 counter drop comment \"overlay address from outside\"".to_owned(),
        "  ip6 daddr @overlay6 counter drop comment \"overlay address from outside\"".to_owned(),
    ];
    for content in lines {
        line(text, 1, format_args!("{content}"));
    }
    if config.underlay_tracking == UnderlayTracking::Skip {
        line(text, 2, format_args!("udp dport {port} fib daddr type local notrack"));
        line(text, 2, format_args!("meta l4proto {{ 4, 41, 47 }} fib daddr type local notrack"));
    }
    let mark = config.mark_container;
    let lines = [
        "}".to_owned(),
        "chain from_container {".to_owned(),
        "  ip6 saddr fe80::/10 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } notrack accept".to_owned(),
        "  icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } counter drop comment \"router messages of a container\"".to_owned(),
        "  meta nfproto ipv4 iifname . ip saddr != @bound4 counter drop comment \"source not bound to this interface\"".to_owned(),
        "  meta nfproto ipv6 iifname . ip6 saddr != @bound6 counter drop comment \"source not bound to this interface\""
            .to_owned(),
        "  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } notrack accept".to_owned(),
        "  iifname @internal ip daddr != @overlay4 counter drop comment \"outside of an internal network\"".to_owned(),
        "  iifname @internal ip6 daddr != @overlay6 counter drop comment \"outside of an internal network\"".to_owned(),
        "  meta l4proto { 4, 41, 47 } counter drop comment \"encapsulation by a container\"".to_owned(),
        format!("  udp dport {port} counter drop comment \"encapsulation by a container\""),
        "  fib daddr type local accept".to_owned(),
        "  fib daddr type { broadcast, multicast, anycast } drop".to_owned(),
        format!("  meta mark set meta mark | 0x{mark:x} notrack accept"),
        "}".to_owned(),
    ];
    for content in lines {
        line(text, 1, format_args!("{content}"));
    }
    if config.underlay_tracking == UnderlayTracking::Skip {
        let mark = config.mark_socket;
        line(text, 1, format_args!("chain rawout {{"));
        line(text, 2, format_args!("type filter hook output priority raw; policy accept;"));
        line(text, 2, format_args!("meta mark & 0x{mark:x} == 0x{mark:x} notrack"));
        line(text, 1, format_args!("}}"));
    }
}

fn forward_chain(text: &mut String, config: &PlumbingConfig, attachments: &[Attachment]) {
    let (tun, group) = (&config.interface, config.group);
    let bridges: BTreeSet<&String> = attachments.iter().filter_map(|attachment| attachment.bridge.as_ref()).collect();
    line(text, 1, format_args!("chain forward {{"));
    line(text, 2, format_args!("type filter hook forward priority filter; policy accept;"));
    for bridge in bridges {
        // Neighbours on it, where the kernel shows bridged packets to this table (br_netfilter).
        line(text, 2, format_args!("iifname \"{bridge}\" oifname \"{bridge}\" accept"));
    }
    let lines = [
        format!("  iifname \"{tun}\" oifname \"{tun}\" counter drop comment \"overlay packet with no way out\""),
        format!("  iifgroup {group} oifname != \"{tun}\" counter drop comment \"container packet around the filter\""),
        format!("  oifgroup {group} iifname != \"{tun}\" counter drop comment \"container packet around the filter\""),
        "}".to_owned(),
    ];
    for content in lines {
        line(text, 1, format_args!("{content}"));
    }
}

fn nat_chain(text: &mut String, config: &PlumbingConfig) {
    if config.masquerade == Masquerade::Off {
        return;
    }
    let lines = [
        "chain nat {".to_owned(),
        "  type nat hook postrouting priority srcnat; policy accept;".to_owned(),
        format!("  oifname {{ \"{}\", \"lo\" }} accept", config.interface),
        format!("  oifgroup {} accept", config.group),
        "  ip saddr @own4 masquerade".to_owned(),
        "  ip6 saddr @own6 masquerade".to_owned(),
        "}".to_owned(),
    ];
    for content in lines {
        line(text, 1, format_args!("{content}"));
    }
}

fn arp_table(text: &mut String, config: &PlumbingConfig, attachments: &[Attachment]) {
    let bound = list_of(&bindings(attachments, IpAddr::is_ipv4));
    line(text, 0, format_args!("table arp {} {{", config.nft_table));
    line(text, 1, format_args!("set bound {{ typeof iifname . arp saddr ip;{bound} }}"));
    line(text, 1, format_args!("chain input {{"));
    line(text, 2, format_args!("type filter hook input priority filter; policy accept;"));
    line(text, 2, format_args!("iifgroup {} iifname . arp saddr ip != @bound counter drop", config.group));
    line(text, 1, format_args!("}}"));
    line(text, 0, format_args!("}}"));
}

/// Tables that are installed together and compared together.
#[derive(Debug)]
pub struct Installation {
    /// What they are for, in words.
    pub what: &'static str,
    /// Family and name of each.
    pub tables: Vec<(&'static str, String)>,
    installed: Option<Installed>,
}

/// What was last put in force.
#[derive(Debug)]
struct Installed {
    script: String,
    /// The tables as the kernel listed them then; `None` until [`Installation::remember`].
    listing: Option<String>,
}

/// What a script and the listing of its tables have in common, however rules are written: chains, and comments of rules.
fn marks(text: &str) -> (usize, usize) {
    let chains = text.lines().filter(|line| line.trim_start().starts_with("chain ")).count();
    (chains, text.matches(" comment \"").count())
}

impl Installation {
    /// Nothing is installed yet, as far as is known.
    #[must_use]
    pub fn new(what: &'static str, tables: Vec<(&'static str, String)>) -> Self {
        Self { what, tables, installed: None }
    }

    /// Whether this process has installed the tables.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.installed.is_some()
    }

    /// Whether what was installed has not been listed.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.installed.as_ref().is_some_and(|installed| installed.listing.is_none())
    }

    /// Makes the kernel's tables those of `script`, unless they are already; whether anything was changed. They are looked
    /// at only when `look` says so or the script is another one. A call to [`Installation::remember`] should follow.
    ///
    /// # Errors
    /// When `nft` cannot be run or refuses the script; then nothing has changed.
    pub fn ensure(&mut self, script: &str, look: Look) -> Result<bool, PlumbingError> {
        let known = self.installed.as_ref().filter(|known| known.script == script);
        let is_unsure = match (known, look) {
            (Some(_), Look::Known) => return Ok(false),
            (Some(Installed { listing: Some(listing), .. }), Look::Compare) => {
                if self.list()?.as_ref() == Some(listing) {
                    return Ok(false);
                }
                false
            }
            // Nobody has looked since they were installed: what is there now may be somebody else's.
            (Some(Installed { listing: None, .. }), Look::Compare) => true,
            (None, _) => false,
        };
        let output = run(&["-f", "-"], script)?;
        if !output.status.success() {
            return Err(refused(self.what, &output));
        }
        self.installed = Some(Installed { script: script.to_owned(), listing: None });
        Ok(!is_unsure)
    }

    /// Lists what was installed, to compare with later, unless that has been done. It takes as long as installing, and
    /// nobody needs to wait for it.
    ///
    /// # Errors
    /// When `nft` cannot be run.
    pub fn remember(&mut self) -> Result<(), PlumbingError> {
        if let Some(Installed { script, listing: None }) = &self.installed {
            // Somebody may have emptied or deleted them meanwhile: that is no listing to compare with.
            let listing = self.list()?.filter(|listing| marks(listing) == marks(script));
            self.installed =
                self.installed.take().filter(|_| listing.is_some()).map(|installed| Installed { listing, ..installed });
        }
        Ok(())
    }

    /// The tables as the kernel has them, without counters and what packets put into sets; `None` where one is missing.
    ///
    /// # Errors
    /// When `nft` cannot be run.
    pub fn list(&self) -> Result<Option<String>, PlumbingError> {
        let mut text = String::new();
        // One process for each: `nft` lists nothing in a batch.
        for (family, name) in &self.tables {
            let output = run(&["-s", "list", "table", family, name], "")?;
            if !output.status.success() {
                return Ok(None);
            }
            text.push_str(&without_memory(&String::from_utf8_lossy(&output.stdout)));
        }
        Ok(Some(text))
    }

    /// Removes the tables; those that are gone already are fine.
    ///
    /// # Errors
    /// When `nft` cannot be run or refuses.
    pub fn remove(&mut self) -> Result<(), PlumbingError> {
        self.installed = None;
        let mut script = String::new();
        for (family, name) in &self.tables {
            line(&mut script, 0, format_args!("table {family} {name}"));
            line(&mut script, 0, format_args!("delete table {family} {name}"));
        }
        let output = run(&["-f", "-"], &script)?;
        if output.status.success() { Ok(()) } else { Err(refused("remove its tables", &output)) }
    }
}

/// A listing without the elements of dynamic sets, which come and go with packets.
fn without_memory(listing: &str) -> String {
    let (mut dynamic, mut inside) = (false, false);
    let mut text = String::with_capacity(listing.len());
    for line in listing.lines() {
        let content = line.trim();
        match content {
            "}" => dynamic = false,
            _ => dynamic |= content.starts_with("flags dynamic"),
        }
        inside |= dynamic && content.starts_with("elements = {");
        if inside {
            inside = !content.ends_with('}');
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Whether the kernel is asked for tables that are known to have been installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// They are taken to be as they were installed.
    Known,
    /// They are compared.
    Compare,
}

fn refused(what: &'static str, output: &Output) -> PlumbingError {
    PlumbingError::Nft { what, stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned() }
}

/// The latest processes of `nft` that were started here, each by its number.
static OWN: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());
/// How many of them are remembered: the kernel tells of their changes within moments.
const OWN_REMEMBERED: usize = 64;

/// Whether the process of this number is one of ours. The kernel tells it with every change, as the port of the socket.
pub(super) fn is_own(process: u32) -> bool {
    OWN.lock().contains(&process)
}

pub(super) fn run(arguments: &[&str], input: &str) -> Result<Output, PlumbingError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(PlumbingError::NftMissing)?;
    {
        // Before it has its input, so before it can change anything.
        let mut own = OWN.lock();
        own.push_back(child.id());
        while own.len() > OWN_REMEMBERED {
            own.pop_front();
        }
    }
    // A child that ended early closes the pipe; its exit status and stderr tell why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(PlumbingError::NftMissing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_is_kept_but_for_what_packets_put_into_sets() {
        let kept = "table inet t {\n\tset seen {\n\t\ttype ipv4_addr\n\t\tflags dynamic,timeout\n\t}\n\n\tset list {\n\
                    \t\ttype ipv4_addr\n\t\telements = { 192.0.2.1,\n\t\t\t     192.0.2.2 }\n\t}\n}\n";
        let dynamic = "flags dynamic,timeout\n";
        for elements in ["192.0.2.7 expires 3s", "192.0.2.7,\n\t\t\t     192.0.2.8,\n\t\t\t     192.0.2.9"] {
            let filled = format!("{dynamic}\t\telements = {{ {elements} }}\n");
            assert_eq!(without_memory(&kept.replace(dynamic, &filled)), kept);
        }
        assert_eq!(without_memory(kept), kept);
    }
}
