//! `doctor --peer`: what is wrong between two hosts is named, with its protocol and what to do.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{DoctorMode, Finding, FindingStatus, Request, Response};
use overlay_netns_harness::{Binaries, HostSpec, Lab, nft, wait_for};
use overlay_tests::{Overlay, can_make_namespaces, can_use, lab_name};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
/// What `doctor --peer` promises to stay within, and the commands it runs on the host itself.
const PROMISED: Duration = Duration::from_secs(20);

fn start(subject: &str, encapsulation: &str) -> Option<Overlay> {
    if !can_make_namespaces(subject) {
        return None;
    }
    let binaries = Binaries::for_tests().unwrap();
    Some(Overlay::start(&lab_name(subject), binaries, &HostSpec::numbered(2), 0, encapsulation, |_| {}).unwrap())
}

/// Asks the daemon of h1 about h2. A look of the host at its own clock and firewalls is not judged.
fn asked(lab: &Lab) -> Vec<Finding> {
    let mut client = lab.control("h1").unwrap();
    client.set_timeout(PROMISED).unwrap();
    let begun = Instant::now();
    let request = Request::Doctor { mode: DoctorMode::Check, peer: Some("h2".to_owned()) };
    let findings = match client.call(request).unwrap() {
        Response::Findings(findings) => findings,
        other => panic!("an answer of the wrong kind: {}", other.name()),
    };
    assert!(begun.elapsed() < PROMISED, "doctor took {:?}", begun.elapsed());
    findings
}

fn all<'a>(findings: &'a [Finding], check: &str) -> Vec<&'a Finding> {
    let found: Vec<&Finding> = findings.iter().filter(|finding| finding.check == check).collect();
    assert!(!found.is_empty(), "no finding {check}: {findings:?}");
    found
}

/// Asks until every finding of a check has this status, for what the daemons notice within seconds; the last findings.
fn await_status(lab: &Lab, check: &str, status: FindingStatus) -> Vec<Finding> {
    let mut last = Vec::new();
    let reached = wait_for(&format!("{check} to be {status:?}"), LIMIT, || {
        last = asked(lab);
        all(&last, check).iter().all(|finding| finding.status == status).then_some(())
    });
    reached.unwrap_or_else(|error| panic!("{error}: {last:#?}"));
    last
}

fn drop_at_input(overlay: &Overlay, host: &str, what: &str) {
    let namespace = overlay.lab.host(host).unwrap().view().namespace();
    let chain = "type filter hook input priority 0; policy accept;";
    nft(namespace, &format!("table inet closed {{\n chain input {{\n {chain}\n {what} drop\n }}\n}}")).unwrap();
}

fn open_input(overlay: &Overlay, host: &str) {
    nft(overlay.lab.host(host).unwrap().view().namespace(), "delete table inet closed").unwrap();
}

