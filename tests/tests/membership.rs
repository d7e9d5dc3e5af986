//! Members by certificate: the authority outlives its host, revocation cuts, state outlives kills and bad disks.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use overlay_netns_harness::{Binaries, wait_for};
use overlay_tests::{Certified, can_make_namespaces, lab_name};
use overlay_wire::HostId;
use overlay_wire::gossip::RecordKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

fn cluster(subject: &str, hosts: usize) -> Option<Certified> {
    if !can_make_namespaces(subject) {
        return None;
    }
    Some(Certified::cluster(&lab_name(subject), Binaries::for_tests().unwrap(), hosts).unwrap())
}

fn state(lab: &Certified, host: &str, file: &str) -> PathBuf {
    lab.lab.host(host).unwrap().path("/var/lib/overlay").join(file)
}

fn passphrase(lab: &Certified, host: &str) {
    let path = lab.lab.host(host).unwrap().path("/run/overlay/passphrase");
    std::fs::write(&path, "correct horse battery\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

const PASSPHRASE: [&str; 2] = ["--passphrase-file", "/run/overlay/passphrase"];

/// Whether the description of a member, with its addresses, is among what a host keeps on disk.
fn has_kept(lab: &Certified, host: &str, member: HostId) -> bool {
    let records = lab.kept_records(host).unwrap_or_default();
    records.iter().any(|record| (record.key.owner, record.key.kind) == (member, RecordKind::HOST))
}

#[test]
fn authority_outlives_the_first_host() {
    let Some(lab) = cluster("ca", 2) else { return };
    let _logs = lab.lab.logs_on_failure();
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(problems.contains("NO_BACKUP"), "{problems}");
    let (code, text) = lab.refused("h1", &["leave"]).unwrap();
    assert!(code == 5 && text.contains("only copy"), "{code} {text}");
    let (code, _) = lab.refused("h2", &["invite"]).unwrap();
    assert_eq!(code, 6, "h2 is no issuer yet");
    for host in ["h1", "h2"] {
        passphrase(&lab, host);
    }
    lab.lab.ctl_ok("h1", &[&["ca", "export", "/run/overlay/backup"][..], &PASSPHRASE].concat()).unwrap();
    let exported = lab.lab.host("h1").unwrap().path("/run/overlay/backup");
    std::fs::copy(exported, lab.lab.host("h2").unwrap().path("/run/overlay/backup")).unwrap();
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(!problems.contains("NO_BACKUP"), "{problems}");

    // The first host is gone for good, with its disk.
    lab.lab.kill_daemon("h1").unwrap();
    std::fs::remove_dir_all(lab.lab.host("h1").unwrap().path("/var/lib/overlay")).unwrap();
    std::fs::create_dir(lab.lab.host("h1").unwrap().path("/var/lib/overlay")).unwrap();

    lab.lab.ctl_ok("h2", &[&["ca", "import", "/run/overlay/backup"][..], &PASSPHRASE].concat()).unwrap();
    let list = lab.lab.ctl_ok("h2", &["cert", "list"]).unwrap();
    assert!(list.lines().any(|line| line.starts_with("h2") && line.contains("issuer")), "{list}");
    let old = lab.address("h1c1").unwrap();
    lab.lab.start_daemon("h1").unwrap();
    assert_eq!(lab.refused("h1", &["status"]).unwrap().0, 8, "without its state it is a member no more");
    // As a new host, under a new name: the one of the host that is gone is still its own.
    let token = lab.invite("h2", &[]).unwrap();
    lab.lab.ctl_ok("h1", &["join", &token, "--name", "h1new", "--timeout", "20s"]).unwrap();
    let own = lab.certificate("h1").unwrap();
    assert!(!own["grants"].to_string().contains(&old.to_string()[..8]), "its subnet was given before: {own}");
    let up = || lab.peer("h2", "h1new").filter(|peer| peer.data == overlay_control::api::DataState::Up);
    wait_for("packets to the new host", LIMIT, up).unwrap();
}

#[test]
fn revocation_cuts_traffic_and_outlives_restarts() {
    let Some(lab) = cluster("revoke", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    for (from, to) in [("h2c1", "h3c1"), ("h3c1", "h1c1"), ("h1c1", "h2c1")] {
        wait_for("traffic before", LIMIT, || lab.reaches(from, to).then_some(())).unwrap();
    }
    let start = Instant::now();
    lab.lab.ctl_ok("h1", &["cert", "revoke", "h3"]).unwrap();
    for host in ["h1", "h2"] {
        wait_for(&format!("{host} to cut h3 off"), LIMIT, || lab.peer(host, "h3").is_none().then_some(())).unwrap();
    }
    eprintln!("revoked everywhere after {:?}", start.elapsed());
    for (from, to) in [("h2c1", "h3c1"), ("h3c1", "h2c1"), ("h1c1", "h3c1"), ("h3c1", "h1c1")] {
        assert!(!lab.reaches(from, to), "{from} still reaches {to}");
    }
    assert!(lab.reaches("h1c1", "h2c1"), "the control: the others talk as before");
    let flows = lab.lab.ctl_ok("h2", &["flow", "list"]).unwrap();
    let h3 = lab.address("h3c1").unwrap();
    assert!(!flows.contains(&h3.to_string()), "{flows}");

    // Without the issuer, after a kill: what is on disk is enough.
    lab.lab.kill_daemon("h1").unwrap();
    lab.lab.kill_daemon("h2").unwrap();
    lab.lab.start_daemon("h2").unwrap();
    let list = lab.lab.ctl_ok("h2", &["cert", "list"]).unwrap();
    assert!(!list.lines().any(|line| line.starts_with("h3") && line.contains(" valid")), "{list}");
    // h3 knows nothing of it and keeps asking; h2 stays silent to it while it takes h1 back.
    lab.lab.start_daemon("h1").unwrap();
    wait_for("h2 and h1", LIMIT, || lab.reaches("h2c1", "h1c1").then_some(())).unwrap();
    assert!(lab.peer("h2", "h3").is_none() && !lab.reaches("h3c1", "h2c1"));
    // A revoked host may not come back with its old key, not even with a new token.
    let token = lab.invite("h1", &[]).unwrap();
    lab.lab.ctl_ok("h3", &["leave", "--keep-identity"]).unwrap();
    wait_for("h3 to be in standby", LIMIT, || {
        lab.refused("h3", &["status"]).ok().filter(|(code, _)| *code == 8).map(drop)
    })
    .unwrap();
    let (code, text) = lab.refused("h3", &["join", &token, "--name", "h3b"]).unwrap();
    assert!(code == 5 && text.contains("revoked"), "{code} {text}");
}

#[test]
fn all_hosts_started_at_once_find_each_other_without_the_issuer() {
    let Some(lab) = cluster("atonce", 3) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_for("traffic before", LIMIT, || lab.reaches("h2c1", "h3c1").then_some(())).unwrap();
    // What was learned is on disk within seconds; that is the promise, so it is waited for.
    for (host, other) in [("h2", "h3"), ("h3", "h2")] {
        let id = lab.status(other).unwrap().host.id;
        wait_for(&format!("{host} to have kept {other}"), LIMIT, || has_kept(&lab, host, id).then_some(())).unwrap();
    }
    for host in ["h1", "h2", "h3"] {
        lab.lab.kill_daemon(host).unwrap();
    }
    assert!(!lab.reaches("h2c1", "h3c1"), "traffic without daemons");
    let start = Instant::now();
    for host in ["h2", "h3"] {
        lab.lab.spawn_daemon(host).unwrap();
    }
    wait_for("traffic without the issuer", LIMIT, || lab.reaches("h2c1", "h3c1").then_some(())).unwrap();
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(10), "{took:?}");
    lab.lab.spawn_daemon("h1").unwrap();
    wait_for("the issuer", LIMIT, || lab.reaches("h1c1", "h3c1").then_some(())).unwrap();
}

#[test]
fn certificate_renewed_by_hand_has_a_higher_number_and_cuts_nothing() {
    let Some(lab) = cluster("renew", 2) else { return };
    let _logs = lab.lab.logs_on_failure();
    wait_for("traffic", LIMIT, || lab.reaches("h2c1", "h1c1").then_some(())).unwrap();
    for host in ["h2", "h1"] {
        let before = lab.certificate(host).unwrap();
        lab.lab.ctl_ok(host, &["cert", "renew"]).unwrap();
        let after = lab.certificate(host).unwrap();
        assert_ne!(before["serial"], after["serial"], "{host}");
        assert_eq!((&before["grants"], &before["rights"]), (&after["grants"], &after["rights"]), "{host}");
        assert!(lab.reaches("h2c1", "h1c1") && lab.reaches("h1c1", "h2c1"));
    }
    let serial = lab.certificate("h2").unwrap()["serial"].clone();
    lab.lab.kill_daemon("h2").unwrap();
    lab.lab.start_daemon("h2").unwrap();
    assert_eq!(lab.certificate("h2").unwrap()["serial"], serial, "the renewed certificate was kept");
    wait_for("traffic after a restart", LIMIT, || lab.reaches("h2c1", "h1c1").then_some(())).unwrap();
}

/// A file system over a directory that goes with the value.
struct Disk(PathBuf);

impl Disk {
    fn small(at: &Path) -> Disk {
        let words = ["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"];
        assert!(Command::new("mount").args(words).arg(at).status().unwrap().success());
        Disk(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn issuer_with_a_full_disk_admits_nobody_and_forwards_as_before() {
    if !can_make_namespaces("full_disk") {
        return;
    }
    let name = lab_name("full");
    let binaries = Binaries::for_tests().unwrap();
    let lab = Certified::standby(&name, binaries, 3).unwrap();
    // A daemon sees mounts made before its start.
    lab.lab.stop_daemon("h1").unwrap();
    let directory = state(&lab, "h1", "");
    let _disk = Disk::small(&directory);
    lab.lab.start_daemon("h1").unwrap();
    lab.init("h1").unwrap();
    lab.join("h2", "h1").unwrap();
    for host in ["h1", "h2"] {
        lab.lab.add_container(host, "c1").unwrap();
    }
    wait_for("traffic", LIMIT, || lab.reaches("h1c1", "h2c1").then_some(())).unwrap();
    let token = lab.invite("h1", &[]).unwrap();
    let filler = directory.join("filler");
    std::fs::write(&filler, vec![0; 1 << 20]).expect_err("the disk is small");
    let (code, text) = lab.refused("h1", &["invite"]).unwrap();
    assert!(code == 1 && text.contains("No space left"), "{code} {text}");
    let (code, text) = lab.refused("h3", &["join", &token, "--name", "h3"]).unwrap();
    assert!(code == 5 && text.contains("could not store"), "{code} {text}");
    assert!(lab.reaches("h1c1", "h2c1") && lab.reaches("h2c1", "h1c1"), "forwarding outlives the disk");
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(problems.contains("STATE_NOT_SAVED"), "{problems}");
    std::fs::remove_file(&filler).unwrap();
    lab.lab.ctl_ok("h3", &["join", &token, "--name", "h3", "--timeout", "20s"]).unwrap();
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(!problems.contains("STATE_NOT_SAVED"), "{problems}");
}

#[test]
fn damaged_copy_is_put_right_and_two_of_them_are_refused() {
    if !can_make_namespaces("damaged") {
        return;
    }
    let lab = Certified::standby(&lab_name("damage"), Binaries::for_tests().unwrap(), 1).unwrap();
    lab.init("h1").unwrap();
    let name = lab.status("h1").unwrap().host;
    lab.lab.kill_daemon("h1").unwrap();
    let whole: Vec<Vec<u8>> =
        ["membership.a", "issuer.b"].map(|file| std::fs::read(state(&lab, "h1", file)).unwrap()).into();
    for file in ["membership.a", "issuer.b"] {
        std::fs::write(state(&lab, "h1", file), b"OVLSTATE").unwrap();
    }
    lab.lab.start_daemon("h1").unwrap();
    assert_eq!(lab.status("h1").unwrap().host.id, name.id);
    let problems = lab.lab.ctl_ok("h1", &["status", "--problems"]).unwrap();
    assert!(problems.contains("membership.a") && problems.contains("issuer.b"), "{problems}");
    lab.invite("h1", &[]).unwrap();
    lab.lab.kill_daemon("h1").unwrap();
    for (file, whole) in ["membership.a", "issuer.a"].into_iter().zip(whole) {
        let other = file.replace(".a", ".b");
        let kept = std::fs::read(state(&lab, "h1", file)).unwrap();
        for file in [file, &other] {
            std::fs::write(state(&lab, "h1", file), &whole[..whole.len() / 2]).unwrap();
        }
        lab.lab.spawn_daemon("h1").unwrap();
        let status = lab.lab.wait_daemon_end("h1", LIMIT).unwrap();
        assert_eq!(status.code(), Some(1), "{file}");
        let log = lab.lab.log("h1").unwrap();
        assert!(log.contains("error[STATE_DAMAGED]"), "{log}");
        for file in [file, &other] {
            std::fs::write(state(&lab, "h1", file), &kept).unwrap();
        }
    }
    lab.lab.start_daemon("h1").unwrap();
    assert_eq!(lab.status("h1").unwrap().host.id, name.id, "the control: whole files are taken again");
}
