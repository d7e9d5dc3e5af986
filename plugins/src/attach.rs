//! Configures the container's end of a link inside its network namespace.
//!
//! The daemon made the link pair and the host side. Here the other end is moved into the namespace and named by one `ip`,
//! and given its addresses and routes by another that reads its commands through `nsenter` (iproute2 and util-linux are on
//! every host that has namespaces): starting programs is what an attachment's time would go to. Any failure is reported
//! with the command and what it said; the caller then aborts the lease, which removes the pair.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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
    let path = namespace.0.display().to_string();
    let (peer, name) = (lease.peer_interface.as_str(), lease.interface.as_str());
    run(&["ip", "link", "set", "dev", peer, "netns", &path, "name", name])?;
    let enter = ["nsenter", &format!("--net={path}"), "--"];
    // No router but ours may configure the container. The file is absent where IPv6 is off altogether.
    let script = "cd \"/proc/sys/net/ipv6/conf/$0\" && echo 0 >disable_ipv6 && echo 0 >accept_ra && echo 0 >autoconf && exec ip -batch -";
    let program: &[&str] =
        if lease.addresses.iter().any(IpAddr::is_ipv6) { &["sh", "-c", script, name] } else { &["ip", "-batch", "-"] };
    batch(&enter, program, &commands(lease, mac))
}

/// Removes the pair by its host end when the daemon could not be asked to; a missing link is fine.
pub fn remove_link(lease: &EndpointLease) {
    let _ = Command::new("ip")
        .args(["link", "delete", "dev", &lease.host_interface])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// What `ip` is told inside the namespace.
fn commands(lease: &EndpointLease, mac: Option<&str>) -> Vec<String> {
    let name = lease.interface.as_str();
    let mut commands = Vec::new();
    commands.extend(mac.map(|mac| format!("link set dev {name} address {mac}")));
    commands.push("link set dev lo up".to_owned());
    for address in &lease.addresses {
        commands.push(match address {
            IpAddr::V4(v4) => format!("address replace {v4}/32 dev {name}"),
            IpAddr::V6(v6) => format!("address replace {v6}/128 dev {name} nodad"),
        });
    }
    commands.push(format!("link set dev {name} mtu {} up", lease.mtu));
    for gateway in &lease.gateways {
        let (everything, length) = if gateway.is_ipv4() { ("0.0.0.0/0", 32) } else { ("::/0", 128) };
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local {
            commands.push(format!("route replace {gateway}/{length} dev {name} scope link"));
        }
        commands.push(format!("route replace {everything} via {gateway} dev {name}"));
    }
    commands.extend(lease.on_link.iter().map(|prefix| format!("route replace {prefix} dev {name} scope link")));
    commands
}

fn failure(command: &str, why: String) -> ApiError {
    ApiError::new(
        Code::Namespace,
        format!("`{command}` failed"),
        why,
        "run as root, and check that the namespace still exists; everything done so far was undone",
    )
}

/// What a program said, in one line.
fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if said.is_empty() { output.status.to_string() } else { said }
}

fn run(command: &[&str]) -> Result<(), ApiError> {
    let text = command.join(" ");
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failure(&text, format!("{program}: {error}")))?;
    if output.status.success() { Ok(()) } else { Err(failure(&text, said(&output))) }
}

/// Runs a program that ends as `ip -batch -` and hands it its lines.
fn batch(enter: &[&str], program: &[&str], lines: &[String]) -> Result<(), ApiError> {
    let whole = [enter, program].concat();
    let not_run = |error: std::io::Error| failure(&whole.join(" "), format!("{}: {error}", whole[0]));
    let mut child = Command::new(whole[0])
        .args(&whole[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_run)?;
    // One that ended early says why by itself.
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().map_err(not_run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = said(&output);
    // `ip` names the line that failed.
    let Some((why, line)) = said.split_once("Command failed -:") else { return Err(failure(&whole.join(" "), said)) };
    let digits: String = line.chars().take_while(char::is_ascii_digit).collect();
    let line = digits.parse::<usize>().ok().and_then(|number| lines.get(number.checked_sub(1)?));
    let command = format!("{} ip {}", enter.join(" "), line.map_or("-batch -", String::as_str));
    Err(failure(&command, why.trim_end_matches([' ', ';']).to_owned()))
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

    #[test]
    fn lease_becomes_commands_in_working_order() {
        let commands = commands(&lease(&["10.42.1.1", "fe80::1"]), Some("02:00:00:00:00:01"));
        let wanted = [
            "link set dev eth0 address 02:00:00:00:00:01",
            "link set dev lo up",
            "address replace 10.42.1.5/32 dev eth0",
            "address replace fd42::5/128 dev eth0 nodad",
            "link set dev eth0 mtu 1420 up",
            "route replace 10.42.1.1/32 dev eth0 scope link",
            "route replace 0.0.0.0/0 via 10.42.1.1 dev eth0",
            "route replace ::/0 via fe80::1 dev eth0",
        ];
        assert_eq!(commands, wanted);
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
        let error = run(&["sh", "-c", "echo no such thing >&2; exit 3"]).expect_err("it fails");
        assert_eq!((error.code.as_str(), error.why.as_str()), ("NAMESPACE", "no such thing"));
        assert!(error.what.contains("exit 3"));
    }

    #[test]
    fn failing_line_of_a_batch_is_quoted() {
        let lines = ["link set dev lo up".to_owned(), "route replace 10.0.0.0/8 dev none".to_owned()];
        let script =
            "cat >/dev/null; echo 'RTNETLINK answers: Operation not permitted\nCommand failed -:2' >&2; exit 1";
        let error = batch(&[], &["sh", "-c", script], &lines).expect_err("it fails");
        assert!(error.what.contains(&lines[1]), "{}", error.what);
        assert_eq!(error.why, "RTNETLINK answers: Operation not permitted");
        let error = batch(&["env"], &["sh", "-c", "echo no such file >&2; exit 1"], &lines).expect_err("it fails");
        assert!(error.what.contains("`env sh -c") && error.why == "no such file", "{error:?}");
    }
}
