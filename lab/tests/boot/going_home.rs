//! The going-home table (DESIGN section 5), row by row: each reason ends in the PC's own Windows by itself, and the
//! reset comes within its bound.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use cid_protocol::api::NodeState;
use cidlab::image::{self, Fault};
use cidlab::{Cable, HeadOptions, Lab, Machine, Pc, Room, UP_LIMIT};

use crate::ends_in_windows;

const SECOND: Duration = Duration::from_secs(1);

/// A room whose head is given up by nodes after 30 s, and a PC that is `up` in it.
fn lab_with_a_node(name: &str, machine: Machine) -> Result<(Lab, Pc)> {
    let lab = Lab::start_with(name, |options| HeadOptions {
        bail_out: "30s".to_owned(),
        kernel_args: format!("{} sysrq_always_enabled", options.kernel_args),
        ..options
    })?;
    let mut pc = lab.power_on(machine)?;
    pc.wait_up(UP_LIMIT)?;
    Ok((lab, pc))
}

/// The same with an image that has a fault.
fn lab_with_a_faulty_node(name: &str, fault: Fault) -> Result<(Lab, Pc)> {
    let room = Room::start(name)?;
    let (images, image) = image::build_with(fault, room.dir())?;
    let lab = Lab::start_in(room, &HeadOptions::new(images, &image))?;
    let mut pc = lab.power_on(Machine::bios())?;
    pc.wait_up(UP_LIMIT)?;
    Ok((lab, pc))
}

#[test]
fn released() -> Result<()> {
    let (lab, mut pc) = lab_with_a_node("released", Machine::bios())?;
    let now = SystemTime::now();
    lab.release(&pc)?;
    pc.wait_reset(now, 60 * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn a_key_was_pressed() -> Result<()> {
    let (lab, mut pc) = lab_with_a_node("key", Machine::bios())?;
    let now = SystemTime::now();
    pc.press("spc")?;
    pc.wait_reset(now, 10 * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_power_button_was_pressed() -> Result<()> {
    let (lab, mut pc) = lab_with_a_node("button", Machine::bios())?;
    let now = SystemTime::now();
    pc.power_button()?;
    pc.wait_reset(now, 10 * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_head_never_comes_back() -> Result<()> {
    let (mut lab, mut pc) = lab_with_a_node("head-gone", Machine::bios())?;
    let now = SystemTime::now();
    lab.head.lose()?;
    pc.wait_reset(now, (30 + 60) * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_network_was_cut() -> Result<()> {
    let (lab, mut pc) = lab_with_a_node("cable", Machine::bios())?;
    let now = SystemTime::now();
    pc.cable(0, Cable::Out)?;
    pc.wait_reset(now, (30 + 60) * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_kernel_panicked() -> Result<()> {
    let (lab, mut pc) = lab_with_a_node("panic", Machine::bios())?;
    let now = SystemTime::now();
    pc.sysrq('c')?;
    pc.wait_reset(now, 60 * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_agent_keeps_dying() -> Result<()> {
    let (lab, mut pc) = lab_with_a_faulty_node("agent-dies", Fault::AgentDies)?;
    // Four lives of 15 s, three pauses, then 2 minutes at the most.
    pc.wait_reset(SystemTime::now(), (4 * 15 + 60 + 120) * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_agent_stands_still() -> Result<()> {
    let (lab, mut pc) = lab_with_a_faulty_node("agent-stops", Fault::AgentStops)?;
    // Four lives of 15 s, each noticed after 20 s of silence, then 2 minutes at the most.
    pc.wait_reset(SystemTime::now(), (4 * (15 + 20) + 60 + 120) * SECOND)?;
    ends_in_windows(lab, pc)
}

#[test]
fn the_initrd_is_truncated() -> Result<()> {
    let room = Room::start("truncated")?;
    let (images, image) = image::truncated(&cidlab::lab::images_dir().join("minimal"), room.dir())?;
    let lab = Lab::start_in(room, &HeadOptions::new(images, &image))?;
    let mut pc = lab.power_on(Machine::bios())?;
    // Two boots fail; the third goes to the disk.
    pc.wait_windows(3 * UP_LIMIT)?;
    drop(pc);
    lab.succeeded();
    Ok(())
}

/// GRUB has its script and cannot fetch the kernel: the script's failure branch resets, and nobody answers firmware.
#[test]
fn the_head_dies_while_the_loader_runs() -> Result<()> {
    let mut lab = Lab::start("loader")?;
    let mut pc = lab.power_on(Machine::uefi())?;
    pc.wait_state(NodeState::Booting, UP_LIMIT)?;
    lab.head.lose()?;
    // GRUB knocks for 46 s, twice, then firmware for 100 s.
    pc.wait_windows(2 * UP_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    drop(pc);
    lab.succeeded();
    Ok(())
}
