//! A real containerd on a lab host, with the network that `overlayctl plugin cni install` wrote.

use overlay_netns_harness::engine::{self, EngineHost};
use overlay_netns_harness::{Lab, wait_for};
use std::fs;
use std::path::Path;
use std::process::{Child, Output};
use std::time::Duration;

use crate::cri::{self, Fields, Message};

/// Where containerd listens.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of all containers, also of the first one of a pod.
pub(crate) const IMAGE: &str = "localhost/box:1";
const LIMIT: Duration = Duration::from_secs(30);

/// Plugins where Debian has them; nothing that needs more rights than the machine may have.
const CONFIG: &str = r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/box:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
"#;

/// containerd on one host. Its containers end with it.
pub(crate) struct Containerd {
    pub(crate) host: EngineHost,
    containerd: Option<Child>,
}

impl Containerd {
    /// Starts it with the image, and the network that one command made.
    pub(crate) fn started(lab: &Lab, name: &str) -> Containerd {
        let host = EngineHost::new(lab, name).unwrap();
        let mut made = Containerd { host, containerd: None };
        let places = "mkdir -p /etc/containerd /etc/cni && rm -rf /etc/cni/net.d /run/containerd /var/lib/containerd";
        made.host.run(&["sh", "-c", places]).unwrap();
        made.write("/etc/containerd/config.toml", CONFIG);
        made.start();
        // The one command; containerd that runs already takes the network up by itself.
        made.host.run(&[&lab.binary("overlayctl").unwrap(), "plugin", "cni", "install"]).unwrap();
        wait_for("the network to be ready", LIMIT, || {
            let conditions = made.cri("Status", &Message::default()).message(1).messages(1);
            conditions.iter().all(|condition| condition.number(2) == 1).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", made.host.log("containerd")));
        let tree = made.host.directory().join("root");
        fill(&tree);
        let image = engine::pack_image(&tree, IMAGE, made.host.directory()).unwrap().display().to_string();
        for namespace in ["default", "k8s.io"] {
            made.run(&format!("-n {namespace} image import --snapshotter native {image}"));
        }
        made
    }

    /// Starts containerd and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.containerd = Some(self.host.spawn("containerd", &["containerd"]).unwrap());
        wait_for("containerd to answer", LIMIT, || self.output("version").status.success().then_some(()))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.host.log("containerd")));
    }

    /// Has containerd show the annotations of pods to the plugin, from the next one on.
    pub(crate) fn show_annotations(&self) {
        let file = "/etc/cni/net.d/10-overlay.conflist";
        let mut list: serde_json::Value = serde_json::from_str(&self.host.run(&["cat", file]).unwrap()).unwrap();
        let before = list.clone();
        list["plugins"][0]["capabilities"]["io.kubernetes.cri.pod-annotations"] = true.into();
        assert_ne!(list, before);
        self.write(file, &list.to_string());
        // It looks at the directory when it is told of a change.
        let shown = |status: &Fields| status.says("pod-annotations");
        wait_for("containerd to read the list", LIMIT, || {
            let status = self.cri("Status", &Message::default().number(1, 1));
            shown(&status).then_some(())
        })
        .unwrap();
    }

    /// Ends containerd, not its containers.
    pub(crate) fn end(&mut self, signal: i32) {
        self.containerd.take().into_iter().for_each(|child| engine::end(child, signal));
    }

    /// Writes a file that only this host sees.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let source = self.host.directory().join("file");
        fs::write(&source, text).unwrap();
        self.host.run(&["cp", source.to_str().unwrap(), path]).unwrap();
    }

    /// One `ctr` command.
    pub(crate) fn output(&self, words: &str) -> Output {
        let words: Vec<&str> = ["ctr"].into_iter().chain(words.split_whitespace()).collect();
        self.host.output(&words).unwrap()
    }

    /// One `ctr` command that must succeed; what it printed.
    pub(crate) fn run(&self, words: &str) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ctr {words}: {said}{errors}{}", self.host.log("containerd"));
        said
    }

    /// The options of `ctr run` for a container with a network, in groups that end with the host.
    pub(crate) fn options(&self, name: &str) -> String {
        format!("--cni --snapshotter native --cgroup /{}/{name}", self.host.group())
    }

    /// One call of CRI that must succeed.
    pub(crate) fn cri(&self, method: &str, request: &Message) -> Fields {
        cri::call(&self.host, method, request)
            .unwrap_or_else(|said| panic!("{method}: {said}\n{}", self.host.log("containerd")))
    }

    /// Starts a pod; its id.
    pub(crate) fn start_pod(&self, config: &Message) -> String {
        self.cri("RunPodSandbox", &Message::default().message(1, config)).text(1)
    }

    /// Starts a container in a pod; its id.
    pub(crate) fn start_container(&self, pod: &str, config: &Message, program: &[&str]) -> String {
        let image = Message::default().text(1, IMAGE);
        let mut container = Message::default().message(1, &Message::default().text(1, "main")).message(2, &image);
        for word in program {
            container = container.text(3, word);
        }
        let request = Message::default().text(1, pod).message(2, &container).message(3, config);
        let id = self.cri("CreateContainer", &request).text(1);
        self.cri("StartContainer", &Message::default().text(1, &id));
        id
    }

    /// What a command in a container printed, and its exit code.
    pub(crate) fn exec(&self, container: &str, program: &[&str]) -> (String, u64) {
        let mut request = Message::default().text(1, container);
        for word in program {
            request = request.text(2, word);
        }
        let done = self.cri("ExecSync", &request.number(3, 30));
        (done.text(1) + &done.text(2), done.number(3))
    }

    /// The addresses of a pod, as containerd tells them.
    pub(crate) fn addresses(&self, pod: &str) -> Vec<String> {
        let network = self.cri("PodSandboxStatus", &Message::default().text(1, pod)).message(1).message(5);
        let more = network.messages(2).into_iter().map(|one| one.text(1));
        [network.text(1)].into_iter().chain(more).collect()
    }

    /// Stops a pod and removes it, as kubelet does.
    pub(crate) fn remove_pod(&self, pod: &str) {
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
            self.cri(method, &Message::default().text(1, pod));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.host.log("containerd"));
        }
        self.end(libc::SIGKILL);
    }
}

/// The root of an image: busybox, a page, and a program that fetches it.
fn fill(tree: &Path) {
    let bin = tree.join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in ["sh", "ip", "nc", "sleep", "httpd", "cat", "ping", "nslookup"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("page"), "the page").unwrap();
    // busybox linked statically cannot look up names, and its wget tries to.
    fs::write(tree.join("fetch"), "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $1 80\n").unwrap();
}
