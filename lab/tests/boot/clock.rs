//! The hardware clock belongs to Windows, which keeps local time in it; the node's own clock follows the head's.

use std::time::Duration;

use anyhow::Result;
use cidlab::{Lab, Machine, UP_LIMIT};

use crate::ends_in_windows;

const HOUR: i64 = 3600;
/// What a node's own clock may be off by.
const WITHIN: Duration = Duration::from_millis(10);

/// Short form; `ci/night clock` stays in the cluster for 15 minutes, past the 11 after which a synchronised
/// kernel would write the clock by itself.
#[test]
fn an_hour_off_stays_an_hour_off() -> Result<()> {
    let lab = Lab::start("clock")?;
    let mut pc = lab.power_on(Machine::bios().clock_offset(HOUR))?;
    pc.wait_up(UP_LIMIT)?;
    pc.wait("clock as the head's", Duration::from_secs(120), |pc| {
        Ok(pc.clock_error()?.is_some_and(|off| off <= WITHIN))
    })?;
    std::thread::sleep(Duration::from_secs(10));
    assert!(
        (pc.clock_offset()? - HOUR).abs() <= 2,
        "the clock is off by {} s",
        pc.clock_offset()?
    );
    lab.release(&pc)?;
    ends_in_windows(lab, pc)
}
