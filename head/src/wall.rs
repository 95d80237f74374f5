//! The head's wall clock: opening hours, events and the nodes' clocks are read from here. Leases are not: they are promises
//! to others, in real time.
//!
//! A virtual lab cannot wait for 06:30, so a head there may be told another time of day. Must never be set on a head with
//! real PCs: they would compute through lessons.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

/// Seconds that the wall clock is ahead, in the environment of a lab's head.
pub const VARIABLE: &str = "CID_LAB_CLOCK_AHEAD";

static AHEAD: OnceLock<Duration> = OnceLock::new();

/// Unix time.
pub fn unix_now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now + AHEAD.get().copied().unwrap_or_default()
}

/// Takes a lab's time of day from the environment, if it has one.
///
/// # Errors
/// It is no number, or this head keeps its state where an installed head does.
pub fn take_lab_clock(state_dir: &Path) -> Result<()> {
    let Ok(text) = std::env::var(VARIABLE) else {
        return Ok(());
    };
    let ahead = text
        .parse()
        .with_context(|| format!("{VARIABLE}={text}: not a number of seconds; unset it"))?;
    ensure!(
        state_dir != Path::new("/var/lib/cid"),
        "{VARIABLE} is set, which is for virtual labs only: real PCs would compute outside their hours; unset it"
    );
    tracing::warn!(ahead, "the wall clock is a virtual lab's");
    let _ = AHEAD.set(Duration::from_secs(ahead));
    Ok(())
}
