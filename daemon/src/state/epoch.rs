//! Small state kept across restarts: the boot epoch, which must grow with every run of an identity.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use overlay_control::{ApiError, Code};

/// The state file's name and the version of its one line.
const FILE: &str = "boot-epoch";
const VERSION: &str = "v1";

/// 2024-01-01, in seconds since 1970: no release of this program is older, so a clock before it is wrong.
pub const EARLIEST_UNIX: u64 = 1_704_067_200;

/// Draws the boot epoch of this run: greater than every earlier one, and at least `clock_ms`, the wall clock in
/// milliseconds since 1970, so that a lost state directory does not set it back. It is on disk before this returns.
///
/// # Errors
/// When the file was written by a newer release, or cannot be written; when no earlier run is known and the clock is so
/// wrong that this one would seem older than any before.
pub fn next_boot_epoch(state_dir: &Path, clock_ms: u64) -> Result<u64, ApiError> {
    let path = state_dir.join(FILE);
    let last = match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io(&path, &error)),
    };
    if last == 0 && clock_ms < EARLIEST_UNIX * 1000 {
        return Err(ApiError::new(
            Code::Clock,
            format!("the clock of this host is years behind: {} days after 1970-01-01", clock_ms / 86_400_000),
            "members refuse a run that seems older than one they know, and without state only the clock can tell",
            "set the clock, for example with `timedatectl set-ntp true`, and start overlayd again",
        ));
    }
    let next = clock_ms.max(last.saturating_add(1));
    write(state_dir, &path, &format!("{VERSION} {next}\n")).map_err(|error| io(&path, &error))?;
    Ok(next)
}

fn parse(path: &Path, text: &str) -> Result<u64, ApiError> {
    match text.trim().split_once(' ') {
        Some((VERSION, number)) => Ok(number.parse().unwrap_or(0)),
        Some((version, _)) if version.starts_with('v') => Err(ApiError::new(
            Code::StateNewer,
            format!("{} was written by a newer release", path.display()),
            format!("it has version {version}, this release knows {VERSION}"),
            "start the newer release, or move the file away",
        )),
        // Torn or damaged: the clock decides.
        _ => Ok(0),
    }
}

fn write(directory: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let next = path.with_extension("new");
    let mut file = File::create(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    File::open(directory)?.sync_all()
}

fn io(path: &Path, error: &std::io::Error) -> ApiError {
    ApiError::new(
        Code::Io,
        format!("cannot use {}", path.display()),
        error.to_string(),
        "make room, or make the state directory writable for the daemon's user",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn epoch_grows_also_over_damage_and_is_refused_when_newer() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = next_boot_epoch(directory.path(), NOW).expect("a fresh directory");
        let second = next_boot_epoch(directory.path(), NOW).expect("a second start");
        assert_eq!((first, second), (NOW, NOW + 1));
        let path = directory.path().join(FILE);
        std::fs::write(&path, format!("{VERSION} {}\n", u64::MAX / 2)).expect("writable");
        assert_eq!(next_boot_epoch(directory.path(), NOW).expect("a far epoch"), u64::MAX / 2 + 1);
        std::fs::write(&path, "\0\0").expect("writable");
        assert_eq!(next_boot_epoch(directory.path(), NOW).expect("a torn file"), NOW);
        std::fs::write(&path, "v2 7\n").expect("writable");
        let error = next_boot_epoch(directory.path(), NOW).expect_err("a newer file");
        assert_eq!(error.code, "STATE_NEWER");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "v2 7\n");
    }

    #[test]
    fn wrong_clock_is_refused_only_where_nothing_else_orders_the_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let just_before = EARLIEST_UNIX * 1000 - 1;
        let error = next_boot_epoch(directory.path(), just_before).expect_err("no earlier run is known");
        assert_eq!((error.code.as_str(), error.exit()), ("CLOCK", 1));
        assert!(!directory.path().join(FILE).exists(), "nothing is remembered of a refused start");
        next_boot_epoch(directory.path(), just_before + 1).expect("a clock that may be right");
        let later = next_boot_epoch(directory.path(), 0).expect("an earlier run is known");
        assert!(later > just_before + 1);
    }
}
