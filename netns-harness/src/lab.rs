//! A lab: hosts, their underlay and their containers, made together and removed together.

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::binaries::Binaries;
use crate::impair::{self, Impairment};
use crate::journal::{self, ProcessId};
use crate::nat::{self, Nat};
use crate::netns::{self, View};
use crate::state::{Directory, LabState, PREFIX};
use crate::wire::WireSpec;
use crate::{clean, command, underlay, wait_for};

/// How the hosts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Topology {
    /// Through a router in a namespace of its own; any number of hosts, faults can be injected.
    Routed,
    /// Two hosts on one cable; nothing in between, for measurements.
    Direct,
}

/// A host to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its name, and that of its port at the switch.
    pub name: String,
    /// The MTU of its underlay link.
    pub mtu: u32,
    /// A userspace wire with seeded faults instead of a plain link.
    pub wire: Option<WireSpec>,
    /// A router with NAT between it and the switch; the host has IPv4 only then.
    #[serde(default)]
    pub nat: Option<Nat>,
}

impl HostSpec {
    /// A host on a plain link with MTU 1500.
    pub fn named(name: &str) -> HostSpec {
        HostSpec { name: name.to_owned(), mtu: 1500, wire: None, nat: None }
    }

    /// Hosts `h1` to `hN` on plain links.
    pub fn numbered(count: usize) -> Vec<HostSpec> {
        (1..=count).map(|number| HostSpec::named(&format!("h{number}"))).collect()
    }

    /// The same host with another MTU.
    pub fn with_mtu(mut self, mtu: u32) -> HostSpec {
        self.mtu = mtu;
        self
    }

    /// The same host behind a router with NAT.
    pub fn behind(mut self, nat: Nat) -> HostSpec {
        self.nat = Some(nat);
        self
    }

    /// The same host behind a userspace wire.
    pub fn with_wire(mut self, wire: WireSpec) -> HostSpec {
        self.wire = Some(wire);
        self
    }
}

/// One host of a lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    index: usize,
    view: View,
    directory: PathBuf,
    nat: Option<Nat>,
    pub(crate) daemon: Mutex<Option<Child>>,
}

impl Host {
    /// Its name within the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place in the lab, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where its processes run.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The NAT in front of it.
    pub fn nat(&self) -> Option<Nat> {
        self.nat
    }

    /// Its own IPv4 address where it is behind a NAT.
    pub fn inside_v4(&self) -> Option<Ipv4Addr> {
        self.nat.map(|_| nat::inside(self.number()))
    }

    /// Its underlay IPv4 address; behind a NAT that of its router.
    pub fn underlay_v4(&self) -> Ipv4Addr {
        underlay::ipv4(self.index)
    }

    /// Its underlay IPv6 address.
    pub fn underlay_v6(&self) -> Ipv6Addr {
        underlay::ipv6(self.index)
    }

    /// The address of the host itself on the overlay.
    pub fn overlay_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number(), 1)
    }

    /// The IPv6 address of the host itself on the overlay.
    pub fn overlay_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd42, 0, 0, u16::from(self.number()), 0, 0, 0, 1)
    }

    /// Its overlay prefixes, IPv4 and IPv6.
    pub fn prefixes(&self) -> [String; 2] {
        let number = self.number();
        [format!("10.42.{number}.0/24"), format!("fd42:0:0:{number:x}::/64")]
    }

    /// A path of the host (below `/run` or `/var/lib`) as this process sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        let inside = inside.replacen("/var/lib/", "lib/", 1).replacen("/run/", "run/", 1);
        self.directory.join(inside)
    }

    fn number(&self) -> u8 {
        u8::try_from(self.index + 1).expect("a lab has at most 200 hosts, checked when it is made")
    }
}

/// A namespace attached to a host.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name within the lab, for example `h1c1`.
    pub name: String,
    /// Where its processes run.
    pub view: View,
    /// Its overlay IPv4 address.
    pub v4: Ipv4Addr,
    /// Its overlay IPv6 address.
    pub v6: Ipv6Addr,
}

/// A running lab. Dropping one that this process made removes everything it made.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: Directory,
    hosts: Vec<Host>,
    state: Mutex<LabState>,
    pub(crate) binaries: Binaries,
    wires: Mutex<Vec<Child>>,
    owned: bool,
}

impl Lab {
    /// Makes the namespaces and links. A name in use is refused.
    pub fn create(name: &str, topology: Topology, hosts: &[HostSpec], binaries: Binaries) -> Result<Lab> {
        if hosts.is_empty() || hosts.len() > 200 {
            bail!("a lab has 1 to 200 hosts");
        }
        let directory = Directory::create(name)?;
        let state = LabState {
            topology,
            hosts: hosts.to_vec(),
            containers: Vec::new(),
            impairments: BTreeMap::new(),
            cut_hosts: Vec::new(),
            cut_pairs: Vec::new(),
        };
        directory.save(&state)?;
        // From here on the value exists, so that a failure below removes what was made.
        let lab = Lab::assemble(name, directory, state, binaries, true);
        lab.build()?;
        Ok(lab)
    }

