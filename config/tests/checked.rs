//! What is accepted, what is refused, and where problems are said to be.

use overlay_config::{Applies, Config, ForeignKind, Layer, MembershipLayer, OriginLayer, Problems, Role, diff};
use overlay_wire::Encapsulation;
use overlay_wire::policy::DefaultPolicy;
use proptest::prelude::*;

const KEY_A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const KEY_B: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A configuration with every section; tests change one thing.
fn full() -> String {
    format!(
        r#"[node]
name = "h1"
prefixes = ["10.42.1.0/24", "fd42:0:0:1::/64"]
announce = ["192.168.7.0/24"]
endpoints = ["192.0.2.1:51821"]

[overlay]
cluster = "prod"
pool = ["10.42.0.0/16", "fd42::/48"]
mtu = 1420
trusted_underlay = ["192.0.2.0/24"]
private_key_file = "/etc/overlay/wireguard.key"

[[member]]
name = "h2"
identity = "{KEY_A}"
endpoint = "192.0.2.2:51821"
allow = ["10.42.2.0/24", "10.42.0.0/16 max 24"]
encapsulation = "gre"

[[peer]]
name = "office"
public_key = "{KEY_B}"
endpoint = "198.51.100.7:51820"
allowed_ips = ["10.99.0.0/24"]
preshared_key_file = "/etc/overlay/office.psk"
persistent_keepalive = 25

[[peer]]
name = "old"
encapsulation = "gre"
endpoint = "192.0.2.9"
allowed_ips = ["10.98.0.0/24"]
gre_key = 7

[policy]
default = "deny"
rules = ["allow tcp/443 from any to 10.42.1.0/24"]

[limits]
conntrack_entries = 4096

[paths]
state_dir = "/tmp/state"

[log]
level = "debug"
"#
    )
}

const MINIMAL: &str = "[node]\nname = \"h1\"\nprefixes = [\"10.42.1.0/24\"]\n[overlay]\npool = [\"10.42.0.0/16\"]\n";

fn problems(text: &str) -> Problems {
    Config::parse(text, "f.toml").expect_err("the configuration is refused")
}

/// The problems of `full()` with one text replaced.
fn replaced(from: &str, to: &str) -> String {
    let text = full();
    assert!(text.contains(from), "{from} is not in the text");
    problems(&text.replacen(from, to, 1)).to_string()
}

#[test]
fn full_configuration_is_read_as_written() {
    let config = Config::parse(&full(), "f.toml").expect("it is valid");
    assert_eq!(config.node.name, "h1");
    assert_eq!(config.node.identity_file.to_str(), Some("/tmp/state/identity.key"));
    assert_eq!(config.paths.socket.to_str(), Some("/run/overlay/overlayd.sock"));
    assert_eq!(config.members[0].encapsulation, Some(Encapsulation::Gre));
    assert_eq!(config.members[0].allow[1].to_string(), "10.42.0.0/16 max 24");
    assert!(matches!(
        config.peers[0].kind,
        ForeignKind::Wireguard { persistent_keepalive: Some(25), endpoint: Some(_), .. }
    ));
    assert!(matches!(config.peers[1].kind, ForeignKind::Gre { key: Some(7), checksum: false, .. }));
    assert_eq!(config.policy.rules.len(), 1);
    assert_eq!(config.limits.conntrack_entries, 4096);
}

#[test]
fn defaults_table_says_what_an_empty_file_gets() {
    let config = Config::parse(MINIMAL, "f.toml").expect("it is valid");
    let shown: Vec<(String, String)> = config
        .settings()
        .into_iter()
        .filter(|setting| setting.origin.layer == OriginLayer::Default)
        .map(|setting| (setting.key, setting.value))
        .collect();
    let table: Vec<(String, String)> = overlay_config::defaults::TABLE
        .iter()
        .map(|default| (default.key.to_owned(), default.value.to_owned()))
        .collect();
    assert_eq!(shown, table);
}

