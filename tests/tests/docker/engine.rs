//! A real dockerd on a lab host, and the plugin beside it.

use overlay_netns_harness::{Lab, wait_for};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long dockerd and the plugin may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Options that make the driver.
pub(crate) const DRIVER: &str = "-d overlayd --ipam-driver overlayd";
/// What puts a Docker network into the network `default` of the cluster, where the lab's own containers are.
pub(crate) const DEFAULT: &str = "--ipam-opt network=default";
/// Where dockerd finds the plugin.
const PLUGIN: &str = "/run/docker/plugins/overlayd.sock";

/// Mounts what dockerd needs to see, in namespaces of its own, and stays.
const HOLD: &str = r#"
mount -t tmpfs none /etc/docker || exit 1
if grep -q '^devices[[:space:]]*[1-9]' /proc/cgroups; then
    mount -t tmpfs none /sys/fs/cgroup
    for name in $(grep -v '^#' /proc/cgroups | while read -r name tree _; do [ "$tree" = 0 ] || echo "$name"; done); do
        mkdir "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" none "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
else
    mount -t cgroup2 none /sys/fs/cgroup
fi
hostname "$1"
echo ready
# Not by exec: the shell is the first process here and buries those whose parents are gone.
cat
exit 0
"#;

/// One host with dockerd; everything in its process namespace ends with it.
pub(crate) struct Docker<'a> {
    lab: &'a Lab,
    host: String,
    holder: Child,
    /// The first process of the namespaces, as this namespace numbers it.
    inside: u32,
    dockerd: Option<Child>,
    plugin: Option<Child>,
    directory: tempfile::TempDir,
    parent: String,
}

impl<'a> Docker<'a> {
    /// Namespaces, without dockerd and plugin.
    pub(crate) fn new(lab: &'a Lab, host: &str) -> Docker<'a> {
        let words =
            ["unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc", "sh", "-c", HOLD, "sh", host];
        // What an earlier dockerd of this host left names processes of other namespaces.
        let _ = std::fs::remove_dir_all(lab.host(host).unwrap().path("/run/docker"));
        let mut command = lab.command(host, &words).unwrap();
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let inside = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let parent = format!("{}{host}", lab.name());
        let (host, directory) = (host.to_owned(), tempfile::tempdir().unwrap());
        Docker { lab, host, holder, inside, dockerd: None, plugin: None, directory, parent }
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
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--pid", "--uts", "--target", &self.inside.to_string(), "--"]).args(words);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").stdin(Stdio::null());
        command
    }

    pub(crate) fn lab(&self) -> &'a Lab {
        self.lab
    }

    fn log(&self, name: &str) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join(name)).unwrap()
    }

    fn spawn(&self, name: &str, words: &[&str]) -> Child {
        let log = self.log(name);
        self.command(words).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts the plugin and waits until it answers.
    pub(crate) fn start_plugin(&mut self) {
        let program = self.lab.binary("overlay-docker").unwrap();
        self.plugin = Some(self.spawn("plugin", &[&program]));
        let path = self.plugin_socket();
        wait_for("the plugin's socket", LIMIT, || UnixStream::connect(&path).is_ok().then_some(())).unwrap();
    }

    /// Kills the plugin.
    pub(crate) fn kill_plugin(&mut self) {
        end(self.plugin.take(), libc::SIGKILL);
    }

    /// Starts dockerd and waits until it answers; how long that took.
    pub(crate) fn start_dockerd(&mut self, more: &[&str]) -> Duration {
        let _ = std::fs::remove_file(self.lab.host(&self.host).unwrap().path("/run/docker.pid"));
        let words = [
            &["dockerd", "--storage-driver", "vfs", "--pidfile", "/run/docker.pid", "--cgroup-parent", &self.parent],
            more,
        ]
        .concat();
        self.dockerd = Some(self.spawn("dockerd", &words));
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
        let root = self.directory.path().join("root/bin");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        for name in ["sh", "ip", "nc", "sleep", "httpd", "ping", "hostname", "cat", "nslookup", "udpsvd"] {
            std::os::unix::fs::symlink("busybox", root.join(name)).unwrap();
        }
        let tree = self.directory.path().join("root");
        std::fs::write(tree.join("page"), "the page").unwrap();
        let image = self.directory.path().join("image.tar");
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
        assert!(output.status.success(), "docker {words} on {}: {said}{errors}\n{}", self.host, self.logs());
        said
    }

    /// One `docker` command that must fail; what it says.
    pub(crate) fn refused(&self, words: &str) -> String {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "docker {words} on {} succeeded", self.host);
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

    /// The page that a web server in a container serves.
    pub(crate) fn fetch(&self, container: &str, from: &str) -> String {
        let script = format!("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {from} 80");
        let output = self.command(&["docker", "exec", container, "sh", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The plugin's socket as this process sees it.
    pub(crate) fn plugin_socket(&self) -> PathBuf {
        self.lab.host(&self.host).unwrap().path(PLUGIN)
    }

    /// The ends of the logs of plugin and dockerd.
    pub(crate) fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name} of {}\n{}\n", self.host, lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        tail("plugin") + &tail("dockerd")
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
        // What still runs in the process namespace ends with its first process.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        remove_cgroups(&self.parent);
    }
}

/// Sends a signal and waits for the end. `nsenter --pid` forks, so its child is told.
pub(crate) fn end(child: Option<Child>, signal: i32) {
    let Some(mut child) = child else { return };
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
        // SAFETY: the child of our own child, which has not been waited for.
        unsafe { libc::kill(pid, signal) };
    }
    let _ = child.wait();
}

/// Removes the empty groups that containers leave.
fn remove_cgroups(parent: &str) {
    for root in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = root.path().join(parent);
        if group.is_dir() {
            let _ =
                Command::new("find").arg(&group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
        }
    }
    let group = Path::new("/sys/fs/cgroup").join(parent);
    if group.is_dir() {
        let _ = Command::new("find").arg(&group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
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
