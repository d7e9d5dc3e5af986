//! Tokens, passphrases and exports: what is read from where, and what is never overwritten.

#[path = "support/answers.rs"]
mod answers;
mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use overlay_control::api::{ApiError, MembershipRequest, Request};
use overlay_control::codes::Code;
use support::{Answer, Daemon, code, stderr, stdout};

fn not_member() -> ApiError {
    ApiError::new(Code::NotMember, "not a member: run overlayctl init or join", "why", "next")
}

fn secret(path: &Path, text: &str) -> String {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    path.to_str().expect("text").to_owned()
}

/// A daemon that admits whoever comes with this token.
fn gatekeeper(token: &'static str) -> Daemon {
    Daemon::current(move |request| -> Answer {
        match request {
            Request::Membership(MembershipRequest::Join { token: have, .. }) if have.reveal() != token => {
                Err(ApiError::new(Code::Token, "this is not a token", have.reveal().to_owned(), "next"))
            }
            request => answers::answer(request),
        }
    })
}

#[test]
fn standby_is_told_with_exit_8() {
    let daemon = Daemon::current(|_| Err(not_member()));
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), 8);
    assert!(stderr(&output).starts_with("error[NOT_MEMBER]: not a member: run overlayctl init or join\n"));
}

#[test]
fn token_comes_from_the_command_line_a_file_or_standard_input() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = gatekeeper("OVL1-GOOD");
    let file = directory.path().join("token");
    std::fs::write(&file, "OVL1-GOOD\n").expect("written");
    let from_file = format!("@{}", file.display());
    for token in ["OVL1-GOOD", &from_file] {
        let output = daemon.ctl(&["join", token]);
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{token}");
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_overlayctl"))
        .env("OVERLAY_SOCKET", &daemon.socket)
        .args(["join", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("overlayctl runs");
    child.stdin.take().expect("a pipe").write_all(b"  OVL1-GOOD\n").expect("taken");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    let wrong = daemon.ctl(&["join", "OVL1-BAD"]);
    assert_eq!(code(&wrong), 2, "the control: {}", stderr(&wrong));
    let missing = daemon.ctl(&["join", "@/no/such/file"]);
    assert!(stderr(&missing).starts_with("error[IO]: cannot read the token from /no/such/file"));
}

#[test]
fn join_without_packets_says_what_status_and_doctor_say() {
    let daemon = Daemon::current(|request| -> Answer {
        let mut answer = answers::answer(request)?;
        for response in &mut answer {
            if let overlay_control::api::Response::Status(status) = response {
                status.peers.retain(|peer| peer.name == "h3");
            }
        }
        Ok(answer)
    });
    let output = daemon.ctl(&["join", "OVL1-GOOD", "--timeout", "200ms"]);
    assert_eq!(code(&output), 7);
    let text = stderr(&output);
    assert!(
        text.starts_with("error[NOT_READY]: this host is a member, and no packet came back within 200ms"),
        "{text}"
    );
    assert!(text.contains("UDP port 51821 is closed on the way"), "{text}");
    assert!(text.contains("rp_filter: 1 on all") && text.contains("next: sysctl -w"), "{text}");
}

#[test]
fn join_waits_while_the_daemon_becomes_a_member() {
    let asked = std::sync::atomic::AtomicU32::new(0);
    let daemon = Daemon::current(move |request| -> Answer {
        let early = *request == Request::Status && asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3;
        if early { Err(not_member()) } else { answers::answer(request) }
    });
    let output = daemon.ctl(&["join", "OVL1-GOOD"]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn export_is_written_for_its_owner_alone_and_overwrites_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let passphrase = secret(&directory.path().join("passphrase"), "correct horse\n");
    let daemon = Daemon::current(|request| -> Answer {
        if let Request::Membership(MembershipRequest::CaExport { passphrase }) = request {
            assert_eq!(passphrase.reveal(), "correct horse");
            assert!(!format!("{request:?}").contains("horse"), "a passphrase is never shown");
        }
        answers::answer(request)
    });
    let file = directory.path().join("ca.backup");
    let path = file.to_str().expect("text");
    let output = daemon.ctl(&["ca", "export", path, "--passphrase-file", &passphrase]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    assert_eq!(std::fs::read_to_string(&file).expect("written"), "QUJD\n");
    assert_eq!(std::fs::metadata(&file).expect("written").permissions().mode() & 0o777, 0o600);
    let again = daemon.ctl(&["ca", "export", path, "--passphrase-file", &passphrase]);
    assert_eq!(code(&again), 1);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "QUJD\n");
    let import = daemon.ctl(&["ca", "import", path, "--passphrase-file", &passphrase]);
    assert_eq!((code(&import), stdout(&import).as_str()), (0, "this host is an issuer now\n"));
}

#[test]
fn refused_export_leaves_no_file_and_short_or_open_passphrases_are_not_sent() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ca.backup");
    let path = file.to_str().expect("text");
    let daemon = Daemon::current(|_| Err(ApiError::new(Code::NotIssuer, "this host is not an issuer", "why", "next")));
    let good = secret(&directory.path().join("good"), "correct horse");
    let output = daemon.ctl(&["ca", "export", path, "--passphrase-file", &good]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(!file.exists(), "an empty file stays");
    let silent = Daemon::current(|request: &Request| panic!("nothing is to be asked, got {request:?}"));
    let short = secret(&directory.path().join("short"), "short");
    let output = silent.ctl(&["ca", "export", path, "--passphrase-file", &short]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let output = silent.ctl(&["ca", "export", path, "--passphrase-file", &good]);
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
    assert!(!file.exists());
}

#[test]
fn wrong_words_of_membership_are_said_with_exit_2() {
    let daemon = Daemon::current(|request: &Request| panic!("nothing is to be asked, got {request:?}"));
    for arguments in [
        ["init", "prod"].as_slice(),
        &["init", "prod", "--pool", "10.42.0.1/16"],
        &["init", "prod", "--pool", "10.42.0.0/16", "--policy", "maybe"],
        &["invite", "--uses", "0"],
        &["invite", "--ttl", "2 weeks"],
        &["invite", "--label", "role"],
        &["token", "revoke"],
        &["cert", "revoke"],
    ] {
        let output = daemon.ctl(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
    }
}
