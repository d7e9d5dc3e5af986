//! The real podman with the network that `overlayctl plugin cni install` wrote.

use overlay_netns_harness::{Lab, packages, ping, wait_for};
use overlay_tests::Overlay;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::{LIMIT, endpoints, overlay};

/// The tools of podman's own tests: no cgroups, no limits above those of the machine.
pub(super) const LIMITS: &str = "--cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=512:512";
const CONTAINER: &str = "--cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=512:512 --network overlay";

/// podman on one host, with a directory of its own for images and configuration; its containers end with it.
pub(super) struct Podman {
    /// Keeps the mount namespace in which podman's containers are visible from one command to the next.
    holder: Child,
    directory: tempfile::TempDir,
}

impl Podman {
    fn new(lab: &Lab, host: &str) -> Podman {
        // An OCI runtime wants to see the groups of processes even where it makes none.
        let hold = "mount -t cgroup2 none /sys/fs/cgroup && echo ready && exec cat";
        let mut command = lab.command(host, &["sh", "-c", hold]).unwrap();
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let podman = Podman { holder, directory: tempfile::tempdir().unwrap() };
        let (bin, net) = (podman.path("bin"), podman.path("net.d"));
        let install = ["plugin", "cni", "install", "--bin-dir", &text(&bin), "--conf-dir", &text(&net)];
        lab.ctl_ok(host, &install).unwrap();
        let example = include_str!("../../../examples/containers.conf");
        let conf = format!(
            "{example}cni_plugin_dirs = [{bin:?}, \"/usr/lib/cni\"]\nnetwork_config_dir = {net:?}\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        );
        std::fs::write(podman.path("containers.conf"), conf).unwrap();
        let root = podman.path("root/bin");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        for name in ["sh", "ip", "nc", "sleep", "httpd", "cat", "nslookup"] {
            std::os::unix::fs::symlink("busybox", root.join(name)).unwrap();
        }
        std::fs::write(podman.path("root/page"), "the page").unwrap();
        // busybox linked statically cannot look up names, and its wget tries to.
        let fetch = "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $1 80\n";
        std::fs::write(podman.path("root/fetch"), fetch).unwrap();
        let (image, tree) = (text(&podman.path("image.tar")), text(&podman.path("root")));
        let packed = Command::new("tar").args(["-C", &tree, "-cf", &image, "."]).status().unwrap();
        assert!(packed.success());
        podman.run(&format!("import {image} box"));
        podman
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let storage = self.path("storage");
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.id().to_string(), "--", "podman"]);
        command.arg("--root").arg(storage);
        command.args("--runroot /run/podman --tmpdir /run/podman/tmp --storage-driver vfs".split(' '));
        command.env("CONTAINERS_CONF", self.path("containers.conf")).stdin(Stdio::null());
        command
    }

    pub(super) fn output(&self, words: &str) -> Output {
        self.command().args(words.split_whitespace()).output().unwrap()
    }

    pub(super) fn run(&self, words: &str) -> String {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "podman {words}: {}: {said}{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a script in a container printed.
    pub(super) fn run_shell(&self, container: &str, script: &str) -> String {
        let mut command = self.command();
        let output = command.args(["exec", container, "sh", "-c", script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(super) fn start(&self, name: &str, extra: &str, program: &str) {
        self.run(&format!("run -d --name {name} {CONTAINER} {extra} box {program}"));
    }

    pub(super) fn address(&self, name: &str) -> String {
        let shown = self.run(&format!("exec {name} ip -4 -o address show dev eth0"));
        let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
        address.split('/').next().unwrap().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.output("rm --all --force --time 0");
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(super) fn hosts(overlay: &Overlay) -> [Podman; 2] {
    let words = ["podman", "crun", "containernetworking-plugins", "busybox-static"];
    let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
    if !missing.is_empty() {
        packages::install(&missing).unwrap();
    }
    ["h1", "h2"].map(|host| Podman::new(&overlay.lab, host))
}

#[test]
fn podman_containers_on_two_hosts_reach_each_other_and_leave_nothing() {
    let Some(overlay) = overlay() else { return };
    let _logs = overlay.lab.logs_on_failure();
    let [one, two] = hosts(&overlay);
    one.start("web", "--ip 10.42.1.80 --mac-address 02:00:00:00:00:80", "httpd -f -p 80 -h /");
    assert_eq!(one.address("web"), "10.42.1.80");
    assert!(one.run("exec web ip link show dev eth0").contains("02:00:00:00:00:80"));
    let page = two.run(&format!("run --rm {CONTAINER} box sh /fetch 10.42.1.80"));
    assert!(page.starts_with("HTTP/1.") && page.ends_with("the page"), "{page}");
    // The same address again is refused, by podman's mouth and with our reason.
    let refused = one.output(&format!("run --rm {CONTAINER} --ip 10.42.1.80 box sleep 1"));
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("10.42.1.80"), "{errors}");
    // A published port, by podman's own option; from the other host, and from the host itself.
    one.start("public", "-p 7301:80 -p 127.0.0.1:7302:80", "httpd -f -p 80 -h /");
    let card = overlay.lab.host("h1").unwrap().underlay_v4().to_string();
    let fetch = |host: &str, address: &str, port: &str| {
        let get = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {address} {port}");
        overlay_netns_harness::run_in(overlay.lab.host(host).unwrap().view(), &["sh", "-c", &get]).unwrap_or_default()
    };
    assert!(fetch("h2", &card, "7301").ends_with("the page"));
    assert!(fetch("h1", "127.0.0.1", "7302").ends_with("the page"));
    assert_eq!(fetch("h2", &card, "7302"), "");
    let refused = one.output(&format!("run --rm {CONTAINER} -p 7301:80 box sleep 1"));
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("7301"), "{errors}");
    one.run("rm --force --time 0 public");
    assert_eq!(fetch("h2", &card, "7301"), "", "the port ended with its container");
    // Names: the container is told the server, and finds a container of the other host by the name podman gave it.
    let told = one.run("exec web cat /etc/resolv.conf");
    assert!(told.contains("nameserver 10.42.1.1") && told.contains("ctr.overlay.internal"), "{told}");
    wait_for("the name to come to the other host", LIMIT, || {
        let look = format!("run --rm {CONTAINER} box nslookup web.ctr.overlay.internal");
        let found = two.output(&look);
        String::from_utf8_lossy(&found.stdout).contains("10.42.1.80").then_some(())
    })
    .unwrap();
    // A daemon that is not there stops a start in time, and not an end.
    overlay.lab.kill_daemon("h1").unwrap();
    let refused = one.output(&format!("run --rm {CONTAINER} box sleep 1"));
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("cannot reach the daemon"), "{errors}");
    one.run("rm --force --time 0 web");
    overlay.lab.start_daemon("h1").unwrap();
    overlay.lab.wait_ready(super::Duration::from_secs(20)).unwrap();
    wait_for("the endpoint of the ended container to go", LIMIT, || endpoints(&overlay, "h1").is_empty().then_some(()))
        .unwrap();
    one.start("again", "", "sleep 600");
    let address = one.address("again");
    assert!(ping(&overlay.container("h2c1").view, "-c 3 -i 0.02 -W 2", &address).unwrap().is_lossless());
    one.run("rm --force --time 0 again");
    wait_for("its endpoint to go", LIMIT, || endpoints(&overlay, "h1").is_empty().then_some(())).unwrap();
    assert!(endpoints(&overlay, "h2").is_empty());
}
