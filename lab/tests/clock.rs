//! Show 9, the long half: a hardware clock one hour off is still one hour off after 15 minutes in the cluster. The kernel
//! writes the clock every 11 minutes by itself once it counts as synchronised, so less would prove nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use cidlab::{Lab, Machine, UP_LIMIT};

const HOUR: i64 = 3600;

#[test]
fn an_hour_off_after_15_minutes() -> Result<()> {
    let minutes = std::env::var("CID_CLOCK_MINUTES").map_or(Ok(15), |text| text.parse())?;
    let lab = Lab::start("clock-night")?;
    let mut pc = lab.power_on(Machine::bios().clock_offset(HOUR))?;
    pc.wait_up(UP_LIMIT)?;
    for minute in 1..=minutes {
        std::thread::sleep(Duration::from_secs(60));
        let offset = pc.clock_offset()?;
        let own = pc.clock_error()?.context("its clock is measured")?;
        println!("minute {minute}: hardware clock off by {offset} s, its own clock by {own:?} at the most");
        assert!(own <= Duration::from_millis(10), "{own:?} after {minute} min");
        assert!((offset - HOUR).abs() <= 2, "off by {offset} s after {minute} min");
    }
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    drop(pc);
    lab.succeeded();
    Ok(())
}
