//! Tests of the whole module in throw-away network namespaces; they need root and skip loudly without it.

pub(crate) mod namespaces;

use std::path::Path;

use super::desired::Attachment;
use super::*;

/// A configuration with both families, as the tests of this module use it.
pub(crate) fn config(state_dir: &Path) -> PlumbingConfig {
    PlumbingConfig {
        interface: "overlay0".into(),
        mtu: 1420,
        txqueuelen: 1000,
        host_addresses: vec!["10.42.1.1".parse().unwrap(), "fd42:0:0:1::1".parse().unwrap()],
        own_prefixes: vec!["10.42.1.0/24".parse().unwrap(), "fd42:0:0:1::/64".parse().unwrap()],
        pool: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
        tables: Tables { local: 1001, overlay: 1002, egress: 1003 },
        rule_priority: 100,
        route_protocol: 99,
        mark_container: 0x100,
        mark_socket: 0x200,
        group: 42,
        nft_table: "overlay".into(),
        masquerade: Masquerade::On,
        underlay_tracking: UnderlayTracking::Skip,
        listen_port: 51821,
        state_dir: state_dir.to_owned(),
    }
}

#[test]
fn learned_prefix_inside_the_pool_or_announced_here_adds_no_route() {
    let config = config(Path::new("/nowhere"));
    let learned = LearnedRoutes {
        remote: vec![
            "10.42.2.0/24".parse().unwrap(),
            "192.168.7.0/24".parse().unwrap(),
            "192.168.9.0/24".parse().unwrap(),
        ],
        announced: vec!["192.168.9.0/24".parse().unwrap()],
        ..LearnedRoutes::default()
    };
    let found: Vec<String> = desired::overlay_destinations(&config, &learned).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.42.0.0/16", "192.168.7.0/24", "fd42::/48"]);
}

#[test]
fn attachment_without_interface_has_no_route_but_its_prefix_is_unreachable() {
    let config = config(Path::new("/nowhere"));
    let attachment = Attachment {
        host_ifname: "ov1".into(),
        bridge: None,
        index: None,
        addresses: vec!["10.42.1.4".parse().unwrap()],
    };
    let routes = desired::routes(&config, &LearnedRoutes::default(), &[attachment], 7);
    let local: Vec<_> = routes.iter().filter(|(key, _)| key.table == 1001).collect();
    assert_eq!(local.len(), 2);
    assert!(local.iter().all(|(_, spec)| spec.target == desired::Target::Unreachable));
}

#[test]
fn overlay_of_one_family_has_no_rules_of_the_other() {
    let mut config = config(Path::new("/nowhere"));
    assert_eq!(desired::rules(&config).len(), 8);
    config.own_prefixes.truncate(1);
    config.pool.truncate(1);
    let rules = desired::rules(&config);
    assert_eq!(rules.len(), 4);
    assert!(rules.iter().all(|rule| rule.family == desired::Family::V4));
}
