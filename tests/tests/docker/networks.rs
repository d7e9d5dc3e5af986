//! Docker networks are networks of the cluster by their names, and containers have names on all hosts.

use overlay_control::api::Request;
use overlay_netns_harness::wait_for;
use overlay_wire::Prefix;
use overlay_wire::policy::PolicySet;
use serde_json::json;

use super::engine::{DEFAULT, DRIVER, Docker};
use super::{LIMIT, Outsider, endpoints, networks, nothing_left, overlay};

/// What a container gets from its host for a name.
fn look_up(docker: &Docker<'_>, container: &str, name: &str) -> Option<String> {
    let output = docker.output(&format!("exec {container} nslookup {name}"));
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn docker_network_of_one_name_on_two_hosts_is_one_network_apart_from_others() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (mut one, two) = (Docker::started(&overlay.lab, "h1"), Docker::started(&overlay.lab, "h2"));
    for docker in [&one, &two] {
        docker.run(&format!("network create {DRIVER} --ipv6 front"));
        // As Docker does where it switches forwarding on itself.
        assert!(docker.command(&["iptables", "-P", "FORWARD", "DROP"]).status().unwrap().success());
    }
    one.run(&format!("network create {DRIVER} back"));
    one.run(&format!("network create {DRIVER} {DEFAULT} plain"));
    // The name is known to the cluster before there is a container.
    wait_for("the networks to be known", LIMIT, || (networks(&overlay, "h1").len() == 2).then_some(())).unwrap();
    one.start("web", "--network front --mac-address 02:00:00:00:00:80", "httpd -f -p 80 -h /");
    two.start("client", "--network front --network-alias asker", "sleep 600");
    one.start("db", "--network back", "sleep 600");
    one.start("common", "--network plain", "sleep 600");
    let (web, client) = (one.address("web", "front"), two.address("client", "front"));
    assert!(web.starts_with("10.42.1.") && client.starts_with("10.42.2."), "{web} {client}");
    assert!(one.run("exec web ip link show dev eth0").contains("02:00:00:00:00:80"));
    // Both ways, both families, at once; and the gateway of the network, which is the host.
    let page = two.fetch("client", &web);
    assert!(page.starts_with("HTTP/1.") && page.ends_with("the page"), "{page:?}");
    assert!(one.pings("web", &client));
    let v6 = one.run("inspect -f {{.NetworkSettings.Networks.front.GlobalIPv6Address}} web");
    let own: Prefix = "fd42:0:0:1::/64".parse().unwrap();
    assert!(own.contains(v6.parse().unwrap()) && two.pings("client", &v6), "{v6}");
    let gateway = two.run("inspect -f {{.NetworkSettings.Networks.front.Gateway}} client");
    assert!(gateway.starts_with("10.42.2.") && two.pings("client", &gateway), "{gateway}");
    // A neighbour on the same host, and one that Docker does not know in the same network.
    two.start("neighbour", "--network front", "sleep 600");
    assert!(two.pings("client", &two.address("neighbour", "front")));
    let outsider = Outsider::attach(&overlay, "h2", "h2front", "front");
    assert!(outsider.reaches(&web) && two.pings("client", &outsider.container.v4.to_string()));
    // Other networks are closed, on the same host and on the other; the control is what reaches them.
    let (db, common) = (one.address("db", "back"), one.address("common", "plain"));
    let lab = overlay.container("h2c1").v4.to_string();
    assert!(one.pings("common", &lab) && overlay.reaches("h2c1", common.parse().unwrap()));
    for (docker, from, to) in
        [(&one, "db", &web), (&one, "web", &db), (&two, "client", &db), (&two, "client", &common), (&one, "web", &lab)]
    {
        assert!(docker.misses(from, to), "{from} reaches {to}");
    }
    assert!(!overlay.reaches("h2c1", web.parse().unwrap()) && !outsider.reaches(&db));
    // Unless a rule says so.
    let policy: PolicySet =
        serde_json::from_value(json!({ "rules": ["allow icmp from net:back to net:front"] })).unwrap();
    for host in ["h1", "h2"] {
        overlay.ask(host, Request::PolicyApply { policy: Some(policy.clone()) }).unwrap();
    }
    assert!(one.pings("db", &web) && one.pings("db", &client) && one.misses("web", &db));
    for host in ["h1", "h2"] {
        overlay.ask(host, Request::PolicyApply { policy: None }).unwrap();
    }

    // Names: the container's, its alias, the first characters of its id; forwards and backwards, from the other host too.
    let id: String = one.run("inspect -f {{.Id}} web").chars().take(12).collect();
    for (docker, container, name, address) in [
        (&two, "client", "web", &web),
        (&two, "client", id.as_str(), &web),
        (&one, "web", "client", &client),
        (&one, "web", "asker", &client),
        (&one, "db", "web", &web),
    ] {
        let server = if std::ptr::eq(docker, &one) { "10.42.1.1" } else { "10.42.2.1" };
        let asked = format!("{name}.ctr.overlay.internal {server}");
        let is_told = || look_up(docker, container, &asked).filter(|said| said.contains(address.as_str()));
        wait_for(&format!("{name} to be told to {container}"), LIMIT, is_told).unwrap();
    }
    let backwards = look_up(&two, "client", &format!("{web} 10.42.2.1")).unwrap();
    assert!(backwards.contains(".ctr.overlay.internal"), "{backwards}");
    // Another name is found by the comparison with dockerd, which a plugin that starts begins with.
    one.run("rename web shop");
    one.kill_plugin();
    one.start_plugin();
    let renamed = || look_up(&two, "client", "shop.ctr.overlay.internal 10.42.2.1");
    wait_for("the new name", LIMIT, renamed).unwrap();
    assert_eq!(look_up(&two, "client", "web.ctr.overlay.internal 10.42.2.1"), None, "the old name ended");
    // Names outlive a restart of the daemon, and end with their container.
    overlay.lab.kill_daemon("h1").unwrap();
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
    let told = || look_up(&one, "db", "shop.ctr.overlay.internal 10.42.1.1").filter(|said| said.contains(&web));
    wait_for("the name after a restart", LIMIT, told).unwrap();
    one.run("rm -f shop");
    let ended = || look_up(&two, "client", "shop.ctr.overlay.internal 10.42.2.1").is_none().then_some(());
    wait_for("the name to end", LIMIT, ended).unwrap();

    // Restarted, it has an address that nobody had a moment ago.
    two.run("restart -t 0 client");
    assert_ne!(two.address("client", "front"), client);
    assert!(two.pings("client", &two.address("neighbour", "front")));
    // The network stays while others on the host use it, and then goes with Docker's.
    one.run("rm -f db common");
    one.run("network rm front back plain");
    nothing_left(&overlay, "h1");
    two.run("rm -f client neighbour");
    two.run("network rm front");
    assert_eq!(endpoints(&overlay, "h2").len(), 0);
    assert!(outsider.reaches("10.42.2.1") && networks(&overlay, "h2").len() == 1);
    drop(outsider);
    overlay.lab.ctl_ok("h2", &["network", "rm", "front"]).unwrap();
    nothing_left(&overlay, "h2");
}

