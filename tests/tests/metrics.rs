//! The figures of two real daemons, read by a real Prometheus, with the example alerts and the example dashboard.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use anyhow::{Context as _, Result, bail};
use overlay_control::api::Request;
use overlay_netns_harness::{HostSpec, Lab, netns, wait_for, workspace};
use overlay_tests::{Overlay, SharedLab, can_use};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
/// The machine may be busy, and rates need two readings.
const LIMIT: Duration = Duration::from_secs(60);
/// Where `h1` serves its page: the default.
const OWN: &str = "127.0.0.1:9821";
/// Where `h2` serves its page: for a collector on another host.
const OPEN: &str = "192.0.2.2:9821";
const PROMETHEUS: &str = "127.0.0.1:9090";

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "metrics",
        |name, binaries| {
            Overlay::start(name, binaries, &HostSpec::numbered(2), 1, "wireguard", |cluster| {
                cluster.extra.insert("h2".to_owned(), format!("[metrics]\nlisten = \"{OPEN}\"\n"));
            })
        },
        |overlay| &overlay.lab,
    )
}

/// Whether Prometheus is there, installed where it is missing.
fn has_prometheus() -> bool {
    can_use("metrics", &[("command -v prometheus && command -v promtool", "prometheus")])
}

/// What a host's namespace answers to `GET` at an address.
fn get(lab: &Lab, host: &str, address: &str, path: &str) -> Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = netns::within(lab.host(host)?.view().namespace(), || {
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).with_context(|| format!("connecting to {address}"))
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // HTTP/1.0, so that nothing comes in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{path}: {}\n{body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// The value of a series on a page.
fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

fn reload(overlay: &Overlay, host: &str) -> bool {
    overlay.ask(host, Request::ConfigReload).is_ok()
}

#[test]
fn page_has_every_metric_and_its_figures_are_true() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let document = fs::read_to_string(workspace().join("docs/metrics.md")).unwrap();
    let documented: Vec<String> = document
        .lines()
        // These members are written in a file.
        .filter(|line| !line.contains("Only of a member by certificate."))
        .filter_map(|line| line.strip_prefix("| `overlay_")?.split('`').next())
        .map(|name| format!("overlay_{name}"))
        .collect();
    assert!(documented.len() > 30, "the list in docs/metrics.md is not where it was");
    let mut page = String::new();
    let missing = || {
        page = get(&overlay.lab, "h1", OWN, "/metrics").ok()?;
        let on_page = |name: &&String| page.lines().any(|line| line.starts_with(name.as_str()));
        documented.iter().all(|name| on_page(&name)).then_some(())
    };
    if let Err(error) = wait_for("every documented metric", LIMIT, missing) {
        let left: Vec<_> =
            documented.iter().filter(|name| !page.lines().any(|line| line.starts_with(name.as_str()))).collect();
        panic!("{error}: {left:?} are not on\n{page}");
    }
    let up = || {
        page = get(&overlay.lab, "h1", OWN, "/metrics").ok()?;
        let states = ["overlay_peer_data_state", "overlay_peer_control_state"];
        (states.map(|name| value(&page, &format!("{name}{{peer=\"h2\"}}"))) == [Some(2.0), Some(3.0)]).then_some(())
    };
    wait_for("both states up", LIMIT, up).unwrap();
    assert!(!page.contains("192.0.2.") && !page.contains("10.42."), "an address is on the page:\n{page}");
    assert_eq!(value(&page, "overlay_conntrack_limit_flows"), Some(262_144.0));
    let sent = "overlay_peer_sent_bytes_total{peer=\"h2\"}";
    let before = value(&page, sent).unwrap();
    let to = IpAddr::V4(overlay.container("h2c1").v4);
    wait_for("traffic", LIMIT, || overlay.reaches("h1c1", to).then_some(())).unwrap();
    let after = value(&get(&overlay.lab, "h1", OWN, "/metrics").unwrap(), sent).unwrap();
    assert!(after >= before + 84.0, "{before} bytes before a ping, {after} after");
    // A reload that changes nothing, and one that cannot be applied.
    let applied = |page: &str| value(page, "overlay_daemon_reloads_total{outcome=\"applied\"}").unwrap();
    let refused = |page: &str| value(page, "overlay_daemon_reloads_total{outcome=\"refused\"}").unwrap();
    let before = get(&overlay.lab, "h1", OWN, "/metrics").unwrap();
    assert!(reload(&overlay, "h1"));
    let host = overlay.lab.host("h1").unwrap();
    let path = host.path(overlay_netns_harness::CONFIG_PATH);
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{good}\ncolour = 1\n")).unwrap();
    assert!(!reload(&overlay, "h1"), "a broken file was taken");
    fs::write(&path, good).unwrap();
    let after = get(&overlay.lab, "h1", OWN, "/metrics").unwrap();
    assert_eq!(applied(&after) - applied(&before), 1.0);
    assert_eq!(refused(&after) - refused(&before), 1.0);
}

