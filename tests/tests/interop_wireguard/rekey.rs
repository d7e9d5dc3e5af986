//! Sessions that live through their rekey, which is due after two minutes (`REKEY_AFTER_TIME` of the WireGuard paper).
//!
//! They run in a lab of their own beside the other tests of this program, so that the two minutes cost little: every
//! program once as the initiator and once as the responder, with and without a preshared key. A peer that is silent for
//! longer than the ninety seconds of `REKEY_ATTEMPT_TIME` waits there as well.

use anyhow::Result;
use overlay_netns_harness::{Binaries, Pings, wait_for};
use overlay_tests::{Foreign, Initiations, Program, WireguardDevice, lab_name};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::{LIMIT, comes_true, foreign, preshared_key};

/// Ten echoes a second, beyond the two minutes.
const PINGS: &str = "-i 0.1 -c 1300 -W 20";
/// No second handshake comes sooner after the first; ends tell its age to a quarter of a second.
const REKEY: Duration = Duration::from_secs(119);

struct Session {
    name: String,
    device: WireguardDevice,
    we_start: bool,
    pings: Pings,
}

struct Rekey {
    sessions: Vec<Session>,
    /// It does not know us yet, and we try to reach it.
    silent: WireguardDevice,
    initiations: Initiations,
    started: Instant,
    foreign: Foreign,
}

static RUNNING: OnceLock<Mutex<Result<Rekey>>> = OnceLock::new();

/// Starts the sessions, once.
pub(crate) fn begin() {
    RUNNING.get_or_init(|| Mutex::new(start()));
}

fn running() -> Option<MutexGuard<'static, Result<Rekey>>> {
    drop(foreign("rekey")?);
    Some(RUNNING.get().unwrap().lock().unwrap_or_else(PoisonError::into_inner))
}

fn start() -> Result<Rekey> {
    let foreign = Foreign::with_hosts(&lab_name("rekey"), Binaries::for_tests()?, 6)?;
    // A test that is never run leaves this value in place.
    foreign.lab.remove_at_exit();
    let initiations = Initiations::watch(foreign.lab.host("h1")?.view().namespace())?;
    let mut devices = Vec::new();
    let mut sections = String::new();
    for (place, (program, we_start)) in [
        (Program::WireguardGo, true),
        (Program::WireguardGo, false),
        (Program::BoringtunCli, true),
        (Program::BoringtunCli, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (host, network) = (format!("h{}", place + 2), u8::try_from(place + 1)?);
        let device = WireguardDevice::start(&foreign.lab, &host, program, network)?;
        let (mut ours, mut theirs) = (String::new(), String::new());
        if we_start {
            ours = format!("endpoint = \"{}:51820\"\n", device.underlay);
        } else {
            theirs = "endpoint 192.0.2.1:51821".to_owned();
        }
        // Both initiators with one, both responders without.
        if we_start {
            let (our_file, their_file) = preshared_key(&foreign, &host, &host);
            ours += &format!("preshared_key_file = \"{our_file}\"\n");
            theirs += &format!(" preshared-key {their_file}");
        }
        device.set_peer(&foreign.public_key, &theirs)?;
        sections += &device.section(&host, &ours);
        devices.push((host, device, we_start));
    }
    let silent = WireguardDevice::start(&foreign.lab, "h6", Program::WireguardGo, 5)?;
    let keepalive = format!("endpoint = \"{}:51820\"\npersistent_keepalive = 1", silent.underlay);
    sections += &silent.section("h6", &keepalive);
    foreign.reload(&sections)?;
    let started = Instant::now();
    let mut sessions = Vec::new();
    for (name, device, we_start) in devices {
        let pings = if we_start {
            Pings::start(&foreign.container.view, PINGS, &device.inner_v4())?
        } else {
            Pings::start(&foreign.lab.view(&name)?, PINGS, &foreign.container.v4.to_string())?
        };
        sessions.push(Session { name, device, we_start, pings });
    }
    for session in &sessions {
        let what = format!("the first handshake of {}", session.name);
        wait_for(&what, LIMIT, || session.device.handshake_age())?;
    }
    Ok(Rekey { sessions, silent, initiations, started, foreign })
}

#[test]
fn sessions_outlive_their_rekey_without_a_lost_packet() {
    let Some(mut running) = running() else { return };
    let Rekey { sessions, initiations, started, foreign, .. } = running.as_mut().unwrap();
    let sessions = std::mem::take(sessions);
    let _logs = foreign.lab.logs_on_failure();
    let h1 = IpAddr::V4(foreign.lab.host("h1").unwrap().underlay_v4());
    let mut ended = Vec::new();
    for session in sessions {
        let report = session.pings.finish().unwrap();
        let Session { name, device, we_start, .. } = session;
        let what = format!("{name}: {}, {}", device.program.name(), if we_start { "we start" } else { "they start" });
        assert_eq!(report.sent, 1300, "{what}: {}", report.text);
        assert!(report.is_lossless(), "{what}: {}", report.text);
        let theirs = device.handshake_age().unwrap();
        let ours = Duration::from_millis(foreign.peer(&name).unwrap().handshake_age_ms.unwrap());
        for age in [theirs, ours] {
            assert!(age + REKEY < started.elapsed(), "{what}: the last handshake is {age:?} old");
        }
        ended.push((what, device, we_start));
    }
    for (what, device, we_start) in &ended {
        let ours = SocketAddr::new(h1, 51821);
        let theirs = SocketAddr::new(device.underlay.into(), 51820);
        let (starter, other) = if *we_start { (ours, theirs) } else { (theirs, ours) };
        assert!(initiations.count(starter, other) >= 2, "{what}: {initiations:?}");
        let turned = initiations.count(other, starter);
        assert_eq!(turned, 0, "{what}: the side that started the first session starts the next");
        comes_true("an echo over the new session", || foreign.reaches(&device.inner_v4()));
    }
}

#[test]
fn silent_peer_with_keepalive_is_tried_for_ever() {
    let Some(running) = running() else { return };
    let Rekey { silent, started, foreign, .. } = running.as_ref().unwrap();
    let _logs = foreign.lab.logs_on_failure();
    let given_up = Duration::from_secs(100);
    wait_for("a handshake to be given up", 2 * given_up, || (started.elapsed() > given_up).then_some(())).unwrap();
    assert_eq!(silent.handshake_age(), None);
    // It learns of us without our address: only we can begin.
    silent.set_peer(&foreign.public_key, "").unwrap();
    comes_true("a handshake without traffic", || silent.handshake_age().is_some());
}
