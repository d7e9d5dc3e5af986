//! The result of ADD, in the form of the version asked for.

use std::net::IpAddr;

use overlay_control::api::EndpointLease;
use serde_json::{Map, Value, json};

use super::config::NetworkConfig;
use super::inspect::Interface;

/// Where the container's interface stands in `interfaces`.
const INSIDE: usize = 1;

pub(super) fn added(
    config: &NetworkConfig,
    lease: &EndpointLease,
    netns: &str,
    host: &Interface,
    inside: &Interface,
    dns: Map<String, Value>,
) -> Value {
    let mut interfaces = vec![
        json!({ "name": host.name, "mac": host.mac }),
        json!({ "name": inside.name, "mac": inside.mac, "sandbox": netns }),
    ];
    if config.is_at_least("1.1.0") {
        for (shown, interface) in interfaces.iter_mut().zip([host, inside]) {
            shown["mtu"] = json!(interface.mtu);
        }
    }
    let ips = lease.addresses.iter().map(|address| {
        let mut shown = Map::new();
        if !config.is_at_least("1.0.0") {
            shown.insert("version".to_owned(), json!(if address.is_ipv4() { "4" } else { "6" }));
        }
        shown.insert("interface".to_owned(), json!(INSIDE));
        shown.insert("address".to_owned(), json!(format!("{address}/{}", host_length(*address))));
        if let Some(gateway) = gateway(lease, *address) {
            shown.insert("gateway".to_owned(), json!(gateway));
        }
        Value::Object(shown)
    });
    let routes = lease.gateways.iter().map(|gateway| {
        let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        json!({ "dst": everything, "gw": gateway })
    });
    json!({
        "cniVersion": config.version,
        "interfaces": interfaces,
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns,
    })
}

/// The prefix length of one address alone.
pub(super) fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn gateway(lease: &EndpointLease, address: IpAddr) -> Option<IpAddr> {
    lease.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(version: &str) -> Value {
        let text = format!(r#"{{"cniVersion":"{version}","name":"n","dns":{{"nameservers":["10.42.1.1"]}}}}"#);
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        let lease = EndpointLease {
            lease: 1,
            name: "n".into(),
            host_interface: "ov1".into(),
            peer_interface: "op1".into(),
            interface: "eth0".into(),
            addresses: vec!["10.42.1.4".parse().unwrap(), "fd42::4".parse().unwrap()],
            gateways: vec!["10.42.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
            network: None,
            on_link: Vec::new(),
            mtu: 1420,
            expires_ms: 1,
        };
        let link = |name: &str| -> Interface {
            serde_json::from_value(json!({ "ifname": name, "address": "02:00:00:00:00:01", "mtu": 1420 })).unwrap()
        };
        let dns = config.dns.clone().unwrap_or_default();
        added(&config, &lease, "/run/netns/x", &link("ov1"), &link("eth0"), dns)
    }

    #[test]
    fn newest_form_has_mtu_and_no_version_of_addresses() {
        let result = shown("1.1.0");
        assert_eq!(
            result["interfaces"][1],
            json!({ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x", "mtu": 1420 })
        );
        assert_eq!(result["ips"][0], json!({ "interface": 1, "address": "10.42.1.4/32", "gateway": "10.42.1.1" }));
        assert_eq!(result["ips"][1]["address"], "fd42::4/128");
        assert_eq!(result["routes"][1], json!({ "dst": "::/0", "gw": "fe80::1" }));
        assert_eq!(result["dns"], json!({ "nameservers": ["10.42.1.1"] }));
    }

    #[test]
    fn older_forms_name_the_family_and_know_no_mtu() {
        for version in ["0.3.1", "0.4.0"] {
            let result = shown(version);
            assert_eq!((&result["cniVersion"], &result["ips"][1]["version"]), (&json!(version), &json!("6")));
            assert!(result["interfaces"][0].get("mtu").is_none());
        }
        assert!(shown("1.0.0")["ips"][0].get("version").is_none());
    }
}
