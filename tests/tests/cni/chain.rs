//! Chains with the reference plugins, run for real as libcni runs them: each gets the result of the one before.

use overlay_netns_harness::netns::View;
use overlay_netns_harness::{Lab, netns, packages, ping, run_in};
use overlay_tests::{Conversation, Echo, Overlay};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use super::{LIMIT, address, endpoints, overlay};

const REFERENCE: &str = "/usr/lib/cni";

/// A list of plugins and a container.
struct Chain<'a> {
    lab: &'a Lab,
    plugins: Vec<Value>,
    runtime: Value,
    container: String,
    view: &'a View,
    interface: &'a str,
}

impl<'a> Chain<'a> {
    fn new(lab: &'a Lab, container: &str, view: &'a View, plugins: &[Value]) -> Chain<'a> {
        Chain {
            lab,
            plugins: plugins.to_vec(),
            runtime: json!({}),
            container: container.to_owned(),
            view,
            interface: "eth0",
        }
    }

    fn one(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> Result<Value, String> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("chained");
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        for (name, on) in plugin["capabilities"].as_object().into_iter().flatten() {
            if *on == json!(true) && !self.runtime[name].is_null() {
                config["runtimeConfig"][name] = self.runtime[name].clone();
            }
        }
        let kind = plugin["type"].as_str().unwrap();
        let program = self.lab.binary(kind).unwrap_or_else(|| format!("{REFERENCE}/{kind}"));
        let mut command = self.lab.command("h1", &[&program]).unwrap();
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &self.container).env("CNI_PATH", REFERENCE);
        command.env("CNI_NETNS", format!("/run/netns/{}", self.view.namespace())).env("CNI_IFNAME", self.interface);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_ARGS", "IgnoreUnknown=1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("{verb} of {kind}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// ADD through the whole list; the last result.
    fn add(&self) -> Value {
        let mut result = None;
        for plugin in &self.plugins {
            result = Some(self.one("ADD", plugin, result.as_ref()).unwrap());
        }
        result.unwrap()
    }

    /// CHECK of every plugin with the last result; what the first that finds something says.
    fn check(&self, result: &Value) -> Result<(), String> {
        // portmap 1.1.1 looks for the rules of each address with the tools of both families, and so always misses some
        // where a container has addresses of both.
        let mut checked = self.plugins.iter().filter(|plugin| plugin["type"] != "portmap");
        checked.try_for_each(|plugin| self.one("CHECK", plugin, Some(result)).map(drop))
    }

    /// DEL from the last to the first.
    fn del(&self, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            self.one("DEL", plugin, Some(result)).unwrap();
        }
    }
}

fn ours(capabilities: &[&str]) -> Value {
    let map: serde_json::Map<String, Value> =
        capabilities.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
    json!({ "type": "overlay-cni", "capabilities": map })
}

fn with_reference_plugins() -> bool {
    let words = ["containernetworking-plugins", "iptables"];
    let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
    missing.is_empty() || overlay_tests::can_have("chains", packages::install(&missing)).is_some()
}

fn reaches(overlay: &Overlay, address: &str) -> bool {
    ping(&overlay.container("h2c1").view, "-c 2 -i 0.05 -W 2", address).is_ok_and(|report| report.is_lossless())
}

/// What a host and a container have because of a container; chains that the plugins keep for all containers stay.
fn traces(overlay: &Overlay, view: &View) -> String {
    let host = overlay.lab.host("h1").unwrap().view();
    let show = |view: &View, script: &str| run_in(view, &["sh", "-c", script]).unwrap();
    let rules = "iptables-save | grep -e '10\\.42\\.1\\.' -e 7321 -e CNI-DN-; ip -o link show type ifb; ip -o link show type veth | wc -l; true";
    show(host, rules) + &show(view, "ip -o link | grep -v ' lo:'; true")
}

