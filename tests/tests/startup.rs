//! Starts that cannot succeed, and calls that cannot be answered: one error each, with its code, a reason, a next step and
//! the documented exit code, and the host as it was.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_control::Code;
use overlay_netns_harness::{HostSpec, SOCKET_PATH, netns, wait_for};
use overlay_tests::{Overlay, SharedLab, Snapshot, can_use};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::sync::MutexGuard;
use std::time::Duration;

static LAB: SharedLab<Overlay> = SharedLab::new();
const LIMIT: Duration = Duration::from_secs(30);

fn overlay() -> Option<MutexGuard<'static, Overlay>> {
    LAB.lease(
        "startup",
        |name, binaries| Overlay::start(name, binaries, &HostSpec::numbered(2), 0, "wireguard", |_| {}),
        |overlay| &overlay.lab,
    )
}

/// The configuration of another daemon on h1, with directories of its own, and its own TUN and port unless taken back.
fn another(overlay: &Overlay, name: &str) -> String {
    let host = overlay.lab.host("h1").unwrap();
    let directory = format!("/run/{name}");
    std::fs::create_dir_all(host.path(&directory)).unwrap();
    overlay.cluster.identity(0).write(&host.path(&format!("{directory}/identity.key"))).unwrap();
    let text = overlay.cluster.text(&overlay.lab, host);
    text.replace("[overlay]", "[overlay]\ninterface = \"overlay9\"")
        .replace("listen_port = 51821", "listen_port = 51900")
        + &format!("\n[paths]\nstate_dir = \"{directory}\"\nruntime_dir = \"{directory}\"\n")
}

/// Asserts that a program ended with exactly this error.
fn refused(output: &Output, code: Code, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(i32::from(code.exit())), "{text}");
    let errors: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("error[")).collect();
    assert_eq!(errors.len(), 3, "one error of three lines: {text}");
    for (line, start) in errors.iter().zip([format!("error[{code}]: "), "why: ".to_owned(), "next: ".to_owned()]) {
        assert!(line.starts_with(&start) && line.len() > start.len() + 8, "wanted {start}: {text}");
    }
    for word in words {
        assert!(text.contains(word), "wanted {word}: {text}");
    }
}

/// Starts another daemon on h1 that is to be refused, and looks that it left nothing behind.
fn refuse(overlay: &Overlay, program: &[&str], config: &str, code: Code, words: &[&str]) {
    let view = overlay.lab.host("h1").unwrap().view();
    let before = Snapshot::take(view).unwrap();
    let output = overlay.lab.run_daemon_under("h1", program, config, LIMIT).unwrap();
    refused(&output, code, words);
    assert_eq!(Snapshot::take(view).unwrap(), before, "a refused start left something on the host");
}

#[test]
fn second_daemon_is_told_what_it_shares_with_the_first() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let apart = another(&overlay, "second");
    let with = |from: &str, to: &str| apart.replace(from, to);
    let same_tun = with("interface = \"overlay9\"", "interface = \"overlay0\"");
    refuse(&overlay, &[], &same_tun, Code::TunInUse, &["overlay0", "overlay.interface"]);
    let same_port = with("listen_port = 51900", "listen_port = 51821");
    refuse(&overlay, &[], &same_port, Code::PortInUse, &["51821", "overlay.listen_port"]);
    let same_socket = format!("{apart}socket = \"{SOCKET_PATH}\"\n");
    refuse(&overlay, &[], &same_socket, Code::SocketInUse, &[SOCKET_PATH, "paths.socket"]);
    let same_state = with("state_dir = \"/run/second\"", "state_dir = \"/var/lib/overlay\"");
    refuse(&overlay, &[], &same_state, Code::AlreadyRunning, &["/var/lib/overlay/overlayd.lock"]);
    assert_eq!(overlay.peer("h2", "h1").unwrap().control, overlay_control::api::ControlState::Up);
}

#[test]
fn missing_capability_is_named() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let config = another(&overlay, "weak");
    for missing in [["--bounding-set=-net_admin", "--inh-caps=-net_admin"], ["--bounding-set=-all", "--inh-caps=-all"]]
    {
        let program = [&["setpriv"], &missing[..]].concat();
        refuse(&overlay, &program, &config, Code::Capability, &["CAP_NET_ADMIN and CAP_NET_RAW"]);
    }
}

#[test]
fn missing_tun_driver_is_named() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let config = another(&overlay, "notun");
    // The directory is hidden in the mount namespace of this process alone.
    let hidden = ["sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""];
    refuse(&overlay, &hidden, &config, Code::TunMissing, &["modprobe tun"]);
}

