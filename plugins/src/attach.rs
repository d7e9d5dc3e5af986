//! Configures the container's end of a link inside its network namespace.
//!
//! The daemon made the link pair and the host side. Here the other end is moved into the namespace, named, given its
//! addresses and routes, by `ip` run through `nsenter` (iproute2 and util-linux are on every host that has namespaces).
//! Any failure is reported with the command and what it said; the caller then aborts the lease, which removes the pair.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use overlay_control::api::{ApiError, EndpointLease};
use overlay_control::codes::Code;

/// Where `ip netns` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace, by the file that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(PathBuf);

impl Namespace {
    /// A name below `/run/netns`, or a path when it holds a slash.
    #[must_use]
    pub fn named(text: &str) -> Self {
        if text.contains('/') { Self(text.into()) } else { Self(Path::new(NAMED).join(text)) }
    }

    /// The namespace of a process.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        Self(format!("/proc/{pid}/ns/net").into())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Checks that the file is there, so that nothing is begun for a mistyped name.
    ///
    /// # Errors
    /// When it is not there.
    pub fn check(&self) -> Result<(), ApiError> {
        std::fs::metadata(&self.0).map(drop).map_err(|error| {
            ApiError::new(
                Code::NotFound,
                format!("no network namespace at {}", self.0.display()),
                error.to_string(),
                "`ip netns list` shows named ones; --pid takes the namespace of a process",
            )
        })
    }
}

/// The last part of a namespace's name or path.
#[must_use]
pub fn base_name(text: &str) -> String {
    text.rsplit('/').next().unwrap_or(text).to_owned()
}

/// Moves the link's end into the namespace and configures it, with the given hardware address if there is one. Commands run
/// in order.
///
/// # Errors
/// The first command that fails ends it.
pub fn configure(namespace: &Namespace, lease: &EndpointLease, mac: Option<&str>) -> Result<(), ApiError> {
    commands(namespace, lease, mac).iter().try_for_each(|command| run(command))
}

/// Removes the pair by its host end when the daemon could not be asked to; a missing link is fine.
pub fn remove_link(lease: &EndpointLease) {
    let _ = Command::new("ip")
        .args(["link", "delete", "dev", &lease.host_interface])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The commands for a lease.
fn commands(namespace: &Namespace, lease: &EndpointLease, mac: Option<&str>) -> Vec<Vec<String>> {
    let path = namespace.0.display().to_string();
    let (peer, name) = (lease.peer_interface.as_str(), lease.interface.as_str());
    let mut commands = vec![words(&["ip", "link", "set", "dev", peer, "netns", &path])];
    let mut inside = |arguments: &[&str]| {
        let mut command = vec!["nsenter".to_owned(), format!("--net={path}"), "--".to_owned()];
        command.extend(words(arguments));
        commands.push(command);
    };
    inside(&["ip", "link", "set", "dev", peer, "name", name]);
    if let Some(mac) = mac {
        inside(&["ip", "link", "set", "dev", name, "address", mac]);
    }
    inside(&["ip", "link", "set", "dev", "lo", "up"]);
    if lease.addresses.iter().any(IpAddr::is_ipv6) {
        // No router but ours may configure the container. The file is absent where IPv6 is off altogether.
        let script =
            "cd \"/proc/sys/net/ipv6/conf/$0\" && echo 0 >disable_ipv6 && echo 0 >accept_ra && echo 0 >autoconf";
        inside(&["sh", "-c", script, name]);
    }
    for address in &lease.addresses {
        match address {
            IpAddr::V4(v4) => inside(&["ip", "address", "replace", &format!("{v4}/32"), "dev", name]),
            IpAddr::V6(v6) => inside(&["ip", "-6", "address", "replace", &format!("{v6}/128"), "dev", name, "nodad"]),
        }
    }
    inside(&["ip", "link", "set", "dev", name, "mtu", &lease.mtu.to_string(), "up"]);
    for gateway in &lease.gateways {
        let via = gateway.to_string();
        let (family, length) = if gateway.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local {
            inside(&["ip", family, "route", "replace", &format!("{via}/{length}"), "dev", name, "scope", "link"]);
        }
        inside(&["ip", family, "route", "replace", "default", "via", &via, "dev", name]);
    }
    for prefix in &lease.on_link {
        let family = if prefix.is_ipv4() { "-4" } else { "-6" };
        inside(&["ip", family, "route", "replace", &prefix.to_string(), "dev", name, "scope", "link"]);
    }
    commands
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn run(command: &[String]) -> Result<(), ApiError> {
    let text = command.join(" ");
    let failed = |why: String| {
        ApiError::new(
            Code::Namespace,
            format!("`{text}` failed"),
            why,
            "run as root, and check that the namespace still exists; everything done so far was undone",
        )
    };
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(gateways: &[&str]) -> EndpointLease {
        EndpointLease {
            lease: 1,
            name: "web".into(),
            host_interface: "ov1".into(),
            peer_interface: "op1".into(),
            interface: "eth0".into(),
            addresses: vec!["10.42.1.5".parse().expect("address"), "fd42::5".parse().expect("address")],
            gateways: gateways.iter().map(|text| text.parse().expect("address")).collect(),
            network: None,
            on_link: Vec::new(),
            mtu: 1420,
            expires_ms: 1000,
        }
    }

    fn texts(gateways: &[&str]) -> Vec<String> {
        let all = commands(&Namespace::named("web"), &lease(gateways), Some("02:00:00:00:00:01"));
        all.iter().map(|command| command.join(" ").replace("nsenter --net=/run/netns/web -- ", "> ")).collect()
    }

    #[test]
    fn lease_becomes_commands_in_working_order() {
        let texts = texts(&["10.42.1.1", "fe80::1"]);
        assert_eq!(texts[0], "ip link set dev op1 netns /run/netns/web");
        assert_eq!(
            texts[1..3],
            ["> ip link set dev op1 name eth0", "> ip link set dev eth0 address 02:00:00:00:00:01"]
        );
        let tail = [
            "> ip address replace 10.42.1.5/32 dev eth0",
            "> ip -6 address replace fd42::5/128 dev eth0 nodad",
            "> ip link set dev eth0 mtu 1420 up",
            "> ip -4 route replace 10.42.1.1/32 dev eth0 scope link",
            "> ip -4 route replace default via 10.42.1.1 dev eth0",
            "> ip -6 route replace default via fe80::1 dev eth0",
        ];
        assert_eq!(texts[texts.len() - tail.len()..], tail);
    }

    #[test]
    fn names_paths_and_processes_name_a_file() {
        assert_eq!(Namespace::named("web").path(), Path::new("/run/netns/web"));
        assert_eq!(Namespace::named("/tmp/ns").path(), Path::new("/tmp/ns"));
        assert_eq!(Namespace::of_process(7).path(), Path::new("/proc/7/ns/net"));
        assert_eq!([base_name("web"), base_name("/run/netns/web")], ["web", "web"]);
    }

    #[test]
    fn failing_command_is_quoted_with_what_it_said() {
        let error = run(&words(&["sh", "-c", "echo no such thing >&2; exit 3"])).expect_err("it fails");
        assert_eq!((error.code.as_str(), error.why.as_str()), ("NAMESPACE", "no such thing"));
        assert!(error.what.contains("exit 3"));
    }
}