#[test]
fn portmap_firewall_and_tuning_work_behind_ours_and_go_without_a_trace() {
    let Some(overlay) = overlay() else { return };
    if !with_reference_plugins() {
        return;
    }
    let _logs = overlay.lab.logs_on_failure();
    let view = overlay.lab.add_namespace("chain").unwrap();
    let before = traces(&overlay, &view);
    let example: Value = serde_json::from_str(include_str!("../../../examples/chain.conflist")).unwrap();
    let mut chain = Chain::new(&overlay.lab, "chained", &view, example["plugins"].as_array().unwrap());
    chain.runtime = json!({
        "portMappings": [{ "hostPort": 7321, "containerPort": 80, "protocol": "tcp" }],
        "mac": "02:00:00:00:73:21",
    });
    let result = chain.add();
    let v4 = address(&result, 0);
    // What tuning changed is in its result, and packets pass with it: the address is bound to the link, not to the card.
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:73:21");
    let inside = |script: &str| run_in(&view, &["sh", "-c", script]).unwrap();
    assert_eq!(inside("cat /proc/sys/net/core/somaxconn").trim(), "500");
    assert!(inside("ip link show dev eth0").contains("mtu 1280"));
    assert!(reaches(&overlay, &v4) && reaches(&overlay, &address(&result, 1)));
    assert!(ping(&view, "-c 2 -i 0.05 -W 2", &overlay.container("h2c1").v4.to_string()).unwrap().is_lossless());
    chain.check(&result).unwrap();
    let during = traces(&overlay, &view);
    assert!(during.contains("CNI-DN-") && during.contains("CNI-FORWARD"), "{during}");
    // portmap's port: the daemon knows nothing of it, so a rule opens it to the outside, as the documentation says.
    let echo = Echo::start(view.namespace(), format!("{v4}:80").parse().unwrap()).unwrap();
    let card = overlay.lab.host("h1").unwrap().underlay_v4();
    let open = |limit: Duration| {
        Conversation::open(overlay.lab.switch().namespace(), (card, 7321).into(), limit)?.exchange(limit)
    };
    assert!(open(Duration::from_millis(700)).is_err(), "no rule lets it in yet");
    let policy = json!({ "default": "members", "rules": [format!("allow tcp/80 from any to {v4}")] });
    let apply = |policy: Option<Value>| {
        let policy = policy.map(|policy| serde_json::from_value(policy).unwrap());
        overlay.ask("h1", overlay_control::api::Request::PolicyApply { policy }).unwrap();
    };
    apply(Some(policy));
    open(LIMIT).unwrap();
    apply(None);
    drop(echo);
    // A chain that does not hold any more is found by the plugin that it concerns.
    inside("echo 128 > /proc/sys/net/core/somaxconn");
    let said = chain.check(&result).unwrap_err();
    assert!(said.starts_with("CHECK of tuning"), "{said}");
    inside("echo 500 > /proc/sys/net/core/somaxconn");
    chain.check(&result).unwrap();
    chain.del(&result);
    assert!(endpoints(&overlay, "h1").is_empty());
    chain.del(&result);
    assert_eq!(traces(&overlay, &view), before, "rules and links of the chain");
}

/// The forward chain of a host's own firewall drops again and lets pass again, also when a test fails.
struct Dropping<'a>(&'a Overlay);

impl<'a> Dropping<'a> {
    fn forward(overlay: &'a Overlay) -> Dropping<'a> {
        let dropping = Dropping(overlay);
        dropping.policy("DROP");
        dropping
    }

    fn policy(&self, policy: &str) {
        let host = self.0.lab.host("h1").unwrap().view();
        run_in(host, &["iptables", "-P", "FORWARD", policy]).unwrap();
    }
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        let _ = self.0.lab.ctl("h1", &["doctor", "--undo"]);
        self.policy("ACCEPT");
    }
}

/// The reference plugin admits a container by the kernel's connection tracking, which does not see the overlay's packets.
#[test]
fn firewall_of_the_reference_plugin_alone_opens_no_dropping_chain_and_the_doctor_does() {
    let Some(overlay) = overlay() else { return };
    if !with_reference_plugins() {
        return;
    }
    let _logs = overlay.lab.logs_on_failure();
    let view = overlay.lab.add_namespace("admit").unwrap();
    let firewall = json!({ "type": "firewall", "backend": "iptables" });
    let chain = Chain::new(&overlay.lab, "admitted", &view, &[ours(&[]), firewall]);
    let dropping = Dropping::forward(&overlay);
    let result = chain.add();
    assert!(!reaches(&overlay, &address(&result, 0)), "the host's own firewall drops it");
    let asked = overlay.lab.ctl("h1", &["doctor"]).unwrap();
    let shown = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(shown.contains("chain FORWARD of table ip filter drops what it does not know"), "{shown}");
    let fixed = overlay.lab.ctl("h1", &["doctor", "--fix"]).unwrap();
    assert!(reaches(&overlay, &address(&result, 0)), "{}", String::from_utf8_lossy(&fixed.stdout));
    chain.check(&result).unwrap();
    chain.del(&result);
    drop(dropping);
    assert!(endpoints(&overlay, "h1").is_empty());
}

