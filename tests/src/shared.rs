//! Labs shared by the tests of one file.

use anyhow::Result;
use overlay_netns_harness::{Binaries, Lab, packages};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Whether this process may make namespaces. Without that right a test is skipped with a loud line, and fails where
/// `CI=true` says that nothing may be skipped.
pub fn can_make_namespaces(test: &str) -> bool {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} needs root, and nothing may be skipped where CI=true"
    );
    eprintln!("SKIPPED {test}: network namespaces need root");
    false
}

/// Whether a test may run: root, and these programs (a shell command that succeeds where it is there, and the Debian
/// package), which are installed where they are missing. What cannot be had skips the test with a loud line, and fails it
/// where `CI=true` says that nothing may be skipped.
pub fn can_use(test: &str, needed: &[(&str, &str)]) -> bool {
    let there =
        |probe: &str| Command::new("sh").args(["-c", probe]).output().is_ok_and(|output| output.status.success());
    can_make_namespaces(test)
        && needed.iter().all(|(probe, package)| {
            can_have(test, if there(probe) { Ok(()) } else { packages::install(&[package]) }).is_some()
        })
}

/// What a test needs, or nothing after a loud line; a failure where `CI=true` says that nothing may be skipped.
pub fn can_have<T>(test: &str, needed: Result<T>) -> Option<T> {
    needed
        .map_err(|error| {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {error:#}");
            eprintln!("SKIPPED {test}: {error:#}");
        })
        .ok()
}

/// A name for a lab that no other process uses: `t`, the subject, the process number.
pub fn lab_name(subject: &str) -> String {
    format!("t{subject}{}", std::process::id())
}

/// A lab made by the first test that asks for it and removed when the process exits. One test uses it at a time.
#[derive(Debug)]
pub struct SharedLab<T> {
    made: OnceLock<std::result::Result<Mutex<T>, String>>,
}

impl<T> Default for SharedLab<T> {
    fn default() -> Self {
        SharedLab::new()
    }
}

impl<T> SharedLab<T> {
    /// Nothing is made yet.
    pub const fn new() -> SharedLab<T> {
        SharedLab { made: OnceLock::new() }
    }

    /// The lab, or nothing where this process may not make one. A lab that could not be made fails every test.
    pub fn lease(
        &self,
        subject: &str,
        make: impl FnOnce(&str, Binaries) -> Result<T>,
        lab: impl Fn(&T) -> &Lab,
    ) -> Option<MutexGuard<'_, T>> {
        if !can_make_namespaces(subject) {
            return None;
        }
        let made = self.made.get_or_init(|| {
            let made = Binaries::for_tests().and_then(|binaries| make(&lab_name(subject), binaries));
            made.map(Mutex::new).map_err(|error| format!("{error:#}"))
        });
        match made {
            Ok(value) => {
                let guard = value.lock().unwrap_or_else(PoisonError::into_inner);
                lab(&guard).remove_at_exit();
                Some(guard)
            }
            Err(error) => panic!("the lab could not be made: {error}"),
        }
    }
}
