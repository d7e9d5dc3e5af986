//! Names of hosts and containers, asked for with `dig` from everywhere; other names passed on; clients told by their engine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::api::{DnsRequest, DnsStatus, Request, Response};
use overlay_netns_harness::netns::View;
use overlay_netns_harness::{HostSpec, netns, packages, run_in, wait_for};
use overlay_tests::{Capture, Overlay, SharedLab, udp_socket};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(10);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "names",
        |name, binaries| {
            if !packages::exists("dig") {
                packages::install(&["bind9-dnsutils"])?;
            }
            Overlay::start(name, binaries, &HostSpec::numbered(2), 2, "wireguard", |cluster| {
                // The switch plays a server of the outside; the first that is named does not exist.
                for host in ["h1", "h2"] {
                    let dns = "[dns]\nforward = [\"192.0.2.253\", \"192.0.2.254\"]\n".to_owned();
                    cluster.extra.insert(host.to_owned(), dns);
                }
            })
        },
        |overlay| &overlay.lab,
    )
}

/// What `dig` prints to these words.
fn dig(view: &View, words: &str) -> String {
    let all: Vec<&str> = ["dig", "+tries=2", "+time=5"].into_iter().chain(words.split(' ')).collect();
    run_in(view, &all).unwrap()
}

/// The answers alone, sorted.
fn short(view: &View, words: &str) -> Vec<String> {
    let text = dig(view, &format!("+short {words}"));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn status(overlay: &Overlay, host: &str) -> DnsStatus {
    match overlay.ask(host, Request::Dns(DnsRequest::Status)).unwrap() {
        Response::Dns(status) => status,
        other => panic!("{}", other.name()),
    }
}

fn name(overlay: &Overlay, host: &str, container: &str, names: &[&str]) {
    let endpoints = match overlay.ask(host, Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints,
        other => panic!("{}", other.name()),
    };
    let ip = IpAddr::V4(overlay.container(container).v4);
    let endpoint = endpoints.into_iter().find(|one| one.addresses.contains(&ip)).unwrap().name;
    let words = [&["dns", "name", endpoint.as_str()], names].concat();
    overlay.lab.ctl_ok(host, &words).unwrap();
}

/// The places that ask on a host: a container and the host itself, over each family.
fn askers<'a>(overlay: &'a Overlay, host: &str, container: &str) -> [(&'a View, String); 4] {
    let h = overlay.lab.host(host).unwrap();
    let (v4, v6) = (format!("@{}", h.overlay_v4()), format!("@{}", h.overlay_v6()));
    let inside = &overlay.container(container).view;
    [(inside, v4.clone()), (inside, v6.clone()), (h.view(), v4), (h.view(), v6)]
}

#[test]
fn hosts_and_containers_are_found_from_every_host_by_both_families_and_protocols() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    name(&overlay, "h2", "h2c1", &["Shop", "web"]);
    name(&overlay, "h1", "h1c1", &["web"]);
    let (one, two) = (overlay.container("h1c1"), overlay.container("h2c1"));
    let h1 = overlay.lab.host("h1").unwrap();
    wait_for("the names of h2 to come to h1", LIMIT, || {
        let at = format!("@{}", h1.overlay_v4());
        (short(&one.view, &format!("{at} shop.ctr.overlay.internal")) == [two.v4.to_string()]).then_some(())
    })
    .unwrap();
    for (host, container) in [("h1", "h1c2"), ("h2", "h2c2")] {
        wait_for("the names of h1 to come to h2", LIMIT, || {
            let at = format!("@{}", overlay.lab.host(host).unwrap().overlay_v4());
            let found = short(&overlay.container(container).view, &format!("{at} web.ctr.overlay.internal"));
            (found.len() == 2).then_some(())
        })
        .unwrap();
        for (view, at) in askers(&overlay, host, container) {
            for protocol in ["+notcp", "+tcp"] {
                let ask = |words: &str| short(view, &format!("{at} {protocol} {words}"));
                assert_eq!(ask("SHOP.ctr.Overlay.internal"), [two.v4.to_string()], "{host} {at} {protocol}");
                assert_eq!(ask("shop.ctr.overlay.internal AAAA"), [two.v6.to_string()]);
                let mut both = [one.v4.to_string(), two.v4.to_string()];
                both.sort();
                assert_eq!(ask("web.ctr.overlay.internal"), both);
                assert_eq!(ask("h1.node.overlay.internal"), [h1.overlay_v4().to_string()]);
                assert_eq!(ask("h1.node.overlay.internal AAAA"), [h1.overlay_v6().to_string()]);
                let reverse = ask(&format!("-x {}", two.v4));
                assert!(reverse.len() == 1 && reverse[0].ends_with(".ctr.overlay.internal."), "{reverse:?}");
                assert_eq!(ask(&format!("-x {}", h1.overlay_v6())), ["h1.node.overlay.internal."]);
            }
        }
    }
    // Names end with the names' record: taken back, they are gone on the other host too.
    name(&overlay, "h2", "h2c1", &[]);
    wait_for("the names to be gone", LIMIT, || {
        let at = format!("@{}", h1.overlay_v4());
        short(&one.view, &format!("{at} shop.ctr.overlay.internal")).is_empty().then_some(())
    })
    .unwrap();
}

