//! Containers of a real engine on two hosts of the demonstration, where podman or Docker is installed.
//!
//! The image holds nothing but links: the containers see the programs of this machine, read only. Nothing is fetched, and
//! images, containers and configuration are in directories that go with the lab.

use anyhow::{Context as _, Result};
use overlay_netns_harness::engine::{EngineHost, end};
use overlay_netns_harness::packages::exists;
use overlay_netns_harness::{Lab, wait_for};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::table::Table;

/// How long an engine may take to start, and a name to come to the other host.
const LIMIT: Duration = Duration::from_secs(30);
/// What programs need.
const PLACES: [&str; 5] = ["bin", "sbin", "lib", "lib64", "usr"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Podman,
    Docker,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Podman => "podman",
            Kind::Docker => "docker",
        }
    }

    fn present(self) -> bool {
        match self {
            Kind::Podman => exists("podman"),
            Kind::Docker => exists("docker") && exists("dockerd"),
        }
    }
}

/// An engine on one host.
struct Engine {
    kind: Kind,
    host: EngineHost,
    /// Programs that run beside it.
    running: Vec<Child>,
    /// Options that show the machine's programs to a container.
    volumes: Vec<String>,
}

/// Starts a container on the first host and reaches it from one on the second, by name. An engine that cannot run
/// containers on this machine is named and left out.
pub(super) fn show(lab: &Lab, table: &mut Table) -> Result<bool> {
    let present: Vec<Kind> = [Kind::Podman, Kind::Docker].into_iter().filter(|kind| kind.present()).collect();
    if present.is_empty() {
        println!("   neither podman nor Docker is installed: containers here are namespaces");
    }
    for kind in present {
        if let Some(held) = with(kind, lab, table)? {
            return Ok(held);
        }
    }
    Ok(true)
}

/// The same with one engine; nothing where it cannot run containers.
fn with(kind: Kind, lab: &Lab, table: &mut Table) -> Result<Option<bool>> {
    let start = Instant::now();
    match Engine::start(lab, "h1", kind).and_then(|one| Ok((one, Engine::start(lab, "h2", kind)?))) {
        Ok((one, two)) => by_name(lab, &one, &two, start, table).map(Some),
        Err(error) => {
            println!("   {} is installed, but runs no containers here: {error:#}", kind.program());
            Ok(None)
        }
    }
}

fn by_name(lab: &Lab, one: &Engine, two: &Engine, start: Instant, table: &mut Table) -> Result<bool> {
    let program = one.kind.program();
    let domain = lab.ctl_json("h2", &["dns", "status"])?["domain"].as_str().unwrap_or_default().to_owned();
    let name = format!("web.ctr.{domain}");
    one.join(lab)?;
    two.join(lab)?;
    one.run(&["-d", "--name", "web"], "sleep 600").with_context(|| format!("starting a container with {program}"))?;
    println!("   {program} is here: two of its containers, on h1 and h2, after {:.1} s", start.elapsed().as_secs_f64());
    let ping = format!("ping -c 3 -i 0.2 -W 2 {name}");
    let mut said = String::new();
    let answered = wait_for("the name to come to the other host", LIMIT, || match two.run(&["--rm"], &ping) {
        Ok(text) => {
            said = text;
            Some(())
        }
        Err(error) => {
            said = format!("{error:#}");
            None
        }
    });
    let held = answered.is_ok();
    said.lines()
        .filter(|line| line.contains("bytes from") || line.contains("received"))
        .for_each(|line| println!("     {line}"));
    if !held {
        println!("   {said}\n{}{}", one.host.log("dockerd"), two.host.log("dockerd"));
    }
    table.row([
        format!("{program} on h2"),
        name,
        "wireguard".to_owned(),
        if held { "3/3" } else { "-" }.to_owned(),
        "-".to_owned(),
        if held { "ok, by name" } else { "FAILED" }.to_owned(),
    ]);
    Ok(held)
}

impl Engine {
    /// Starts it and shows that it runs containers at all, without a network.
    fn start(lab: &Lab, host: &str, kind: Kind) -> Result<Engine> {
        let host = EngineHost::new(lab, host)?;
        let mut engine = Engine { kind, host, running: Vec::new(), volumes: Vec::new() };
        match kind {
            Kind::Podman => engine.configure_podman()?,
            Kind::Docker => engine.start_dockerd(lab)?,
        }
        engine.import()?;
        engine.run_in("none", &["--rm"], "true")?;
        Ok(engine)
    }

    fn configure_podman(&self) -> Result<()> {
        let conf = "[network]\nnetwork_backend = \"cni\"\n[engine]\ncgroup_manager = \"cgroupfs\"\n";
        let file = self.host.directory().join("containers.conf");
        fs::write(&file, conf)?;
        let place =
            "mkdir -p /etc/containers /etc/cni && rm -rf /etc/cni/net.d && cp \"$0\" /etc/containers/containers.conf";
        self.host.run(&["sh", "-c", place, &file.display().to_string()]).map(drop)
    }

