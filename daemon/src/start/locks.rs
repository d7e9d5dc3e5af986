//! Directories of the daemon, and the locks on them.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use overlay_control::{ApiError, Code};

/// Held for the daemon's life: two daemons never share an interface, a runtime or a state directory.
pub(super) struct Locks(#[expect(dead_code, reason = "held, never read")] Vec<File>);

pub(super) fn lock(paths: [PathBuf; 2]) -> Result<Locks, ApiError> {
    let mut held = Vec::new();
    for path in paths {
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| {
            ApiError::new(
                Code::Io,
                format!("cannot open {}", path.display()),
                error.to_string(),
                "check that its directory exists and belongs to the daemon's user",
            )
        })?;
        if file.try_lock().is_err() {
            return Err(ApiError::new(
                Code::AlreadyRunning,
                format!("another daemon holds {}", path.display()),
                "two daemons cannot share an interface or a directory",
                "stop the other one, or give this one its own overlay.interface and paths",
            ));
        }
        held.push(file);
    }
    Ok(Locks(held))
}

pub(super) fn directory(path: &Path) -> Result<(), ApiError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|error| {
        ApiError::new(
            Code::Io,
            format!("cannot make the directory {}", path.display()),
            error.to_string(),
            "make it by hand for the daemon's user, or set the paths in the configuration",
        )
    })
}
