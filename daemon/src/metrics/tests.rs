//! The definitions, the page, and the server against what a collector and an attacker send.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;

#[test]
fn names_are_made_by_the_rule_and_distinct() {
    let mut seen = BTreeSet::new();
    for metric in Metric::ALL {
        let definition = metric.definition();
        let name = definition.name();
        assert!(name.starts_with("overlay_") && name.split('_').count() >= 3, "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert!(!definition.stem.ends_with("_total"), "{name} would have the ending twice");
        assert!(definition.help.ends_with('.'), "{name}: {}", definition.help);
        assert!(definition.labels.iter().all(|label| !["address", "port", "flow"].contains(label)), "{name}");
        assert!(seen.insert(name.clone()), "{name} is there twice");
    }
}

#[test]
fn documentation_lists_every_metric_and_no_other() {
    let document = include_str!("../../../docs/metrics.md");
    let row = |line: &str| -> Option<[String; 3]> {
        let mut cells = line.strip_prefix("| `overlay_")?.split(" | ");
        let name = format!("overlay_{}", cells.next()?.trim_matches('`'));
        Some([name, cells.next()?.to_owned(), cells.next()?.to_owned()])
    };
    let documented: Vec<[String; 3]> = document.lines().filter_map(row).collect();
    let known: Vec<[String; 3]> = Metric::ALL
        .iter()
        .map(|metric| {
            let Definition { kind, labels, .. } = metric.definition();
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            [metric.definition().name(), kind.name().to_owned(), labels.join(", ")]
        })
        .collect();
    assert_eq!(documented, known, "docs/metrics.md and definitions.rs differ");
}

#[test]
fn page_is_open_metrics_text() {
    let mut page = Page::default();
    page.count(Metric::PeerSentBytes, &["h2"], 1234);
    page.put(Metric::PeerRoundTrip, &["h2"], 0.25);
    page.count(Metric::FilterAnswers, &[], 3);
    page.put(Metric::DaemonReady, &[], 1.0);
    let text = page.text().expect("memory");
    for line in [
        "# TYPE overlay_peer_sent_bytes counter",
        "# UNIT overlay_peer_sent_bytes bytes",
        "overlay_peer_sent_bytes_total{peer=\"h2\"} 1234.0",
        "overlay_peer_round_trip_seconds{peer=\"h2\"} 0.25",
        "overlay_filter_answers_packets_total 3.0",
        "overlay_daemon_ready 1.0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(!text.contains("overlay_peer_received"), "a metric without values has no lines:\n{text}");
}

struct Fixed;

impl Source for Fixed {
    async fn page(&self) -> Option<String> {
        Some("overlay_daemon_ready 1.0\n# EOF\n".to_owned())
    }
}

/// Serves on an address, makes requests, and ends.
fn with_server<T>(address: &str, deadlines: Deadlines, work: impl AsyncFnOnce(std::net::SocketAddr) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = Server::bind(address.parse().expect("an address"), deadlines).await.expect("a free port");
        let address = server.address();
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(server.run(Arc::new(Fixed), stopped));
        let outcome = work(address).await;
        let _ = stop.send(true);
        running.await.expect("the server ends when it is told");
        outcome
    })
}

async fn request(address: std::net::SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // A server that has refused already may have closed while we write.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn status(address: std::net::SocketAddr, text: &str) -> String {
    let answer = request(address, text).await;
    answer.split(' ').nth(1).unwrap_or("nothing").to_owned()
}

const LOOPBACK: &str = "127.0.0.1:0";

#[test]
fn collector_gets_the_page_and_nothing_else_is_there() {
    with_server(LOOPBACK, Deadlines::default(), async |address| {
        let answer = request(address, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9821\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.contains("cache-control: no-store"), "{answer}");
        assert!(answer.ends_with("\r\n\r\noverlay_daemon_ready 1.0\n# EOF\n"), "{answer}");
        for (line, expected) in [
            ("GET /metrics?x=1", "200"),
            ("GET /", "404"),
            ("GET /metrics/", "404"),
            ("POST /metrics", "405"),
            ("HEAD /metrics", "405"),
            ("DELETE /metrics", "405"),
        ] {
            let text = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(status(address, &text).await, expected, "{line}");
        }
    });
}

#[test]
fn only_addresses_and_localhost_are_served() {
    let asked = |listen: &str, host: &str| {
        let text = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
        with_server(listen, Deadlines::default(), async |address| {
            let to = std::net::SocketAddr::new([127, 0, 0, 1].into(), address.port());
            status(to, &text).await
        })
    };
    for host in ["localhost", "LocalHost:9821", "127.0.0.1", "127.8.8.8:1", "[::1]:9821", "[::ffff:127.0.0.1]"] {
        assert_eq!(asked(LOOPBACK, host), "200", "{host}");
    }
    for host in
        ["evil.example", "localhost.evil.example:9821", "192.0.2.1:9821", "127.0.0.1.evil.example", "2130706433"]
    {
        assert_eq!(asked(LOOPBACK, host), "421", "{host}");
    }
    // Open to others: an address of any kind, still no name.
    assert_eq!(asked("0.0.0.0:0", "192.0.2.1:9821"), "200");
    assert_eq!(asked("0.0.0.0:0", "evil.example"), "421");
    with_server(LOOPBACK, Deadlines::default(), async |address| {
        for (text, expected) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.0\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1\r\nHost:\r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "400"),
            ("GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
            ("GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
        ] {
            assert_eq!(status(address, text).await, expected, "{text}");
        }
    });
}

#[test]
fn oversized_requests_are_refused() {
    with_server(LOOPBACK, Deadlines::default(), async |address| {
        let with = |fields: String| format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        assert_eq!(status(address, &with(format!("x: {}\r\n", "a".repeat(4000)))).await, "200");
        assert_eq!(status(address, &with(format!("x: {}\r\n", "a".repeat(20_000)))).await, "431");
        assert_eq!(status(address, &with("x: y\r\n".repeat(20))).await, "200");
        assert_eq!(status(address, &with("x: y\r\n".repeat(40))).await, "431");
    });
}

#[test]
fn silent_connections_end_and_keep_nobody_out_for_long() {
    let deadlines = Deadlines { head: Duration::from_millis(200), whole: Duration::from_millis(400) };
    with_server(LOOPBACK, deadlines, async |address| {
        let start = Instant::now();
        let mut silent = Vec::new();
        for number in 0..40 {
            let mut stream = TcpStream::connect(address).await.expect("the kernel takes it");
            // Some say nothing, some never end their head.
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: local").await.expect("written");
            }
            silent.push(stream);
        }
        let answer = status(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert_eq!(answer, "200");
        // 40 connections in five rounds of eight places.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        for mut stream in silent {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    });
}

#[test]
fn address_in_use_is_a_problem_and_no_end() {
    let taken = std::net::TcpListener::bind(LOOPBACK).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let problem = runtime.block_on(Server::bind(address, Deadlines::default())).expect_err("it is taken");
    assert_eq!(problem.code, "METRICS_LISTEN");
    assert!(problem.next.contains("metrics.listen"), "{problem:?}");
}