    /// Opens a lab that another process made; dropping it removes nothing.
    pub fn open(name: &str, binaries: Binaries) -> Result<Lab> {
        let directory = Directory::of(name);
        if !directory.exists() {
            bail!("there is no lab {name}; `cargo lab up` makes one");
        }
        let state = directory.load()?;
        Ok(Lab::assemble(name, directory, state, binaries, false))
    }

    fn assemble(name: &str, directory: Directory, state: LabState, binaries: Binaries, owned: bool) -> Lab {
        let hosts = state.hosts.iter().enumerate().map(|(index, spec)| {
            let private = directory.path().join(&spec.name);
            Host {
                name: spec.name.clone(),
                index,
                view: View::with_private(&format!("{PREFIX}{name}-{}", spec.name), &private),
                directory: private,
                nat: spec.nat,
                daemon: Mutex::new(None),
            }
        });
        let hosts = hosts.collect();
        let wires = Mutex::new(Vec::new());
        Lab { name: name.to_owned(), directory, hosts, state: Mutex::new(state), binaries, wires, owned }
    }

    fn build(&self) -> Result<()> {
        let state = self.state().clone();
        let switch = self.namespace("sw");
        if state.topology == Topology::Routed {
            netns::create(&switch)?;
        }
        for host in &self.hosts {
            for directory in ["run/netns", "run/overlay", "lib/overlay"] {
                std::fs::create_dir_all(host.directory.join(directory))?;
            }
            netns::create(host.view.namespace())?;
        }
        for host in self.hosts.iter().filter(|host| host.nat.is_some()) {
            netns::create(&underlay::router(host.view.namespace()))?;
        }
        for (host, spec) in self.hosts.iter().zip(&state.hosts) {
            if let Some(wire) = &spec.wire {
                self.start_wire(wire, host, &switch)?;
            }
        }
        let hosts: Vec<(HostSpec, String)> = state
            .hosts
            .iter()
            .zip(&self.hosts)
            .map(|(spec, host)| (spec.clone(), host.view.namespace().to_owned()))
            .collect();
        underlay::build(state.topology, &switch, &hosts)
    }

