//! A real dockerd on a lab host, and the plugin beside it.

use overlay_netns_harness::engine::{self, EngineHost};
use overlay_netns_harness::{Lab, wait_for};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

/// How long dockerd and the plugin may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Options that make the driver.
pub(crate) const DRIVER: &str = "-d overlayd --ipam-driver overlayd";
/// What puts a Docker network into the network `default` of the cluster, where the lab's own containers are.
pub(crate) const DEFAULT: &str = "--ipam-opt network=default";
/// Where dockerd finds the plugin.
const PLUGIN: &str = "/run/docker/plugins/overlayd.sock";

/// One host with dockerd; everything in its process namespace ends with it.
pub(crate) struct Docker<'a> {
    lab: &'a Lab,
    host: EngineHost,
    dockerd: Option<Child>,
    plugin: Option<Child>,
}

impl<'a> Docker<'a> {
    /// Namespaces, without dockerd and plugin.
    pub(crate) fn new(lab: &'a Lab, host: &str) -> Docker<'a> {
        // What an earlier dockerd of this host left names processes of other namespaces.
        let _ = std::fs::remove_dir_all(lab.host(host).unwrap().path("/run/docker"));
        Docker { lab, host: EngineHost::new(lab, host).unwrap(), dockerd: None, plugin: None }
    }

    /// Plugin and dockerd running, with the image `box`.
    pub(crate) fn started(lab: &'a Lab, host: &str) -> Docker<'a> {
        let mut docker = Docker::new(lab, host);
        docker.start_plugin();
        docker.start_dockerd(&[]);
        docker.import_box();
        docker
    }

    /// A command that will run in the host's namespaces.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.host.command(words)
    }

    pub(crate) fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Starts the plugin and waits until it answers.
    pub(crate) fn start_plugin(&mut self) {
        let program = self.lab.binary("overlay-docker").unwrap();
        self.plugin = Some(self.host.spawn("plugin", &[&program]).unwrap());
        let path = self.plugin_socket();
        wait_for("the plugin's socket", LIMIT, || UnixStream::connect(&path).is_ok().then_some(())).unwrap();
    }

    /// Kills the plugin.
    pub(crate) fn kill_plugin(&mut self) {
        end(self.plugin.take(), libc::SIGKILL);
    }

    /// Starts dockerd and waits until it answers; how long that took.
    pub(crate) fn start_dockerd(&mut self, more: &[&str]) -> Duration {
        let _ = std::fs::remove_file(self.lab.host(self.host.name()).unwrap().path("/run/docker.pid"));
        let words = [
            &[
                "dockerd",
                "--storage-driver",
                "vfs",
                "--pidfile",
                "/run/docker.pid",
                "--cgroup-parent",
                self.host.group(),
            ],
            more,
        ]
        .concat();
        self.dockerd = Some(self.host.spawn("dockerd", &words).unwrap());
        let (_, took) = wait_for("dockerd to answer", LIMIT, || self.output("version").status.success().then_some(()))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        took
    }

    /// Ends dockerd with a signal and waits for its end.
    pub(crate) fn end_dockerd(&mut self, signal: i32) {
        end(self.dockerd.take(), signal);
    }

    /// Makes an image of busybox.
    pub(crate) fn import_box(&self) {
        let root = self.host.directory().join("root/bin");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        for name in ["sh", "ip", "nc", "sleep", "httpd", "ping", "hostname", "cat", "nslookup", "udpsvd"] {
            std::os::unix::fs::symlink("busybox", root.join(name)).unwrap();
        }
        let tree = self.host.directory().join("root");
        std::fs::write(tree.join("page"), "the page").unwrap();
        let image = self.host.directory().join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&image).arg(".").status().unwrap();
        assert!(packed.success());
        self.run(&format!("import {} box", image.display()));
    }

    /// One `docker` command.
    pub(crate) fn output(&self, words: &str) -> Output {
        let words: Vec<&str> = ["docker"].into_iter().chain(words.split_whitespace()).collect();
        self.command(&words).output().unwrap()
    }

    /// One `docker` command that must succeed; what it prints.
    pub(crate) fn run(&self, words: &str) -> String {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "docker {words} on {}: {said}{errors}\n{}", self.host.name(), self.logs());
        said
    }

    /// One `docker` command that must fail; what it says.
    pub(crate) fn refused(&self, words: &str) -> String {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "docker {words} on {} succeeded", self.host.name());
        errors
    }

    /// Starts a container.
    pub(crate) fn start(&self, name: &str, extra: &str, program: &str) {
        self.run(&format!("run -d --name {name} {extra} box {program}"));
    }

    /// The address of a container in a network, as dockerd tells it.
    pub(crate) fn address(&self, name: &str, network: &str) -> String {
        self.run(&format!("inspect -f {{{{.NetworkSettings.Networks.{network}.IPAddress}}}} {name}"))
    }

    /// Whether echo requests from inside a container are answered.
    pub(crate) fn pings(&self, container: &str, to: &str) -> bool {
        self.output(&format!("exec {container} ping -c 2 -W 2 {to}")).status.success()
    }

    /// Whether an echo request from inside a container is not answered; what is answered has been shown beside it.
    pub(crate) fn misses(&self, container: &str, to: &str) -> bool {
        !self.output(&format!("exec {container} ping -c 1 -W 1 {to}")).status.success()
    }

    /// The page that a web server in a container serves.
    pub(crate) fn fetch(&self, container: &str, from: &str) -> String {
        let script = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {from} 80");
        let output = self.command(&["docker", "exec", container, "sh", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The plugin's socket as this process sees it.
    pub(crate) fn plugin_socket(&self) -> PathBuf {
        self.lab.host(self.host.name()).unwrap().path(PLUGIN)
    }

    /// The ends of the logs of plugin and dockerd.
    pub(crate) fn logs(&self) -> String {
        self.host.log("plugin") + &self.host.log("dockerd")
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if self.dockerd.is_some() {
            let _ = self.command(&["sh", "-c", "docker ps -aq | xargs -r docker rm -f"]).output();
        }
        end(self.dockerd.take(), libc::SIGKILL);
        end(self.plugin.take(), libc::SIGKILL);
    }
}

/// Sends a signal and waits for the end.
pub(crate) fn end(child: Option<Child>, signal: i32) {
    if let Some(child) = child {
        engine::end(child, signal);
    }
}

/// One call of the plugin: status and answer.
pub(crate) fn call(socket: &Path, path: &str, body: &str) -> (u16, serde_json::Value) {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = exchange(socket, &[head.as_bytes(), body.as_bytes()]);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: no HTTP: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

/// Sends bytes to the plugin and reads until it closes.
pub(crate) fn exchange(socket: &Path, parts: &[&[u8]]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for part in parts {
        // A plugin that has refused already does not read on.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}