#[test]
fn metrics_are_on_loopback_elsewhere_or_off() {
    let listen = |text: &str| {
        let text = format!("{MINIMAL}[metrics]\nlisten = \"{text}\"\n");
        Config::parse(&text, "f.toml").map(|config| config.metrics.listen.map(|address| address.to_string()))
    };
    assert_eq!(Config::parse(MINIMAL, "f").expect("valid").metrics.listen, "127.0.0.1:9821".parse().ok());
    assert_eq!(listen("off").expect("valid"), None);
    assert_eq!(listen("[::1]:9100").expect("valid").as_deref(), Some("[::1]:9100"));
    for text in ["on", "9821", "localhost:9821", "127.0.0.1", "127.0.0.1:0"] {
        let problems = listen(text).expect_err("refused").to_string();
        assert!(problems.contains("metrics.listen"), "{problems}");
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let text = "[node]\nname = \"H1\"\nprefixes = [\n  \"10.42.1.0/24\",\n  \"10.42.1.9/24\",\n]\ncolour = 1\n\
                [overlay]\npool = 7\nlisten_port = 0\nmtu = \"big\"\ninterface = \"a/b\"\n\n[[member]]\nname = \"h2\"\n\
                identity = \"short\"\n\n[plumbing.tables]\nlocal = -1\n";
    let lines: Vec<(usize, String)> =
        problems(text).0.into_iter().map(|problem| (problem.place.line, problem.key)).collect();
    let expected = [
        (2, "node.name"),
        (5, "node.prefixes"),
        (7, "node.colour"),
        (9, "overlay.pool"),
        (10, "overlay.listen_port"),
        (11, "overlay.mtu"),
        (12, "overlay.interface"),
        (14, "member[h2].allow"),
        (16, "member[h2].identity"),
        (19, "plumbing.tables.local"),
    ];
    let expected: Vec<(usize, String)> = expected.iter().map(|(line, key)| (*line, (*key).to_owned())).collect();
    assert_eq!(lines, expected);
}

#[test]
fn problem_text_names_file_line_key_and_expectation() {
    assert_eq!(
        replaced("mtu = 1420", "mtu = 99999"),
        "error[CONFIG]: f.toml:10: overlay.mtu: 99999 is out of range; expected an integer from 576 to 65535, or \"auto\""
    );
    assert_eq!(
        replaced("conntrack_entries", "contrack_entries"),
        "error[CONFIG]: f.toml:41: limits.contrack_entries: unknown key; expected `conntrack_entries`, perhaps"
    );
    let text = problems("[node\nname=").to_string();
    assert!(text.starts_with("error[CONFIG]: f.toml:1: ") && text.contains("valid TOML"), "{text}");
}

#[test]
fn cross_checks_refuse_what_does_not_fit_together() {
    for (from, to, key, part) in [
        ("prefixes = [\"10.42.1.0/24\"", "prefixes = [\"10.43.1.0/24\"", "node.prefixes", "outside the pool"),
        ("prefixes = [\"10.42.1.0/24\"", "prefixes = [\"10.42.1.0/30\"", "node.prefixes", "no address left"),
        (
            "prefixes = [\"10.42.1.0/24\",",
            "prefixes = [\"10.42.1.0/24\", \"10.42.1.128/25\",",
            "node.prefixes",
            "overlaps",
        ),
        ("prefixes = [\"10.42.1.0/24\", \"fd42:0:0:1::/64\"]", "prefixes = []", "node.prefixes", "empty list"),
        ("192.0.2.2:51821", "10.42.9.9:51821", "member[h2].endpoint", "lies inside the overlay prefix 10.42.0.0/16"),
        ("192.0.2.1:51821", "192.168.7.1:51821", "node.endpoints", "node.announce"),
        ("198.51.100.7:51820", "10.98.0.7:51820", "peer[office].endpoint", "peer[old].allowed_ips"),
        ("192.0.2.2:51821", "203.0.113.2:51821", "member[h2].encapsulation", "untrusted underlay"),
        ("endpoint = \"192.0.2.9\"", "endpoint = \"203.0.113.9\"", "peer[old].endpoint", "untrusted underlay"),
        (
            "endpoints = [\"192.0.2.1:51821\"]",
            "endpoints = [\"203.0.113.1:51821\"]",
            "node.endpoints",
            "no own endpoint",
        ),
        (
            "cluster = \"prod\"",
            "encapsulation = \"ipip\"\ncluster = \"prod\"\n[[member]]\nname = \"h3\"\nidentity = \"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\nallow = []\n[overlay_]",
            "overlay_",
            "unknown key",
        ),
        ("private_key_file = \"/etc/overlay/wireguard.key\"\n", "", "peer[office]", "needs a key of this host"),
        ("name = \"office\"", "name = \"h2\"", "peer[h2]", "named h2 too"),
        ("name = \"office\"", "name = \"h1\"", "peer[h1]", "own name"),
        (
            "allowed_ips = [\"10.98.0.0/24\"]",
            "allowed_ips = [\"10.99.0.0/24\"]",
            "peer[old].allowed_ips",
            "belongs to peer office",
        ),
        (
            "allowed_ips = [\"10.98.0.0/24\"]",
            "allowed_ips = [\"10.42.1.128/25\"]",
            "peer[old].allowed_ips",
            "this host's own",
        ),
        ("gre_key = 7", "public_key = \"x\"", "peer[old].public_key", "not a key of a peer with encapsulation gre"),
        (
            "encapsulation = \"gre\"\nendpoint",
            "encapsulation = \"ipip\"\nendpoint",
            "peer[old].gre_key",
            "not a key of an ipip peer",
        ),
        ("persistent_keepalive = 25", "preshared_key = \"abc\"", "peer[office].preshared_key", "never written"),
        ("cluster = \"prod\"", "private_key = \"abc\"", "overlay.private_key", "never written"),
        ("rules = [\"allow tcp/443", "rules = [\"permit tcp/443", "policy.rules", "permit"),
        ("state_dir = \"/tmp/state\"", "state_dir = \"state\"", "paths.state_dir", "absolute"),
        ("max 24", "max 8", "member[h2].allow", "max 8 does not fit"),
        (
            "endpoint = \"192.0.2.2:51821\"",
            "endpoint = \"0.0.0.0:51821\"",
            "member[h2].endpoint",
            "not the address of one host",
        ),
        ("announce = [\"192.168.7.0/24\"]", "announce = [\"224.0.0.0/24\"]", "node.announce", "never routed"),
        ("[limits]", "[plumbing]\nmark_socket = 0x100\n[limits]", "plumbing.mark_socket", "mark_container too"),
        ("[limits]", "[plumbing.tables]\nlocal = 254\n[limits]", "plumbing.tables.local", "table of the kernel"),
    ] {
        let text = replaced(from, to);
        let found = text.lines().any(|line| line.contains(&format!(": {key}: ")) && line.contains(part));
        assert!(found, "{to} should give {key} … {part}, gave\n{text}");
    }
}

#[test]
fn plain_default_needs_trust_for_every_member_without_its_own() {
    let plain = MINIMAL.replace("[overlay]", "[overlay]\nencapsulation = \"ipip\"");
    assert!(problems(&plain).to_string().contains("no underlay is trusted"));
    let trusted = plain.replace("[overlay]", "[overlay]\ntrusted_underlay = [\"192.0.2.0/24\"]");
    let member = |endpoint: &str, rest: &str| {
        format!("{trusted}[[member]]\nname = \"h2\"\nidentity = \"{KEY_A}\"\nallow = []\n{endpoint}{rest}")
    };
    assert!(Config::parse(&member("endpoint = \"192.0.2.2:51821\"\n", ""), "f").is_ok());
    let outside = problems(&member("endpoint = \"203.0.113.2:51821\"\n", "")).to_string();
    assert!(outside.contains("member[h2].endpoint: ipip to 203.0.113.2"), "{outside}");
    assert!(problems(&member("", "")).to_string().contains("needs a known underlay address"));
    assert!(
        Config::parse(&member("endpoint = \"203.0.113.2:51821\"\n", "encapsulation = \"wireguard\"\n"), "f").is_ok()
    );
}

#[test]
fn more_than_a_gossip_record_holds_is_refused() {
    let list = |texts: Vec<String>| texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ");
    for (from, entry, most) in [
        ("\"192.168.7.0/24\"", "192.168.N.0/24", 46),
        ("\"192.0.2.1:51821\"", "192.0.2.N:51821", 8),
        ("\"10.42.1.0/24\", \"fd42:0:0:1::/64\"", "10.42.N.0/24", 16),
    ] {
        let text = |count: usize| {
            let entries = (101..101 + count).map(|number| entry.replace('N', &number.to_string())).collect();
            full().replacen(from, &list(entries), 1)
        };
        assert!(Config::parse(&text(most), "f").is_ok(), "{entry}: {most} fit");
        let problems = problems(&text(most + 1)).to_string();
        assert!(problems.contains(&format!("at most {most}")), "{problems}");
    }
}

#[test]
fn default_route_through_a_foreign_peer_is_not_a_loop() {
    let text = full().replace("allowed_ips = [\"10.99.0.0/24\"]", "allowed_ips = [\"0.0.0.0/0\", \"::/0\"]");
    assert!(Config::parse(&text, "f").is_ok());
}

#[test]
fn same_identity_twice_is_refused() {
    let copy =
        format!("[[member]]\nname = \"h3\"\nidentity = \"{KEY_A}\"\nendpoint = \"192.0.2.3:51821\"\nallow = []\n");
    let text = problems(&format!("{}{copy}", full())).to_string();
    assert!(text.contains("member[h3].identity: h3 and h2 have the same identity"), "{text}");
}

#[test]
fn difference_names_what_needs_a_restart() {
    let old = Config::parse(&full(), "f").expect("valid");
    assert!(diff(&old, &old).is_empty());
    let text = full().replace("mtu = 1420", "mtu = 1400").replace("\"debug\"", "\"info\"").replace("gre_key = 7", "");
    let new = Config::parse(&text, "f").expect("valid");
    let changes: Vec<_> = diff(&old, &new).into_iter().map(|c| (c.key, c.from, c.to, c.applies)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        changes,
        [
            ("log.level".to_owned(), text("debug"), text("info"), Applies::Live),
            ("overlay.mtu".to_owned(), text("1420"), text("1400"), Applies::Restart),
            ("peer[old].gre_key".to_owned(), text("7"), None, Applies::Live),
        ]
    );
}

#[test]
fn layer_is_merged_over_the_file_and_shown_as_such() {
    let layer = "version = 1\n[node]\nannounce = [\"192.168.8.0/24\"]\n[overlay]\nencapsulation = \"gre\"\n[policy]\n\
                 default = \"open\"\nrules = []\n[[set]]\nname = \"h2\"\nencapsulation = \"wireguard\"\n[[peer]]\n\
                 name = \"extra\"\nencapsulation = \"ipip\"\nendpoint = \"192.0.2.10\"\nallowed_ips = [\"10.97.0.0/24\"]\n";
    let file = full()
        .replace("encapsulation = \"gre\"\n\n[[peer]]", "\n[[peer]]")
        .replace("default = \"deny\"\nrules = [\"allow tcp/443 from any to 10.42.1.0/24\"]", "default = \"members\"");
    let config = Config::parse_layers(&file, "f.toml", Some((layer, "cli.toml"))).expect("no clash");
    assert_eq!(config.node.announce.len(), 2);
    assert_eq!(config.overlay.encapsulation, Encapsulation::Gre);
    assert_eq!(config.members[0].encapsulation, Some(Encapsulation::Wireguard));
    assert_eq!(config.policy.default.name(), "open");
    assert_eq!(config.peers.last().map(|peer| peer.name.as_str()), Some("extra"));
    let origin = |key: &str| config.origins.of(key).to_string();
    assert_eq!(origin("member[h2].encapsulation"), "cli.toml:11");
    assert_eq!(origin("member[h2].endpoint"), "f.toml:17");
    assert_eq!(origin("peer[extra].endpoint"), "cli.toml:15");
    assert_eq!(config.origins.of("peer[extra].endpoint").layer, OriginLayer::Cli);
    assert_eq!(origin("log.level"), format!("f.toml:{}", file.lines().count()));
    assert_eq!(origin("overlay.offload"), "default");
}

#[test]
fn layer_that_clashes_with_the_file_is_refused_with_both_places() {
    for (layer, key, place) in [
        ("[node]\nannounce = [\"192.168.7.0/24\"]", "node.announce", "f.toml:4"),
        ("[policy]\nrules = []", "policy", "f.toml:37"),
        ("[[set]]\nname = \"h2\"\nencapsulation = \"wireguard\"", "member[h2].encapsulation", "f.toml:19"),
        (
            "[[peer]]\nname = \"old\"\nencapsulation = \"ipip\"\nendpoint = \"192.0.2.10\"\nallowed_ips = []",
            "peer[old]",
            "f.toml:29",
        ),
    ] {
        let layer = format!("version = 1\n{layer}\n");
        let refused = Config::parse_layers(&full(), "f.toml", Some((&layer, "cli.toml"))).expect_err("a clash");
        let text = refused.to_string();
        let expected = format!(": {key}: set here by the command line and also at {place};");
        assert!(text.contains("cli.toml:") && text.contains(&expected), "{layer} gave\n{text}");
    }
    let set = "version = 1\n[[set]]\nname = \"h9\"\nencapsulation = \"gre\"\n";
    let text = Config::parse_layers(&full(), "f", Some((set, "cli"))).expect_err("no such member").to_string();
    assert!(text.contains("no such member") && text.contains("overlayctl peer set h9 encapsulation=config"), "{text}");
}

#[test]
fn cross_checks_hold_for_the_layer_too() {
    let layer =
        "version = 1\n[[peer]]\nname = \"x\"\nencapsulation = \"gre\"\nendpoint = \"203.0.113.4\"\nallowed_ips = []\n";
    let text = Config::parse_layers(&full(), "f", Some((layer, "cli"))).expect_err("untrusted").to_string();
    assert!(text.contains("cli:5: peer[x].endpoint: gre to 203.0.113.4 would cross an untrusted underlay"), "{text}");
}

#[test]
fn newer_layer_is_refused_and_missing_one_is_empty() {
    let text = Layer::parse("version = 2\nnews = 1\n", "cli").expect_err("newer").to_string();
    assert!(text.contains("version 2 was written by another release"), "{text}");
    let directory = tempfile::tempdir().expect("a directory");
    assert_eq!(Layer::load(&directory.path().join("cli-layer.toml")), Ok(Layer::default()));
}

#[test]
fn stored_layer_is_loaded_back_and_merged_by_load() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().display().to_string();
    let file = directory.path().join("overlayd.toml");
    std::fs::write(&file, full().replace("/tmp/state", &state)).expect("written");
    let mut layer = Layer::default();
    layer.announce.push("192.168.9.0/24".parse().expect("a prefix"));
    let path = directory.path().join("cli-layer.toml");
    layer.store(&path).expect("stored");
    assert_eq!(Layer::load(&path).expect("loaded"), layer);
    assert_eq!(Config::load(&file).expect("valid").node.announce.len(), 2);
    assert_eq!(Config::load_file(&file).expect("valid").node.announce.len(), 1);
    let missing = Config::load(&directory.path().join("none.toml")).expect_err("missing").to_string();
    assert!(missing.contains("none.toml") && missing.contains("readable file"), "{missing}");
}