    fn start_dockerd(&mut self, lab: &Lab) -> Result<()> {
        // Nothing of this machine's own Docker is read.
        self.host.run(&["sh", "-c", "rm -rf /etc/docker /run/docker; mkdir -p /etc/docker"])?;
        let server = lab.host(self.host.name())?.overlay_v4().to_string();
        let words = ["dockerd", "--storage-driver", "vfs", "--pidfile", "/run/docker.pid", "--dns", &server];
        let words = [&words[..], &["--cgroup-parent", self.host.group()]].concat();
        let plugin = lab.binary("overlay-docker").context("a program of ours")?;
        self.running.push(self.host.spawn("plugin", &[&plugin])?);
        self.running.push(self.host.spawn("dockerd", &words)?);
        let answers = || self.host.run(&["docker", "version"]).ok();
        wait_for("dockerd to answer", LIMIT, answers).with_context(|| self.host.log("dockerd")).map(drop)
    }

    /// An image of links, and the directories that a container must be shown for them to lead somewhere.
    fn import(&mut self) -> Result<()> {
        let tree = self.host.directory().join("image");
        fs::create_dir_all(&tree)?;
        for place in PLACES {
            let path = Path::new("/").join(place);
            match fs::read_link(&path) {
                Ok(target) => symlink(target, tree.join(place))?,
                Err(_) if path.is_dir() => {
                    fs::create_dir(tree.join(place))?;
                    self.volumes.extend(["-v".to_owned(), format!("/{place}:/{place}:ro")]);
                }
                Err(_) => (),
            }
        }
        let image = self.host.directory().join("image.tar").display().to_string();
        self.host.run(&["tar", "-C", &tree.display().to_string(), "-cf", &image, "."])?;
        self.host.run(&[&self.prefix()[..], &["import", &image, "box"]].concat()).map(drop)
    }

    /// The engine's program with what keeps its things inside the lab.
    fn prefix(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Podman => "podman --storage-driver vfs --events-backend file".split(' ').collect(),
            Kind::Docker => vec!["docker"],
        }
    }

    /// One command that a person would type: the network of the cluster.
    fn join(&self, lab: &Lab) -> Result<()> {
        match self.kind {
            Kind::Podman => {
                let overlayctl = lab.binary("overlayctl").context("a program of ours")?;
                self.host.run(&[&overlayctl, "plugin", "cni", "install"]).map(drop)
            }
            Kind::Docker => {
                let create = "docker network create -d overlayd --ipam-driver overlayd overlay";
                self.host.run(&create.split(' ').collect::<Vec<_>>()).map(drop)
            }
        }
    }

    fn run(&self, options: &[&str], program: &str) -> Result<String> {
        self.run_in("overlay", options, program)
    }

    fn run_in(&self, network: &str, options: &[&str], program: &str) -> Result<String> {
        let limits: &[&str] = match self.kind {
            Kind::Podman => &["--cgroups=disabled", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"],
            Kind::Docker => &[],
        };
        let volumes: Vec<&str> = self.volumes.iter().map(String::as_str).collect();
        let mut words = [&self.prefix()[..], &["run", "--network", network, "--cap-add", "NET_RAW"], limits].concat();
        words.extend(options.iter().chain(&volumes));
        words.push("box");
        words.extend(program.split(' '));
        self.host.run(&words)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.host.output(&[&self.prefix()[..], &["rm", "-f", "web"]].concat());
        self.running.drain(..).rev().for_each(|child| end(child, libc::SIGKILL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_netns_harness::{Binaries, Cluster, HostSpec, Topology, packages};

    #[test]
    fn container_of_each_engine_is_reached_by_name() -> Result<()> {
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: network namespaces need root");
            return Ok(());
        }
        let words = ["podman", "crun", "docker.io", "iptables"];
        let missing: Vec<&str> = words.into_iter().filter(|word| !packages::installed(word)).collect();
        if !missing.is_empty() {
            packages::install(&missing)?;
        }
        let name = format!("tdemo{}", std::process::id());
        let lab = Lab::create(&name, Topology::Routed, &HostSpec::numbered(2), Binaries::for_tests()?)?;
        Cluster::new(2, "wireguard").write(&lab)?;
        lab.start_daemons()?;
        lab.wait_ready(LIMIT)?;
        for kind in [Kind::Podman, Kind::Docker] {
            assert!(kind.present());
            let mut table = Table::new(&["from", "to", "over", "ping", "TCP", "result"]);
            assert_eq!(with(kind, &lab, &mut table)?, Some(true), "{}", kind.program());
            assert!(table.to_string().contains("ok, by name"), "{table}");
        }
        Ok(())
    }
}
