//! What a loader does when the head cannot give it what it needs: every such boot ends in Windows by itself.

use std::fs;

use anyhow::{Context, Result};
use cid_protocol::api::NodeState;
use cidlab::lab::images_dir;
use cidlab::{HeadOptions, Lab, Machine, Room, UP_LIMIT};

use crate::ends_in_windows;

const GRUB_TEMPLATE: &str = include_str!("../../../templates/grub.cfg");
const IPXE_TEMPLATE: &str = include_str!("../../../templates/boot.ipxe");

/// A lab whose administrator has put a template of their own in place.
fn lab_with_template(name: &str, file: &str, text: &str) -> Result<Lab> {
    let room = Room::start(name)?;
    let templates = room.dir().join("state/templates");
    fs::create_dir_all(&templates)?;
    fs::write(templates.join(file), text)?;
    Lab::start_in(room, &HeadOptions::new(images_dir(), "minimal"))
}

/// GRUB without a configuration stays at its prompt for ever, so no PC may come as far as GRUB then.
#[test]
fn there_is_no_grub_configuration() -> Result<()> {
    let lab = lab_with_template(
        "no-grub-cfg",
        "grub.cfg",
        "linux {{ a_name_that_is_not_there }}\n",
    )?;
    let mut pc = lab.power_on(Machine::uefi_secure_boot())?;
    let node = pc.wait_state(NodeState::Home, UP_LIMIT)?;
    let decision = node.last_decision.context("nothing was decided")?;
    assert!(
        decision.contains("grub.cfg") && decision.contains("a_name_that_is_not_there"),
        "{decision}"
    );
    let events = lab.head.control().events()?;
    assert!(
        !events.iter().any(|event| event.text.contains("loader script")),
        "a script was handed out"
    );
    ends_in_windows(lab, pc)
}

/// The script cannot fetch the kernel: it reboots; the second failure in a row sends the PC to its own disk.
fn a_script_that_fails_reboots(name: &str, file: &str, template: &str, machine: Machine) -> Result<()> {
    let lab = lab_with_template(
        name,
        file,
        &template.replace("/vmlinuz", "/there-is-no-such-kernel"),
    )?;
    let mut pc = lab.power_on(machine)?;
    let node = pc.wait_state(NodeState::Home, 2 * UP_LIMIT)?;
    let decision = node.last_decision.context("nothing was decided")?;
    assert!(decision.contains("cidctl wake"), "{decision}");
    ends_in_windows(lab, pc)
}

#[test]
fn grub_cannot_fetch_the_kernel() -> Result<()> {
    a_script_that_fails_reboots("grub-no-kernel", "grub.cfg", GRUB_TEMPLATE, Machine::uefi())
}

#[test]
fn ipxe_cannot_fetch_the_kernel() -> Result<()> {
    a_script_that_fails_reboots("ipxe-no-kernel", "boot.ipxe", IPXE_TEMPLATE, Machine::bios())
}