fn membership() -> MembershipLayer {
    MembershipLayer {
        place: "/state/membership".into(),
        name: "web1".into(),
        prefixes: vec!["10.42.7.0/24".parse().expect("a prefix")],
        cluster: "prod".into(),
        pool: vec!["10.42.0.0/16".parse().expect("a prefix")],
        encapsulation: Some(Encapsulation::Gre),
        trusted_underlay: vec!["192.0.2.0/24".parse().expect("a prefix")],
        listen_port: Some(4000),
        policy: Some(DefaultPolicy::Deny),
    }
}

fn load(text: &str, layer: Option<&str>) -> Result<Config, Problems> {
    Config::parse_all(text, "f.toml", Some(&membership()), layer.map(|layer| (layer, "cli.toml")))
}

#[test]
fn file_that_names_no_host_is_standby_and_one_that_begins_to_is_refused_without_the_rest() {
    for text in ["", "[log]\nlevel = \"debug\"\n", "[node]\nendpoints = [\"192.0.2.1:51821\"]\n"] {
        let config = Config::parse(text, "f.toml").expect("standby");
        assert_eq!(config.role, Role::Standby, "{text}");
        assert!(config.node.prefixes.is_empty() && config.overlay.pool.is_empty());
    }
    assert_eq!(Config::parse(&full(), "f.toml").expect("valid").role, Role::Static);
    let member = format!("[[member]]\nname = \"h2\"\nidentity = \"{KEY_A}\"\nallow = [\"10.42.2.0/24\"]\n");
    for (text, missing) in [
        ("[node]\nname = \"h1\"\n", ["node.prefixes", "overlay.pool"].as_slice()),
        ("[overlay]\npool = [\"10.42.0.0/16\"]\n", &["node.name", "node.prefixes"]),
        (&member, &["node.name", "node.prefixes", "overlay.pool"]),
    ] {
        let problems = problems(text);
        for key in missing {
            assert!(problems.0.iter().any(|problem| problem.key == *key && problem.what == "missing"), "{text}: {key}");
        }
    }
}