#[test]
fn page_on_loopback_is_reached_inside_its_namespace_only() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    assert!(get(&overlay.lab, "h1", OWN, "/metrics").is_ok());
    // The control: the way is open, and a page that listens there is reached.
    assert!(get(&overlay.lab, "h1", OPEN, "/metrics").is_ok());
    for (from, address) in [("h2", "192.0.2.1:9821"), ("h2", "10.42.1.1:9821"), ("h2", OWN)] {
        let outcome = get(&overlay.lab, from, address, "/metrics");
        assert!(outcome.is_err(), "{from} reads the page of h1 at {address}");
    }
}

/// A Prometheus on `h1` that reads both daemons.
struct Prometheus<'a> {
    lab: &'a Lab,
    child: Child,
    _directory: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(lab: &'a Lab) -> Prometheus<'a> {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().to_owned();
        let path = |name: &str| inside.join(name);
        // How long an alert waits is for `promtool`, which has a clock of its own.
        let alerts = fs::read_to_string(example("alerts.yml")).unwrap();
        let hasty =
            alerts.lines().filter(|line| !line.trim_start().starts_with("for: ")).collect::<Vec<_>>().join("\n");
        fs::write(path("alerts.yml"), hasty).unwrap();
        let config = format!(
            "global: {{scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 1s}}\nrule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: overlay\n    static_configs:\n      - targets: [\"{OWN}\"]\n        labels: \
             {{instance: h1}}\n      - targets: [\"{OPEN}\"]\n        labels: {{instance: h2}}\n"
        );
        fs::write(path("prometheus.yml"), config).unwrap();
        let arguments = [
            "prometheus".to_owned(),
            format!("--config.file={}", path("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", path("data").display()),
            format!("--web.listen-address={PROMETHEUS}"),
        ];
        let argv: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = lab.command("h1", &argv).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let started = Prometheus { lab, child, _directory: directory };
        let ready = || get(lab, "h1", PROMETHEUS, "/-/ready").ok();
        wait_for("Prometheus", LIMIT, ready).unwrap_or_else(|error| {
            panic!("{error}\n{}", fs::read_to_string(path("log")).unwrap_or_default());
        });
        started
    }

    fn api(&self, path: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&get(self.lab, "h1", PROMETHEUS, &format!("/api/v1/{path}"))?)?;
        Ok(answer["data"].clone())
    }

    /// What an expression gives; refused expressions are errors.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            if byte.is_ascii_alphanumeric() { encoded.push(byte.into()) } else { encoded += &format!("%{byte:02X}") }
        }
        let data = self.api(&format!("query?query={encoded}")).with_context(|| expression.to_owned())?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until an expression gives something.
    fn wait(&self, expression: &str) -> Vec<Value> {
        let mut last = String::new();
        let found = || match self.query(expression) {
            Ok(result) if !result.is_empty() => Some(result),
            Ok(_) => None,
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        };
        wait_for(&format!("data for {expression}"), LIMIT, found).unwrap_or_else(|error| panic!("{error} {last}")).0
    }

    /// Whether `OverlayPeerUnreachable` fires on `h1` about `h2`.
    fn fires(&self) -> Option<bool> {
        let alerts = self.api("alerts").ok()?;
        let about = |alert: &Value| {
            let labels = &alert["labels"];
            [&labels["alertname"], &labels["instance"], &labels["peer"]] == ["OverlayPeerUnreachable", "h1", "h2"]
        };
        Some(alerts["alerts"].as_array()?.iter().any(|alert| about(alert) && alert["state"] == "firing"))
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn example(name: &str) -> PathBuf {
    workspace().join("examples").join(name)
}

/// The expressions of the alerts, as Prometheus has read them.
fn alert_expressions(prometheus: &Prometheus<'_>) -> Vec<String> {
    let rules = prometheus.api("rules").unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            assert_eq!(rule["health"], "ok", "{rule}");
            rule["query"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// The expressions of the dashboard's panels, and those that only mark events, with its variables filled in.
fn dashboard_expressions() -> [Vec<String>; 2] {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(example("grafana.json")).unwrap()).unwrap();
    let filled = |value: &Value| {
        let text = value["expr"].as_str().unwrap_or_else(|| panic!("no expression: {value}"));
        let text = text.replace("$__rate_interval", "20s").replace("$instance", ".*");
        assert!(!text.contains('$'), "an unknown variable: {text}");
        text
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (mut ids, mut panels) = (BTreeSet::new(), Vec::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64()), "two panels have one number: {panel}");
        assert!(panel["title"].is_string() && panel["type"].is_string() && panel["gridPos"].is_object(), "{panel}");
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "a panel without data: {panel}");
        panels.extend(targets.iter().map(filled));
    }
    [panels, list(&dashboard["annotations"]["list"]).iter().map(filled).collect()]
}