#[test]
fn codes_flags_and_sections_are_those_of_the_standards() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    name(&overlay, "h1", "h1c1", &["codes"]);
    let at = format!("@{}", overlay.lab.host("h1").unwrap().overlay_v4());
    let view = &overlay.container("h1c2").view;
    for (words, code, parts) in [
        ("codes.ctr.overlay.internal A", "NOERROR", "ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1"),
        ("codes.ctr.overlay.internal A +noedns", "NOERROR", "ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 0"),
        ("codes.ctr.overlay.internal MX", "NOERROR", "ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1"),
        ("ctr.overlay.internal A", "NOERROR", "ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1"),
        ("none.ctr.overlay.internal A", "NXDOMAIN", "ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1"),
        ("overlay.internal SOA", "NOERROR", "ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1"),
        ("codes.ctr.overlay.internal A +edns=1 +noednsneg", "BADVERS", "ANSWER: 0, AUTHORITY: 0, ADDITIONAL: 1"),
        ("-c CH codes.ctr.overlay.internal A", "REFUSED", "ANSWER: 0, AUTHORITY: 0, ADDITIONAL: 1"),
        ("codes.ctr.overlay.internal A +opcode=STATUS", "NOTIMP", "ANSWER: 0, AUTHORITY: 0, ADDITIONAL: 1"),
    ] {
        let text = dig(view, &format!("{at} {words}"));
        assert!(text.contains(&format!("status: {code},")) && text.contains(parts), "{words}: {text}");
    }
    let negative = dig(view, &format!("{at} none.ctr.overlay.internal"));
    let soa = negative.lines().find(|line| line.contains("SOA")).unwrap();
    assert!(soa.starts_with("overlay.internal.\t1\t") || soa.contains("\t1\tIN\tSOA"), "{soa}");
    // What is no query gets no answer, and the server goes on.
    let socket = udp_socket(view.namespace(), "0.0.0.0:0".parse().unwrap()).unwrap();
    let server = SocketAddr::new(overlay.lab.host("h1").unwrap().overlay_v4().into(), 53);
    for length in 0..300usize {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + length * 7) as u8).collect();
        socket.send_to(&bytes, server).unwrap();
    }
    let answer = dig(view, &format!("{at} codes.ctr.overlay.internal"));
    assert!(answer.contains("status: NOERROR"), "{answer}");
    // Several queries on one connection, and an end after a length of nothing.
    let mut stream = netns::within(view.namespace(), || Ok(TcpStream::connect(server)?)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let query =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05codes\x03ctr\x07overlay\x08internal\x00\x00\x01\x00\x01";
    let framed = [&(query.len() as u16).to_be_bytes()[..], query].concat();
    stream.write_all(&[&framed[..], &framed].concat()).unwrap();
    for _ in 0..2 {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!((&reply[..2], reply[7]), (&[0x12, 0x34][..], 1));
    }
    stream.write_all(&[0, 0]).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection ends");
}

