//! What an interface looks like, asked of `ip -json`.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::attach::Namespace;

use super::error::{self, CniError};

/// An interface as `ip -json address show` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Interface {
    #[serde(rename = "ifname")]
    pub(super) name: String,
    /// The hardware address.
    #[serde(rename = "address", default)]
    pub(super) mac: String,
    pub(super) mtu: u32,
    #[serde(rename = "addr_info", default)]
    addresses: Vec<Address>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Address {
    #[serde(default)]
    local: Option<IpAddr>,
    #[serde(rename = "prefixlen", default)]
    length: u8,
}

impl Interface {
    /// The interface of a name; `None` when there is none. The own namespace unless another is given.
    pub(super) fn of(namespace: Option<&Namespace>, name: &str) -> Result<Option<Self>, CniError> {
        let output = run(namespace, &["ip", "-json", "address", "show", "dev", name])?;
        if !output.status.success() {
            return Ok(None);
        }
        let shown: Vec<Self> = serde_json::from_slice(&output.stdout)
            .map_err(|error| CniError::new(error::IO, "`ip -json` printed something unreadable", error.to_string()))?;
        Ok(shown.into_iter().find(|interface| interface.name == name))
    }

    /// Whether it has an address with this prefix length.
    pub(super) fn has(&self, address: IpAddr, length: u8) -> bool {
        self.addresses.iter().any(|one| one.local == Some(address) && one.length == length)
    }
}

/// Whether a default route leaves by an interface.
pub(super) fn has_default_route(namespace: &Namespace, interface: &str, v6: bool) -> Result<bool, CniError> {
    let family = if v6 { "-6" } else { "-4" };
    let output = run(Some(namespace), &["ip", family, "route", "show", "default", "dev", interface])?;
    Ok(output.status.success() && !output.stdout.trim_ascii().is_empty())
}

/// A link as `ip -json link show` prints it.
#[derive(Debug, Deserialize)]
struct Aliased {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    ifalias: String,
}

/// Removes the link of an endpoint by the host's end, which carries the endpoint's name; none is fine. What others made inside
/// the container is not touched.
pub(super) fn remove_link(alias: &str) -> Result<(), CniError> {
    let output = run(None, &["ip", "-json", "link", "show"])?;
    let links: Vec<Aliased> = serde_json::from_slice(&output.stdout)
        .map_err(|error| CniError::new(error::IO, "`ip -json` printed something unreadable", error.to_string()))?;
    for link in links.into_iter().filter(|link| link.ifalias == alias) {
        let output = run(None, &["ip", "link", "delete", "dev", &link.ifname])?;
        if !output.status.success() && Interface::of(None, &link.ifname)?.is_some() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(CniError::new(error::NAMESPACE, format!("{} cannot be removed", link.ifname), said));
        }
    }
    Ok(())
}

fn run(namespace: Option<&Namespace>, words: &[&str]) -> Result<std::process::Output, CniError> {
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", namespace.path().display())).arg("--").args(words);
            command
        }
        None => {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        }
    };
    command.stdin(Stdio::null()).output().map_err(|error| {
        CniError::new(
            error::IO,
            format!("`{}` cannot be run", words.join(" ")),
            format!("{error}; install iproute2 and util-linux"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_is_read_from_what_ip_prints() {
        let text = r#"[{"ifname":"eth0","flags":["UP"],"mtu":1420,"address":"02:00:00:00:00:01","addr_info":[
            {"family":"inet","local":"10.42.1.4","prefixlen":32},{"family":"inet6","local":"fd42::4","prefixlen":128}]}]"#;
        let interface: Vec<Interface> = serde_json::from_str(text).unwrap();
        assert!(
            interface[0].has("10.42.1.4".parse().unwrap(), 32) && interface[0].has("fd42::4".parse().unwrap(), 128)
        );
        assert!(
            !interface[0].has("10.42.1.4".parse().unwrap(), 24) && !interface[0].has("10.42.1.5".parse().unwrap(), 32)
        );
    }

    #[test]
    fn interface_that_is_not_there_is_none() {
        assert_eq!(Interface::of(None, "no-such-link").unwrap(), None);
        assert_eq!(Interface::of(None, "lo").unwrap().unwrap().name, "lo");
    }
}
