//! Tables and JSON, held by files in `tests/golden`. `UPDATE_GOLDEN=1 cargo test -p overlay-cli` writes them anew.

#[path = "support/answers.rs"]
mod answers;
mod support;

use std::path::Path;

use support::{Answer, Daemon, code, stderr, stdout};

/// Name, arguments, exit code.
const CASES: &[(&str, &[&str], i32)] = &[
    ("status", &["status"], 0),
    ("status-problems", &["status", "--problems", "--check"], 10),
    ("peer-list", &["peer", "list"], 0),
    ("peer-show", &["peer", "show", "old-router"], 0),
    ("route-list", &["route", "list"], 0),
    ("route-get", &["route", "get", "10.42.2.9"], 0),
    ("route-add", &["route", "add", "192.168.7.0/24"], 0),
    ("route-why", &["route", "why", "10.42.2.9"], 0),
    ("policy-show", &["policy", "show"], 0),
    ("policy-status", &["policy", "status"], 0),
    ("policy-confirm", &["policy", "confirm"], 10),
    ("policy-rollback", &["policy", "rollback", "6", "--confirm", "5m"], 10),
    ("policy-diff", &["policy", "diff"], 0),
    ("policy-test", &["policy", "test", "--local", "10.42.1.5", "10.42.2.7", "tcp/22"], 20),
    ("trace", &["trace", "10.42.1.5", "10.42.2.7", "--dport", "443"], 0),
    ("trace-denied", &["trace", "10.42.1.5", "10.42.2.7", "--dport", "22"], 20),
    ("trace-why-not", &["trace", "10.42.1.5", "10.42.2.7", "--dport", "22", "--why-not"], 20),
    ("limit-list", &["limit", "list"], 0),
    ("flow-list", &["flow", "list", "--port", "443"], 0),
    ("flow-kill", &["flow", "kill", "--peer", "h2"], 0),
    ("endpoint-list", &["endpoint", "list"], 0),
    ("dns-status", &["dns", "status"], 0),
    ("dns-name", &["dns", "name", "web", "www", "shop"], 0),
    ("nat-list", &["nat", "list"], 0),
    ("nat-publish", &["nat", "publish", "8443", "10.42.2.4:80"], 0),
    ("nat-unpublish", &["nat", "unpublish", "8080/tcp"], 0),
    ("network-list", &["network", "list"], 0),
    ("network-show", &["network", "show", "shop"], 0),
    ("network-create", &["network", "create", "shop", "--internal", "--mode", "bridge"], 0),
    ("ipam-show", &["ipam", "show"], 0),
    ("ipam-list", &["ipam", "list"], 0),
    ("ipam-check", &["ipam", "check", "--fix"], 10),
    ("config-show", &["config", "show", "--origin"], 0),
    ("config-diff", &["config", "diff"], 0),
    ("config-reload", &["config", "reload"], 0),
    ("ping", &["ping", "h2", "-c", "3"], 0),
    ("doctor", &["doctor"], 1),
    ("events", &["events", "-f", "-c", "2"], 0),
    ("version", &["version"], 0),
    ("init", &["init", "prod", "--pool", "10.42.0.0/16,fd42::/48"], 0),
    ("join", &["join", "OVL1-AAAAAAAA-BBBBBBBB"], 0),
    ("invite", &["invite", "--uses", "3", "--ttl", "1d", "--label", "role=web"], 0),
    ("token-list", &["token", "list"], 0),
    ("token-revoke", &["token", "revoke", "0102030405060708"], 0),
    ("cert-list", &["cert", "list"], 0),
    ("cert-show", &["cert", "show", "h2"], 0),
    ("cert-revoke", &["cert", "revoke", "h2"], 0),
    ("leave", &["leave"], 0),
    ("peer-rm", &["peer", "rm", "office"], 0),
    ("peer-set", &["peer", "set", "h2", "encapsulation=gre"], 0),
];

fn compare(file: &str, have: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("inside a directory")).expect("a directory");
        std::fs::write(&path, have).expect("written");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(have, want, "{file} differs; if that is wanted, UPDATE_GOLDEN=1 writes it anew");
}

#[test]
fn tables_are_as_committed() {
    let daemon = Daemon::current(answers::answer);
    for (name, arguments, exit) in CASES {
        let output = daemon.ctl(arguments);
        assert_eq!((code(&output), stderr(&output).as_str()), (*exit, ""), "{name}");
        compare(&format!("{name}.txt"), &stdout(&output));
    }
}

#[test]
fn json_is_as_committed_and_names_its_schema() {
    let daemon = Daemon::current(answers::answer);
    for (name, arguments, exit) in CASES {
        let mut words = vec!["-j"];
        words.extend(*arguments);
        let output = daemon.ctl(&words);
        assert_eq!((code(&output), stderr(&output).as_str()), (*exit, ""), "{name}");
        let text = stdout(&output);
        let mut objects = 0;
        for object in serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>() {
            let object = object.unwrap_or_else(|error| panic!("{name} printed no JSON: {error}\n{text}"));
            let schema = object["schema"].as_str().unwrap_or_default();
            assert!(schema.starts_with("overlay.") && schema.ends_with("/v1"), "{name}: schema `{schema}`");
            objects += 1;
        }
        assert!(objects > 0, "{name} printed nothing");
        compare(&format!("{name}.json"), &text);
    }
}

#[test]
fn bare_command_is_status_and_control_characters_never_reach_the_terminal() {
    let daemon = Daemon::current(answers::answer);
    let bare = daemon.ctl(&[]);
    assert_eq!(stdout(&bare), stdout(&daemon.ctl(&["status"])));
    assert!(!stdout(&bare).contains('\u{1b}'));
}

#[test]
fn quiet_changes_print_nothing() {
    let daemon = Daemon::current(answers::answer);
    for arguments in [["-q", "peer", "rm", "x"].as_slice(), &["-q", "route", "add", "192.168.7.0/24"]] {
        let output = daemon.ctl(arguments);
        assert_eq!((code(&output), stdout(&output).as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn policy_apply_sends_the_rules_of_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("rules");
    std::fs::write(&file, "# open the web\ndefault deny\nallow tcp/443 from any to any\n").expect("written");
    let path = file.to_str().expect("text").to_owned();
    let daemon = Daemon::current(|request| -> Answer {
        let sent = format!("{request:?}");
        assert!(sent.contains("Deny") && sent.contains("443"), "{sent}");
        answers::answer(request)
    });
    let output = daemon.ctl(&["policy", "apply", &path, "--local"]);
    assert_eq!(stdout(&output), "policy applied, rules: 1\n  2 flows were cut\n");
    std::fs::write(&file, "permit all\n").expect("written");
    let output = daemon.ctl(&["policy", "apply", &path, "--local"]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).starts_with("error[POLICY]: ") && stderr(&output).contains("line 1"),
        "{}",
        stderr(&output)
    );
}
