//! Plugin and daemon killed at any instant while containers start and end, and disks that are full: nothing is given twice,
//! nothing is left, and the answer comes in time.

use overlay_netns_harness::{run_in, wait_for};
use overlay_tests::Overlay;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::engine::{DEFAULT, DRIVER, Docker};
use super::{LIMIT, book, endpoints, nothing_left, overlay};

/// Kills in the test; `OVERLAY_DOCKER_KILLS` asks for more.
const KILLS: u32 = 10;
/// Containers at a time.
const CONTAINERS: u32 = 3;

/// A generator of which the seed is printed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// No address twice: among what Docker says runs, and among what the daemon has attached.
fn nothing_twice(overlay: &Overlay, docker: &Docker<'_>, seed: u64) {
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    let listed = docker.run("ps -q --no-trunc");
    for id in listed.split_whitespace() {
        let output = docker.output(&format!("inspect -f {{{{.NetworkSettings.Networks.hit.IPAddress}}}} {id}"));
        let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !address.is_empty()
            && let Some(other) = holders.insert(address.clone(), id.to_owned())
        {
            panic!("seed {seed}: {address} is of {other} and of {id}");
        }
    }
    let mut attached: Vec<_> = endpoints(overlay, "h1").into_iter().flat_map(|one| one.addresses).collect();
    attached.sort_unstable();
    let all = attached.len();
    attached.dedup();
    assert_eq!(attached.len(), all, "seed {seed}: an address is attached twice");
}

#[test]
fn plugin_and_daemon_killed_at_any_instant_leak_nothing_and_give_nothing_twice() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let seed = number("OVERLAY_DOCKER_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    let kills = number("OVERLAY_DOCKER_KILLS").map_or(KILLS, |kills| kills as u32);
    println!("{kills} kills, seed {seed} (OVERLAY_DOCKER_SEED)");
    let mut random = Random(seed);
    let mut docker = Docker::started(&overlay.lab, "h1");
    docker.run(&format!("network create {DRIVER} hit"));
    let (mut began, mut failed) = (0, 0);
    for kill in 0..kills {
        let name = format!("c{}", kill % CONTAINERS);
        let words = match docker.output(&format!("inspect {name}")).status.success() {
            true => vec!["docker", "rm", "-f", &name],
            false => {
                began += 1;
                vec!["docker", "run", "-d", "--name", &name, "--network", "hit", "-p", "80", "box", "sleep", "600"]
            }
        };
        let mut under_way = docker.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // At any instant of it: this is the fault, not a wait for something.
        std::thread::sleep(Duration::from_millis(random.below(700)));
        if random.below(2) == 0 {
            docker.kill_plugin();
            docker.start_plugin();
        } else {
            overlay.lab.kill_daemon("h1").unwrap();
            overlay.lab.start_daemon("h1").unwrap();
        }
        let ended = under_way.wait().unwrap();
        failed += u32::from(!ended.success());
        overlay.lab.wait_ready(LIMIT).unwrap();
        nothing_twice(&overlay, &docker, seed);
    }
    println!("{began} containers begun, {failed} commands failed");
    // A container that Docker could not start may be there still.
    docker.command(&["sh", "-c", "docker ps -aq | xargs -r docker rm -f"]).output().unwrap();
    // All of it works again, and then goes.
    docker.start("last", "--network hit", "httpd -f -p 80 -h /");
    docker.start("asker", "--network hit", "sleep 600");
    assert!(docker.fetch("asker", &docker.address("last", "hit")).ends_with("the page"), "seed {seed}");
    docker.run("rm -f last asker");
    docker.run("network rm hit");
    nothing_left(&overlay, "h1");
    let view = overlay.lab.view("h1").unwrap();
    let rules = run_in(&view, &["nft", "list", "ruleset"]).unwrap();
    assert!(!rules.contains("docker/"), "seed {seed}: rules are left: {rules}");
}

/// Fills the file system around a directory of a host, and empties it again when it is dropped.
struct Full<'a> {
    docker: &'a Docker<'a>,
    file: String,
}

impl<'a> Full<'a> {
    fn fill(docker: &'a Docker<'a>, directory: &str) -> Full<'a> {
        let file = format!("{directory}/filling");
        let fill = format!(
            "head -c 100M /dev/zero > {file} 2> /dev/null; ! head -c 4096 /dev/zero > {file}.more 2> /dev/null"
        );
        assert!(docker.command(&["sh", "-c", &fill]).status().unwrap().success(), "{directory} is not full");
        Full { docker, file }
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        let remove = format!("rm -f {0} {0}.more", self.file);
        let _ = self.docker.command(&["sh", "-c", &remove]).status();
    }
}

/// A small file system over a directory of `h1`, with what was in it; processes started afterwards see it.
struct Small(PathBuf);

impl Small {
    fn mount(overlay: &Overlay, inside: &str) -> Small {
        let directory = overlay.lab.host("h1").unwrap().path(inside);
        let kept = tempfile::tempdir().unwrap();
        let run = |program: &str, words: &[&OsStr]| {
            assert!(Command::new(program).args(words).status().unwrap().success(), "{program} {words:?}");
        };
        std::fs::create_dir_all(&directory).unwrap();
        let (from, to) = (directory.join("."), kept.path());
        run("cp", &["-a".as_ref(), from.as_ref(), to.as_ref()]);
        let options = ["-t", "tmpfs", "-o", "size=256k,mode=0700", "none"].map(OsStr::new);
        run("mount", &[&options[..], &[directory.as_ref()]].concat());
        run("cp", &["-a".as_ref(), to.join(".").as_ref(), directory.as_ref()]);
        Small(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn full_disk_of_plugin_or_daemon_refuses_in_time_and_leaves_nothing() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let (of_plugin, of_daemon) = ("/var/lib/overlay-docker", "/var/lib/overlay");
    overlay.lab.stop_daemon("h1").unwrap();
    let mounts = [Small::mount(&overlay, of_daemon), Small::mount(&overlay, of_plugin)];
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
    {
        let docker = Docker::started(&overlay.lab, "h1");
        docker.run(&format!("network create {DRIVER} {DEFAULT} net"));
        docker.start("running", "--network net", "sleep 600");
        let running = docker.address("running", "net");
        for (directory, whose) in [(of_plugin, "Docker plugin"), (of_daemon, "")] {
            let full = Full::fill(&docker, directory);
            let began = Instant::now();
            let said = docker.refused("run --name refused --network net box sleep 1");
            // dockerd itself takes a moment for the container around it.
            assert!(began.elapsed() < Duration::from_secs(5), "{directory}: {:?}", began.elapsed());
            assert!(said.contains("overlayd") && said.contains("o space left") && said.contains(whose), "{said}");
            assert!(overlay.reaches("h2c1", running.parse().unwrap()), "what runs is not touched");
            assert_eq!(endpoints(&overlay, "h1").len(), 1);
            drop(full);
            docker.run("rm -f refused");
            docker.start("again", "--network net", "sleep 600");
            assert!(docker.pings("again", &running));
            docker.run("rm -f again");
            let held = || (book(&overlay, "h1").held.len() == 2).then_some(());
            wait_for("the addresses of what failed to be free", super::COMPARED, held).unwrap();
        }
        docker.run("rm -f running");
        docker.run("network rm net");
        nothing_left(&overlay, "h1");
    }
    overlay.lab.stop_daemon("h1").unwrap();
    drop(mounts);
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(LIMIT).unwrap();
}
