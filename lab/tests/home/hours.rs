//! A school day by the head's clock, which a lab may set; the machines are real and take the time they take.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Room, UP_LIMIT};

const MINUTE: Duration = Duration::from_secs(60);

/// The head's clock jumps to this time of a Wednesday.
fn jump(lab: &mut Lab, time: (u64, u64, u64)) -> Result<SystemTime> {
    lab.head.kill()?;
    lab.head.configure(&options().on_a_school_day(time))?;
    lab.head.up()?;
    Ok(SystemTime::now())
}

fn options() -> HeadOptions {
    HeadOptions::new(images_dir(), "minimal")
}

fn a_school_day(name: &str, machine: Machine) -> Result<()> {
    let options = options().on_a_school_day((6, 10, 0));
    let mut lab = Lab::start_in(Room::start(name)?, &options)?;
    let mut pc = lab.power_on(machine)?;
    pc.wait_up(UP_LIMIT)?;
    let morning = jump(&mut lab, (6, 29, 0))?;
    let windows = pc.wait_windows(2 * MINUTE)?.duration_since(morning)?;
    println!("{name}: in Windows {:.1} s after 06:29", windows.as_secs_f64());
    ensure!(windows >= MINUTE, "it was sent home before 06:30");
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    pc.sleep()?;
    jump(&mut lab, (19, 59, 40))?;
    pc.wait_woken(MINUTE)?;
    pc.wait_up(UP_LIMIT)?;
    pc.power_off()?;
    super::gone(lab, pc)
}

#[test]
fn a_school_day_of_a_bios_pc() -> Result<()> {
    a_school_day("day-bios", Machine::bios())
}

#[test]
fn a_school_day_of_a_uefi_pc() -> Result<()> {
    a_school_day("day-uefi", Machine::uefi())
}