/// Names of metrics in an expression.
fn names(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("overlay_") || *word == "up").map(str::to_owned).collect()
}

/// What an alert looks at, without the bound that makes it fire.
fn sides(expression: &str) -> Vec<String> {
    let parts = expression.split(" and on (instance, peer) ");
    let bare = |part: &str| {
        let end = [" == ", " > ", " < "].iter().filter_map(|bound| part.rfind(bound)).max();
        part[..end.unwrap_or(part.len())].to_owned()
    };
    parts.map(bare).collect()
}

#[test]
fn prometheus_finds_data_for_every_example_and_an_alert_fires() {
    if !has_prometheus() {
        return;
    }
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let prometheus = Prometheus::start(&overlay.lab);
    assert_eq!(prometheus.wait("sum(up{job=\"overlay\"}) == 2").len(), 1);
    prometheus.wait("overlay_peer_round_trip_seconds");
    prometheus.wait("count(count by (revision) (overlay_policy_info)) == 1");

    let known = prometheus.api("label/__name__/values").unwrap();
    let known: BTreeSet<&str> = known.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let alerts = alert_expressions(&prometheus);
    let [panels, marks] = dashboard_expressions();
    assert!(alerts.len() >= 10 && panels.len() >= 20 && !marks.is_empty());
    for expression in alerts.iter().chain(&panels).chain(&marks) {
        let used = names(expression);
        assert!(!used.is_empty(), "{expression} names no metric");
        for name in used {
            assert!(known.contains(name.as_str()), "{expression} names {name}, which does not exist");
        }
    }
    assert!(
        prometheus.query("overlay_invented_total").unwrap().is_empty(),
        "the control: what is not there is not found"
    );
    for expression in alerts.iter().chain(&marks).flat_map(|expression| sides(expression)).chain(panels) {
        prometheus.wait(&expression);
    }

    wait_for("the peer to be reachable", LIMIT, || (prometheus.fires() == Some(false)).then_some(())).unwrap();
    overlay.lab.cut("h2").unwrap();
    let fired = wait_for("the alert to fire", LIMIT, || (prometheus.fires() == Some(true)).then_some(()));
    overlay.lab.heal("h2").unwrap();
    fired.unwrap();
    wait_for("the alert to end", LIMIT, || (prometheus.fires() == Some(false)).then_some(())).unwrap();
}

#[test]
fn alerts_are_sound_and_fire_when_they_should() {
    if !has_prometheus() {
        return;
    }
    let run = |words: &[&str], file: &Path| {
        let output = Command::new("promtool").args(words).arg(file).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), text)
    };
    let (sound, text) = run(&["check", "rules"], &example("alerts.yml"));
    assert!(sound, "{text}");
    let cases = workspace().join("tests/tests/alerts.test.yml");
    let (held, text) = run(&["test", "rules"], &cases);
    assert!(held, "{text}");
    // The control: the same cases against alerts that never wait.
    let directory = tempfile::tempdir().unwrap();
    let alerts = fs::read_to_string(example("alerts.yml")).unwrap();
    fs::write(directory.path().join("alerts.yml"), alerts.replace("for: 30s", "for: 0s")).unwrap();
    let text = fs::read_to_string(cases).unwrap().replace("../../examples/alerts.yml", "alerts.yml");
    fs::write(directory.path().join("cases.yml"), text).unwrap();
    let (held, text) = run(&["test", "rules"], &directory.path().join("cases.yml"));
    assert!(!held, "a changed alert passes its cases:\n{text}");
}
