//! Sessions with the Linux kernel, in a virtual machine, that live through their rekey.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::qemu::{GUEST_V4, Guest, Image};
use overlay_netns_harness::{Pings, wait_for};
use overlay_tests::{Foreign, can_have};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::rekey::{REKEY, Rekey, running};
use crate::{LIMIT, comes_true};

/// Five echoes a second, beyond the two minutes.
const PINGS: &str = "-i 0.2 -c 650 -W 30";
/// What the ping inside the guest prints.
const PING_LOG: &str = "/tmp/rekey.log";
/// The devices: name (and namespace in the guest), underlay port, network.
const WE_START: (&str, u16, u8) = ("wgours", 51831, 6);
const THEY_START: (&str, u16, u8) = ("wgtheirs", 51832, 7);

/// A guest with two devices; the session that it starts has a preshared key.
pub(crate) struct Kernel {
    guest: Guest,
    pings: Option<Pings>,
}

impl Kernel {
    /// Boots the guest behind a host, where that can be had.
    pub(crate) fn boot(foreign: &Foreign, host: &str) -> Result<Option<Kernel>> {
        let Some(image) = can_have("rekey with the kernel", Image::prepare()) else { return Ok(None) };
        Ok(Some(Kernel { guest: Guest::boot(&foreign.lab, host, &image)?, pings: None }))
    }

    /// Makes the devices; their sections of the configuration.
    pub(crate) fn configure(&mut self, foreign: &Foreign) -> Result<String> {
        let guest = &mut self.guest;
        let psk = guest.run("umask 077; wg genpsk | tee /tmp/rekey.psk")?;
        let ours = "/run/overlay/rekey.psk";
        let script = format!("umask 077; echo {} > {ours}", psk.trim());
        ensure!(foreign.lab.exec("h1", &["sh", "-c", &script])?.status.success());
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
                // Its datagrams stay outside, so that both devices can have the route to the containers.
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
        Ok(sections)
    }

    /// Starts the sessions.
    pub(crate) fn begin(&mut self, foreign: &Foreign) -> Result<()> {
        self.pings = Some(Pings::start(&foreign.container.view, PINGS, &inner(WE_START))?);
        let (name, to) = (THEY_START.0, foreign.container.v4);
        self.guest.run(&format!("ip netns exec {name} ping -n -q {PINGS} {to} > {PING_LOG} 2>&1 &"))?;
        for (name, ..) in [WE_START, THEY_START] {
            wait_for(&format!("the first handshake of {name}"), LIMIT, || foreign.peer(name).ok()?.handshake_age_ms)
                .context("sessions with the kernel")?;
        }
        Ok(())
    }
}

fn inner((_, _, network): (&str, u16, u8)) -> String {
    format!("10.99.{network}.1")
}

#[test]
fn kernel_sessions_outlive_their_rekey_without_a_lost_packet() {
    let Some(mut running) = running() else { return };
    let Rekey { kernel, initiations, started, foreign, .. } = running.as_mut().unwrap();
    // The reason was said when the lab was made.
    let Some(Kernel { guest, pings }) = kernel else { return };
    let _logs = foreign.lab.logs_on_failure();
    let report = pings.take().unwrap().finish().unwrap();
    assert_eq!(report.sent, 650, "{}", report.text);
    assert!(report.is_lossless(), "we start: {}", report.text);
    let all = format!("grep -q ' packets transmitted' {PING_LOG}");
    wait_for("the ping of the kernel", 3 * LIMIT, || (guest.try_run(&all).unwrap().0 == 0).then_some(())).unwrap();
    let text = guest.run(&format!("cat {PING_LOG}")).unwrap();
    assert!(text.contains("650 packets transmitted, 650 received"), "the kernel starts: {text}");
    let h1 = SocketAddr::new(IpAddr::V4(foreign.lab.host("h1").unwrap().underlay_v4()), 51821);
    for (device, we_start) in [(WE_START, true), (THEY_START, false)] {
        let (name, port, _) = device;
        let ours = Duration::from_millis(foreign.peer(name).unwrap().handshake_age_ms.unwrap());
        let shaken = format!("ip netns exec {name} wg show {name} latest-handshakes | cut -f 2");
        let seconds = guest.run(&format!("echo $(($(date +%s) - $({shaken})))")).unwrap();
        for age in [ours, Duration::from_secs(seconds.trim().parse().unwrap())] {
            assert!(age + REKEY < started.elapsed(), "{name}: the last handshake is {age:?} old");
        }
        let theirs = SocketAddr::new(GUEST_V4.parse().unwrap(), port);
        let (starter, other) = if we_start { (h1, theirs) } else { (theirs, h1) };
        assert!(initiations.count(starter, other) >= 2, "{name}: {initiations:?}");
        let turned = initiations.count(other, starter);
        assert_eq!(turned, 0, "{name}: the side that started the first session starts the next");
        comes_true("an echo over the new session", || foreign.reaches(&inner(device)));
    }
}
