//! Putting the CNI plugin where engines look for it, and taking it away again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use overlay_control::{ApiError, Code};
use serde_json::{Value, json};

/// The plugin's file name, and the `type` in a network configuration.
pub const PLUGIN: &str = "overlay-cni";
/// Where every engine looks for plugins.
pub const BIN_DIR: &str = "/opt/cni/bin";
/// Where every engine looks for networks.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where containerd is told to look for plugins elsewhere, as by Debian's package.
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";

/// Where engines of this host look for plugins: [`BIN_DIR`], and what containerd's configuration names.
#[must_use]
pub fn bin_dirs(containerd: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(BIN_DIR)];
    let config = fs::read_to_string(containerd).unwrap_or_default().parse::<toml::Table>().unwrap_or_default();
    let plugins = config.get("plugins").and_then(toml::Value::as_table);
    for cni in plugins.into_iter().flat_map(toml::Table::values).filter_map(|plugin| plugin.get("cni")) {
        let several = cni.get("bin_dirs").and_then(toml::Value::as_array).into_iter().flatten();
        for directory in cni.get("bin_dir").into_iter().chain(several).filter_map(toml::Value::as_str) {
            let directory = PathBuf::from(directory);
            if directory.is_absolute() && !found.contains(&directory) {
                found.push(directory);
            }
        }
    }
    found
}

/// What to install.
#[derive(Debug, Clone)]
pub struct CniInstall {
    /// The program to link to.
    pub program: PathBuf,
    /// The network's name, part of the file name too.
    pub network: String,
    /// Where plugins lie; the program is linked in each.
    pub bin_dirs: Vec<PathBuf>,
    /// Where network configurations lie.
    pub conf_dir: PathBuf,
    /// The daemon's control socket, where it is not the usual one.
    pub socket: Option<PathBuf>,
}

impl CniInstall {
    fn links(&self) -> impl Iterator<Item = PathBuf> {
        self.bin_dirs.iter().map(|directory| directory.join(PLUGIN))
    }

    fn file(&self) -> PathBuf {
        // The first file in order is the default network of CRI.
        self.conf_dir.join(format!("10-{}.conflist", self.network))
    }

    /// The network configuration that is written.
    #[must_use]
    pub fn conflist(&self) -> String {
        let capabilities =
            json!({ "ips": true, "mac": true, "portMappings": true, "bandwidth": true, "aliases": true });
        let mut ours = json!({ "type": PLUGIN, "capabilities": capabilities });
        if let Some(socket) = &self.socket {
            ours["socket"] = json!(socket);
        }
        // The newest that podman 4 reads.
        let list = json!({ "cniVersion": "1.0.0", "name": self.network, "plugins": [ours] });
        serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
    }

    /// Links the program and writes the configuration; again is fine. What changed, a line each.
    ///
    /// # Errors
    /// When something else lies at one of the two paths, or a file cannot be written.
    pub fn install(&self) -> Result<Vec<String>, ApiError> {
        check_network(&self.network)?;
        if !self.program.is_file() {
            let why = format!("{} does not exist", self.program.display());
            return Err(ApiError::new(
                Code::NotFound,
                format!("the program {PLUGIN} is missing"),
                why,
                "install the package again",
            ));
        }
        let file = self.file();
        // All are looked at before one is touched.
        let mut missing = Vec::new();
        for link in self.links() {
            match fs::read_link(&link) {
                Ok(program) if program == self.program => (),
                Ok(_) => missing.push(link),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(link),
                Err(_) => return Err(foreign(&link)),
            }
        }
        let present = read_if_there(&file)?;
        if present.as_deref().is_some_and(|text| !is_ours(text)) {
            return Err(foreign(&file));
        }
        let mut changes = Vec::new();
        for link in missing {
            let directory = link.parent().unwrap_or(&link);
            fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
            let _ = fs::remove_file(&link);
            symlink(&self.program, &link).map_err(|error| failed(&link, &error))?;
            changes.push(format!("{} -> {}", link.display(), self.program.display()));
        }
        let wanted = self.conflist();
        if present.as_deref() != Some(&wanted) {
            fs::create_dir_all(&self.conf_dir).map_err(|error| failed(&self.conf_dir, &error))?;
            replace(&file, &wanted).map_err(|error| failed(&file, &error))?;
            changes.push(format!("{} written", file.display()));
        }
        Ok(changes)
    }

    /// Removes what [`Self::install`] made and nothing else; again is fine. What changed, a line each.
    ///
    /// # Errors
    /// When something else lies at one of the two paths, or a file cannot be removed.
    pub fn remove(&self) -> Result<Vec<String>, ApiError> {
        check_network(&self.network)?;
        let file = self.file();
        let present = read_if_there(&file)?;
        if present.as_deref().is_some_and(|text| !is_ours(text)) {
            return Err(foreign(&file));
        }
        let mut changes = Vec::new();
        if present.is_some() {
            fs::remove_file(&file).map_err(|error| failed(&file, &error))?;
            changes.push(format!("{} removed", file.display()));
        }
        // Other networks may still name the plugin.
        let named = fs::read_dir(&self.conf_dir).into_iter().flatten().flatten();
        let used = named
            .into_iter()
            .any(|entry| read_if_there(&entry.path()).ok().flatten().is_some_and(|text| is_ours(&text)));
        for link in self.links().filter(|link| !used && fs::read_link(link).is_ok()) {
            fs::remove_file(&link).map_err(|error| failed(&link, &error))?;
            changes.push(format!("{} removed", link.display()));
        }
        Ok(changes)
    }
}

