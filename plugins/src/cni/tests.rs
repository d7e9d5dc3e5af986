//! Calls as engines make them, with a daemon that is down, hangs or refuses.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, LONGEST_INPUT, SUPPORTED, answer};

fn call(verb: &str, extra: &[(&str, &str)], body: &str) -> Answer {
    let mut variables = BTreeMap::from([
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    variables.extend(extra.iter().copied());
    answer(&|name| variables.get(name).map(|value| (*value).to_owned()), &mut body.as_bytes())
}

fn config(version: &str, socket: &Path) -> String {
    json!({ "cniVersion": version, "name": "overlay", "type": "overlay-cni", "socket": socket }).to_string()
}

fn code(answer: &Answer) -> u64 {
    assert!(answer.failed, "{answer:?}");
    let shown: Value = serde_json::from_str(&answer.text).unwrap();
    assert!(!shown["msg"].as_str().unwrap().is_empty() && shown["details"].is_string(), "{shown}");
    shown["code"].as_u64().unwrap()
}

#[test]
fn version_answers_any_body_and_placeholders() {
    let dummies = [("CNI_CONTAINERID", ""), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
    for (body, version) in
        [(r#"{"cniVersion":"1.0.0"}"#, "1.0.0"), ("", "1.1.0"), ("rubbish", "1.1.0"), ("[]", "1.1.0")]
    {
        let answer = call("VERSION", &dummies, body);
        let shown: Value = serde_json::from_str(&answer.text).unwrap();
        assert!(!answer.failed);
        assert_eq!(shown, json!({ "cniVersion": version, "supportedVersions": SUPPORTED }));
    }
}

#[test]
fn daemon_that_is_down_is_named_with_the_code_of_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let body = config("1.1.0", &directory.path().join("none.sock"));
    assert_eq!(code(&call("ADD", &[], &body)), 11);
    assert_eq!(code(&call("STATUS", &[], &body)), 51);
    let with_list = body.replace('{', r#"{"cni.dev/valid-attachments":[],"#);
    assert_eq!(code(&call("GC", &[], &with_list)), 11);
    // A list that is absent must not mean "remove all".
    assert!(!call("GC", &[], &body).failed);
    // The namespace is gone, and the link with it: nothing is left to do.
    for netns in ["", "/run/netns/no-such-namespace"] {
        let gone = call("DEL", &[("CNI_NETNS", netns)], &body);
        assert_eq!(gone, Answer { text: String::new(), failed: false }, "{netns:?}");
    }
}

#[test]
fn daemon_that_hangs_costs_less_than_three_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("hung.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let body = config("1.1.0", &socket);
    std::thread::scope(|scope| {
        for (verb, expected) in [("ADD", 11), ("STATUS", 51)] {
            let body = &body;
            scope.spawn(move || {
                let started = Instant::now();
                assert_eq!(code(&call(verb, &[], body)), expected, "{verb}");
                assert!(started.elapsed() < Duration::from_secs(3), "{verb} took {:?}", started.elapsed());
            });
        }
    });
}

#[test]
fn commands_are_as_old_as_the_specification_says() {
    let nowhere = Path::new("/nonexistent/overlayd.sock");
    assert_eq!(code(&call("CHECK", &[], &config("0.3.1", nowhere))), 1);
    assert_eq!(code(&call("GC", &[], &config("1.0.0", nowhere))), 1);
    assert_eq!(code(&call("STATUS", &[], &config("1.0.0", nowhere))), 1);
    // Known since then: it fails for another reason.
    assert_eq!(code(&call("CHECK", &[], &config("0.4.0", nowhere))), 7);
    assert_eq!(code(&call("RESTART", &[], &config("1.0.0", nowhere))), 4);
}

#[test]
fn hostile_input_ends_in_an_error_of_the_specification() {
    let nowhere = Path::new("/nonexistent/overlayd.sock");
    let body = config("1.0.0", nowhere);
    assert_eq!(code(&call("ADD", &[("CNI_CONTAINERID", "../../x")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_CONTAINERID", "")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_IFNAME", "a/b")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_NETNS", "")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_NETNS", "/run/netns/no-such-namespace")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_ARGS", "IP")], &body)), 4);
    assert_eq!(code(&call("ADD", &[("CNI_ARGS", "IP=nonsense")], &body)), 7);
    assert_eq!(code(&call("ADD", &[], &body.replace('{', r#"{"prevResult":{},"#))), 7);
    assert_eq!(code(&call("ADD", &[], r#"{"cniVersion":"1.0.0","name":["overlay"]}"#)), 6);
    let long = body.replace('{', &format!(r#"{{"padding":"{}","#, "x".repeat(LONGEST_INPUT as usize)));
    assert_eq!(code(&call("ADD", &[], &long)), 6);
}

#[test]
fn input_that_cannot_be_read_is_said() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }
    let answer = answer(&|name| (name == "CNI_COMMAND").then(|| "DEL".to_owned()), &mut Broken);
    assert_eq!(code(&answer), 5);
}
