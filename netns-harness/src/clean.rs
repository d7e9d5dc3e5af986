//! Removal of a lab from what is written down about it, also when its owner was killed.

use anyhow::{Result, bail};
use std::path::PathBuf;
use std::time::Duration;

use crate::state::{Directory, PREFIX};
use crate::{journal, netns, state, wait_for};

/// The names of all labs on this machine, and whether the process that owns each still runs.
pub fn labs() -> Vec<(String, bool)> {
    state::labs()
        .into_iter()
        .map(|name| {
            let owned = Directory::of(&name).living_owner().is_some();
            (name, owned)
        })
        .collect()
}

/// The names of the labs that this process made.
pub fn own_labs() -> Vec<String> {
    let own = |name: &String| Directory::of(name).living_owner() == journal::ProcessId::current();
    state::labs().into_iter().filter(own).collect()
}

/// Removes everything of one lab: its processes, its namespaces, its files. Goes on past failures and reports them all.
pub fn lab(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '-']) {
        bail!("{name:?} is not the name of a lab");
    }
    let mut failures = Vec::new();
    let directory = Directory::of(name);
    for process in journal::read(&directory.journal()).iter().rev() {
        process.kill();
    }
    for namespace in netns::list(&format!("{PREFIX}{name}-")).iter().rev() {
        if let Err(error) = namespace_with_processes(namespace) {
            failures.push(format!("{error:#}"));
        }
    }
    if let Err(error) = directory.remove() {
        failures.push(format!("{error:#}"));
    }
    for temporary in temporary(&format!("{PREFIX}{name}-")) {
        if let Err(error) = std::fs::remove_dir_all(&temporary) {
            failures.push(format!("{}: {error}", temporary.display()));
        }
    }
    state::remove_root_if_empty();
    if !failures.is_empty() {
        bail!("the lab {name} is not wholly removed:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// Directories of engines that a lab left beside its own.
fn temporary(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
    ours.map(|entry| entry.path()).collect()
}

/// Removes one namespace after ending whatever still runs inside it.
pub(crate) fn namespace_with_processes(namespace: &str) -> Result<()> {
    let own = std::process::id().cast_signed();
    let kill_all = || {
        let processes: Vec<i32> = netns::processes(namespace).into_iter().filter(|pid| *pid != own).collect();
        for process in processes.iter().filter_map(|pid| journal::ProcessId::of(*pid)) {
            process.kill();
        }
        processes.is_empty()
    };
    wait_for(&format!("the processes in {namespace} to end"), Duration::from_secs(5), || kill_all().then_some(()))?;
    netns::remove(namespace)
}

/// From now on SIGINT, SIGTERM and SIGHUP remove every lab of this process and end it.
pub fn on_interrupt() {
    // SAFETY: the set is made by sigemptyset before use; blocking signals has no memory effects. Threads made
    // later inherit the mask; children in namespaces are given an empty one.
    let signals = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut signals, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        signals
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of this thread.
        unsafe { libc::sigwait(&signals, &mut signal) };
        eprintln!("\ninterrupted, removing what was made");
        for name in own_labs() {
            if let Err(error) = lab(&name) {
                eprintln!("{error:#}");
            }
        }
        std::process::exit(128 + signal);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_a_path_is_refused() {
        for name in ["", "../etc", "a-b"] {
            assert!(lab(name).is_err(), "{name}");
        }
    }
}
