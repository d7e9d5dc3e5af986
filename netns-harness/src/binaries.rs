//! Finding and building the programs a lab runs.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// How the programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build, with checks.
    Dev,
    /// As installed.
    Release,
}

/// The directory that holds `overlayd`, `overlayctl` and `overlay-lab`.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Builds the programs and says where they are. `OVERLAY_BIN_DIR` names ready ones instead.
    pub fn build(profile: Profile) -> Result<Binaries> {
        if let Some(directory) = std::env::var_os("OVERLAY_BIN_DIR") {
            return Ok(Binaries { directory: PathBuf::from(directory) });
        }
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(workspace()).arg("build");
        command.args([
            "-p",
            "overlay-daemon",
            "-p",
            "overlay-cli",
            "-p",
            "overlay-plugins",
            "-p",
            "overlay-netns-harness",
        ]);
        if profile == Profile::Release {
            command.arg("--release");
        } else {
            command.arg("--quiet");
        }
        if std::env::var_os("CARGO_TARGET_DIR").is_none() {
            command.arg("--target-dir").arg(target_directory()?);
        }
        let status =
            command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("cargo could not be started")?;
        if !status.success() {
            bail!("building overlayd and overlayctl failed ({status}); the compiler's messages are above");
        }
        let name = if profile == Profile::Release { "release" } else { "debug" };
        Ok(Binaries { directory: target_directory()?.join(name) })
    }

    /// The development build, made once per process; for tests.
    pub fn for_tests() -> Result<Binaries> {
        static BUILT: OnceLock<std::result::Result<Binaries, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| Binaries::build(Profile::Dev).map_err(|error| format!("{error:#}")));
        built.clone().map_err(anyhow::Error::msg)
    }

    /// The newest build there is, without building.
    pub fn built() -> Binaries {
        let target = target_directory().unwrap_or_else(|_| workspace().join("target"));
        let age = |name: &str| target.join(name).join("overlayctl").metadata().and_then(|data| data.modified()).ok();
        let name = if age("release") > age("debug") { "release" } else { "debug" };
        let named = std::env::var_os("OVERLAY_BIN_DIR").map(PathBuf::from);
        Binaries { directory: named.unwrap_or_else(|| target.join(name)) }
    }

    /// The path of one program.
    pub fn path(&self, program: &str) -> String {
        self.directory.join(program).to_string_lossy().into_owned()
    }
}

/// The root of the source tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the harness lies in a directory of the workspace")
}

/// The build directory, taken from where this program runs.
pub fn target_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(PathBuf::from(directory));
    }
    let program = std::env::current_exe()?;
    let profile = program.ancestors().find(|path| path.ends_with("debug") || path.ends_with("release"));
    let target = profile.and_then(Path::parent).map(Path::to_owned);
    Ok(target.unwrap_or_else(|| workspace().join("target")))
}