#[test]
fn bandwidth_of_the_reference_plugin_and_of_ours_both_shape() {
    let Some(overlay) = overlay() else { return };
    if !with_reference_plugins() {
        return;
    }
    let _logs = overlay.lab.logs_on_failure();
    let host = overlay.lab.host("h1").unwrap().view();
    let rates = json!({ "bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 800_000,
    } });
    let view = overlay.lab.add_namespace("shaped").unwrap();
    let theirs = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let mut chain = Chain::new(&overlay.lab, "shaped", &view, &[ours(&[]), theirs]);
    chain.runtime = rates.clone();
    let result = chain.add();
    // One queue on the host's end for what the container gets, and a device of its own for what it sends.
    let link = result["interfaces"][0]["name"].as_str().unwrap();
    let queues = |device: &str| run_in(host, &["tc", "qdisc", "show", "dev", device]).unwrap_or_default();
    assert!(queues(link).contains("tbf") && queues(link).contains("8Mbit"), "{}", queues(link));
    let devices = run_in(host, &["ip", "-o", "link", "show", "type", "ifb"]).unwrap();
    assert_eq!(devices.lines().count(), 1, "{devices}");
    chain.check(&result).unwrap();
    assert!(reaches(&overlay, &address(&result, 0)));
    assert!(!overlay.lab.ctl_ok("h1", &["limit", "list"]).unwrap().contains("eth0"), "ours was not asked");
    chain.del(&result);
    assert_eq!(run_in(host, &["ip", "-o", "link", "show", "type", "ifb"]).unwrap(), "");
    // The same rates by our own capability: no device, a limit of the daemon's.
    let view = overlay.lab.add_namespace("limited").unwrap();
    let mut own = Chain::new(&overlay.lab, "limited", &view, &[ours(&["bandwidth"])]);
    own.runtime = rates;
    let result = own.add();
    let limits = overlay.lab.ctl_ok("h1", &["limit", "list"]).unwrap();
    assert!(limits.contains("8 Mbit/s") && limits.contains("16 Mbit/s"), "{limits}");
    assert_eq!(run_in(host, &["ip", "-o", "link", "show", "type", "ifb"]).unwrap(), "");
    own.check(&result).unwrap();
    own.del(&result);
    assert!(!overlay.lab.ctl_ok("h1", &["limit", "list"]).unwrap().contains("Mbit/s"));
    assert!(endpoints(&overlay, "h1").is_empty());
}

/// A second interface on the wire of the host, made by the reference plugin, beside the overlay's.
#[test]
fn macvlan_of_the_reference_plugin_stands_beside_ours() {
    let Some(overlay) = overlay() else { return };
    if !with_reference_plugins() {
        return;
    }
    let _logs = overlay.lab.logs_on_failure();
    let view = overlay.lab.add_namespace("both").unwrap();
    let first = Chain::new(&overlay.lab, "both", &view, &[ours(&[])]);
    let result = first.add();
    let ipam = json!({ "type": "static", "addresses": [{ "address": "192.0.2.77/24" }] });
    let macvlan = json!({ "type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam });
    let tuning = json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.net1.arp_notify": "1" } });
    let second = Chain { interface: "net1", ..Chain::new(&overlay.lab, "both", &view, &[macvlan, tuning]) };
    let beside = second.add();
    assert_eq!(address(&beside, 0), "192.0.2.77");
    first.check(&result).unwrap();
    second.check(&beside).unwrap();
    // The overlay by one, the hosts' own wire by the other.
    assert!(reaches(&overlay, &address(&result, 0)));
    assert!(ping(&view, "-c 2 -i 0.05 -W 2", &overlay.container("h2c1").v4.to_string()).unwrap().is_lossless());
    let routed = run_in(&view, &["ip", "route", "get", "192.0.2.254"]).unwrap();
    assert!(routed.contains("dev net1"), "{routed}");
    second.del(&beside);
    assert!(reaches(&overlay, &address(&result, 0)), "ours does not go with it");
    first.check(&result).unwrap();
    first.del(&result);
    let left = run_in(&view, &["ip", "-o", "link"]).unwrap();
    assert_eq!(left.lines().count(), 1, "{left}");
    netns::remove(view.namespace()).unwrap();
    assert!(endpoints(&overlay, "h1").is_empty());
}