#[test]
fn docker_network_that_is_a_bridge_in_the_cluster_joins_neighbours_and_other_hosts() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    overlay.lab.ctl_ok("h2", &["network", "create", "lan", "--mode", "bridge"]).unwrap();
    let outsider = Outsider::attach(&overlay, "h2", "h2lan", "lan");
    let docker = Docker::started(&overlay.lab, "h1");
    // Where br_netfilter is loaded, as here, this holds for packets between neighbours too.
    assert!(docker.command(&["iptables", "-P", "FORWARD", "DROP"]).status().unwrap().success());
    docker.run(&format!("network create {DRIVER} --ipv6 lan"));
    docker.start("one", "--network lan", "sleep 600");
    docker.start("other", "--network lan", "sleep 600");
    let lan = networks(&overlay, "h1").into_iter().find(|network| network.name == "lan").unwrap();
    assert_eq!(lan.mode.name(), "bridge");
    let v6 = docker.run("inspect -f {{.NetworkSettings.Networks.lan.GlobalIPv6Address}} other");
    let said = docker.run("exec one ip route") + &docker.run("exec one ip -6 route");
    assert!(docker.pings("one", &docker.address("other", "lan")), "{said}");
    assert!(docker.pings("one", &v6), "{said}");
    assert!(docker.pings("one", &outsider.container.v4.to_string()) && outsider.reaches(&docker.address("one", "lan")));
    docker.run("rm -f one other");
    docker.run("network rm lan");
    nothing_left(&overlay, "h1");
    drop(outsider);
    overlay.lab.ctl_ok("h2", &["network", "rm", "lan"]).unwrap();
}