/// Whether a network configuration begins with our plugin.
fn is_ours(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|list| list["plugins"][0]["type"] == PLUGIN)
}

fn check_network(name: &str) -> Result<(), ApiError> {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(rest) {
        return Ok(());
    }
    let why = "a name starts with a letter or digit, goes on with these, `_`, `.` and `-`, and has at most 64 bytes";
    Err(ApiError::new(Code::Invalid, format!("{name:?} is no network name"), why, "choose another with --name"))
}

fn read_if_there(path: &Path) -> Result<Option<String>, ApiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) => Err(failed(path, &error)),
    }
}

/// Writes a file so that a reader sees the old or the new one, whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Engines read `.conf`, `.conflist` and `.json` only.
    let temporary = path.with_extension("conflist.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn foreign(path: &Path) -> ApiError {
    ApiError::new(
        Code::Conflict,
        format!("{} was not written by overlayctl", path.display()),
        "it would be lost",
        "move it away, or choose another network with --name",
    )
}

fn failed(path: &Path, error: &io::Error) -> ApiError {
    let next = "run as root, and check that the directory is writable";
    ApiError::new(Code::Io, format!("cannot change {}", path.display()), error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(directory: &Path) -> CniInstall {
        let program = directory.join("program");
        fs::write(&program, "").unwrap();
        CniInstall {
            program,
            network: "overlay".into(),
            bin_dirs: vec![directory.join("bin")],
            conf_dir: directory.join("net.d"),
            socket: None,
        }
    }

    #[test]
    fn installed_twice_changes_once_and_removed_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        assert_eq!(plan.install().unwrap().len(), 2);
        assert_eq!(plan.install().unwrap(), Vec::<String>::new());
        let list: Value = serde_json::from_str(&fs::read_to_string(plan.file()).unwrap()).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&json!("overlay"), &json!(PLUGIN)));
        assert_eq!(fs::read_link(plan.links().next().unwrap()).unwrap(), plan.program);
        assert_eq!(plan.remove().unwrap().len(), 2);
        assert_eq!(plan.remove().unwrap(), Vec::<String>::new());
        let left = |path: &Path| fs::read_dir(path).unwrap().count();
        assert_eq!((left(&plan.bin_dirs[0]), left(&plan.conf_dir)), (0, 0));
    }

    #[test]
    fn plugin_lies_where_containerd_looks_too() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        assert_eq!(bin_dirs(&config), [Path::new(BIN_DIR)], "no containerd");
        for (text, expected) in [
            ("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"", "/usr/lib/cni"),
            ("version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/opt/cni/bin', '/x']", "/x"),
        ] {
            fs::write(&config, text).unwrap();
            assert_eq!(bin_dirs(&config), [Path::new(BIN_DIR), Path::new(expected)], "{text}");
        }
        for text in ["", "plugins = 3", "[plugins.x.cni]\nbin_dir = 7", "[plugins.x.cni]\nbin_dir = 'relative'", "[["] {
            fs::write(&config, text).unwrap();
            assert_eq!(bin_dirs(&config), [Path::new(BIN_DIR)], "{text}");
        }
        let mut plan = plan(directory.path());
        plan.bin_dirs.push(directory.path().join("more"));
        assert_eq!(plan.install().unwrap().len(), 3);
        fs::remove_file(plan.bin_dirs[1].join(PLUGIN)).unwrap();
        assert_eq!(plan.install().unwrap().len(), 1, "only what is missing");
        assert_eq!(plan.remove().unwrap().len(), 3);
    }

    #[test]
    fn one_plugin_does_it_all_and_knows_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let plan = CniInstall { socket: Some("/run/other.sock".into()), ..plan(directory.path()) };
        let list: Value = serde_json::from_str(&plan.conflist()).unwrap();
        assert_eq!(list["plugins"][0]["socket"], "/run/other.sock");
        for capability in ["ips", "mac", "portMappings", "bandwidth"] {
            assert_eq!(list["plugins"][0]["capabilities"][capability], true, "{capability}");
        }
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let plan = plan(directory.path());
        fs::create_dir(&plan.conf_dir).unwrap();
        fs::write(plan.file(), r#"{"plugins":[{"type":"bridge"}]}"#).unwrap();
        assert!(plan.install().is_err() && plan.remove().is_err());
        assert!(!plan.links().next().unwrap().exists(), "nothing is begun");
        fs::remove_file(plan.file()).unwrap();
        fs::create_dir(&plan.bin_dirs[0]).unwrap();
        fs::write(plan.links().next().unwrap(), "a program of somebody").unwrap();
        assert!(plan.install().is_err());
        assert!(plan.remove().unwrap().is_empty() && plan.links().next().unwrap().exists());
        let bad = CniInstall { network: "../x".into(), ..plan };
        assert!(bad.install().is_err() && bad.remove().is_err());
    }

    #[test]
    fn plugin_stays_while_another_network_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = plan(directory.path());
        let second = CniInstall { network: "second".into(), ..first.clone() };
        first.install().unwrap();
        second.install().unwrap();
        assert_eq!(first.remove().unwrap().len(), 1);
        assert!(second.links().next().unwrap().exists());
        assert_eq!(second.remove().unwrap().len(), 2);
    }
}