#[test]
fn clock_before_the_first_release_is_refused_without_state() {
    let Some(overlay) = overlay() else { return };
    if !can_use("startup", &[("command -v faketime", "faketime")]) {
        return;
    }
    let _logs = overlay.lab.logs_on_failure();
    let config = another(&overlay, "late");
    let long_ago = ["faketime", "--exclude-monotonic", "-f", "@1970-01-02 00:00:00"];
    refuse(&overlay, &long_ago, &config, Code::Clock, &["timedatectl set-ntp true"]);
}

#[test]
fn missing_identity_and_broken_configuration_are_named() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let config = another(&overlay, "nokey");
    std::fs::remove_file(overlay.lab.host("h1").unwrap().path("/run/nokey/identity.key")).unwrap();
    refuse(&overlay, &[], &config, Code::Identity, &["overlayctl key generate"]);
    let output = overlay.lab.run_daemon_under("h1", &[], &config.replace("pool", "puddle"), LIMIT).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(Code::Config.exit())));
    assert!(String::from_utf8_lossy(&output.stderr).contains("puddle"));
}

#[test]
fn caller_without_permission_on_the_socket_is_told_which_groups_have_it() {
    let Some(overlay) = overlay() else { return };
    let view = overlay.lab.host("h1").unwrap().view();
    let program = overlay.lab.binary("overlayctl").unwrap();
    // Below a directory that only root may enter the program itself could not be started.
    let copy = overlay.lab.host("h1").unwrap().path("/run/overlayctl");
    std::fs::copy(&program, &copy).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    for arguments in [["status"].as_slice(), &["config", "reload"]] {
        let words = [&nobody[..], &["/run/overlayctl", "--socket", SOCKET_PATH], arguments].concat();
        let output = netns::command(view, &words).unwrap().stdin(Stdio::null()).output().unwrap();
        refused(&output, Code::Permission, &["overlay", "usermod -aG"]);
        assert!(output.stdout.is_empty());
    }
    // The control: the same copy as root.
    let words = ["/run/overlayctl", "--socket", SOCKET_PATH, "version"];
    assert!(netns::command(view, &words).unwrap().output().unwrap().status.success());
}

#[test]
fn daemon_that_does_not_run_is_said_by_every_kind_of_command() {
    let Some(overlay) = overlay() else { return };
    let none = "/run/none.sock";
    for arguments in
        [["status"].as_slice(), &["doctor"], &["doctor", "--peer", "h2"], &["doctor", "--fix"], &["ping", "h2"]]
    {
        let words = [&["--socket", none], arguments].concat();
        // A later --socket wins over the one the harness gives.
        let program = overlay.lab.binary("overlayctl").unwrap();
        let argv = [&[program.as_str()], words.as_slice()].concat();
        let view = overlay.lab.host("h1").unwrap().view();
        let output = netns::command(view, &argv).unwrap().stdin(Stdio::null()).output().unwrap();
        refused(&output, Code::NotRunning, &[none, "systemctl start overlayd"]);
    }
}

#[test]
fn program_and_daemon_of_different_releases_tell_each_other() {
    let Some(overlay) = overlay() else { return };
    let host = overlay.lab.host("h1").unwrap();
    // A program of another release asks the daemon: the answer is a frame that it can show.
    let request = br#"{"version":9,"request":"status"}"#;
    let mut stream = std::os::unix::net::UnixStream::connect(host.path(SOCKET_PATH)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(&u32::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("VERSION_SKEW") && text.contains("control protocol 9"), "{text}");
    assert!(text.contains("use the overlayctl that came with the daemon"), "{text}");

    // The program asks a daemon of another release.
    let socket = host.path("/run/newer.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body).unwrap();
        let reply = br#"{"version":9,"reply":{"ok":{"news":7}}}"#;
        stream.write_all(&u32::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(reply).unwrap();
    });
    let program = overlay.lab.binary("overlayctl").unwrap();
    let argv = [program.as_str(), "--socket", "/run/newer.sock", "status"];
    let output = netns::command(host.view(), &argv).unwrap().stdin(Stdio::null()).output().unwrap();
    server.join().unwrap();
    refused(&output, Code::VersionSkew, &["control protocol 9", "systemctl restart overlayd"]);
}

#[test]
fn killed_daemon_leaves_a_socket_that_says_nobody_listens() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    overlay.lab.kill_daemon("h2").unwrap();
    let output = overlay.lab.ctl("h2", &["status"]).unwrap();
    refused(&output, Code::NotRunning, &["no daemon listens on it"]);
    overlay.lab.start_daemon("h2").unwrap();
    wait_for("h2 to be ready again", LIMIT, || overlay.status("h2").ok()?.ready.then_some(())).unwrap();
}
