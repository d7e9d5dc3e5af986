//! Network namespaces: made and removed by name, entered by a child process or by a thread.

use anyhow::{Context as _, Result, bail};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::ip;

const NAMED: &str = "/run/netns";

/// Where a process runs: a network namespace, and for a host also its own `/run` and `/var/lib`.
#[derive(Debug, Clone)]
pub struct View {
    namespace: String,
    private: Option<PathBuf>,
}

impl View {
    /// The network namespace alone.
    pub fn of(namespace: &str) -> View {
        View { namespace: namespace.to_owned(), private: None }
    }

    /// The network namespace, with the directories `run` and `lib` of `private` shown as `/run` and `/var/lib`.
    pub fn with_private(namespace: &str, private: &Path) -> View {
        View { namespace: namespace.to_owned(), private: Some(private.to_owned()) }
    }

    /// The name `ip netns` knows.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Makes a named namespace with its loopback up and address detection off, so that addresses work at once.
pub fn create(name: &str) -> Result<()> {
    ip(&format!("netns add {name}"))?;
    within(name, || {
        for (key, value) in [
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            sysctl(key, value)?;
        }
        Ok(())
    })?;
    ip(&format!("-n {name} link set lo up"))?;
    Ok(())
}

/// Removes a named namespace; one that is gone already is no error.
pub fn remove(name: &str) -> Result<()> {
    if !Path::new(NAMED).join(name).exists() {
        return Ok(());
    }
    ip(&format!("netns del {name}"))?;
    Ok(())
}

/// The named namespaces that begin with a prefix, sorted.
pub fn list(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(NAMED)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// The processes that run inside a named namespace.
pub fn processes(name: &str) -> Vec<i32> {
    let text = ip(&format!("netns pids {name}")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Sets one kernel parameter in the namespace of the calling thread.
pub fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    std::fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}

/// Runs a closure on a thread of its own inside the namespace; sockets it makes stay in that namespace.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let handle = open(name)?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // SAFETY: setns takes an open descriptor and moves this thread alone.
            check(unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) })
                .with_context(|| format!("entering the namespace {name}"))?;
            work()
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A command that will run inside the view, in a session of its own.
pub fn command(view: &View, argv: &[&str]) -> Result<Command> {
    let Some((program, arguments)) = argv.split_first() else { bail!("no program was named") };
    let handle = open(&view.namespace)?;
    let mounts = view.private.as_deref().map(Mounts::new).transpose()?;
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: the closure makes system calls on values prepared before the fork and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            // A mask with SIGTERM in it, as `overlay-lab` has while it may be interrupted, would be inherited.
            let mut none_blocked: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none_blocked);
            check(libc::pthread_sigmask(libc::SIG_SETMASK, &none_blocked, std::ptr::null_mut()))?;
            check(libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET))?;
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let none = std::ptr::null();
            check(libc::mount(none, c"/".as_ptr(), none, libc::MS_SLAVE | libc::MS_REC, none.cast()))?;
            // The devices shown under /sys are those of the namespace in which it was mounted.
            if libc::umount2(c"/sys".as_ptr(), libc::MNT_DETACH) == 0 {
                check(libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, none.cast()))?;
            }
            if let Some(mounts) = &mounts {
                mounts.apply()?;
            }
            Ok(())
        });
    }
    Ok(command)
}

fn open(name: &str) -> Result<File> {
    File::open(Path::new(NAMED).join(name)).with_context(|| format!("there is no network namespace {name}"))
}

/// The bind mounts that give a host its own directories, as strings ready for the system call.
struct Mounts {
    named: CString,
    run: CString,
    lib: CString,
}

impl Mounts {
    fn new(private: &Path) -> Result<Mounts> {
        let text = |path: PathBuf| CString::new(path.as_os_str().as_bytes());
        Ok(Mounts {
            named: text(private.join("run/netns"))?,
            run: text(private.join("run"))?,
            lib: text(private.join("lib"))?,
        })
    }

    fn apply(&self) -> io::Result<()> {
        let bind = |from: &CStr, to: &CStr| {
            let none = std::ptr::null();
            // SAFETY: both paths are NUL-terminated and outlive the call.
            check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND | libc::MS_REC, none.cast()) })
        };
        bind(c"/run/netns", &self.named)?;
        bind(&self.lib, c"/var/lib")?;
        bind(&self.run, c"/run")
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