#[test]
fn names_are_answered_to_the_own_host_and_its_containers_alone() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let host = overlay.lab.host("h1").unwrap();
    let asks = |view: &View| {
        let socket = udp_socket(view.namespace(), "0.0.0.0:0".parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02h1\x04node\x07overlay\x08internal\x00\x00\x01\x00\x01";
        socket.send_to(query, SocketAddr::new(host.overlay_v4().into(), 53)).is_ok()
            && socket.recv(&mut [0; 512]).is_ok()
    };
    assert!(asks(&overlay.container("h1c1").view) && asks(host.view()));
    assert!(!asks(&overlay.container("h2c1").view) && !asks(overlay.lab.host("h2").unwrap().view()));
    // The policy between containers and the host does not close it.
    let policy = serde_json::from_value(serde_json::json!({ "default": "deny", "rules": [] })).unwrap();
    overlay.ask("h1", Request::PolicyApply { policy: Some(policy) }).unwrap();
    let answered = asks(&overlay.container("h1c1").view);
    overlay.ask("h1", Request::PolicyApply { policy: None }).unwrap();
    assert!(answered);
}

/// A server of the outside: answers every question with one address, and counts them.
struct Outside {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Outside {
    fn start(view: &View) -> Outside {
        let socket = udp_socket(view.namespace(), "192.0.2.254:53".parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                // Only the header and the question, without what follows, then one record that points at the question.
                let end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
                let record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x07";
                let mut reply = [&buffer[..end], record].concat();
                reply[2] |= 0x80;
                reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
                // Somebody who guesses comes first: another id, then another question.
                let mut forged = reply.clone();
                forged[0] ^= 1;
                *forged.last_mut().unwrap() = 66;
                let _ = socket.send_to(&forged, from);
                forged[0] ^= 1;
                forged[13] ^= 1;
                let _ = socket.send_to(&forged, from);
                let _ = socket.send_to(&reply, from);
            }
        });
        Outside { asked, stop, thread: Some(thread) }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn other_names_are_passed_on_and_names_of_ours_never_are() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let at = format!("@{}", overlay.lab.host("h1").unwrap().overlay_v4());
    let view = &overlay.container("h1c1").view;
    // Nobody answers: told in time, and as a failure.
    let failed = dig(view, &format!("{at} +tries=1 example.org"));
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    let outside = Outside::start(&overlay.lab.switch());
    for protocol in ["+notcp", "+tcp"] {
        assert_eq!(
            short(view, &format!("{at} {protocol} example.org")),
            ["203.0.113.7"],
            "forged answers do not count"
        );
    }
    let before = outside.asked.load(Ordering::Relaxed);
    assert!(before >= 2);
    for ours in ["none.ctr.overlay.internal", "none.overlay.internal", "-x 10.42.200.200"] {
        assert!(dig(view, &format!("{at} {ours}")).contains("NXDOMAIN"), "{ours}");
    }
    assert_eq!(outside.asked.load(Ordering::Relaxed), before);
    let known = status(&overlay, "h1");
    assert!(known.forwarded >= 3 && known.hosts == 2, "{known:?}");
    // One client cannot have more passed on than its share; our own names are answered meanwhile.
    let socket = udp_socket(view.namespace(), "0.0.0.0:0".parse().unwrap()).unwrap();
    let server = SocketAddr::new(overlay.lab.host("h1").unwrap().overlay_v4().into(), 53);
    for number in 0..2000u16 {
        let [high, low] = number.to_be_bytes();
        let query = [&[high, low][..], b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05flood\x03org\x00\x00\x01\x00\x01"]
            .concat();
        socket.send_to(&query, server).unwrap();
    }
    assert!(dig(view, &format!("{at} h1.node.overlay.internal")).contains("NOERROR"));
    wait_for("the flood to be refused", LIMIT, || (status(&overlay, "h1").refused > 100).then_some(())).unwrap();
    let passed = outside.asked.load(Ordering::Relaxed) - before;
    assert!(passed < 1500, "{passed} of 2000 were passed on");
}

/// What the slow server of the outside saw.
#[derive(Default)]
struct Seen {
    asked: usize,
    /// Questions that came while it had not answered another one.
    together: usize,
    spellings: std::collections::BTreeSet<Vec<u8>>,
}

/// A server that takes its time, while somebody who knows port and id, but not how the name was spelled, answers at once. With
/// `spelled` he knows that too.
fn slow(view: &View, spelled: bool, stop: Arc<AtomicBool>) -> JoinHandle<Seen> {
    let socket = udp_socket(view.namespace(), "192.0.2.254:53".parse().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::spawn(move || {
        let (mut seen, mut buffer) = (Seen::default(), [0; 2048]);
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            seen.asked += 1;
            seen.spellings.insert(buffer[12..end].to_vec());
            let answer = |question: &[u8], last: u8| {
                let record = [b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71", &[last][..]].concat();
                let mut reply = [&buffer[..12], question, &record].concat();
                reply[2] |= 0x80;
                reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
                reply
            };
            let question = buffer[12..end].to_vec();
            let guessed = if spelled { question.clone() } else { question.to_ascii_lowercase() };
            for _ in 0..50 {
                let _ = socket.send_to(&answer(&guessed, 66), from);
            }
            let rightly = answer(&question, 7);
            // Whoever else is asked now is asked beside this question.
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(200) {
                seen.together += usize::from(socket.recv_from(&mut [0; 2048]).is_ok());
            }
            let _ = socket.send_to(&rightly, from);
        }
        seen
    })
}

#[test]
fn of_one_question_one_is_under_way_and_who_cannot_spell_it_forges_nothing() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let server = SocketAddr::new(overlay.lab.host("h1").unwrap().overlay_v4().into(), 53);
    let ask = |spelled: bool| {
        let stop = Arc::new(AtomicBool::new(false));
        let outside = slow(&overlay.lab.switch(), spelled, Arc::clone(&stop));
        // Two containers, five spellings, with and without checking disabled: what a client may have under way at once.
        let mut asked = Vec::new();
        for container in ["h1c1", "h1c2"] {
            let socket =
                udp_socket(overlay.container(container).view.namespace(), "0.0.0.0:0".parse().unwrap()).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            for number in 0..10u8 {
                let mut name = *b"\x15the-one-and-only-name\x07example";
                name[usize::from(number) / 2 + 1] ^= b' ' * u8::from(name[usize::from(number) / 2 + 1] != b'-');
                let flags = [1, if number % 2 == 0 { 0 } else { 0x10 }];
                let head = [&[number, number ^ 0x5a][..], &flags, b"\x00\x01\x00\x00\x00\x00\x00\x00"].concat();
                let query = [&head[..], &name, b"\x00\x00\x01\x00\x01"].concat();
                socket.send_to(&query, server).unwrap();
                asked.push((socket.try_clone().unwrap(), query));
            }
        }
        let mut answers = Vec::new();
        let mut buffer = [0; 512];
        let wanted: Vec<Vec<u8>> = asked.iter().map(|(_, query)| query[12..].to_vec()).collect();
        for (socket, _) in &asked {
            let length = socket.recv(&mut buffer).unwrap();
            assert!(wanted.iter().any(|question| buffer[12..length].starts_with(question)), "spelled as it was asked");
            assert_eq!(buffer[3] & 15, 0, "answered well");
            answers.push(buffer[length - 1]);
        }
        stop.store(true, Ordering::Relaxed);
        (answers, outside.join().unwrap())
    };
    let (answers, seen) = ask(false);
    assert!(answers.iter().all(|last| *last == 7), "forged answers were taken: {answers:?}");
    assert_eq!((seen.asked, seen.together), (2, 0), "one question in each kind, one after the other");
    assert_eq!(seen.spellings.len(), 2, "spelled by chance each time");
    // The control: the same forger with the spelling wins.
    let (answers, _) = ask(true);
    assert!(answers.iter().all(|last| *last == 66), "the forger forges nothing at all: {answers:?}");
}

#[test]
fn container_of_an_internal_network_gets_names_of_ours_alone() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let at = format!("@{}", overlay.lab.host("h1").unwrap().overlay_v4());
    overlay.lab.ctl_ok("h1", &["network", "create", "quiet", "--internal"]).unwrap();
    let view = overlay.lab.add_namespace("quiet").unwrap();
    let words = ["endpoint", "add", "quiet", "--netns", view.namespace(), "--network", "quiet"];
    overlay.lab.ctl_ok("h1", &words).unwrap();
    let outside = Outside::start(&overlay.lab.switch());
    for protocol in ["+notcp", "+tcp"] {
        let refused = dig(&view, &format!("{at} {protocol} secret.example.org"));
        assert!(refused.contains("status: REFUSED"), "{refused}");
        let ours = dig(&view, &format!("{at} {protocol} h2.node.overlay.internal"));
        assert!(ours.contains("status: NOERROR"), "{ours}");
    }
    assert_eq!(outside.asked.load(Ordering::Relaxed), 0, "nothing of it leaves the host");
    assert_eq!(short(&overlay.container("h1c1").view, &format!("{at} example.org")), ["203.0.113.7"], "the control");
    overlay.lab.ctl_ok("h1", &["endpoint", "rm", "quiet"]).unwrap();
    overlay.lab.ctl_ok("h1", &["network", "rm", "quiet"]).unwrap();
}

