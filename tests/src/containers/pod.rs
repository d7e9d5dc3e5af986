//! A namespace and the calls that an engine makes of the CNI plugin about it.

use anyhow::{Context as _, Result, bail, ensure};
use overlay_netns_harness::Lab;
use overlay_netns_harness::netns::View;
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// One container to be.
#[derive(Debug)]
pub(super) struct Pod {
    host: String,
    pub(super) name: String,
    pub(super) view: View,
    program: String,
    port: Option<u16>,
}

/// What a call gave.
#[derive(Debug)]
pub(super) struct Reply {
    /// The result, or the error in the client's format; nothing is null.
    pub(super) value: Value,
    pub(super) success: bool,
    /// What it said beside that.
    errors: String,
    /// From before the start of the program to its end.
    pub(super) took: Duration,
}

impl Reply {
    /// The code of an error.
    pub(super) fn code(&self) -> Option<u64> {
        if self.success { None } else { self.value["code"].as_u64() }
    }

    /// The addresses that were given.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>> {
        ensure!(self.success, "{} {}", self.value, self.errors);
        let ips = self.value["ips"].as_array().context("a result without addresses")?;
        let address = |ip: &Value| -> Result<IpAddr> {
            let text = ip["address"].as_str().context("no address")?;
            Ok(text.split('/').next().unwrap_or(text).parse()?)
        };
        ips.iter().map(address).collect()
    }
}

impl Pod {
    pub(super) fn new(lab: &Lab, host: &str, name: &str) -> Result<Pod> {
        let program = lab.binary("overlay-cni").context("the plugin is one of the programs")?;
        Ok(Pod { host: host.to_owned(), name: name.to_owned(), view: lab.add_namespace(name)?, program, port: None })
    }

    /// The same with this port of the host leading to it.
    pub(super) fn with_port(self, port: u16) -> Pod {
        Pod { port: Some(port), ..self }
    }

    /// Starts a call; all of its input is written.
    pub(super) fn start(&self, lab: &Lab, verb: &str) -> Result<Child> {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "overlay", "type": "overlay-cni" });
        if let Some(port) = self.port {
            let mapping = json!([{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }]);
            config["runtimeConfig"] = json!({ "portMappings": mapping });
        }
        self.start_with(lab, verb, &config.to_string())
    }

    fn start_with(&self, lab: &Lab, verb: &str, config: &str) -> Result<Child> {
        let mut command = lab.command(&self.host, &[&self.program])?;
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &self.name).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/run/netns/{}", self.view.namespace())).env("CNI_PATH", "/usr/lib/cni");
        command.env("CNI_ARGS", "IgnoreUnknown=1").env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("the plugin did not start")?;
        let mut input = child.stdin.take().context("the plugin has an input")?;
        // One that was killed already, or has refused, reads nothing more.
        let _ = input.write_all(config.as_bytes());
        Ok(child)
    }

    /// One call with this text as its configuration.
    pub(super) fn call_with(&self, lab: &Lab, verb: &str, config: &str) -> Result<Reply> {
        let began = Instant::now();
        finish(self.start_with(lab, verb, config)?, began)
    }

    /// One call.
    pub(super) fn call(&self, lab: &Lab, verb: &str) -> Result<Reply> {
        let began = Instant::now();
        finish(self.start(lab, verb)?, began)
    }

    /// One call that must succeed.
    pub(super) fn ok(&self, lab: &Lab, verb: &str) -> Result<Reply> {
        let reply = self.call(lab, verb)?;
        if !reply.success {
            bail!("{verb} of {}: {} {}", self.name, reply.value, reply.errors);
        }
        Ok(reply)
    }
}

/// Waits for the end of a call.
pub(super) fn finish(child: Child, began: Instant) -> Result<Reply> {
    let output = child.wait_with_output()?;
    let took = began.elapsed();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    // What a killed plugin has printed may be a part.
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(Reply { value, success: output.status.success(), errors, took })
}
