//! Sessions with the kernel that live through their rekey, which is due after two minutes.

use anyhow::{Context as _, Result};
use overlay_netns_harness::qemu::{GUEST_V4, Guest};
use overlay_netns_harness::{Pings, wait_for};
use overlay_tests::{Foreign, Initiations};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::{LIMIT, kernel};

/// Five echoes a second, beyond the two minutes.
const PINGS: &str = "-i 0.2 -c 650 -W 30";
/// No second handshake comes sooner after the first; ends tell its age in seconds.
const REKEY: Duration = Duration::from_secs(118);
/// What the ping inside the guest prints.
const PING_LOG: &str = "/tmp/rekey.log";

/// Two sessions, one started by each side; the one that the kernel starts has a preshared key.
pub(crate) struct Rekey {
    pings: Pings,
    initiations: Initiations,
    started: Instant,
}

/// The devices: name (and namespace in the guest), underlay port, network.
const WE_START: (&str, u16, u8) = ("wgours", 51831, 1);
const THEY_START: (&str, u16, u8) = ("wgtheirs", 51832, 2);

impl Rekey {
    /// Makes the devices and starts the sessions; also the sections of the configuration.
    pub(crate) fn start(foreign: &Foreign, guest: &mut Guest) -> Result<(Rekey, String)> {
        let h1 = foreign.lab.host("h1")?;
        let initiations = Initiations::watch(h1.view().namespace())?;
        let psk = guest.run("umask 077; wg genpsk | tee /tmp/rekey.psk")?;
        let ours = "/run/overlay/rekey.psk";
        let script = format!("umask 077; echo {} > {ours}", psk.trim());
        foreign.lab.exec("h1", &["sh", "-c", &script])?;
        let mut sections = String::new();
        for ((name, port, network), peer, section) in [
            (WE_START, String::new(), format!("endpoint = \"{GUEST_V4}:{}\"", WE_START.1)),
            (
                THEY_START,
                "preshared-key /tmp/rekey.psk endpoint 192.0.2.1:51821".to_owned(),
                format!("preshared_key_file = \"{ours}\""),
            ),
        ] {
            let key = guest.run(&format!("umask 077; wg genkey > /tmp/{name}; wg pubkey < /tmp/{name}"))?;
            let public_key = &foreign.public_key;
            for line in [
                format!("ip link add {name} type wireguard"),
                format!("wg set {name} listen-port {port} private-key /tmp/{name}"),
                format!("wg set {name} peer {public_key} allowed-ips 10.42.0.0/16 {peer}"),
                // Its datagrams stay outside, so that the addresses of all devices need not differ.
                format!("ip netns add {name}"),
                format!("ip link set {name} netns {name}"),
                format!("ip -n {name} addr add 10.99.{network}.1/24 dev {name}"),
                format!("ip -n {name} link set {name} up"),
                format!("ip -n {name} route add 10.42.0.0/16 dev {name}"),
            ] {
                guest.run(&line)?;
            }
            sections += &format!(
                "[[peer]]\nname = \"{name}\"\npublic_key = \"{}\"\nallowed_ips = [\"10.99.{network}.0/24\"]\n{section}\n",
                key.trim()
            );
        }
        foreign.reload(&sections)?;
        let started = Instant::now();
        let pings = Pings::start(&foreign.container.view, PINGS, &inner(WE_START))?;
        let (name, ..) = THEY_START;
        let to = foreign.container.v4;
        guest.run(&format!("ip netns exec {name} ping -n -q {PINGS} {to} > {PING_LOG} 2>&1 &"))?;
        for (name, ..) in [WE_START, THEY_START] {
            wait_for(&format!("the first handshake of {name}"), LIMIT, || foreign.peer(name).ok()?.handshake_age_ms)
                .context("the sessions that take two minutes")?;
        }
        Ok((Rekey { pings, initiations, started }, sections))
    }
}

fn inner((_, _, network): (&str, u16, u8)) -> String {
    format!("10.99.{network}.1")
}

#[test]
fn sessions_outlive_their_rekey_without_a_lost_packet() {
    let Some(kernel) = kernel("rekey") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let Rekey { pings, initiations, started } = kernel.rekey.take().unwrap();
    let report = pings.finish().unwrap();
    assert_eq!(report.sent, 650, "{}", report.text);
    assert!(report.is_lossless(), "we start: {}", report.text);
    let all = format!("grep -q ' packets transmitted' {PING_LOG}");
    wait_for("the ping of the kernel", 3 * LIMIT, || (kernel.try_run(&all).0 == 0).then_some(())).unwrap();
    let text = kernel.run(&format!("cat {PING_LOG}"));
    assert!(text.contains("650 packets transmitted, 650 received"), "the kernel starts: {text}");
    let h1 = SocketAddr::new(IpAddr::V4(kernel.foreign.lab.host("h1").unwrap().underlay_v4()), 51821);
    for (device, we_start) in [(WE_START, true), (THEY_START, false)] {
        let (name, port, _) = device;
        let ours = Duration::from_millis(kernel.foreign.peer(name).unwrap().handshake_age_ms.unwrap());
        let line =
            format!("echo $(($(date +%s) - $(ip netns exec {name} wg show {name} latest-handshakes | cut -f 2)))");
        let theirs = Duration::from_secs(kernel.run(&line).trim().parse().unwrap());
        for age in [ours, theirs] {
            assert!(age + REKEY < started.elapsed(), "{name}: the last handshake is {age:?} old");
        }
        let guest = SocketAddr::new(GUEST_V4.parse().unwrap(), port);
        let (starter, other) = if we_start { (h1, guest) } else { (guest, h1) };
        assert!(initiations.count(starter, other) >= 2, "{name}: {initiations:?}");
        let turned = initiations.count(other, starter);
        assert_eq!(turned, 0, "{name}: the side that started the first session starts the next");
        kernel.reaches("an echo over the new session", &inner(device));
    }
}