#[test]
fn names_outlive_the_daemon_and_end_with_the_container() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let container = overlay.lab.add_container("h1", "named").unwrap();
    let at = |host: &str| format!("@{}", overlay.lab.host(host).unwrap().overlay_v4());
    let endpoints = match overlay.ask("h1", Request::EndpointList).unwrap() {
        Response::Endpoints(endpoints) => endpoints,
        other => panic!("{}", other.name()),
    };
    let ip = IpAddr::V4(container.v4);
    let endpoint = endpoints.into_iter().find(|one| one.addresses.contains(&ip)).unwrap().name;
    overlay.lab.ctl_ok("h1", &["dns", "name", &endpoint, "kept"]).unwrap();
    let finds = |host: &str, view: &View| {
        let all = ["dig", "+tries=1", "+time=1", "+short", &at(host), "kept.ctr.overlay.internal"];
        run_in(view, &all).unwrap_or_default().trim() == container.v4.to_string()
    };
    let there = overlay.container("h2c1").view.clone();
    wait_for("the name on h2", LIMIT, || finds("h2", &there).then_some(())).unwrap();
    overlay.lab.kill_daemon("h1").unwrap();
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    wait_for("the name on h1 again", LIMIT, || finds("h1", &container.view).then_some(())).unwrap();
    wait_for("the name on h2 again", LIMIT, || finds("h2", &there).then_some(())).unwrap();
    netns::remove(container.view.namespace()).unwrap();
    wait_for("the name to end", LIMIT, || (!finds("h2", &there)).then_some(())).unwrap();
}