#[test]
fn closed_udp_port_of_the_peer_is_named() {
    let Some(overlay) = start("docudp", "wireguard") else { return };
    let _logs = overlay.lab.logs_on_failure();
    // The control: nothing is wrong, and everything was asked.
    let good = asked(&overlay.lab);
    for check in ["peer-udp", "peer-data", "peer-mtu", "clock"] {
        assert!(all(&good, check).iter().all(|found| found.status == FindingStatus::Ok), "{check}: {good:#?}");
    }
    drop_at_input(&overlay, "h2", "udp dport 51821");
    let found = await_status(&overlay.lab, "peer-udp", FindingStatus::Bad);
    let udp = all(&found, "peer-udp")[0];
    assert!(udp.why.contains("h2 (192.0.2.2:51821) does not answer on UDP port 51821"), "{}", udp.why);
    assert!(udp.fix.as_ref().unwrap().contains("ufw allow 51821/udp"), "{udp:?}");
    assert_eq!(all(&found, "clock")[0].status, FindingStatus::Skipped, "a clock nobody told is not judged");
    // Only the way there is closed: what h2 sends on its own still arrives, and doctor says so.
    wait_for("h2 to be heard though it does not answer", LIMIT, || {
        let found = asked(&overlay.lab);
        all(&found, "peer-udp")[0].why.contains("its own datagrams arrive").then_some(())
    })
    .unwrap();
    let output = overlay.lab.ctl("h1", &["doctor", "--peer", "h2"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("peer-udp") && text.contains("fix:"), "{text}");
    open_input(&overlay, "h2");
    await_status(&overlay.lab, "peer-udp", FindingStatus::Ok);
}

#[test]
fn host_without_daemon_is_told_from_a_closed_port() {
    let Some(overlay) = start("docoff", "wireguard") else { return };
    let _logs = overlay.lab.logs_on_failure();
    overlay.lab.stop_daemon("h2").unwrap();
    // The kernel of h2 refuses about once a second, and the daemon's own attempts share that.
    let mut last = Vec::new();
    wait_for("h2 to be said not to run overlayd", LIMIT, || {
        last = asked(&overlay.lab);
        all(&last, "peer-udp")[0].why.contains("overlayd is not running there").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {last:#?}"));
}

#[test]
fn filtered_gre_is_named() {
    filtered("docgre", "gre", &[47]);
}

#[test]
fn filtered_ipip_is_named_by_the_protocol_that_is_filtered() {
    filtered("docipip", "ipip", &[4, 41]);
}

fn filtered(subject: &str, encapsulation: &str, protocols: &[u8]) {
    let Some(overlay) = start(subject, encapsulation) else { return };
    let _logs = overlay.lab.logs_on_failure();
    let used = wait_for("the plain encapsulation to be in use", LIMIT, || {
        let peer = overlay.peer("h1", "h2").ok()?;
        (peer.encapsulation.to_string() == encapsulation).then_some(())
    });
    used.unwrap();
    let good = await_status(&overlay.lab, "peer-data", FindingStatus::Ok);
    assert_eq!(all(&good, "peer-data").len(), protocols.len(), "{good:#?}");
    for protocol in protocols {
        drop_at_input(&overlay, "h2", &format!("meta l4proto {protocol}"));
        let found = asked(&overlay.lab);
        let data = all(&found, "peer-data");
        let (bad, rest): (Vec<&Finding>, Vec<&Finding>) =
            data.into_iter().partition(|finding| finding.why.contains(&format!("IP protocol {protocol} is dropped")));
        assert_eq!(bad.len(), 1, "{found:#?}");
        assert_eq!(bad[0].status, FindingStatus::Bad);
        assert!(bad[0].fix.as_ref().unwrap().contains(&format!("meta l4proto {protocol} accept")), "{bad:?}");
        assert!(rest.iter().all(|finding| finding.status == FindingStatus::Ok), "{rest:?}");
        assert_eq!(all(&found, "peer-udp")[0].status, FindingStatus::Ok, "{found:#?}");
        open_input(&overlay, "h2");
        await_status(&overlay.lab, "peer-data", FindingStatus::Ok);
    }
}

#[test]
fn path_that_swallows_large_packets_is_measured_in_wireguard() {
    // 1,400 less 60 bytes is no multiple of the 16 to which WireGuard pads: the next smaller one passes.
    swallowing("docmtuw", "wireguard", 1328, 60);
}

#[test]
fn path_that_swallows_large_packets_is_measured_in_ipip() {
    swallowing("docmtui", "ipip", 1380, 20);
}

fn swallowing(subject: &str, encapsulation: &str, largest: u32, overhead: u32) {
    if !can_make_namespaces(subject) {
        return;
    }
    let hosts = [HostSpec::named("h1"), HostSpec::named("h2").with_mtu(1400)];
    let binaries = Binaries::for_tests().unwrap();
    let lab = Lab::create(&lab_name(subject), overlay_netns_harness::Topology::Routed, &hosts, binaries).unwrap();
    let _logs = lab.logs_on_failure();
    // The router says nothing about what it cannot pass on.
    nft(
        lab.switch().namespace(),
        "table inet mute {\n chain output {\n type filter hook output priority 0; policy accept;\n \
         icmp type destination-unreachable drop\n icmpv6 type packet-too-big drop\n }\n}",
    )
    .unwrap();
    let mut cluster = overlay_netns_harness::Cluster::new(2, encapsulation);
    cluster.overlay = "mtu = 1420".to_owned();
    cluster.write(&lab).unwrap();
    lab.start_daemons().unwrap();
    lab.wait_ready(LIMIT).unwrap();
    let used = |lab: &Lab| lab.ctl_json("h1", &["peer", "show", "h2"]).unwrap().to_string();
    wait_for("the encapsulation to be in use", LIMIT, || {
        used(&lab).contains(&format!("\"{encapsulation}\"")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", used(&lab)));
    let found = await_status(&lab, "peer-mtu", FindingStatus::Bad);
    let mtu = all(&found, "peer-mtu")[0];
    assert!(mtu.why.contains(&format!("packets of {largest} bytes come back from h2")), "{}", mtu.why);
    let command =
        |to: &str| format!("ip route replace {to} via 192.0.2.254 dev eth0 onlink mtu {}", largest + overhead);
    assert!(mtu.fix.as_ref().unwrap().contains(&command("192.0.2.2")), "{mtu:?}");
    assert_eq!(all(&found, "peer-data")[0].status, FindingStatus::Ok);
    // The command given for here, and its like for the other end, put it right while the router is still silent.
    for (host, other) in [("h1", "192.0.2.2"), ("h2", "192.0.2.1")] {
        let words = command(other);
        let output = lab.exec(host, &words.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let good = await_status(&lab, "peer-mtu", FindingStatus::Ok);
    assert!(all(&good, "peer-mtu")[0].why.contains(&format!("packets of {largest} bytes, the inner MTU")), "{good:?}");
}

/// The library that changes a program's clock, of the package `faketime`.
fn faketime_library() -> String {
    let places = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let library = places.map(|place| place.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    library.expect("faketime brings its library").to_str().unwrap().to_owned()
}

#[test]
fn clock_of_the_peer_is_compared() {
    let subject = "docclock";
    if !can_make_namespaces(subject) || !can_use(subject, &[("command -v faketime", "faketime")]) {
        return;
    }
    let Some(overlay) = start(subject, "wireguard") else { return };
    let _logs = overlay.lab.logs_on_failure();
    let clock = |lab: &Lab| all(&asked(lab), "clock")[0].clone();
    assert_eq!(clock(&overlay.lab).status, FindingStatus::Ok);
    overlay.lab.stop_daemon("h2").unwrap();
    // The program `faketime` stays the daemon's parent, and would be what is stopped at the end.
    let [preload, ahead] = [format!("LD_PRELOAD={}", faketime_library()), "FAKETIME=+2h".to_owned()];
    overlay.lab.start_daemon_under("h2", &["env", &preload, &ahead, "FAKETIME_DONT_FAKE_MONOTONIC=1"]).unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
    let found = await_status(&overlay.lab, "clock", FindingStatus::Bad);
    let far = all(&found, "clock")[0];
    let ahead: i64 = far
        .why
        .split_once("h2 is ")
        .and_then(|(_, rest)| rest.split_once(" s ahead"))
        .and_then(|(seconds, _)| seconds.parse().ok())
        .unwrap_or_else(|| panic!("{}", far.why));
    assert!((7198..=7202).contains(&ahead), "{}", far.why);
    assert!(far.fix.as_ref().unwrap().contains("timedatectl set-ntp true"), "{far:?}");
    // Without a name the reachable members are asked too.
    let all_asked = match overlay.ask("h1", Request::Doctor { mode: DoctorMode::Check, peer: None }).unwrap() {
        Response::Findings(findings) => findings,
        other => panic!("an answer of the wrong kind: {}", other.name()),
    };
    assert!(all(&all_asked, "clock")[0].why.contains("h2 is 7"), "{all_asked:#?}");
}

#[test]
fn unknown_peer_is_refused_with_its_exit_code() {
    let Some(overlay) = start("docwho", "wireguard") else { return };
    let output = overlay.lab.ctl("h1", &["doctor", "--peer", "nobody"]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.starts_with("error[NOT_FOUND]: there is no peer `nobody`"), "{errors}");
    assert!(errors.contains("next: see what there is with `overlayctl peer list`"), "{errors}");
}
