//! `overlayctl capture`: what it writes is read by tshark, dropped packets among it, each with what was decided.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::Client;
use overlay_control::api::{CaptureRequest, Request, Response};
use overlay_netns_harness::load::{self, Amount, Content, Server};
use overlay_netns_harness::{HostSpec, netns, ping, wait_for};
use overlay_tests::{Overlay, SharedLab, can_use};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    if !can_use("capture", &[("command -v tshark", "tshark")]) {
        return None;
    }
    LAB.lease(
        "capture",
        |name, binaries| {
            Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |cluster| {
                cluster.extra.insert("h1".to_owned(), "[limits]\ncapture_back_seconds = 60\n".to_owned());
            })
        },
        |overlay| &overlay.lab,
    )
}

/// A capture into a file.
struct Running {
    child: Child,
    file: PathBuf,
}

impl Running {
    /// Begins one and waits until packets are looked at.
    fn start(overlay: &Overlay, host: &str, directory: &Path, arguments: &[&str]) -> Running {
        let file = directory.join("packets.pcapng");
        let program = overlay.lab.binary("overlayctl").unwrap();
        let place = file.to_str().unwrap().to_owned();
        let mut argv = vec![program.as_str(), "capture", "-w", &place];
        argv.extend(arguments);
        let mut command = overlay.lab.command(host, &argv).unwrap();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The head is written once the daemon has begun.
        wait_for("the capture begins", LIMIT, || std::fs::metadata(&file).ok().filter(|file| file.len() > 0)).unwrap();
        Running { child, file }
    }

    /// Waits for its end, by its count.
    fn end(self) -> PathBuf {
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.file
    }
}

/// Fields of each packet that a display filter chooses, as tshark reads them.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", file.to_str().unwrap(), "-Y", filter, "-T", "fields", "-E", "separator=/t"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.env("HOME", "/nonexistent").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn apply(overlay: &Overlay, host: &str, rules: Option<&[&str]>) {
    let policy = rules.map(|rules| serde_json::json!({ "default": "members", "rules": rules }));
    let policy = policy.map(|policy| serde_json::from_value(policy).unwrap());
    overlay.ask(host, Request::PolicyApply { policy }).unwrap();
}

/// Sends datagrams from h1c1 to a port of h2c1.
fn send(overlay: &Overlay, port: u16, count: usize) {
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let socket = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?)).unwrap();
    for _ in 0..count {
        // A refusal may be told to the sender, which then cannot send.
        let _ = socket.send_to(b"hello overlay", SocketAddr::from((to.v4, port)));
    }
}

#[test]
fn dropped_packets_are_written_with_verdict_rule_and_peer() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let directory = tempfile::tempdir().unwrap();
    apply(&overlay, "h1", Some(&["deny udp/7801 from any to any"]));
    let capture = Running::start(&overlay, "h1", directory.path(), &["--verdict", "deny", "-c", "3", "udp/7801,7802"]);
    send(&overlay, 7802, 2);
    send(&overlay, 7801, 3);
    let file = capture.end();
    let fields = ["ip.src", "ip.dst", "udp.dstport", "frame.comment"];
    let packets = tshark(&file, "udp", &fields);
    assert_eq!(packets.len(), 3, "{packets:?}");
    let (from, to) = (overlay.container("h1c1").v4.to_string(), overlay.container("h2c1").v4.to_string());
    for packet in &packets {
        assert_eq!(packet[..3], [from.clone(), to.clone(), "7801".to_owned()]);
        for word in ["dropped: policy_deny", "rule 1: deny udp/7801", "to peer h2"] {
            assert!(packet[3].contains(word), "{packet:?}");
        }
    }
    assert_eq!(tshark(&file, "_ws.malformed", &["frame.number"]), Vec::<Vec<String>>::new());
    apply(&overlay, "h1", None);
}