/// Every question of a client that asks 64 at a time is answered; how fast is printed, for the machine may be busy.
#[test]
fn questions_without_pause_are_all_answered() {
    const COUNT: usize = 30_000;
    const WINDOW: usize = 64;
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let view = &overlay.container("h1c1").view;
    let socket = udp_socket(view.namespace(), "0.0.0.0:0".parse().unwrap()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(SocketAddr::new(overlay.lab.host("h1").unwrap().overlay_v4().into(), 53)).unwrap();
    let query = |id: usize| {
        let id = (id as u16).to_be_bytes();
        [&id[..], b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02h1\x04node\x07overlay\x08internal\x00\x00\x01\x00\x01"]
            .concat()
    };
    let (mut sent, mut slowest, began) = (vec![None; COUNT], Vec::with_capacity(COUNT), std::time::Instant::now());
    let mut next = 0;
    let mut answered = 0;
    while answered < COUNT {
        while next < COUNT && next - answered < WINDOW {
            sent[next] = Some(std::time::Instant::now());
            socket.send(&query(next)).unwrap();
            next += 1;
        }
        let mut reply = [0; 512];
        socket.recv(&mut reply).expect("an answer to each question");
        assert_eq!((reply[3] & 15, reply[7]), (0, 1));
        let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
        slowest.push(sent[id].take().expect("one answer to each question").elapsed());
        answered += 1;
    }
    slowest.sort();
    let rate = COUNT as f64 / began.elapsed().as_secs_f64();
    println!(
        "{rate:.0} answers/s, {WINDOW} at a time: median {:?}, p99 {:?}",
        slowest[COUNT / 2],
        slowest[COUNT * 99 / 100]
    );
}

/// The host's own resolver: without systemd-resolved the lines are shown, and nothing is written.
#[test]
fn host_is_told_what_to_add_and_nothing_is_written() {
    let Some(overlay) = overlay() else { return };
    let before = std::fs::read("/etc/resolv.conf").ok();
    let said = overlay.lab.ctl_ok("h1", &["dns", "host"]).unwrap();
    assert!(said.contains("nameserver 10.42.1.1\nsearch ctr.overlay.internal\n"), "{said}");
    assert_eq!(std::fs::read("/etc/resolv.conf").ok(), before);
    let capture =
        Capture::start(overlay.lab.switch().namespace(), Capture::containing(b"overlay\x08internal")).unwrap();
    let view = overlay.lab.host("h1").unwrap().view();
    assert!(dig(view, "@10.42.1.1 none.ctr.overlay.internal").contains("NXDOMAIN"));
    assert_eq!(capture.finish().matches, 0, "a name of ours left the host in clear");
}
