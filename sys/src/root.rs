//! What a child does between fork and exec to live inside another root: a mount namespace of its own, `mount(2)` with MS_MOVE,
//! `chroot(2)`, the capability bounding set, ids.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where a child lives and who it is there.
#[derive(Debug)]
pub struct Entry {
    /// A mount point; with everything mounted below it, it becomes the child's `/`.
    pub root: CString,
    /// The folder the child starts in, inside the root.
    pub folder: CString,
    /// User.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// Bit n set: capability n stays in the bounding set. All others are gone for the child and whatever it starts.
    pub capabilities: u64,
    /// `cgroup.procs` of the control group it lives in, open for writing.
    pub control_group: Option<File>,
}

/// Makes the child enter `entry` before it becomes its program. The program is looked up inside the root.
///
/// `pivot_root(2)` will not do: a node's own root is the initramfs, which the kernel does not let go of. Moving the new root over
/// `/` covers it for all paths, `..` included; without CAP_SYS_ADMIN nothing can be unmounted to uncover it.
pub fn enter(command: &mut Command, entry: Entry) {
    let hook = move || {
        if let Some(group) = &entry.control_group {
            // SAFETY: write reads one byte of a constant; the descriptor is open as long as `entry`. std's write would do,
            // too; this one is known to be async-signal-safe (signal-safety(7)).
            let written = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            if written < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        move_root(&entry)?;
        drop_capabilities(entry.capabilities)?;
        become_user(&entry)
    };
    // SAFETY: the hook makes system calls on memory that was made before the fork; it does not allocate, lock or unwind. std
    // offers no safe way to run anything between fork and exec.
    unsafe { command.pre_exec(hook) };
}

fn move_root(entry: &Entry) -> io::Result<()> {
    // SAFETY: unshare takes a number. In a child that has just been forked there is one thread only.
    crate::check(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
    // Here and below nix's wrappers will not do: they copy strings, which may allocate.
    // SAFETY: the string is a constant; null is allowed where mount(2) ignores the argument.
    let private = unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    };
    crate::check(private.into())?;
    // SAFETY: a `CString` of `entry`, alive during the call and only read.
    crate::check(unsafe { libc::chdir(entry.root.as_ptr()) }.into())?;
    // SAFETY: strings are constants; null is allowed where mount(2) ignores the argument.
    let moved = unsafe {
        libc::mount(
            c".".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_MOVE,
            std::ptr::null(),
        )
    };
    crate::check(moved.into())?;
    // SAFETY: the string is a constant.
    crate::check(unsafe { libc::chroot(c".".as_ptr()) }.into())?;
    // SAFETY: a `CString` of `entry`, alive during the call and only read.
    crate::check(unsafe { libc::chdir(entry.folder.as_ptr()) }.into()).map(drop)
}

pub(crate) fn drop_capabilities(keep: u64) -> io::Result<()> {
    for number in 0..u64::BITS {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes numbers only and touches no memory of ours.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match crate::check(result.into()) {
            Ok(_) => {}
            // The kernel knows no capability of this number, nor a higher one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn become_user(entry: &Entry) -> io::Result<()> {
    // SAFETY: setgroups reads as many numbers as the vector has. The system calls themselves, not libc's functions: those
    // take locks to reach all threads, and this child has one.
    let groups = unsafe { libc::syscall(libc::SYS_setgroups, entry.groups.len(), entry.groups.as_ptr()) };
    crate::check(groups)?;
    // SAFETY: numbers only.
    crate::check(unsafe { libc::syscall(libc::SYS_setresgid, entry.gid, entry.gid, entry.gid) })?;
    // SAFETY: numbers only.
    crate::check(unsafe { libc::syscall(libc::SYS_setresuid, entry.uid, entry.uid, entry.uid) }).map(drop)
}
