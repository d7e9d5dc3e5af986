//! The plugin called as dockerd calls it: what was recorded from dockerd, and what nobody should send.

use serde_json::{Value, json};
use std::path::Path;

use super::engine::{Docker, call, exchange};
use super::{book, endpoints, nothing_left, overlay};

/// A call that must succeed.
fn ok(socket: &Path, path: &str, body: &Value) -> Value {
    let (status, answer) = call(socket, path, &body.to_string());
    assert!(status == 200 && answer.get("Err").is_none(), "{path} {body}: {status} {answer}");
    answer
}

/// The way of one container as dockerd 20.10 tells it, in both families, with every field it sends, and each call repeated that
/// dockerd may repeat.
#[test]
fn recorded_life_of_a_container_is_answered_and_repeating_what_gives_back_is_fine() {
    let Some(overlay) = overlay() else { return };
    let mut docker = Docker::new(&overlay.lab, "h1");
    docker.start_plugin();
    let socket = docker.plugin_socket();
    assert_eq!(ok(&socket, "/Plugin.Activate", &Value::Null), json!({ "Implements": ["NetworkDriver", "IpamDriver"] }));
    assert_eq!(ok(&socket, "/NetworkDriver.GetCapabilities", &Value::Null)["Scope"], "local");
    assert_eq!(ok(&socket, "/IpamDriver.GetCapabilities", &Value::Null)["RequiresMACAddress"], false);
    let spaces = ok(&socket, "/IpamDriver.GetDefaultAddressSpaces", &Value::Null);
    let space = spaces["LocalDefaultAddressSpace"].clone();
    let (network, endpoint) = ("d7345bc74b72".repeat(5), "881e061b847c".repeat(5));
    let mut data = Vec::new();
    let mut pools = Vec::new();
    for v6 in [false, true] {
        let pool = ok(
            &socket,
            "/IpamDriver.RequestPool",
            &json!({ "AddressSpace": space, "Pool": "", "SubPool": "", "Options": { "network": "recorded" }, "V6": v6 }),
        );
        let gateway = ok(
            &socket,
            "/IpamDriver.RequestAddress",
            &json!({ "PoolID": pool["PoolID"], "Address": "",
                "Options": { "RequestAddressType": "com.docker.network.gateway" } }),
        );
        data.push(json!([{ "AddressSpace": space, "Gateway": gateway["Address"], "Pool": pool["Pool"] }]));
        pools.push(pool["PoolID"].clone());
    }
    let create = json!({ "NetworkID": network, "IPv4Data": data[0], "IPv6Data": data[1],
        "Options": { "com.docker.network.enable_ipv6": true, "com.docker.network.generic": {} } });
    assert_eq!(ok(&socket, "/NetworkDriver.CreateNetwork", &create), json!({}));
    let ask = |pool: &Value| {
        ok(&socket, "/IpamDriver.RequestAddress", &json!({ "PoolID": pool, "Address": "", "Options": null }))["Address"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (v4, v6) = (ask(&pools[0]), ask(&pools[1]));
    assert!(v4.ends_with("/32") && v6.ends_with("/128"), "{v4} {v6}");
    let create = json!({ "NetworkID": network, "EndpointID": endpoint,
        "Interface": { "Address": v4, "AddressIPv6": v6, "MacAddress": "" },
        "Options": { "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [] } });
    let interface = ok(&socket, "/NetworkDriver.CreateEndpoint", &create)["Interface"].clone();
    assert!(interface["MacAddress"].as_str().unwrap().starts_with("02:") && interface.get("Address").is_none());
    let join = json!({ "NetworkID": network, "EndpointID": endpoint, "SandboxKey": "/var/run/docker/netns/057e1b985444",
        "Options": { "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [] } });
    let answer = ok(&socket, "/NetworkDriver.Join", &join);
    assert_eq!(ok(&socket, "/NetworkDriver.Join", &join), answer, "dockerd repeats a call that it got no answer to");
    assert!(answer["InterfaceName"]["SrcName"].as_str().unwrap().starts_with("op"), "{answer}");
    assert!(answer["Gateway"].as_str().unwrap().starts_with("10.42.1."), "{answer}");
    assert!(answer["GatewayIPv6"].as_str().unwrap().starts_with("fd42:0:0:1:"), "{answer}");
    assert_eq!(endpoints(&overlay, "h1").len(), 1);
    assert_eq!(endpoints(&overlay, "h1")[0].network.as_deref(), Some("recorded"));
    assert_eq!(book(&overlay, "h1").held.len(), 4);
    let one = json!({ "NetworkID": network, "EndpointID": endpoint });
    ok(&socket, "/NetworkDriver.ProgramExternalConnectivity", &one);
    assert_eq!(ok(&socket, "/NetworkDriver.EndpointOperInfo", &one), json!({ "Value": {} }));
    for _ in 0..2 {
        ok(&socket, "/NetworkDriver.RevokeExternalConnectivity", &one);
        ok(&socket, "/NetworkDriver.Leave", &one);
        ok(&socket, "/NetworkDriver.DeleteEndpoint", &one);
        for (pool, address) in pools.iter().zip([&v4, &v6]) {
            let address = address.split('/').next().unwrap();
            ok(&socket, "/IpamDriver.ReleaseAddress", &json!({ "PoolID": pool, "Address": address }));
        }
    }
    assert!(endpoints(&overlay, "h1").is_empty());
    assert_eq!(book(&overlay, "h1").held.len(), 2, "the gateways are the network's");
    for _ in 0..2 {
        pools.iter().for_each(|pool| drop(ok(&socket, "/IpamDriver.ReleasePool", &json!({ "PoolID": pool }))));
        ok(&socket, "/NetworkDriver.DeleteNetwork", &json!({ "NetworkID": network }));
    }
    nothing_left(&overlay, "h1");
}

#[test]
fn hostile_calls_are_refused_in_words_and_leave_nothing() {
    let Some(overlay) = overlay() else { return };
    let mut docker = Docker::new(&overlay.lab, "h1");
    docker.start_plugin();
    let socket = docker.plugin_socket();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let long_id = "a".repeat(1000);
    let bodies = [
        ("/IpamDriver.RequestPool", "".to_owned()),
        ("/IpamDriver.RequestPool", "{".to_owned()),
        ("/IpamDriver.RequestPool", deep),
        ("/IpamDriver.RequestPool", r#"{"Pool":7}"#.to_owned()),
        ("/IpamDriver.RequestPool", r#"{"Pool":"10.42.1.0/99"}"#.to_owned()),
        ("/IpamDriver.RequestPool", r#"{"Pool":"../../etc"}"#.to_owned()),
        ("/IpamDriver.RequestPool", r#"{"V6":"yes"}"#.to_owned()),
        ("/IpamDriver.RequestPool", r#"{"Options":{"network":"../x"}}"#.to_owned()),
        ("/IpamDriver.RequestAddress", r#"{"PoolID":"../../etc/passwd","Address":""}"#.to_owned()),
        ("/IpamDriver.RequestAddress", r#"{"PoolID":"x","Address":"no address"}"#.to_owned()),
        ("/NetworkDriver.CreateNetwork", r#"{"NetworkID":"../../x","IPv4Data":[]}"#.to_owned()),
        ("/NetworkDriver.CreateNetwork", format!(r#"{{"NetworkID":"{long_id}"}}"#)),
        ("/NetworkDriver.CreateNetwork", r#"{"NetworkID":"n","IPv4Data":[]}"#.to_owned()),
        ("/NetworkDriver.CreateEndpoint", r#"{"NetworkID":"n","EndpointID":"a/b"}"#.to_owned()),
        ("/NetworkDriver.CreateEndpoint", r#"{"NetworkID":"n","EndpointID":"e"}"#.to_owned()),
        ("/NetworkDriver.Join", r#"{"NetworkID":"n","EndpointID":"e","SandboxKey":"/x"}"#.to_owned()),
        ("/NetworkDriver.Join", r#"{"NetworkID":null,"EndpointID":[]}"#.to_owned()),
        ("/NetworkDriver.Leave", r#"{"NetworkID":"n","EndpointID":"\u0000"}"#.to_owned()),
        ("/NetworkDriver.AllocateNetwork", "{}".to_owned()),
        ("/../../etc/passwd", "{}".to_owned()),
    ];
    for (path, body) in &bodies {
        let (status, answer) = call(&socket, path, body);
        let said = answer["Err"].as_str().unwrap_or_else(|| panic!("{path} {body}: {status} {answer}"));
        assert!(said.starts_with("overlayd: ") && answer["Error"] == answer["Err"], "{path}: {said}");
    }
    // More than a MiB, a head that never ends, and no HTTP at all: refused or closed, and others are served.
    let (status, _) = call(&socket, "/IpamDriver.RequestPool", &"x".repeat((1 << 20) + 1));
    assert_eq!(status, 400);
    let endless = format!("POST / HTTP/1.1\r\nX: {}", "y".repeat(1 << 20));
    assert!(exchange(&socket, &[endless.as_bytes()]).len() < 1024);
    assert!(exchange(&socket, &[b"\x00\x01\x02\r\n\r\n"]).len() < 1024);
    assert!(exchange(&socket, &[b"GET /Plugin.Activate HTTP/1.0\r\n\r\n"]).starts_with(b"HTTP/1.0 400"));
    let silent: Vec<_> = (0..20).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(call(&socket, "/Plugin.Activate", "").0, 200);
    drop(silent);
    nothing_left(&overlay, "h1");
}
