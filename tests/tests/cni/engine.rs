//! The part of an engine that calls a CNI plugin.

use overlay_netns_harness::Lab;
use overlay_netns_harness::netns::View;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::Stdio;

/// Calls about one container.
pub(crate) struct Cni<'a> {
    lab: &'a Lab,
    host: &'a str,
    version: String,
    container: String,
    netns: String,
    /// The value of `CNI_ARGS`.
    pub(crate) arguments: String,
}

/// What a call gave.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Standard output.
    pub(crate) text: String,
    errors: String,
    success: bool,
}

impl<'a> Cni<'a> {
    pub(crate) fn new(lab: &'a Lab, host: &'a str, version: &str, container: &str, view: &View) -> Cni<'a> {
        Cni {
            lab,
            host,
            version: version.to_owned(),
            container: container.to_owned(),
            netns: format!("/run/netns/{}", view.namespace()),
            arguments: "IgnoreUnknown=1;K8S_POD_NAME=pod".to_owned(),
        }
    }

    pub(crate) fn without_namespace(&self) -> Cni<'a> {
        Cni {
            netns: String::new(),
            version: self.version.clone(),
            container: self.container.clone(),
            arguments: self.arguments.clone(),
            lab: self.lab,
            host: self.host,
        }
    }

    pub(crate) fn netns(&self) -> &str {
        &self.netns
    }

    /// One call, with these keys added to the network configuration.
    pub(crate) fn call(&self, verb: &str, extra: &[(&str, Value)]) -> Reply {
        let mut config = json!({
            "cniVersion": self.version, "name": "overlay", "type": "overlay-cni",
            "dns": { "nameservers": ["10.42.1.1"] },
        });
        for (key, value) in extra {
            config[*key] = value.clone();
        }
        let mut command = self.lab.command(self.host, &[&self.lab.binary("overlay-cni").unwrap()]).unwrap();
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &self.container).env("CNI_NETNS", &self.netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_ARGS", &self.arguments).env("CNI_PATH", "/usr/lib/cni");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Reply {
            text: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            success: output.status.success(),
        }
    }
}

impl Reply {
    /// The result; nothing is `null`.
    pub(crate) fn ok(&self) -> Value {
        assert!(self.success, "{}{}", self.text, self.errors);
        if self.text.is_empty() { Value::Null } else { serde_json::from_str(&self.text).unwrap() }
    }

    /// The code of the error.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.success, "{}{}", self.text, self.errors);
        let error: Value = serde_json::from_str(&self.text).unwrap();
        error["code"].as_u64().unwrap()
    }

    /// The text of an error with this code.
    pub(crate) fn refused(&self, code: u64) -> &str {
        assert_eq!(self.code(), code, "{self:?}");
        &self.text
    }
}
