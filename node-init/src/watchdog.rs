//! The hardware watchdog: it resets a PC whose PID 1 or kernel hangs.
//!
//! It is never disarmed (no magic `V` is written): a reboot that hangs is reset too.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

/// Time-out asked of the hardware, in seconds.
const TIMEOUT_SECS: i32 = 60;
/// How often PID 1 feeds it.
pub(crate) const FEED_EVERY: Duration = Duration::from_secs(10);

/// An armed watchdog.
pub(crate) struct Watchdog(File);

impl Watchdog {
    /// Opens, and so arms, the first watchdog; `None` when the PC has none.
    pub(crate) fn open() -> Option<Self> {
        let file = OpenOptions::new().write(true).open("/dev/watchdog0").ok()?;
        // Hardware of a fixed time-out keeps its own; it is fed often enough for any above 10 s.
        let _ = cid_sys::watchdog::set_timeout(&file, TIMEOUT_SECS);
        let mut watchdog = Self(file);
        watchdog.feed();
        Some(watchdog)
    }

    /// Another [`TIMEOUT_SECS`].
    pub(crate) fn feed(&mut self) {
        let _ = self.0.write_all(b".");
    }
}
