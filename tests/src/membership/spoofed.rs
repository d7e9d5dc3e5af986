//! A member sends packets whose inner source belongs to another owner: through its own daemon, whose configuration says
//! that it owns that subnet, so that the packets are sealed and framed as real ones are.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::{CONFIG_PATH, HostSpec, wait_for};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::{Bound, Figure, Run};
use crate::forge::{ipv4, udp};
use crate::{Overlay, lab_name, raw_sender, udp_socket};

const LIMIT: Duration = Duration::from_secs(30);
const PORT: u16 = 7101;
/// Sent at once; the next burst waits until the receiver has judged this one.
const BURST: u64 = 250;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let count = run.count(100_000, 2000);
    let mut figures = Vec::new();
    for encapsulation in ["wireguard", "gre", "ipip"] {
        let overlay = start(run, encapsulation)?;
        let (delivered, refused) = send(&overlay, count).with_context(|| format!("over {encapsulation}"))?;
        let what = format!("{encapsulation}: packets with the inner source of another owner");
        figures.push(Figure::new(format!("{what}: refused"), refused as f64, "packets", Bound::AtLeast(count as f64)));
        figures.push(Figure::new(format!("{what}: delivered"), delivered as f64, "packets", Bound::AtMost(0.0)));
    }
    Ok(figures)
}

/// Three hosts. `h3` takes itself for the owner of the subnet of `h1`; the others grant each host its own.
fn start(run: &Run, encapsulation: &str) -> Result<Overlay> {
    let name = lab_name(&format!("spoof{}", &encapsulation[..1]));
    let overlay = Overlay::start(&name, run.binaries.clone(), &HostSpec::numbered(3), 1, encapsulation, |cluster| {
        for number in 1..=3 {
            let grant = vec![format!("10.42.{number}.0/24"), format!("fd42:0:0:{number}::/64")];
            cluster.grants.insert(format!("h{number}"), grant);
        }
    })?;
    let liar = overlay.lab.host("h3")?;
    let mut cluster = overlay.cluster.clone();
    cluster.policy = "open".to_owned();
    cluster.grants.insert("h3".to_owned(), cluster.allow.clone());
    cluster.grants.insert("h1".to_owned(), vec!["10.42.77.0/24".to_owned()]);
    let text = cluster.text(&overlay.lab, liar).replacen(
        "prefixes = [\"10.42.3.0/24\"",
        "prefixes = [\"10.42.3.0/24\", \"10.42.1.0/24\"",
        1,
    );
    overlay.lab.stop_daemon("h3")?;
    std::fs::write(liar.path(CONFIG_PATH), text)?;
    overlay.lab.start_daemon("h3")?;
    wait_for("h2 and h3", LIMIT, || {
        overlay.reaches("h2c1", overlay.lab.container("h3c1").ok()?.v4.into()).then_some(())
    })?;
    Ok(overlay)
}

/// Sends until the receiver has refused so many; delivered and refused.
fn send(overlay: &Overlay, count: u64) -> Result<(u64, u64)> {
    let (to, false_source) = (overlay.container("h2c1").v4, overlay.container("h1c1").v4);
    let true_source = overlay.lab.container("h3c1")?.v4;
    ensure!(true_source.octets()[2] == 3, "the container of h3 has {true_source}");
    let receiver = udp_socket(overlay.container("h2c1").view.namespace(), SocketAddr::new(to.into(), PORT))?;
    receiver.set_nonblocking(true)?;
    let raw = raw_sender(overlay.lab.host("h3")?.view().namespace())?;
    let packet = |source: Ipv4Addr, payload: &[u8]| ipv4(source, to, 17, &udp(PORT, payload));
    let (forged, honest) = (packet(false_source, b"forged"), packet(true_source, b"honest"));
    let target = SocketAddr::new(to.into(), 0);
    let refused = || overlay.drops("h2", "foreign_source");
    let drops = |host| {
        overlay.status(host).map(|status| status.drops.into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>())
    };
    let before = refused();
    let mut delivered = 0;
    while refused() < before + count {
        let judged = refused();
        for _ in 0..BURST {
            match raw(&forged, target) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("sending a forged packet"),
            }
        }
        wait_for("forged packets to be refused", LIMIT, || (refused() >= judged + BURST / 2).then_some(()))
            .with_context(|| format!("h2 dropped {:?}, h3 {:?}", drops("h2"), drops("h3")))?;
        delivered += received(&receiver, b"forged");
    }
    // The control: the same bytes with a source that h3 owns arrive, over the same way.
    wait_for("an honest packet", LIMIT, || {
        raw(&honest, target).ok()?;
        let mut buffer = [0; 64];
        while let Ok(length) = receiver.recv(&mut buffer) {
            if &buffer[..length] == b"honest" {
                return Some(());
            }
            delivered += 1;
        }
        None
    })?;
    Ok((delivered, refused() - before))
}

fn received(socket: &UdpSocket, wanted: &[u8]) -> u64 {
    let (mut buffer, mut count) = ([0; 64], 0);
    while let Ok(length) = socket.recv(&mut buffer) {
        count += u64::from(&buffer[..length] == wanted);
    }
    count
}
