//! How commands fail: code, what, why, next, and the exit code.

#[path = "support/answers.rs"]
mod answers;
mod support;

use std::process::{Command, Stdio};

use overlay_control::api::{ApiError, Request, Response};
use overlay_control::codes::Code;
use support::{Daemon, code, ctl, stderr, stdout};

#[test]
fn daemon_that_does_not_run_is_said_with_exit_3() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = ctl(&directory.path().join("none.sock"), &["status"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (3, ""));
    let lines: Vec<String> = stderr(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("error[NOT_RUNNING]: cannot reach the daemon at "), "{lines:?}");
    assert!(lines[1].starts_with("why: ") && lines[1].ends_with("does not exist"), "{lines:?}");
    assert!(lines[2].starts_with("next: start it with `systemctl start overlayd`"), "{lines:?}");

    let left_over = directory.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left_over).expect("binds"));
    let output = ctl(&left_over, &["peer", "list"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("no daemon listens on it"), "{}", stderr(&output));
}

#[test]
fn other_protocol_version_is_said_with_exit_3() {
    let daemon = Daemon::new(9, answers::answer);
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).starts_with("error[VERSION_SKEW]: the daemon speaks control protocol 9"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn refusals_of_the_daemon_keep_their_fields_and_exit_codes() {
    for (refusal, exit) in [(Code::Permission, 6), (Code::NotFound, 4), (Code::Conflict, 5), (Code::NoRoute, 21)] {
        let daemon = Daemon::current(move |_| Err(ApiError::new(refusal, "what", "why", "next")));
        let output = daemon.ctl(&["route", "get", "10.42.9.9"]);
        assert_eq!(code(&output), exit);
        assert_eq!(stderr(&output), format!("error[{refusal}]: what\nwhy: why\nnext: next\n"));
        let output = daemon.ctl(&["--json", "route", "get", "10.42.9.9"]);
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON on standard error");
        assert_eq!(error, serde_json::json!({ "code": refusal.name(), "what": "what", "why": "why", "next": "next" }));
    }
}

#[test]
fn unknown_error_code_of_a_newer_daemon_is_shown_with_exit_1() {
    let daemon = Daemon::current(|_| {
        let mut error = ApiError::new(Code::Internal, "what", "why", "next");
        error.code = "NEWS".to_owned();
        Err(error)
    });
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).starts_with("error[NEWS]: what"));
}

#[test]
fn answer_of_another_kind_is_refused() {
    let daemon = Daemon::current(|_| Ok(vec![Response::Killed { count: 1 }]));
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("the daemon answered with `killed`"), "{}", stderr(&output));
}

#[test]
fn wait_ready_names_what_is_missing_with_exit_7() {
    let daemon = Daemon::current(answers::answer);
    let output = daemon.ctl(&["wait", "ready", "--timeout", "100ms"]);
    assert_eq!(code(&output), 7);
    assert!(stderr(&output).starts_with("error[NOT_READY]: ") && stderr(&output).contains("h3 was not tried yet"));
}

#[test]
fn wrong_command_lines_are_said_with_exit_2() {
    let daemon = Daemon::current(|request: &Request| panic!("nothing is to be asked, got {request:?}"));
    for arguments in [
        ["stat"].as_slice(),
        &["peer", "set", "h2"],
        &["peer", "set", "h2", "colour=red"],
        &["peer", "set", "h2", "encapsulation=vxlan"],
        &["peer", "add", "x", "--allowed-ips", "10.99.0.0/24"],
        &["peer", "add", "x", "--allowed-ips", "10.99.0.1/24", "--endpoint", "192.0.2.1"],
        &["peer", "add", "x", "-e", "ipip", "--endpoint", "192.0.2.1:5", "--allowed-ips", "10.99.0.0/24"],
        &["route", "add", "10.42.1.1/24"],
        &["policy", "test", "10.42.1.5", "fd42::1"],
        &["policy", "test", "10.42.1.5", "10.42.2.1", "tcp"],
        &["policy", "test", "10.42.1.5", "10.42.2.1", "icmp/4"],
        &["flow", "kill"],
        &["endpoint", "add", "web"],
        &["ping", "h2", "-c", "0"],
        &["wait", "ready", "--timeout", "2 weeks"],
    ] {
        let output = daemon.ctl(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        let text = stderr(&output);
        let fields: Vec<bool> = ["error[USAGE]: ", "why: ", "next: "]
            .iter()
            .zip(text.lines())
            .map(|(start, line)| line.starts_with(start) && line.len() > start.len())
            .collect();
        assert_eq!(fields, [true; 3], "{arguments:?}: {text}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn namespace_that_does_not_exist_is_refused_before_anything_is_asked() {
    let daemon = Daemon::current(|request: &Request| panic!("nothing is to be asked, got {request:?}"));
    let output = daemon.ctl(&["endpoint", "add", "--netns", "no-such-namespace"]);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).starts_with("error[NOT_FOUND]: no network namespace at /run/netns/no-such-namespace"));
}

#[test]
fn closed_pipe_ends_quietly() {
    for arguments in [["completion", "bash"].as_slice(), &["config", "example"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_overlayctl"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("overlayctl runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn config_check_lists_every_problem_and_needs_no_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("overlayd.toml");
    let none = directory.path().join("none.sock");
    let path = file.to_str().expect("text");
    std::fs::write(&file, stdout(&ctl(&none, &["config", "example"]))).expect("written");
    let output = ctl(&none, &["config", "check", path]);
    assert_eq!((code(&output), stdout(&output)), (0, format!("{path}: no problems\n")));

    std::fs::write(&file, "[node]\nname = 7\n").expect("written");
    let output = ctl(&none, &["config", "check", path]);
    assert_eq!(code(&output), 2);
    let text = stderr(&output);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().all(|line| line.starts_with(&format!("error[CONFIG]: {path}:"))), "{text}");
    let output = ctl(&none, &["-j", "config", "check", path]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(error["problems"].as_array().map(Vec::len), Some(3));
}

#[test]
fn generated_key_has_mode_0600_and_the_public_half_that_is_printed() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("none.sock");
    for kind in ["identity", "wireguard"] {
        let file = directory.path().join(kind);
        let path = file.to_str().expect("text");
        let made = ctl(&none, &["key", "generate", "--kind", kind, "--out", path]);
        assert_eq!(code(&made), 0, "{}", stderr(&made));
        assert_eq!(std::fs::metadata(&file).expect("written").permissions().mode() & 0o777, 0o600);
        assert_eq!(stdout(&made).trim().len(), 44);
        assert_eq!(stdout(&ctl(&none, &["key", "public", "--kind", kind, path])), stdout(&made));
        let again = ctl(&none, &["key", "generate", "--kind", kind, "--out", path]);
        assert_eq!(code(&again), 5);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(stderr(&ctl(&none, &["key", "public", path])).contains("chmod 600"));
    }
    // RFC 7748, section 6.1: Alice's key pair.
    let file = directory.path().join("alice");
    std::fs::write(&file, "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let output = ctl(&none, &["key", "public", "--kind", "wireguard", file.to_str().expect("text")]);
    assert_eq!(stdout(&output), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n");
}
