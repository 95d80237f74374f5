//! The signal mask of a child.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child start with no signal blocked. std passes the parent's mask on, and PID 1 blocks what it reads
/// from a signalfd: its child would not hear SIGTERM.
pub fn unblock_all(command: &mut Command) {
    let hook = || {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the set that sigprocmask then reads; both are async-signal-safe
        // (signal-safety(7)), as the moment between fork and exec demands, and no old mask is asked for.
        let result = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the hook only makes the two calls above: it does not allocate, lock or unwind. std offers no safe
    // way to set a child's mask.
    unsafe { command.pre_exec(hook) };
}

/// Dies by this signal, as a process does that has no handler for it. Returns when it is one that does not kill.
pub fn die_of(signal: i32) {
    // SAFETY: SIG_DFL is no function; signal(2) and raise(3) touch no memory of ours.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_starts_with_nothing_blocked() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "grep SigBlk /proc/self/status"]);
        unblock_all(&mut command);
        let output = command.output().expect("sh runs");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "SigBlk:\t0000000000000000\n"
        );
    }
}
