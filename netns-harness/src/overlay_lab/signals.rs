//! Cleaning up when the user interrupts.

use overlay_netns_harness::clean;

/// From now on SIGINT, SIGTERM and SIGHUP remove every lab of this process and end it.
pub(crate) fn clean_on_interrupt() {
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
        for name in clean::own_labs() {
            if let Err(error) = clean::lab(&name) {
                eprintln!("{error:#}");
            }
        }
        std::process::exit(128 + signal);
    });
}