#[test]
fn passing_packets_are_seen_on_both_hosts_and_only_those_chosen() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = overlay.container("h2c1").v4.to_string();
    let container = overlay.container("h1c1").view.namespace();
    let chosen = ["--container", container, "--peer", "h2", "-c", "6", "icmp", "and", "host", &to];
    let near = Running::start(&overlay, "h1", one.path(), &chosen);
    let far = Running::start(&overlay, "h2", other.path(), &["-c", "6", "icmp and host", &to]);
    // Somebody listens, so that nothing is answered by ICMP.
    let there = overlay.container("h2c1");
    let listener = netns::within(there.view.namespace(), || Ok(UdpSocket::bind((there.v4, 7810))?)).unwrap();
    send(&overlay, 7810, 5);
    assert!(ping(&overlay.container("h1c1").view, "-c 3 -i 0.05 -W 2", &to).unwrap().is_lossless());
    drop(listener);
    for file in [near.end(), far.end()] {
        let packets = tshark(&file, "icmp", &["icmp.type", "frame.comment"]);
        assert_eq!(packets.len(), 6, "{packets:?}");
        assert_eq!(packets.iter().filter(|packet| packet[0] == "8").count(), 3, "{packets:?}");
        assert!(packets.iter().any(|packet| packet[1].starts_with("forwarded to h")), "{packets:?}");
        assert!(packets.iter().any(|packet| packet[1].starts_with("delivered")), "{packets:?}");
    }
}

#[test]
fn super_packets_are_cut_to_the_length_asked_for_and_keep_theirs() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let server = Server::start(to.view.namespace(), SocketAddr::from((to.v4, 7820))).unwrap();
    let capture = Running::start(&overlay, "h1", directory.path(), &["--snaplen", "100", "-c", "40", "tcp/7820"]);
    netns::within(from.view.namespace(), || {
        load::transmit(load::connect(server.address(), LIMIT)?, Amount::Bytes(20_000_000), Content::Verified)
    })
    .unwrap();
    let file = capture.end();
    let packets = tshark(&file, "tcp", &["frame.cap_len", "frame.len", "ip.len"]);
    assert_eq!(packets.len(), 40);
    for packet in &packets {
        let [captured, length, said] = [0, 1, 2].map(|at| packet[at].parse::<u32>().unwrap());
        assert_eq!(captured, length.min(100), "{packet:?}");
        assert_eq!(length, said, "{packet:?}");
    }
    assert!(packets.iter().any(|packet| packet[1].parse::<u32>().unwrap() > 3000), "no super-packet: {packets:?}");
}

#[test]
fn what_was_kept_is_found_after_the_fact() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let directory = tempfile::tempdir().unwrap();
    apply(&overlay, "h1", Some(&["deny udp/7831 from any to any"]));
    let before = overlay.drops("h1", "policy_deny");
    send(&overlay, 7831, 2);
    wait_for("both are dropped", LIMIT, || (overlay.drops("h1", "policy_deny") >= before + 2).then_some(())).unwrap();
    let file = Running::start(&overlay, "h1", directory.path(), &["--back", "30s", "-c", "2", "udp/7831"]).end();
    let packets = tshark(&file, "udp.dstport == 7831", &["frame.comment"]);
    assert_eq!(packets.len(), 2, "{packets:?}");
    assert!(packets.iter().all(|packet| packet[0].contains("policy_deny")), "{packets:?}");
    apply(&overlay, "h1", None);
}

#[test]
fn captures_are_few_and_a_wrong_filter_is_refused_with_its_place() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let request = |filter: &str| {
        let filter = filter.to_owned();
        Request::Capture(CaptureRequest {
            filter,
            peer: None,
            container: None,
            verdict: None,
            back_ms: None,
            snaplen: 64,
        })
    };
    let path = overlay.lab.host("h2").unwrap().path("/run/overlay/overlayd.sock");
    let open = || Client::connect(&path).unwrap();
    let refused = open().call(request("host 10.42.1.300")).unwrap_err();
    assert!(refused.to_api().why.contains("word 2: found `10.42.1.300`"), "{refused:?}");
    let begin = || {
        let mut client = open();
        client.call(request("tcp/1")).map(|response| {
            assert!(matches!(response, Response::Done { .. }));
            client
        })
    };
    let running: Vec<Client> = (0..4).map(|_| begin().unwrap()).collect();
    assert_eq!(begin().unwrap_err().to_api().code.as_str(), "BUSY");
    drop(running);
    // The daemon notices that they are gone.
    wait_for("there is room again", LIMIT, || begin().ok().map(drop)).unwrap();
}
