//! dockerd, plugin and daemon ended and held up in turn: errors in time, nothing lost and nothing left.

use overlay_netns_harness::wait_for;
use std::time::{Duration, Instant};

use super::engine::{DEFAULT, DRIVER, Docker, call};
use super::{LIMIT, book, endpoints, nothing_left, overlay};

/// All answers come within this time, by the promise of the plugin.
const ANSWER: Duration = Duration::from_secs(3);
/// dockerd starts within this time with our daemon stopped.
const START: Duration = Duration::from_secs(5);

#[test]
fn engine_and_plugin_killed_and_restarted_keep_containers_and_forget_none() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let mut docker = Docker::started(&overlay.lab, "h1");
    docker.run(&format!("network create {DRIVER} {DEFAULT} --subnet 10.42.1.192/26 kept"));
    // An address rests after use, so the two have different ones.
    let (first, kept) = ("10.42.1.200", "10.42.1.201");
    docker.start("first", &format!("--network kept --ip {first}"), "sleep 600");
    let is_up = |address: &str| overlay.reaches("h2c1", address.parse().unwrap());
    assert!(is_up(first));
    // The plugin alone: the container does not notice, and a new one gets another address.
    docker.kill_plugin();
    docker.start_plugin();
    assert!(is_up(first));
    docker.start("second", "--network kept", "sleep 600");
    assert!(docker.pings("second", first));
    docker.run("rm -f first second");
    // dockerd with its containers kept.
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if signal == libc::SIGTERM {
            docker.end_dockerd(libc::SIGTERM);
            docker.start_dockerd(&["--live-restore"]);
            docker.start("kept", &format!("--network kept --ip {kept} --restart always"), "sleep 600");
            wait_for("the container to answer", LIMIT, || is_up(kept).then_some(())).unwrap();
        }
        docker.end_dockerd(signal);
        assert!(is_up(kept), "a live container went with dockerd");
        docker.start_dockerd(&["--live-restore"]);
        assert!(is_up(kept));
        assert_eq!(docker.address("kept", "kept"), kept);
    }
    // dockerd killed without that: it ends the container and starts it again with the same address.
    docker.end_dockerd(libc::SIGTERM);
    docker.start_dockerd(&["--live-restore=false"]);
    docker.end_dockerd(libc::SIGKILL);
    docker.start_dockerd(&[]);
    wait_for("the container to be back", Duration::from_secs(40), || is_up(kept).then_some(())).unwrap();
    assert_eq!(endpoints(&overlay, "h1").len(), 1, "{:?}", endpoints(&overlay, "h1"));
    docker.run("rm -f kept");
    docker.run("network rm kept");
    nothing_left(&overlay, "h1");
}

#[test]
fn daemon_down_or_hung_is_an_error_in_time_and_its_return_settles_everything() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let mut docker = Docker::started(&overlay.lab, "h2");
    docker.run(&format!("network create {DRIVER} {DEFAULT} net"));
    docker.start("first", "--network net --restart always", "sleep 600");
    docker.start("second", "--network net", "sleep 600");
    let pid = overlay.lab.daemon_pid("h2").unwrap();
    let signal = |signal: i32| {
        // SAFETY: the process belongs to this lab and has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let socket = docker.plugin_socket();
    let in_time = |what: &str| {
        for (path, body) in [
            ("/Plugin.Activate", "{}"),
            ("/IpamDriver.RequestPool", r#"{"AddressSpace":"overlayd","V6":false}"#),
            ("/IpamDriver.RequestAddress", r#"{"PoolID":"none"}"#),
            ("/NetworkDriver.Leave", r#"{"NetworkID":"n","EndpointID":"e"}"#),
            ("/NetworkDriver.DeleteEndpoint", r#"{"NetworkID":"n","EndpointID":"e"}"#),
            ("/IpamDriver.ReleaseAddress", r#"{"PoolID":"none","Address":"10.42.2.9"}"#),
        ] {
            let began = Instant::now();
            let (_, answer) = call(&socket, path, body);
            assert!(began.elapsed() < ANSWER, "{what}: {path} took {:?}", began.elapsed());
            assert_eq!(answer["Err"], answer["Error"], "both kinds of drivers are told");
            assert_eq!(answer["Err"].is_string(), path.contains("Request"), "{what}: {path}: {answer}");
        }
    };
    signal(libc::SIGSTOP);
    in_time("hung");
    let began = Instant::now();
    let said = docker.refused("run --rm --network net box sleep 1");
    assert!(said.contains("overlayd"), "{said}");
    assert!(began.elapsed() < ANSWER + Duration::from_secs(2), "docker run took {:?}", began.elapsed());
    signal(libc::SIGCONT);
    overlay.lab.kill_daemon("h2").unwrap();
    in_time("down");
    assert!(docker.refused("run --rm --network net box sleep 1").contains("cannot reach the daemon"));
    // A container ends all the same, and dockerd starts all the same.
    docker.run("rm -f second");
    docker.end_dockerd(libc::SIGTERM);
    let took = docker.start_dockerd(&[]);
    assert!(took <= START, "dockerd took {took:?} to start with the daemon down");
    println!("dockerd started in {took:?} with the daemon down");
    overlay.lab.start_daemon("h2").unwrap();
    overlay.lab.wait_ready(Duration::from_secs(20)).unwrap();
    docker.run("restart -t 0 first");
    wait_for("one endpoint to be left", LIMIT, || (endpoints(&overlay, "h2").len() == 1).then_some(())).unwrap();
    assert!(docker.pings("first", &overlay.container("h1c1").v4.to_string()));
    docker.run("rm -f first");
    docker.run("network rm net");
    nothing_left(&overlay, "h2");
}

/// What dockerd removes while the plugin cannot be told is found later.
#[test]
fn orphans_of_a_time_without_plugin_are_given_back() {
    let Some(overlay) = overlay() else { return };
    let mut docker = Docker::started(&overlay.lab, "h1");
    docker.run(&format!("network create {DRIVER} lost"));
    docker.start("lost", "--network lost", "sleep 600");
    assert_eq!((endpoints(&overlay, "h1").len(), book(&overlay, "h1").held.len()), (1, 2));
    // dockerd and all it knows is gone, as when its directory is removed; the plugin was not told anything.
    docker.kill_plugin();
    docker.end_dockerd(libc::SIGKILL);
    drop(docker);
    let lib = overlay.lab.host("h1").unwrap().path("/var/lib/docker");
    std::fs::remove_dir_all(&lib).unwrap();
    let docker = Docker::started(&overlay.lab, "h1");
    nothing_left(&overlay, "h1");
    drop(docker);
}
