//! Limits on rates between real containers: kept within 5 %, in both directions, over a restart, and gone with the container.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{LimitInfo, LimitRate, LimitRequest, Request, Response};
use overlay_netns_harness::{Container, HostSpec, netns, wait_for};
use overlay_tests::{Overlay, SharedLab};
use std::net::{SocketAddr, UdpSocket};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(20);
/// Inner bytes of each datagram sent.
const PACKET: usize = 1200;

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "limits",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

fn ask(overlay: &Overlay, host: &str, request: LimitRequest) -> Response {
    overlay.ask(host, Request::Limit(request)).unwrap()
}

fn list(overlay: &Overlay, host: &str) -> Vec<LimitInfo> {
    match ask(overlay, host, LimitRequest::List) {
        Response::Limits(limits) => limits,
        other => panic!("{}", other.name()),
    }
}

fn set(overlay: &Overlay, host: &str, selector: &str, from: Option<LimitRate>, to: Option<LimitRate>) {
    let selector = selector.to_owned();
    assert!(matches!(
        ask(overlay, host, LimitRequest::Set { selector, from, to }),
        Response::Done { changed: true, .. }
    ));
}

fn remove(overlay: &Overlay, host: &str, selector: &str) {
    ask(overlay, host, LimitRequest::Remove { selector: selector.to_owned() });
}

/// So many bits per second. The burst of 400 ms is gone before measuring begins, and then only makes good for a sender that
/// the machine held up.
fn bits(bits: u64) -> LimitRate {
    LimitRate { bits: Some(bits), burst: Some(bits / 20), packets: None }
}

/// Bits per second and packets per second of inner packets that arrive while far more is sent, after a first moment in
/// which bursts pass.
fn measure(from: &Container, to: &Container, offered: u64, span: Duration) -> (f64, f64) {
    let server = netns::within(to.view.namespace(), || Ok(UdpSocket::bind((to.v4, 0))?)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let client = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?)).unwrap();
    let target = SocketAddr::from((to.v4, server.local_addr().unwrap().port()));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (begun, mut sent) = (Instant::now(), 0u64);
            let payload = [7; PACKET - 28];
            while !over.load(Ordering::Relaxed) {
                // What is due by now, so that a late wake-up is made good.
                let due = (begun.elapsed().as_secs_f64() * offered as f64 / 8.0 / PACKET as f64) as u64;
                for _ in sent..due {
                    let _ = client.send_to(&payload, target);
                }
                sent = sent.max(due);
                std::thread::yield_now();
            }
        });
        let mut buffer = [0; 2048];
        let warm = Instant::now() + span / 4;
        while Instant::now() < warm {
            let _ = server.recv_from(&mut buffer);
        }
        let (begun, mut packets) = (Instant::now(), 0u64);
        while begun.elapsed() < span {
            packets += u64::from(server.recv_from(&mut buffer).is_ok());
        }
        let seconds = begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        (packets as f64 * PACKET as f64 * 8.0 / seconds, packets as f64 / seconds)
    })
}

fn assert_near(got: f64, wanted: f64, what: &str) {
    assert!((got / wanted - 1.0).abs() < 0.05, "{what}: {got:.0}, wanted {wanted:.0}");
}

#[test]
fn rates_are_kept_in_both_directions_and_drops_are_counted() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (one, other) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let name = one.view.namespace();
    // What is offered passes without a limit: what is measured below is the limit.
    let (free, _) = measure(one, other, 30_000_000, Duration::from_secs(2));
    assert!(free > 25_000_000.0, "{free:.0} of 30 Mbit/s pass without a limit");
    for rate in [1_000_000, 10_000_000] {
        set(&overlay, "h1", name, Some(bits(rate)), Some(LimitRate::default()));
        let before = overlay.drops("h1", "rate_limit");
        let (got, _) = measure(one, other, 3 * rate, Duration::from_secs(4));
        assert_near(got, rate as f64, "what it sends");
        assert!(overlay.drops("h1", "rate_limit") > before);
        let shown = list(&overlay, "h1");
        assert!(shown[0].dropped_from > 0 && shown[0].dropped_to == 0, "{shown:?}");
        // The other direction is not limited.
        let (free, _) = measure(other, one, 2 * rate, Duration::from_secs(1));
        assert!(free > 1.5 * rate as f64, "{free:.0}");
    }
    set(&overlay, "h1", name, Some(LimitRate::default()), Some(bits(5_000_000)));
    let (got, _) = measure(other, one, 15_000_000, Duration::from_secs(4));
    assert_near(got, 5_000_000.0, "what it gets");
    remove(&overlay, "h1", name);
    let packets = LimitRate { packets: Some(500), ..LimitRate::default() };
    set(&overlay, "h1", "peer:h2", None, Some(packets));
    let (_, got) = measure(one, other, 20_000_000, Duration::from_secs(4));
    assert_near(got, 500.0, "packets to a peer");
    assert!(overlay.drops("h1", "packet_rate_limit") > 0);
    remove(&overlay, "h1", "peer:h2");
    assert_eq!(list(&overlay, "h1"), []);
}

#[test]
fn limit_outlives_a_restart_and_goes_with_its_container() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let extra = overlay.lab.add_container("h2", "extra").unwrap();
    let extra = extra.view.namespace();
    set(&overlay, "h2", extra, Some(bits(3_000_000)), None);
    set(&overlay, "h2", "10.42.9.0/24", Some(bits(4_000_000)), None);
    let before = list(&overlay, "h2");
    assert_eq!(before.iter().map(|limit| limit.kind.as_str()).collect::<Vec<_>>(), ["prefix", "container"]);
    overlay.lab.kill_daemon("h2").unwrap();
    overlay.lab.start_daemon("h2").unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
    assert_eq!(list(&overlay, "h2"), before, "a kill takes no limit away");
    overlay.ask("h2", Request::EndpointRemove { name: extra.to_owned() }).unwrap();
    let left = list(&overlay, "h2");
    assert_eq!(left.iter().map(|limit| limit.selector.as_str()).collect::<Vec<_>>(), ["10.42.9.0/24"]);
    remove(&overlay, "h2", "10.42.9.0/24");
    wait_for("the way is whole again", LIMIT, || {
        overlay.reaches("h1c1", overlay.container("h2c1").v4.into()).then_some(())
    })
    .unwrap();
}

#[test]
fn what_cannot_be_limited_is_refused() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let refused = |selector: &str, from: LimitRate| {
        let selector = selector.to_owned();
        let request = Request::Limit(LimitRequest::Set { selector, from: Some(from), to: None });
        let error = overlay.lab.control("h1").unwrap().call(request).unwrap_err();
        error.to_api().code.as_str().to_owned()
    };
    assert_eq!(refused("nobody", bits(1_000_000)), "NOT_FOUND");
    assert_eq!(refused("peer:nobody", bits(1_000_000)), "NOT_FOUND");
    assert_eq!(refused("10.42.1.4", bits(10)), "INVALID");
    assert_eq!(refused("10.42.1.4", LimitRate { burst: Some(1), ..LimitRate::default() }), "INVALID");
    assert_eq!(refused("10.42.1.4", LimitRate { packets: Some(0), ..LimitRate::default() }), "INVALID");
    assert_eq!(list(&overlay, "h1"), []);
}
