//! The parameters of a call: `CNI_CONTAINERID`, `CNI_NETNS`, `CNI_IFNAME`, `CNI_ARGS`.

use super::error::{self, CniError};

/// The longest interface name the kernel takes, in bytes.
const IFNAME_MAX: usize = 15;
/// The longest container id taken, in bytes.
const ID_MAX: usize = 1024;

/// The environment of one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Environment {
    /// Checked for its characters when it is not empty.
    pub(super) container: String,
    /// Path of the namespace; empty when the engine has none any more.
    pub(super) netns: String,
    /// The interface inside the container.
    pub(super) interface: String,
    /// The pairs of `CNI_ARGS`, in the order given.
    pub(super) arguments: Vec<(String, String)>,
}

impl Environment {
    pub(super) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let value = |name: &str| variable(name).unwrap_or_default();
        let container = value("CNI_CONTAINERID");
        if !container.is_empty() {
            check_id("CNI_CONTAINERID", &container)?;
        }
        Ok(Self {
            container,
            netns: value("CNI_NETNS"),
            interface: value("CNI_IFNAME"),
            arguments: arguments(&value("CNI_ARGS"))?,
        })
    }

    /// Container and interface, both needed by ADD, DEL and CHECK.
    pub(super) fn attachment(&self) -> Result<(&str, &str), CniError> {
        if self.container.is_empty() {
            return Err(missing("CNI_CONTAINERID"));
        }
        check_interface(&self.interface)?;
        Ok((&self.container, &self.interface))
    }

    /// The namespace, needed by ADD and CHECK.
    pub(super) fn namespace(&self) -> Result<&str, CniError> {
        if self.netns.is_empty() { Err(missing("CNI_NETNS")) } else { Ok(&self.netns) }
    }

    /// The value of a key of `CNI_ARGS`.
    pub(super) fn argument(&self, key: &str) -> Option<&str> {
        self.arguments.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

fn missing(name: &str) -> CniError {
    CniError::new(error::ENVIRONMENT, format!("{name} is not set"), "the engine sets it for every call of a plugin")
}

/// Refuses what the specification forbids in ids and names, path characters above all.
pub(super) fn check_id(what: &str, id: &str) -> Result<(), CniError> {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let fine = id.len() <= ID_MAX && id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(rest);
    if fine {
        return Ok(());
    }
    let why = format!(
        "it must start with a letter or digit, go on with these, `_`, `.` and `-`, and have at most {ID_MAX} bytes"
    );
    let shown: String = id.chars().take(64).collect();
    Err(CniError::new(error::ENVIRONMENT, format!("{what} {shown:?} is not acceptable"), why))
}

fn check_interface(name: &str) -> Result<(), CniError> {
    let wrong = match name {
        "" => "it is not set",
        "." | ".." | "lo" | "all" | "default" => "it has a meaning of its own",
        _ if name.len() > IFNAME_MAX => "the kernel takes 15 bytes at most",
        _ if name.starts_with('-') => "it starts with `-`",
        _ if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) => {
            "it has other characters than letters, digits, `-`, `_` and `.`"
        }
        _ => return Ok(()),
    };
    let shown: String = name.chars().take(64).collect();
    Err(CniError::new(error::ENVIRONMENT, format!("CNI_IFNAME {shown:?} is not acceptable"), wrong))
}

fn arguments(text: &str) -> Result<Vec<(String, String)>, CniError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(CniError::new(
                error::ENVIRONMENT,
                "CNI_ARGS is not acceptable",
                format!("{:?} is no KEY=VALUE", pair.chars().take(64).collect::<String>()),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, CniError> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Environment::read(&|name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn arguments_come_in_any_order_with_strangers_between() {
        let arguments = "K8S_POD_UID=1-2;IgnoreUnknown=1;MAC=02:00:00:00:00:01;IP=10.42.1.9";
        let environment = read(&[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", arguments)]).unwrap();
        assert_eq!(environment.argument("IP"), Some("10.42.1.9"));
        assert_eq!(environment.argument("K8S_POD_NAME"), None);
        assert_eq!(environment.attachment().unwrap(), ("c1", "eth0"));
        assert_eq!(environment.namespace().unwrap_err().code, error::ENVIRONMENT);
    }

    #[test]
    fn path_characters_and_other_dangers_are_refused() {
        for id in ["../../etc", "a/b", "-rf", "a b", "a\nb", "ü", ".hidden", &"a".repeat(ID_MAX + 1)] {
            assert_eq!(read(&[("CNI_CONTAINERID", id)]).unwrap_err().code, error::ENVIRONMENT, "{id:?}");
        }
        for interface in ["", "..", "lo", "a/b", "-x", "eth0;reboot", "sixteen-bytes-xx"] {
            let environment = read(&[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", interface)]).unwrap();
            assert_eq!(environment.attachment().unwrap_err().code, error::ENVIRONMENT, "{interface:?}");
        }
        assert_eq!(read(&[("CNI_ARGS", "IP")]).unwrap_err().code, error::ENVIRONMENT);
    }
}
