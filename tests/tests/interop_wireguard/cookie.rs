//! Cookies: a side under load answers an initiation with one, and the other proves its address with it.

use overlay_netns_harness::{WaitError, wait_for};
use overlay_tests::{Capture, FOREIGN_V4, Foreign, Outer, Program, WireguardDevice, wireguard_kind};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{LIMIT, OUR_ENDPOINT, THEIR_ENDPOINT, against_each, comes_true};

const FLOOD: &str = include_str!("flood.py");
/// How long a flood lasts, unless it is ended; longer than everything that is waited for below.
const SECONDS: &str = "120";

/// Initiations from one host to the other, until this is dropped.
struct Flood(Child);

impl Flood {
    fn start(foreign: &Foreign, from: &str, key: &str, to: [&str; 2], rate: [&str; 2]) -> Flood {
        let argv = [&["python3", "-c", FLOOD, key][..], &to, &[SECONDS], &rate].concat();
        let mut command = foreign.lab.command(from, &argv).unwrap();
        Flood(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Watches the two steps of a handshake by cookie: the reply with it (type 3), and an initiation that carries its proof.
struct Cookies {
    replied: Arc<AtomicBool>,
    proved: Arc<AtomicBool>,
    capture: Capture,
}

impl Cookies {
    /// `initiator` and `responder` are hosts with the ports of their WireGuard.
    fn watch(foreign: &Foreign, initiator: (&str, u16), responder: (&str, u16)) -> Cookies {
        let (replied, proved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let seen = (replied.clone(), proved.clone());
        let end =
            |(host, port): (&str, u16)| SocketAddr::new(foreign.lab.host(host).unwrap().underlay_v4().into(), port);
        let (ours, theirs) = (end(initiator), end(responder));
        let namespace = foreign.lab.host(initiator.0).unwrap().view().namespace();
        let capture = Capture::start(namespace, move |frame| {
            let Some(outer) = Outer::parse(frame) else { return false };
            let Some((from, to, content)) = outer.udp() else { return false };
            let ends = (SocketAddr::new(outer.source, from), SocketAddr::new(outer.target, to));
            let reply = ends == (theirs, ours) && wireguard_kind(content) == Some(3);
            // The second MAC, which only a cookie gives, ends an initiation.
            let proof = ends == (ours, theirs)
                && wireguard_kind(content) == Some(1)
                && content.get(132..148).is_some_and(|mac| mac.iter().any(|byte| *byte != 0));
            seen.0.fetch_or(reply, Ordering::Relaxed);
            seen.1.fetch_or(proof, Ordering::Relaxed);
            reply || proof
        })
        .unwrap();
        Cookies { replied, proved, capture }
    }

    fn replied(&self) -> bool {
        self.replied.load(Ordering::Relaxed)
    }

    fn proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }

    /// Ends flood and capture, and fails the test unless each step came.
    fn finish(self, mut flood: Flood, steps: [Result<((), Duration), WaitError>; 2]) {
        let running = flood.runs();
        drop(flood);
        let proved = self.proved();
        let found = self.capture.finish();
        for step in steps {
            step.unwrap_or_else(|error| panic!("{error}: {found:?}"));
        }
        assert!(proved, "the handshake went without a cookie: {found:?}");
        assert!(running, "the flood ended before the handshake");
    }
}

#[test]
fn peer_completes_its_handshake_by_our_cookie() {
    against_each("our cookie", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        foreign.restart(&device.section("office", "")).unwrap();
        let cookies = Cookies::watch(foreign, ("h2", 51820), ("h1", 51821));
        let flood = Flood::start(foreign, "h2", &foreign.public_key, ["192.0.2.1", "51821"], ["20", "0.02"]);
        comes_true("the flood to be noticed", || {
            foreign.status().unwrap().drops.get("wireguard_handshake").is_some_and(|count| *count > 200)
        });
        let to = IpAddr::V4(foreign.container.v4);
        // The first messages of each second pass without a cookie: forget and try again until one is asked for.
        let asked = wait_for("a cookie", LIMIT, || {
            device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
            foreign.is_reached(FOREIGN_V4, to);
            cookies.replied().then_some(())
        });
        let came = wait_for("an echo under load", LIMIT, || foreign.is_reached(FOREIGN_V4, to).then_some(()));
        cookies.finish(flood, [asked, came]);
    });
}

#[test]
fn we_complete_our_handshake_by_the_cookie_of_a_peer() {
    against_each("their cookie", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        let section = device.section("office", THEIR_ENDPOINT);
        let cookies = Cookies::watch(foreign, ("h1", 51821), ("h2", 51820));
        // wireguard-go is under load while 128 initiations wait in its queue, boringtun-cli above 100 a second.
        let rate = match program {
            Program::WireguardGo => ["1000", "0.05"],
            Program::BoringtunCli => ["20", "0.02"],
        };
        let flood = Flood::start(foreign, "h1", &device.public_key, ["192.0.2.2", "51820"], rate);
        // Not every initiation meets the load: both ends begin anew until one does.
        let asked = wait_for("a cookie for us", 2 * LIMIT, || {
            device.set_peer(&foreign.public_key, "").unwrap();
            foreign.restart(&section).unwrap();
            foreign.reaches(FOREIGN_V4);
            cookies.replied().then_some(())
        });
        let came = wait_for("an echo under load", LIMIT, || foreign.reaches(FOREIGN_V4).then_some(()));
        cookies.finish(flood, [asked, came]);
    });
}
