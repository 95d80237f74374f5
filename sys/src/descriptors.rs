//! File descriptors inherited by number, and handed on by number.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes ownership of the `count` descriptors from `first` on, which this process inherited beside stdio. Call it once, first
/// in `main`, before anything else opens files. They are not passed on to children.
///
/// # Errors
/// `EBADF` when one of them is not open; `AlreadyExists` on a second call; `InvalidInput` for stdio.
pub fn take_inherited(first: RawFd, count: u16) -> io::Result<Vec<OwnedFd>> {
    if first <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let numbers = (0..RawFd::from(count)).map(|offset| first.saturating_add(offset));
    numbers.map(take).collect()
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with these commands touches no memory; a number that is not open gives EBADF.
    // rustix and nix need an owned or borrowed descriptor, which is what this function makes.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    crate::check(result.into())?;
    // SAFETY: the number is open (just checked), is not stdio, and no other owner exists in this process: it was
    // inherited, and `take_inherited` hands it out once. Safe code cannot turn a number into an owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes the child find `descriptor` under `number`, without close-on-exec.
pub fn hand_on(command: &mut Command, descriptor: OwnedFd, number: RawFd) {
    let hook = move || {
        let from = descriptor.as_raw_fd();
        // SAFETY: dup2 and fcntl touch no memory and are async-signal-safe (signal-safety(7)), as the moment
        // between fork and exec demands. dup2 onto itself keeps close-on-exec, hence the other call.
        let result = unsafe {
            if from == number {
                libc::fcntl(from, libc::F_SETFD, 0)
            } else {
                libc::dup2(from, number)
            }
        };
        crate::check(result.into()).map(drop)
    };
    // SAFETY: the hook only makes the two calls above: it does not allocate, lock or unwind. std offers no safe
    // way to give a child a descriptor beside stdio.
    unsafe { command.pre_exec(hook) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_child_finds_its_descriptor_by_number() {
        let (mut ours, theirs) = UnixStream::pair().expect("socket pair");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo hello >&3"]);
        hand_on(&mut command, theirs.into(), 3);
        assert!(command.status().expect("sh runs").success());
        drop(command);
        let mut text = String::new();
        ours.read_to_string(&mut text).expect("readable");
        assert_eq!(text, "hello\n");
    }

    #[test]
    fn stdio_and_closed_numbers_are_refused() {
        assert!(take_inherited(1, 1).is_err());
        assert!(take_inherited(900, 1).is_err());
    }
}
