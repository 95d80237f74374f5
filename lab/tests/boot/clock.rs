//! The hardware clock belongs to Windows, which keeps local time in it.

use std::time::Duration;

use anyhow::Result;
use cidlab::{Lab, Machine, UP_LIMIT};

use crate::ends_in_windows;

const HOUR: i64 = 3600;

/// Short form; `ci/night clock` stays in the cluster for 15 minutes, past the 11 after which a synchronised
/// kernel would write the clock by itself.
#[test]
fn an_hour_off_stays_an_hour_off() -> Result<()> {
    let lab = Lab::start("clock")?;
    let mut pc = lab.power_on(Machine::bios().clock_offset(HOUR))?;
    pc.wait_up(UP_LIMIT)?;
    std::thread::sleep(Duration::from_secs(15));
    assert!(
        (pc.clock_offset()? - HOUR).abs() <= 2,
        "the clock is off by {} s",
        pc.clock_offset()?
    );
    lab.release(&pc)?;
    ends_in_windows(lab, pc)
}