    fn start_wire(&self, wire: &WireSpec, host: &Host, switch: &str) -> Result<()> {
        let left = format!("{}:eth0", host.view.namespace());
        let right = format!("{switch}:{}", host.name);
        let mut command = std::process::Command::new(self.binaries.path("overlay-lab"));
        command.args(["wire", "--left", &left, "--right", &right, "--faults", &serde_json::to_string(wire)?]);
        let child = command.stdin(Stdio::null()).spawn().context("starting the userspace wire")?;
        self.record(&child, "wire")?;
        self.wires.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        let device = |namespace: &str, name: &str| command::ip(&format!("-n {namespace} link show {name}")).is_ok();
        wait_for("the taps of the userspace wire", Duration::from_secs(10), || {
            (device(host.view.namespace(), "eth0") && device(switch, &host.name)).then_some(())
        })?;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hosts in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with this name; a wrong name is a mistake of the caller.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let known = || self.hosts.iter().map(Host::name).collect::<Vec<_>>().join(", ");
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| anyhow!("no host {name}; there are {}", known()))
    }

    /// The namespace of the switch.
    pub fn switch(&self) -> View {
        View::of(&self.namespace("sw"))
    }

    /// Where a host or container of this name runs.
    pub fn view(&self, name: &str) -> Result<View> {
        if name == "sw" {
            return Ok(self.switch());
        }
        if self.state().containers.iter().any(|(_, container)| container == name) {
            return Ok(View::of(&self.namespace(name)));
        }
        Ok(self.host(name)?.view.clone())
    }

    /// A command that will run on a host or in a container.
    pub fn command(&self, name: &str, argv: &[&str]) -> Result<std::process::Command> {
        netns::command(&self.view(name)?, argv)
    }

    /// Runs a program on a host or in a container and waits for it.
    pub fn exec(&self, name: &str, argv: &[&str]) -> Result<Output> {
        self.command(name, argv)?.stdin(Stdio::null()).output().with_context(|| format!("running {argv:?}"))
    }

    /// The path of one of the project's programs, if it is one.
    pub fn binary(&self, program: &str) -> Option<String> {
        ["overlayd", "overlayctl", "overlay-cni", "overlay-docker", "overlay-lab"]
            .contains(&program)
            .then(|| self.binaries.path(program))
    }

    /// Sets the faults on the link of one host; nothing else changes.
    pub fn impair(&self, host: &str, fault: Impairment) -> Result<()> {
        self.host(host)?;
        self.change(|state| {
            state.impairments.insert(host.to_owned(), fault);
        })
    }

    /// Lets a UDP port of the router in front of a host lead to it.
    pub fn forward_port(&self, host: &str, port: u16) -> Result<()> {
        let host = self.host(host)?;
        nat::forward(&underlay::router(host.view.namespace()), host.number(), port)
    }

    /// Cuts one host off from all others.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.host(host)?;
        self.change(|state| state.cut_hosts.push(host.to_owned()))
    }

    /// Cuts two hosts off from each other; both still reach the rest.
    pub fn cut_between(&self, one: &str, other: &str) -> Result<()> {
        self.host(one)?;
        self.host(other)?;
        self.change(|state| state.cut_pairs.push((one.to_owned(), other.to_owned())))
    }

    /// Removes every cut that touches a host.
    pub fn heal(&self, host: &str) -> Result<()> {
        self.host(host)?;
        self.change(|state| {
            state.cut_hosts.retain(|cut| cut != host);
            state.cut_pairs.retain(|(one, other)| one != host && other != host);
        })
    }

    fn change(&self, edit: impl FnOnce(&mut LabState)) -> Result<()> {
        let mut state = self.state();
        if state.topology == Topology::Direct {
            bail!("a direct underlay has no switch to inject faults; use the routed one");
        }
        edit(&mut state);
        command::nft(&self.namespace("sw"), &impair::rules(&state))?;
        self.directory.save(&state)
    }

    /// Makes a namespace and attaches it to a host through its daemon.
    pub fn add_container(&self, host: &str, name: &str) -> Result<Container> {
        let host = self.host(host)?;
        let container = format!("{}{name}", host.name);
        self.state().containers.push((host.name.clone(), container.clone()));
        self.directory.save(&self.state())?;
        netns::create(&self.namespace(&container))?;
        self.attach(host, &self.namespace(&container))?;
        self.container(&container)
    }

    /// Makes a namespace that is attached to nothing yet.
    pub fn add_namespace(&self, name: &str) -> Result<View> {
        netns::create(&self.namespace(name))?;
        Ok(View::of(&self.namespace(name)))
    }

    /// A container as it is now, its addresses read from its namespace.
    pub fn container(&self, name: &str) -> Result<Container> {
        let namespace = self.namespace(name);
        let text = command::ip(&format!("-n {namespace} -o addr show scope global"))?;
        let address = |family: &str| -> Result<String> {
            let words: Vec<&str> = text.split_whitespace().collect();
            let found = words.windows(2).find(|pair| pair[0] == family).map(|pair| pair[1]);
            let found = found.ok_or_else(|| anyhow!("{name} has no {family} address"))?;
            Ok(found.split('/').next().unwrap_or(found).to_owned())
        };
        let (v4, v6) = (address("inet")?.parse()?, address("inet6")?.parse()?);
        Ok(Container { name: name.to_owned(), view: View::of(&namespace), v4, v6 })
    }

    /// Host and name of each container.
    pub fn containers(&self) -> Vec<(String, String)> {
        self.state().containers.clone()
    }

    /// The lab stays when this value is dropped and when the process ends.
    pub fn keep(mut self) -> Result<()> {
        self.directory.disown()?;
        self.owned = false;
        Ok(())
    }

    /// Also removes the lab when the process exits, for a lab that is never dropped because tests share it.
    pub fn remove_at_exit(&self) {
        static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        extern "C" fn remove() {
            for name in NAMES.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                if let Err(error) = clean::lab(&name) {
                    eprintln!("{error:#}");
                }
            }
        }
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if names.is_empty() {
            // SAFETY: the function is `extern "C"`, takes nothing and does not unwind.
            unsafe { libc::atexit(remove) };
        }
        names.push(self.name.clone());
    }

    /// A guard that prints the ends of the daemons' logs if the test holding it fails.
    pub fn logs_on_failure(&self) -> LogsOnFailure<'_> {
        LogsOnFailure(self)
    }

    pub(crate) fn record(&self, child: &Child, what: &str) -> Result<()> {
        match ProcessId::of(child.id().cast_signed()) {
            Some(process) => journal::record(&self.directory.journal(), &process, what),
            None => Ok(()), // it has ended already
        }
    }

    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{PREFIX}{}-{name}", self.name)
    }

    fn state(&self) -> MutexGuard<'_, LabState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        let daemons =
            self.hosts.iter().filter_map(|host| host.daemon.lock().unwrap_or_else(PoisonError::into_inner).take());
        let wires = std::mem::take(&mut *self.wires.lock().unwrap_or_else(PoisonError::into_inner));
        for mut child in daemons.chain(wires) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = clean::lab(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Prints the ends of the daemons' logs when dropped during a panic.
#[derive(Debug)]
pub struct LogsOnFailure<'a>(&'a Lab);

impl Drop for LogsOnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_logs();
        }
    }
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
