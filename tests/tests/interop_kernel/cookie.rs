//! Cookies, asked for by either side.

use overlay_netns_harness::qemu::GUEST_V4;
use overlay_netns_harness::wait_for;
use overlay_tests::{Cookies, FOREIGN_V4, Flood};
use std::net::{IpAddr, SocketAddr};

use crate::wireguard::{Device, OUR_ENDPOINT, THEIR_ENDPOINT};
use crate::{LIMIT, kernel};

/// Our end and that of the kernel.
fn ends() -> [SocketAddr; 2] {
    [SocketAddr::from(([192, 0, 2, 1], 51821)), SocketAddr::new(GUEST_V4.parse().unwrap(), 51820)]
}

#[test]
fn kernel_completes_its_handshake_by_our_cookie() {
    let Some(kernel) = kernel("our cookie") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    kernel.set_peer(&device.section("")).unwrap();
    let [ours, theirs] = ends();
    let lab = &kernel.foreign.lab;
    let cookies = Cookies::watch(lab.view("h1").unwrap().namespace(), theirs, ours).unwrap();
    let flood = Flood::start(lab, "h2", &kernel.foreign.public_key, ours, 20, 0.02).unwrap();
    let asks = format!("ping -n -c 1 -W 1 -I {FOREIGN_V4} {}", kernel.foreign.container.v4);
    // The first messages of each second pass without a cookie: forget and try again until one is asked for.
    let asked = wait_for("a cookie", LIMIT, || {
        device.forget(OUR_ENDPOINT);
        kernel.try_run(&asks);
        cookies.asked().then_some(())
    });
    let came = wait_for("an echo under load", 2 * LIMIT, || {
        cookies.echo_proves(kernel.try_run(&asks).0 == 0, || device.forget(OUR_ENDPOINT))
    });
    cookies.finish(flood, [asked, came]).unwrap();
}

#[test]
fn we_complete_our_handshake_by_the_cookie_of_the_kernel() {
    let Some(kernel) = kernel("their cookie") else { return };
    let _logs = kernel.foreign.lab.logs_on_failure();
    let device = Device::start(&kernel);
    device.forget("");
    let [ours, theirs] = ends();
    let lab = &kernel.foreign.lab;
    let cookies = Cookies::watch(lab.view("h1").unwrap().namespace(), ours, theirs).unwrap();
    // The kernel is under load for a second after 512 initiations waited in its queue.
    let flood = Flood::start(lab, "h1", &device.public_key, theirs, 800, 0.5).unwrap();
    // Not every initiation meets the load: begin without a session until one does.
    let asked = wait_for("a cookie for us", LIMIT, || {
        kernel.set_peer(&device.section(THEIR_ENDPOINT)).unwrap();
        kernel.foreign.reaches(FOREIGN_V4);
        cookies.asked().then_some(())
    });
    let came = wait_for("an echo under load", 2 * LIMIT, || {
        let again = || kernel.set_peer(&device.section(THEIR_ENDPOINT)).unwrap();
        cookies.echo_proves(kernel.foreign.reaches(FOREIGN_V4), again)
    });
    cookies.finish(flood, [asked, came]).unwrap();
    drop(device);
    // The machine answers as before.
    let to = IpAddr::V4(kernel.foreign.container.v4);
    let device = Device::start(&kernel);
    kernel.set_peer(&device.section(THEIR_ENDPOINT)).unwrap();
    device.forget(OUR_ENDPOINT);
    kernel.is_reached("an echo without load", FOREIGN_V4, to);
}
