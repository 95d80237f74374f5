//! The system clock follows the head's. The hardware clock is never written: Windows keeps local time in it.
//!
//! | module | holds |
//! |---|---|
//! | [`discipline`] | when to ask, what an answer does to the clock |
//! | [`ntp`] | questions and answers |
//! | [`timekeeper`] | the three together |

mod discipline;
mod ntp;
mod timekeeper;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use discipline::Correction;
pub(crate) use timekeeper::Timekeeper;

/// The clock is stepped when it is off by more than this; smaller differences are the network's.
const TOLERANCE: Duration = Duration::from_millis(250);

/// This clock now, since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Obeys.
fn correct(correction: Correction) {
    let done = match correction {
        Correction::Step(ahead_us) => {
            let by = Duration::from_micros(ahead_us.unsigned_abs());
            let to = match ahead_us < 0 {
                true => now().saturating_sub(by),
                false => now() + by,
            };
            cid_sys::clock::set(to)
        }
        Correction::Slew { ahead_us, constant } => {
            cid_sys::clock::discipline(ahead_us.saturating_mul(1_000), constant)
        }
    };
    match done {
        Ok(()) if matches!(cid_sys::clock::is_unsynchronised(), Ok(true)) => {}
        Ok(()) => {
            log!("cid-agent: the kernel takes the clock as synchronised and may write the hardware clock")
        }
        Err(error) => log!("cid-agent: cannot correct the clock: {error}"),
    }
}

/// Steps the system clock to the head's if it is off by more than the network can explain; whether it did. `clock_settime` leaves the clock marked as unsynchronised, so the kernel
/// does not write the hardware clock, in which Windows keeps local time.
pub(crate) fn set(unix_ms: u64) -> bool {
    let theirs = Duration::from_millis(unix_ms);
    if now().abs_diff(theirs) <= TOLERANCE {
        return false;
    }
    match cid_sys::clock::set(theirs) {
        Ok(()) if matches!(cid_sys::clock::is_unsynchronised(), Ok(true)) => {}
        Ok(()) => {
            log!("cid-agent: the kernel takes the clock as synchronised and may write the hardware clock")
        }
        Err(error) => log!("cid-agent: cannot set the clock: {error}"),
    }
    true
}
