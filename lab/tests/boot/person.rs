//! The person at the PC: what the screen says is what is meant, and any key brings Windows back in time.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::{HeadOptions, Lab, Machine, Pc, UP_LIMIT};

use crate::ends_in_windows;

/// From a key to the firmware's reset, without jobs.
const HAND_BACK: Duration = Duration::from_secs(10);

/// A PC that is `up` in a room whose head says who it is.
fn lab_with_a_screen(name: &str, machine: Machine) -> Result<(Lab, Pc)> {
    let lab = Lab::start_with(name, |options| HeadOptions {
        more: "site = \"Computing centre, room 12\"".to_owned(),
        ..options
    })?;
    let mut pc = lab.power_on(machine)?;
    pc.wait_state(NodeState::Booting, UP_LIMIT)?;
    // Digits with care: the kernel's fonts strike the zero through and Tesseract takes it for 8 or 6; of "pc7" it makes "pc?".
    lab.ctl(&["adopt", &pc.mac(), "--group", "lab", "--name", "desk-12"])?;
    pc.wait_up(UP_LIMIT)?;
    Ok((lab, pc))
}

/// What PID 1 means a person to read while the node is up; nothing else may be on the screen.
const MEANT: [&str; 5] = [
    "PRESS ANY KEY FOR WINDOWS",
    "This PC computes for Computing centre, room 12.",
    "Now: ready for jobs",
    "Name: desk-12, group lab",
    "Its disk is not touched.",
];

/// The whole screen, read once PID 1 has drawn it (a moment after the head knows), against what is meant.
fn says_what_is_meant(pc: &mut Pc) -> Result<()> {
    let read = pc.wait_screen("ready for jobs", Duration::from_secs(60))?;
    assert_eq!(read, MEANT, "read off the screen (left), meant (right)");
    Ok(())
}

/// A key, and the reset within its bound.
fn key_to_reset(pc: &mut Pc, key: &str) -> Result<()> {
    let now = SystemTime::now();
    pc.press(key)?;
    let took = pc.wait_reset(now, HAND_BACK)?;
    println!(
        "{}: {key} to reset {:.1} s",
        pc.machine().describe(),
        took.as_secs_f32()
    );
    Ok(())
}

#[test]
fn a_bios_text_screen_says_what_is_meant_and_a_ps2_key_brings_windows_back() -> Result<()> {
    let (lab, mut pc) = lab_with_a_screen("person-bios", Machine::bios().screen())?;
    says_what_is_meant(&mut pc)?;
    key_to_reset(&mut pc, "spc")?;
    ends_in_windows(lab, pc)
}

#[test]
fn a_uefi_framebuffer_says_what_is_meant_and_a_usb_key_brings_windows_back() -> Result<()> {
    let (lab, mut pc) = lab_with_a_screen("person-uefi", Machine::uefi().usb_keyboard().screen())?;
    says_what_is_meant(&mut pc)?;
    key_to_reset(&mut pc, "spc")?;
    ends_in_windows(lab, pc)
}

#[test]
fn ctrl_alt_del_leads_home_and_a_mouse_button_does_not() -> Result<()> {
    let (lab, mut pc) = lab_with_a_screen("person-cad", Machine::bios())?;
    let now = SystemTime::now();
    pc.click()?;
    ensure!(
        pc.wait_reset(now, HAND_BACK).is_err(),
        "a bumped mouse took the node away"
    );
    key_to_reset(&mut pc, "ctrl-alt-delete")?;
    ends_in_windows(lab, pc)
}