#[test]
fn membership_fills_what_the_file_leaves_open_and_is_shown_as_such() {
    let config = load("[overlay]\nmtu = 1300\n", None).expect("a member");
    assert_eq!(config.role, Role::Certified);
    assert_eq!((config.node.name.as_str(), config.overlay.cluster.as_str()), ("web1", "prod"));
    assert_eq!((config.overlay.encapsulation, config.overlay.listen_port), (Encapsulation::Gre, 4000));
    assert_eq!(config.policy.default, DefaultPolicy::Deny);
    let origin = |key: &str| config.settings().into_iter().find(|setting| setting.key == key).expect(key).origin;
    assert_eq!(origin("node.prefixes").to_string(), "membership");
    assert_eq!(origin("overlay.listen_port").layer, OriginLayer::Membership);
    assert_eq!(origin("overlay.mtu").layer, OriginLayer::File);
    assert_eq!(origin("overlay.interface").layer, OriginLayer::Default);
}

#[test]
fn file_overrides_defaults_of_the_cluster_and_clashes_with_what_is_the_hosts_alone() {
    let file = "[overlay]\nlisten_port = 5000\nencapsulation = \"wireguard\"\n[policy]\ndefault = \"open\"\n";
    let config = load(file, None).expect("a member");
    assert_eq!((config.overlay.encapsulation, config.overlay.listen_port), (Encapsulation::Wireguard, 5000));
    assert_eq!(config.policy.default, DefaultPolicy::Open);
    let file =
        "[node]\nname = \"h1\"\nprefixes = [\"10.42.1.0/24\"]\n[overlay]\ncluster = \"x\"\npool = [\"10.42.0.0/16\"]\n";
    let text = load(file, None).expect_err("a clash").to_string();
    for key in ["f.toml:2: node.name", "f.toml:3: node.prefixes", "f.toml:5: overlay.cluster", "f.toml:6: overlay.pool"]
    {
        assert!(text.contains(key), "{key}: {text}");
    }
    assert!(text.contains("overlayctl leave"), "{text}");
}

