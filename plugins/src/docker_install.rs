//! Switching the Docker plugin on and off: the socket that systemd holds for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use overlay_control::{ApiError, Code};

use crate::docker::firewall;

/// The program's file name.
pub const PROGRAM: &str = "overlay-docker";
/// The unit that is switched on.
pub const SOCKET_UNIT: &str = "overlay-docker.socket";
/// The unit that the socket starts.
pub const SERVICE_UNIT: &str = "overlay-docker.service";
/// Where units may lie.
const UNIT_DIRS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// What to switch on or off.
#[derive(Debug, Clone)]
pub struct DockerInstall {
    /// The installed program.
    pub program: PathBuf,
}

impl DockerInstall {
    /// Has systemd hold the plugin's socket, now and at every start, before dockerd; again is fine. What changed, a line each.
    ///
    /// # Errors
    /// When the program or its units are missing, or systemd refuses.
    pub fn install(&self) -> Result<Vec<String>, ApiError> {
        if !self.program.is_file() {
            let why = format!("{} does not exist", self.program.display());
            return Err(missing(&format!("the program {PROGRAM}"), &why));
        }
        if let Some(unit) = [SOCKET_UNIT, SERVICE_UNIT].into_iter().find(|unit| !has_unit(unit)) {
            return Err(missing(&format!("the unit {unit}"), "it is in none of systemd's directories"));
        }
        if asks("is-enabled") && asks("is-active") {
            return Ok(Vec::new());
        }
        systemctl(&["enable", "--now", SOCKET_UNIT])?;
        Ok(vec![
            format!("{SOCKET_UNIT} is on: Docker has the driver `overlayd`"),
            "next: docker network create -d overlayd --ipam-driver overlayd NAME".to_owned(),
        ])
    }

    /// Switches it off again; networks that use it stay, and do not work until it is on. What changed, a line each.
    ///
    /// # Errors
    /// When systemd refuses.
    pub fn remove(&self) -> Result<Vec<String>, ApiError> {
        let mut changes = Vec::new();
        if has_unit(SOCKET_UNIT) && (asks("is-enabled") || asks("is-active")) {
            systemctl(&["disable", "--now", SOCKET_UNIT])?;
            systemctl(&["stop", SERVICE_UNIT])?;
            changes.push(format!("{SOCKET_UNIT} is off"));
        }
        if firewall::withdraw() > 0 {
            changes.push("the rules in DOCKER-USER are removed".to_owned());
        }
        Ok(changes)
    }
}

fn has_unit(name: &str) -> bool {
    UNIT_DIRS.iter().any(|directory| Path::new(directory).join(name).is_file())
}

fn asks(verb: &str) -> bool {
    let mut command = Command::new("systemctl");
    command.args([verb, "--quiet", SOCKET_UNIT]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn systemctl(words: &[&str]) -> Result<(), ApiError> {
    let text = format!("systemctl {}", words.join(" "));
    let failed = |why: String| {
        let next = format!("run as root on a host with systemd, or start `{PROGRAM}` before dockerd yourself");
        ApiError::new(Code::Io, format!("`{text}` failed"), why, next)
    };
    let output = Command::new("systemctl").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")))
}

fn missing(what: &str, why: &str) -> ApiError {
    ApiError::new(Code::NotFound, format!("{what} is missing"), why, "install the package again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_is_named_before_anything_is_done() {
        let plan = DockerInstall { program: "/nonexistent/overlay-docker".into() };
        let error = plan.install().unwrap_err();
        assert_eq!(error.code.as_str(), "NOT_FOUND");
        assert!(error.why.contains("/nonexistent/overlay-docker"), "{}", error.why);
    }
}
