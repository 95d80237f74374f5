//! Setting the system clock, and asking whether the kernel takes it as synchronised.
//!
//! While `STA_UNSYNC` is set the kernel never writes the hardware clock by itself (`sync_hw_clock`); every
//! `clock_settime` sets it. Only `adjtimex` without it would clear it, and nothing here can.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Sets the clock to this time since 1970. The hardware clock is not touched.
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME; `InvalidInput` for a time the kernel cannot hold.
pub fn set(since_1970: Duration) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: since_1970
            .as_secs()
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidInput)?,
        tv_nsec: since_1970.subsec_nanos().into(),
    };
    // SAFETY: the kernel reads one timespec, which `time` is, before the call returns.
    // std cannot set clocks.
    crate::check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }.into()).map(drop)
}

/// Whether the kernel takes the clock as not synchronised, and so leaves the hardware clock alone.
///
/// # Errors
/// What `adjtimex(2)` says.
pub fn is_unsynchronised() -> io::Result<bool> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all-zero is a valid timex (integers only) whose `modes` 0 asks and changes nothing; the kernel
    // writes one timex, which `state` is, before the call returns. Neither nix nor rustix has the call.
    let state = unsafe {
        crate::check(libc::adjtimex(state.as_mut_ptr()).into())?;
        state.assume_init()
    };
    Ok(state.status & libc::STA_UNSYNC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_clock_can_be_asked() {
        assert!(is_unsynchronised().is_ok());
    }
}
