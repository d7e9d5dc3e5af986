//! Cookies: a side under load answers an initiation with one, and the other proves its address with it.

use overlay_netns_harness::wait_for;
use overlay_tests::{Cookies, FOREIGN_V4, Flood, Program, WireguardDevice};
use std::net::{IpAddr, SocketAddr};

use crate::{LIMIT, OUR_ENDPOINT, THEIR_ENDPOINT, against_each, comes_true};

/// Our end and that of the device.
fn ends(device: &WireguardDevice) -> [SocketAddr; 2] {
    [SocketAddr::from(([192, 0, 2, 1], 51821)), SocketAddr::new(device.underlay.into(), 51820)]
}

#[test]
fn peer_completes_its_handshake_by_our_cookie() {
    against_each("our cookie", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        foreign.restart(&device.section("office", "")).unwrap();
        let [ours, theirs] = ends(&device);
        let cookies = Cookies::watch(foreign.lab.view("h2").unwrap().namespace(), theirs, ours).unwrap();
        let flood = Flood::start(&foreign.lab, "h2", &foreign.public_key, ours, 20, 0.02).unwrap();
        comes_true("the flood to be noticed", || {
            foreign.status().unwrap().drops.get("wireguard_handshake").is_some_and(|count| *count > 200)
        });
        let to = IpAddr::V4(foreign.container.v4);
        // The first messages of each second pass without a cookie: forget and try again until one is asked for.
        let asked = wait_for("a cookie", LIMIT, || {
            device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
            foreign.is_reached(FOREIGN_V4, to);
            cookies.asked().then_some(())
        });
        let came = wait_for("an echo under load", 2 * LIMIT, || {
            let again = || device.set_peer(&foreign.public_key, OUR_ENDPOINT).unwrap();
            cookies.echo_proves(foreign.is_reached(FOREIGN_V4, to), again)
        });
        cookies.finish(flood, [asked, came]).unwrap();
    });
}

#[test]
fn we_complete_our_handshake_by_the_cookie_of_a_peer() {
    against_each("their cookie", |foreign, program| {
        let device = WireguardDevice::start(&foreign.lab, "h2", program, 0).unwrap();
        let section = device.section("office", THEIR_ENDPOINT);
        let [ours, theirs] = ends(&device);
        let cookies = Cookies::watch(foreign.lab.view("h1").unwrap().namespace(), ours, theirs).unwrap();
        // wireguard-go is under load while 128 initiations wait in its queue, boringtun-cli above 100 a second.
        let (burst, pause) = match program {
            Program::WireguardGo => (1000, 0.05),
            Program::BoringtunCli => (20, 0.02),
        };
        let flood = Flood::start(&foreign.lab, "h1", &device.public_key, theirs, burst, pause).unwrap();
        // Not every initiation meets the load: both ends begin anew until one does.
        let asked = wait_for("a cookie for us", 2 * LIMIT, || {
            device.set_peer(&foreign.public_key, "").unwrap();
            foreign.restart(&section).unwrap();
            foreign.reaches(FOREIGN_V4);
            cookies.asked().then_some(())
        });
        let came = wait_for("an echo under load", 2 * LIMIT, || {
            cookies.echo_proves(foreign.reaches(FOREIGN_V4), || foreign.restart(&section).unwrap())
        });
        cookies.finish(flood, [asked, came]).unwrap();
    });
}
