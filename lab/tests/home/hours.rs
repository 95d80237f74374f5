//! A school day by the head's clock, which a lab may set; the machines are real and take the time they take.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT};

const MINUTE: Duration = Duration::from_secs(60);

/// The head's clock jumps to this time of a Wednesday; returns when that was by ours.
fn jump(lab: &mut Lab, options: &HeadOptions, time: (u64, u64, u64)) -> Result<SystemTime> {
    lab.head.kill()?;
    let now = SystemTime::now();
    lab.head.configure(&options.clone().on_a_school_day(time))?;
    lab.head.up()?;
    Ok(now)
}

fn options() -> HeadOptions {
    HeadOptions::new(images_dir(), "minimal")
}

/// The head's clock says twenty seconds to eight in the evening: the PC, which is off, is woken and comes.
fn evening(name: &str, lab: &mut Lab, pc: &mut Pc, options: &HeadOptions) -> Result<()> {
    pc.sleep()?;
    let evening = jump(lab, options, (19, 59, 40))?;
    pc.wait_woken(MINUTE)?;
    let woken = pc.powered_on().duration_since(evening)?;
    pc.wait_up(UP_LIMIT)?;
    println!(
        "{name}: woken {:.1} s after 19:59:40, up {:.1} s later",
        woken.as_secs_f64(),
        pc.powered_on().elapsed()?.as_secs_f64()
    );
    // A lab's clock is set to the second.
    ensure!(woken >= Duration::from_secs(19), "it was woken before 20:00");
    let packets = lab.frames("udp dst port 9")?;
    for to in ["255.255.255.255.9", "10.77.0.255.9"] {
        ensure!(packets.contains(to), "no magic packet to {to}: {packets}");
    }
    pc.power_off()
}

fn a_school_day(name: &str, machine: Machine) -> Result<()> {
    let options = options();
    let mut lab = Lab::start_in(Room::start(name)?, &options.clone().on_a_school_day((6, 10, 0)))?;
    let mut pc = lab.power_on(machine)?;
    pc.wait_up(UP_LIMIT)?;
    let morning = jump(&mut lab, &options, (6, 29, 0))?;
    let windows = pc.wait_windows(2 * MINUTE)?.duration_since(morning)?;
    println!("{name}: in Windows {:.1} s after 06:29", windows.as_secs_f64());
    ensure!(windows >= MINUTE, "it was sent home before 06:30");
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    evening(name, &mut lab, &mut pc, &options)?;
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

/// `at_close = "power-off"`: the PC is off at half past six, and its card is armed where it can be.
fn off_for_the_day(name: &str, machine: Machine, card: &str) -> Result<()> {
    let options = options().with_key("at_close = \"power-off\"");
    let mut lab = Lab::start_in(Room::start(name)?, &options.clone().on_a_school_day((6, 10, 0)))?;
    let mut pc = lab.power_on(machine)?;
    let node = pc.wait_up(UP_LIMIT)?;
    let links = node.hardware.context("it reports its hardware")?.links;
    ensure!(links.iter().all(|link| link.wake_on_lan == card), "{links:?}");
    let morning = jump(&mut lab, &options, (6, 29, 40))?;
    pc.wait_off(MINUTE)?;
    println!(
        "{name}: off {:.1} s after 06:29:40",
        morning.elapsed()?.as_secs_f64()
    );
    ensure!(pc.windows_boots() == 0, "it went through Windows");
    pc.assert_disk_untouched()?;
    let deadline = Instant::now() + MINUTE;
    while pc.node()?.is_none_or(|node| node.state != NodeState::Home) {
        ensure!(Instant::now() < deadline, "the head waits for a PC that is off");
        std::thread::sleep(Duration::from_secs(1));
    }
    evening(name, &mut lab, &mut pc, &options)?;
    super::gone(lab, pc)
}

#[test]
fn a_bios_pc_is_switched_off_at_closing() -> Result<()> {
    off_for_the_day("off-bios", Machine::bios().nic("rtl8139"), "armed")
}

#[test]
fn a_uefi_pc_is_switched_off_at_closing() -> Result<()> {
    off_for_the_day("off-uefi", Machine::uefi(), "not supported")
}
