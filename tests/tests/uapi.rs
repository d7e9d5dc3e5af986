//! The wg tools against a running daemon.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use overlay_netns_harness::{Binaries, HostSpec, wait_for};
use overlay_tests::{Overlay, can_use, lab_name};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const KEY_FILE: &str = "/var/lib/overlay/wireguard.key";
/// A public key of nobody: `wg genkey | wg pubkey`.
const FOREIGN: &str = "Gq5MSkCplFGGp0mpgIWYWRVXvpQGjxnvhmkuA7OMRXo=";
/// A private key, and what overlayd of h1 uses.
const OWN: &str = "0Ab6mXBAjrVnwQMEPWFbnfNQ7kyt1eV0sMeTA1fKW3w=";
const PRESHARED: &str = "BzApvIZGDsX0SD0WmJVjXA3rrQSEz9MQxsNfJ9lPq7k=";

/// Two hosts; both keep their WireGuard key in a file.
fn overlay(subject: &str) -> Option<Overlay> {
    if !can_use(subject, &[("command -v wg", "wireguard-tools")]) {
        return None;
    }
    let binaries = Binaries::for_tests().unwrap();
    let overlay = Overlay::start(&lab_name(subject), binaries, &HostSpec::numbered(2), 0, "wireguard", |_| {}).unwrap();
    let mut cluster = overlay.cluster.clone();
    cluster.overlay = format!("private_key_file = \"{KEY_FILE}\"\n");
    let host = overlay.lab.host("h1").unwrap();
    overlay.lab.stop_daemon("h1").unwrap();
    let key = host.path(KEY_FILE);
    fs::write(&key, format!("{OWN}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    cluster.write_config(&overlay.lab, host).unwrap();
    overlay.lab.start_daemon("h1").unwrap();
    // The control socket takes connections sooner than the one of the tools.
    overlay.lab.wait_ready(2 * LIMIT).unwrap();
    Some(overlay)
}

/// What `wg` prints on h1, or what it complains about.
fn wg(overlay: &Overlay, arguments: &[&str]) -> Result<String, String> {
    let words: Vec<&str> = ["wg"].into_iter().chain(arguments.iter().copied()).collect();
    let output = overlay.lab.exec("h1", &words).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The peers `wg` shows, without our own line: key and prefixes.
fn peers(overlay: &Overlay) -> Vec<(String, String)> {
    let shown = wg(overlay, &["show", "overlay0", "allowed-ips"]).unwrap();
    let line = |line: &str| line.split_once('\t').map(|(key, ips)| (key.to_owned(), ips.to_owned()));
    shown.lines().filter_map(line).collect()
}

/// The member's key, once `wg` shows it with its prefixes and a handshake.
fn member(overlay: &Overlay) -> String {
    let (key, _) = wait_for("the member in wg show", LIMIT, || {
        let [(key, ips)] = &peers(overlay)[..] else { return None };
        let handshakes = wg(overlay, &["show", "overlay0", "latest-handshakes"]).ok()?;
        let shaken = handshakes.lines().any(|line| line.starts_with(key) && !line.ends_with("\t0"));
        (ips.contains("10.42.2.0/24") && ips.contains("fd42:0:0:2::/64") && shaken).then(|| key.clone())
    })
    .unwrap_or_else(|error| panic!("{error}\n{:?}\n{:?}", wg(overlay, &["show", "overlay0"]), peers(overlay)));
    key
}

fn write(overlay: &Overlay, name: &str, text: &str) -> String {
    let inside = format!("/run/overlay/{name}");
    fs::write(overlay.lab.host("h1").unwrap().path(&inside), text).unwrap();
    inside
}

fn foreign_names(overlay: &Overlay) -> Vec<String> {
    let peers = overlay.status("h1").unwrap().peers;
    peers.into_iter().map(|peer| peer.name).filter(|name| name != "h2").collect()
}

#[test]
fn wg_shows_members_and_changes_foreign_peers_only() {
    let Some(overlay) = overlay("uapi") else { return };
    let _logs = overlay.lab.logs_on_failure();
    let member = member(&overlay);
    let all = wg(&overlay, &["show", "overlay0"]).unwrap();
    for part in ["listening port: 51821", "fwmark: 0x200", "endpoint: 192.0.2.2:51821", "transfer: "] {
        assert!(all.contains(part), "{part} is missing in\n{all}");
    }
    let socket = overlay.lab.host("h1").unwrap().path("/run/wireguard/overlay0.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    // A foreign peer comes, changes and is kept with its secret.
    let secret = write(&overlay, "psk", PRESHARED);
    let set = ["set", "overlay0", "peer", FOREIGN, "endpoint", "192.0.2.77:4000", "allowed-ips", "10.99.0.0/16"];
    wg(&overlay, &[&set[..], &["persistent-keepalive", "25", "preshared-key", &secret]].concat()).unwrap();
    assert!(peers(&overlay).contains(&(FOREIGN.to_owned(), "10.99.0.0/16".to_owned())), "{:?}", peers(&overlay));
    let [name] = &foreign_names(&overlay)[..] else { panic!("{:?}", foreign_names(&overlay)) };
    assert!(name.starts_with("wg-"), "{name}");
    assert_eq!(overlay.owner("h1", "10.99.0.0/16").as_ref(), Some(name));
    let saved = wg(&overlay, &["showconf", "overlay0"]).unwrap();
    for part in [OWN, FOREIGN, PRESHARED, "Endpoint = 192.0.2.77:4000", "PersistentKeepalive = 25", &member] {
        assert!(saved.contains(part), "{part} is missing in\n{saved}");
    }

    // What belongs to members or to the file is refused, and nothing of such a request is done.
    let before = peers(&overlay);
    for refused in [
        &["set", "overlay0", "peer", &member, "remove"][..],
        &["set", "overlay0", "peer", FOREIGN, "remove", "peer", &member, "remove"],
        &["set", "overlay0", "peer", &member, "allowed-ips", "10.98.0.0/16"],
        &["set", "overlay0", "peer", FOREIGN, "allowed-ips", "10.42.2.0/24"],
        &["set", "overlay0", "listen-port", "4444"],
    ] {
        let error = wg(&overlay, refused).expect_err(&refused.join(" "));
        assert!(error.contains("Operation not permitted"), "{refused:?}: {error}");
    }
    assert_eq!(peers(&overlay), before);

    // What was saved is accepted again and changes nothing; without the peer it goes, and the member stays.
    let file = write(&overlay, "saved.conf", &saved);
    wg(&overlay, &["setconf", "overlay0", &file]).unwrap();
    assert_eq!(peers(&overlay), before);
    let empty = write(&overlay, "empty.conf", "[Interface]\nListenPort = 51821\n");
    wg(&overlay, &["syncconf", "overlay0", &empty]).unwrap();
    assert_eq!(peers(&overlay).len(), 1, "syncconf: {:?}", peers(&overlay));
    let only = write(&overlay, "only.conf", &format!("[Peer]\nPublicKey = {FOREIGN}\nAllowedIPs = 10.99.0.0/16\n"));
    wg(&overlay, &["addconf", "overlay0", &only]).unwrap();
    assert_eq!(foreign_names(&overlay).len(), 1);
    wg(&overlay, &["setconf", "overlay0", &empty]).unwrap();
    assert_eq!(foreign_names(&overlay), Vec::<String>::new());
    assert_eq!(peers(&overlay), [(member, before[0].1.clone())]);
    let secrets = overlay.lab.host("h1").unwrap().path("/var/lib/overlay/uapi");
    assert_eq!(fs::read_dir(secrets).unwrap().count(), 0, "preshared keys of removed peers are left");

    overlay.lab.stop_daemon("h1").unwrap();
    assert!(!socket.exists(), "the socket is left after a stop");
}
