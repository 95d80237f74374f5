//! What a process of a job does between fork and exec: its control group, namespaces of its own, `umask(2)`, ids, the capability
//! bounding set, no new privileges.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child join a control group (`cgroup.procs`, open for writing, if there is one) and live in IPC, UTS and mount namespaces of
/// its own. A PID namespace is entered by being a child of a thread that unshared its own.
pub fn isolate(command: &mut Command, control_group: Option<File>) {
    let hook = move || {
        if let Some(group) = &control_group {
            // SAFETY: write reads one byte of a constant; the descriptor is open as long as the hook.
            let written = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            if written < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: unshare takes a number. In a child that has just been forked there is one thread only.
        crate::check(
            unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) }.into(),
        )
        .map(drop)
    };
    // SAFETY: the hook makes system calls on what was made before the fork; it does not allocate, lock or unwind.
    unsafe { command.pre_exec(hook) };
}

/// Who a rank is.
#[derive(Debug, Clone)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: u32,
    /// The folder it starts in where the user may go there; else where the parent is.
    pub folder: CString,
}

/// Makes the child that user, for good: no capability, no new privilege, no signal blocked or ignored.
pub fn become_user(command: &mut Command, user: User) {
    let hook = move || {
        // SAFETY: umask takes a number, and cannot fail.
        unsafe { libc::umask(user.umask) };
        for stream in 0..3 {
            // SAFETY: numbers only. `/dev/stderr` is opened anew by whoever uses it; a file that cannot be given away stays whose it is.
            let _ = unsafe { libc::fchown(stream, user.uid, user.gid) };
        }
        crate::root::drop_capabilities(0)?;
        // SAFETY: no group is read. The system calls themselves, not libc's functions, which take locks to reach all threads.
        crate::check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) })?;
        // SAFETY: numbers only.
        crate::check(unsafe { libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) })?;
        // SAFETY: numbers only.
        crate::check(unsafe { libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) })?;
        // SAFETY: numbers only.
        crate::check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
        // SAFETY: the string lives in the hook and is only read. A folder that is not there is no error.
        let _ = unsafe { libc::chdir(user.folder.as_ptr()) };
        for signal in 1..=31 {
            // SAFETY: signal(2) with SIG_DFL touches no memory of ours; KILL and STOP give an error that says nothing.
            let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls on what was made before the fork; it does not allocate, lock or unwind.
    unsafe { command.pre_exec(hook) };
    crate::signals::unblock_all(command);
}
