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

/// File in the state folder of a virtual lab's head.
pub const MARK: &str = "virtual-lab";

static AHEAD: OnceLock<Duration> = OnceLock::new();

/// Unix time.
pub fn unix_now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now + AHEAD.get().copied().unwrap_or_default()
}

/// How far a lab has set it; `None` on every other head.
pub fn lab_clock() -> Option<Duration> {
    AHEAD.get().copied()
}

/// Takes a lab's time of day from the environment, if it has one.
///
/// # Errors
/// It is no number, or this is no lab: cidlab puts [`MARK`] into the state folder of its heads.
pub fn take_lab_clock(state_dir: &Path) -> Result<()> {
    let text = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned());
    if let Some(ahead) = wanted(text.as_deref(), state_dir)? {
        tracing::warn!(
            ahead = ahead.as_secs(),
            "the wall clock is a virtual lab's; no real PC may be here"
        );
        let _ = AHEAD.set(ahead);
    }
    Ok(())
}

/// Two things must come together: a variable alone may be left over in a shell or a unit.
fn wanted(text: Option<&str>, state_dir: &Path) -> Result<Option<Duration>> {
    let Some(text) = text else { return Ok(None) };
    let ahead = text
        .parse()
        .with_context(|| format!("{VARIABLE}={text}: not a number of seconds; unset it"))?;
    ensure!(
        state_dir != Path::new("/var/lib/cid") && state_dir.join(MARK).is_file(),
        "{VARIABLE} is set, which is for virtual labs only: real PCs would compute outside their hours; unset it"
    );
    Ok(Some(Duration::from_secs(ahead)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lab_has_another_time_of_day() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |text, folder: &Path| wanted(Some(text), folder).unwrap_err().to_string();
        assert_eq!(wanted(None, folder.path()).unwrap(), None);
        assert!(refused("3600", folder.path()).contains("for virtual labs only"));
        assert!(refused("3600", Path::new("/var/lib/cid")).contains("unset it"));
        // Control: in a lab it counts, and only as a number.
        std::fs::write(folder.path().join(MARK), "").unwrap();
        let hour = Some(Duration::from_secs(3_600));
        assert_eq!(wanted(Some("3600"), folder.path()).unwrap(), hour);
        assert!(refused("soon", folder.path()).contains("not a number"));
        // The mark alone sets nothing.
        assert_eq!(wanted(None, folder.path()).unwrap(), None);
    }
}
