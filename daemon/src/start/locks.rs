//! Directories of the daemon, and the locks on them.

use std::fs::{File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use overlay_control::{ApiError, Code};

/// Held for the daemon's life: two daemons never share an interface, a runtime or a state directory.
#[derive(Debug)]
pub(super) struct Locks(#[expect(dead_code, reason = "held, never read")] Vec<File>);

/// How long the locks of a daemon that was killed may outlive it. A program that it was about to start, `nft` say, has all of
/// its descriptors until it runs, which takes a moment on a busy host.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a lock is tried.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn lock(paths: [PathBuf; 2]) -> Result<Locks, ApiError> {
    let deadline = Instant::now() + PATIENCE;
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
        while let Err(error) = file.try_lock() {
            if let TryLockError::Error(error) = error {
                return Err(ApiError::new(
                    Code::Io,
                    format!("cannot lock {}", path.display()),
                    error.to_string(),
                    "keep runtime and state directories on a file system of this host that has locks",
                ));
            }
            if Instant::now() >= deadline {
                return Err(ApiError::new(
                    Code::AlreadyRunning,
                    format!("another daemon holds {}", path.display()),
                    "two daemons cannot share an interface or a directory",
                    "stop the other one, or give this one its own overlay.interface and paths",
                ));
            }
            tokio::time::sleep(PAUSE).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lock_that_outlives_its_daemon_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = ["runtime.lock", "state.lock"].map(|name| directory.path().join(name));
        let former = lock(paths.clone()).await.expect("free");
        let mut next = std::pin::pin!(lock(paths));
        tokio::select! {
            biased;
            _ = &mut next => panic!("it is held"),
            () = std::future::ready(()) => {}
        }
        drop(former);
        next.await.expect("free again");
    }

    #[tokio::test]
    async fn lock_that_is_held_on_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = ["runtime.lock", "state.lock"].map(|name| directory.path().join(name));
        let _former = lock(paths.clone()).await.expect("free");
        let began = Instant::now();
        let error = lock(paths).await.expect_err("held");
        assert_eq!(error.code, Code::AlreadyRunning.name());
        assert!(began.elapsed() >= PATIENCE);
    }
}
