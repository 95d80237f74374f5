//! The way home, as the PC's Windows sees it: what a TPM measured, how long firmware took, what ten nights left behind.

mod boot_next;
mod exception;
mod hours;
mod measured;
mod nights;
mod outside_hours;

use anyhow::Result;
use cidlab::{Lab, Pc};

/// The PC, which is off, has its disk as it was; then the room is removed.
fn gone(lab: Lab, pc: Pc) -> Result<()> {
    pc.assert_disk_untouched()?;
    drop(pc);
    lab.succeeded();
    Ok(())
}