#[test]
fn unencrypted_default_of_the_cluster_counts_only_where_an_underlay_is_trusted() {
    let layer = MembershipLayer { trusted_underlay: Vec::new(), ..membership() };
    let used =
        |text: &str| Config::parse_all(text, "f.toml", Some(&layer), None).expect("a member").overlay.encapsulation;
    assert_eq!(used(""), Encapsulation::Wireguard);
    assert_eq!(used("[overlay]\ntrusted_underlay = [\"192.0.2.0/24\"]\n"), Encapsulation::Gre);
}

#[test]
fn encapsulation_with_a_member_by_certificate_is_set_by_its_name() {
    let layer = "version = 1\n[[set]]\nname = \"web2\"\nencapsulation = \"wireguard\"\n";
    let config = load("", Some(layer)).expect("members by certificate are in no file");
    assert_eq!(config.encapsulation_with("web2"), Encapsulation::Wireguard);
    assert_eq!(config.encapsulation_with("web3"), Encapsulation::Gre);
    let shown = config.settings().into_iter().find(|setting| setting.key == "member[web2].encapsulation");
    let shown = shown.expect("it is shown");
    assert_eq!((shown.value.as_str(), shown.origin.layer), ("wireguard", OriginLayer::Cli));
}

#[test]
fn command_line_overrides_defaults_of_the_cluster() {
    let layer = "version = 1\n[overlay]\nencapsulation = \"ipip\"\n[policy]\ndefault = \"open\"\nrules = []\n";
    let config = load("", Some(layer)).expect("no clash");
    assert_eq!(config.overlay.encapsulation, Encapsulation::Ipip);
    assert_eq!(config.policy.default, DefaultPolicy::Open);
    assert_eq!(config.origins.of("overlay.encapsulation").layer, OriginLayer::Cli);
}

