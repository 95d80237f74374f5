//! Whole boots: power-on, firmware, the real head, `up`, and the way home. The covering set that CI runs; `matrix` has the rest.

mod clock;
mod going_home;
mod loaders;
mod memory;
mod nics;
mod person;

use anyhow::Result;
use cidlab::{Lab, Pc, WINDOWS_LIMIT};

/// The PC finds its Windows by itself, and no byte of its disk changed; then the room is removed.
fn ends_in_windows(lab: Lab, mut pc: Pc) -> Result<()> {
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    let forbidden: Vec<_> = pc
        .variable_differences()?
        .into_iter()
        .filter(|found| !found.is_allowed())
        .collect();
    // Firmware that was not settled lists its devices at the first boot; that is not ours to judge.
    assert!(
        !pc.is_settled() || forbidden.is_empty(),
        "firmware variables changed: {forbidden:?}"
    );
    drop(pc);
    lab.succeeded();
    Ok(())
}
