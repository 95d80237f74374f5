//! Capabilities that programs started from here would inherit.

use std::io;

/// Empties this thread's ambient set, and that of threads it starts from now on. What it may do itself stays as it is.
///
/// # Errors
/// What `prctl(2)` says; `EINVAL` before Linux 4.3.
pub fn clear_ambient() -> io::Result<()> {
    // SAFETY: PR_CAP_AMBIENT takes numbers only and touches no memory of ours. nix does not have it.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    crate::check(result.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        clear_ambient().expect("a kernel of our time");
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        assert!(status.contains("CapAmb:\t0000000000000000"), "{status}");
    }
}