fn layer() -> impl Strategy<Value = Layer> {
    let prefix = (any::<std::net::Ipv4Addr>(), 8u8..=32)
        .prop_filter_map("routable", |(ip, len)| overlay_wire::Prefix::truncating(ip.into(), len).ok())
        .prop_filter("routable", |prefix| {
            ["127.0.0.0/8", "224.0.0.0/3", "169.254.0.0/16"]
                .iter()
                .all(|never| !never.parse::<overlay_wire::Prefix>().expect("a prefix").overlaps(prefix))
        });
    let path = "/[a-z\"\\\\ \\t\u{7f}]{1,12}".prop_map(std::path::PathBuf::from);
    let kind = prop_oneof![
        (any::<[u8; 32]>(), prop::option::of(path), prop::option::of(1u16..)).prop_map(|(key, psk, keepalive)| {
            ForeignKind::Wireguard {
                public_key: overlay_config::PublicKey(key),
                endpoint: Some("[2001:db8::1]:51820".parse().expect("an address")),
                preshared_key_file: psk,
                persistent_keepalive: keepalive,
            }
        }),
        (prop::option::of(any::<u32>()), any::<bool>(), any::<bool>()).prop_map(|(key, checksum, sequence)| {
            ForeignKind::Gre { endpoint: "192.0.2.9".parse().expect("an address"), key, checksum, sequence }
        }),
    ];
    let peer = ("[a-z0-9]{1,8}", prop::collection::vec(prefix.clone(), 0..3), kind)
        .prop_map(|(name, allowed_ips, kind)| overlay_config::ForeignPeer { name, allowed_ips, kind });
    let encapsulation = prop::sample::select(Encapsulation::ALL.to_vec());
    (
        prop::collection::vec(prefix, 0..4),
        prop::option::of(encapsulation.clone()),
        prop::collection::btree_map("[a-z]{1,6}", encapsulation, 0..3),
        prop::collection::vec(peer, 0..3),
        any::<bool>(),
    )
        .prop_map(|(announce, encapsulation, member_encapsulation, peers, policy)| Layer {
            announce,
            encapsulation,
            member_encapsulation,
            peers,
            policy: policy.then(|| "default deny\nallow icmp from any to any name \"x\"".parse().unwrap_or_default()),
        })
}

proptest! {
    #[test]
    fn any_layer_parses_back_from_its_text(layer in layer()) {
        prop_assert_eq!(Layer::parse(&layer.to_toml(), "cli"), Ok(layer));
    }

    #[test]
    fn any_text_gives_a_configuration_or_problems(text in ".{0,200}") {
        if let Err(problems) = Config::parse(&text, "f") {
            prop_assert!(!problems.0.is_empty());
        }
    }

    #[test]
    fn damaged_configuration_never_panics(at in 0usize..1000, byte in 0x20u8..0x7f) {
        let mut bytes = full().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let text = String::from_utf8(bytes).expect("ASCII stays ASCII");
        if let Err(problems) = Config::parse_layers(&text, "f", Some((&text, "cli"))) {
            prop_assert!(!problems.0.is_empty());
        }
    }
}
