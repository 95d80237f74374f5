//! The system clock follows the head's. The hardware clock is never written: Windows keeps local time in it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clock is stepped when it is off by more than this; smaller differences are the network's.
const TOLERANCE: Duration = Duration::from_millis(250);
/// Steps the system clock to the head's. `clock_settime` leaves the clock marked as unsynchronised, so the kernel
/// does not write the hardware clock, in which Windows keeps local time.
pub(crate) fn set(unix_ms: u64) {
    let theirs = Duration::from_millis(unix_ms);
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if ours.abs_diff(theirs) <= TOLERANCE {
        return;
    }
    match cid_sys::clock::set(theirs) {
        Ok(()) if matches!(cid_sys::clock::is_unsynchronised(), Ok(true)) => {}
        Ok(()) => {
            log!("cid-agent: the kernel takes the clock as synchronised and may write the hardware clock")
        }
        Err(error) => log!("cid-agent: cannot set the clock: {error}"),
    }
}
