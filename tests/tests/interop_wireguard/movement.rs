//! Peers that move, this host moving, and ends that forget their session.

use overlay_netns_harness::ip;
use overlay_tests::{FOREIGN_V4, Foreign, WireguardDevice};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use crate::{OUR_ENDPOINT, THEIR_ENDPOINT, against_each, comes_true};

/// A host that has another underlay address instead of its own, until this is dropped.
struct Moved {
    host: String,
    own: Ipv4Addr,
    now: Ipv4Addr,
}

impl Moved {
    fn to(foreign: &Foreign, host: &str, now: Ipv4Addr) -> Moved {
        let switch = foreign.lab.switch();
        ip(&format!("-n {} route replace {now}/32 dev {host}", switch.namespace())).unwrap();
        let host = foreign.lab.host(host).unwrap();
        let moved = Moved { host: host.view().namespace().to_owned(), own: host.underlay_v4(), now };
        moved.swap(moved.now, moved.own).unwrap();
        moved
    }

    fn swap(&self, add: Ipv4Addr, remove: Ipv4Addr) -> anyhow::Result<()> {
        ip(&format!("-n {} addr add {add}/32 dev eth0", self.host))?;
        ip(&format!("-n {} addr del {remove}/32 dev eth0", self.host)).map(drop)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Err(error) = self.swap(self.own, self.now) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn peer_that_moves_is_followed() {
    against_each("roaming", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        foreign.restart(&device.section("office", THEIR_ENDPOINT)).unwrap();
        comes_true("an echo before the move", || foreign.reaches(FOREIGN_V4));
        let moved_at = Instant::now();
        let _moved = Moved::to(foreign, "h2", Ipv4Addr::new(192, 0, 2, 77));
        device.wg("set wg0 listen-port 51999").unwrap();
        let to = IpAddr::V4(foreign.container.v4);
        comes_true("an echo from the new address", || foreign.is_reached(FOREIGN_V4, to));
        comes_true("an echo towards the new address", || foreign.reaches(FOREIGN_V4));
        let endpoint = foreign.peer("office").unwrap().endpoint;
        assert_eq!(endpoint.as_deref(), Some("192.0.2.77:51999"));
        let age = device.handshake_age().unwrap();
        assert!(age >= moved_at.elapsed(), "the session goes on, and a packet of it tells the address");
    });
}

#[test]
fn peer_follows_when_we_move() {
    against_each("our own move", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        foreign.restart(&device.section("office", THEIR_ENDPOINT)).unwrap();
        comes_true("an echo before the move", || foreign.reaches(FOREIGN_V4));
        let moved_at = Instant::now();
        let _moved = Moved::to(foreign, "h1", Ipv4Addr::new(192, 0, 2, 78));
        comes_true("an echo from our new address", || foreign.reaches(FOREIGN_V4));
        assert_eq!(device.endpoint().as_deref(), Some("192.0.2.78:51821"));
        let to = IpAddr::V4(foreign.container.v4);
        comes_true("an echo towards our new address", || foreign.is_reached(FOREIGN_V4, to));
        let age = device.handshake_age().unwrap();
        assert!(age >= moved_at.elapsed(), "the session goes on, and a packet of it tells the address");
    });
}

#[test]
fn killed_daemon_and_forgetful_peer_resume() {
    against_each("restart", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        let section = device.section("office", THEIR_ENDPOINT);
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        foreign.restart(&section).unwrap();
        comes_true("an echo before", || foreign.reaches(FOREIGN_V4));
        foreign.restart(&section).unwrap();
        comes_true("an echo after", || foreign.reaches(FOREIGN_V4));
        // The other end starts anew too, with the same key.
        device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
        let to = IpAddr::V4(foreign.container.v4);
        comes_true("an echo for the peer that forgot its session", || foreign.is_reached(FOREIGN_V4, to));
    });
}
