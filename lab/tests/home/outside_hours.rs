//! A PC whose order is network first, at a time when the head has no use for it: how long it takes to its Windows, beside the
//! same PC with PXE switched off and beside one that nobody answers; and that no byte of ours is on the way.

use std::time::Duration;

use anyhow::{Result, ensure};
use cidlab::{First, Lab, Machine, Pc, UP_LIMIT};

/// Files that a head serves travel to these ports.
const FILE_REQUESTS: &str = "udp dst port 69 or tcp dst port 80";
const BOOT_REQUESTS: &str = "udp dst port 67";

/// A lab whose head boots nobody now.
fn closed(name: &str) -> Result<Lab> {
    Lab::start_with(name, |options| options.on_a_school_day((12, 0, 0)))
}

fn time_to_windows(pc: &mut Pc) -> Result<Duration> {
    pc.power_on()?;
    let windows = pc.wait_windows(UP_LIMIT)?;
    let time = windows.duration_since(pc.powered_on())?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    Ok(time)
}

fn reaches_its_windows(name: &str, machine: Machine) -> Result<()> {
    let mut lab = closed(name)?;
    let off = time_to_windows(&mut lab.build(machine.clone().first(First::Disk))?)?;
    let answered = time_to_windows(&mut lab.build(machine.clone())?)?;
    let files = lab.frames(FILE_REQUESTS)?;
    ensure!(files.is_empty(), "a file of ours was asked for: {files}");
    // The control: the capture sees what was asked.
    ensure!(!lab.frames(BOOT_REQUESTS)?.is_empty(), "nothing was captured");
    lab.head.kill()?;
    let silence = time_to_windows(&mut lab.build(machine)?)?;
    println!(
        "{name}: power-on to Windows: PXE off {:.1} s, our answer {:.1} s, no server {:.1} s: added by us {:.1} s",
        off.as_secs_f64(),
        answered.as_secs_f64(),
        silence.as_secs_f64(),
        answered.as_secs_f64() - off.as_secs_f64()
    );
    lab.succeeded();
    Ok(())
}

#[test]
fn bios_outside_hours() -> Result<()> {
    reaches_its_windows("closed-bios", Machine::bios())
}

#[test]
fn uefi_outside_hours() -> Result<()> {
    reaches_its_windows("closed-uefi", Machine::uefi())
}
