//! The time-out of a hardware watchdog. Feeding it is a write of any byte but `V`, which needs no wrapper.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Sets the time-out of an open `/dev/watchdogN` and returns what the hardware took, in seconds.
///
/// # Errors
/// What `ioctl(2)` says; `EOPNOTSUPP` for a watchdog of fixed time-out.
pub fn set_timeout(device: &File, secs: i32) -> io::Result<i32> {
    let mut secs: libc::c_int = secs;
    // WDIOC_SETTIMEOUT of linux/watchdog.h: _IOWR('W', 6, int).
    let request: libc::c_ulong = (3 << 30) | (4 << 16) | (0x57 << 8) | 6;
    // SAFETY: the kernel reads and writes one int, which `secs` is, before the call returns.
    // No library in the tree wraps watchdog ioctls.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request as _, &raw mut secs) };
    crate::check(result.into())?;
    Ok(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_watchdog_is_an_error() {
        assert!(set_timeout(&File::open("/dev/null").expect("exists"), 60).is_err());
    }
}
