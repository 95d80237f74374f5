//! Setting the system clock, steering it, and asking whether the kernel takes it as synchronised.
//!
//! While `STA_UNSYNC` is set the kernel never writes the hardware clock by itself (`sync_hw_clock`); every
//! `clock_settime` sets it. Only `adjtimex` without it would clear it, and nothing here does that.

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

/// Gives the kernel's phase-locked loop (RFC 5905, appendix; `adjtimex(2)`) an offset to work off: it slews, and learns how
/// fast the oscillator runs. `ahead_ns`: by how much the right time is ahead of this clock, at most half a second;
/// `constant`: the logarithm to base 2 of the seconds between two such calls, less 4. The clock stays marked as
/// unsynchronised, so the hardware clock is left alone.
///
/// # Errors
/// What `adjtimex(2)` says: `EPERM` without CAP_SYS_TIME.
pub fn discipline(ahead_ns: i64, constant: u8) -> io::Result<()> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all-zero is a valid timex (integers only), so a reference to it may be made.
    let asked = unsafe { state.assume_init_mut() };
    asked.modes = libc::ADJ_OFFSET | libc::ADJ_STATUS | libc::ADJ_NANO | libc::ADJ_TIMECONST;
    asked.status = libc::STA_PLL | libc::STA_UNSYNC;
    asked.offset = ahead_ns;
    asked.constant = constant.into();
    // SAFETY: the kernel reads and writes one timex, which `asked` is, before the call returns. Neither nix nor rustix has
    // the call.
    crate::check(unsafe { libc::adjtimex(asked) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_clock_can_be_asked() {
        assert!(is_unsynchronised().is_ok());
    }
}
