//! Each NIC model carries a PC from power-on to `up`, and home again when it is released.

use anyhow::{Context, Result};
use cidlab::{Cable, Lab, Machine, UP_LIMIT};

use crate::ends_in_windows;

fn joins_and_goes_home(name: &str, machine: Machine) -> Result<()> {
    let lab = Lab::start(name)?;
    let mut pc = lab.power_on(machine)?;
    pc.wait_up(UP_LIMIT)?;
    lab.release(&pc)?;
    ends_in_windows(lab, pc)
}

/// OVMF drives no other NIC than virtio, so it boots from one, which loses its cable when the kernel starts.
fn carries_on_over(name: &str, model: &str) -> Result<()> {
    let lab = Lab::start(name)?;
    let mut pc = lab.power_on(Machine::uefi().another_nic(model))?;
    pc.wait_serial("Linux version", 0, UP_LIMIT)?;
    pc.cable(0, Cable::Out)?;
    let node = pc.wait_up(UP_LIMIT)?;
    let links = node.hardware.context("no hardware reported")?.links;
    let used: Vec<&str> = links
        .iter()
        .filter(|link| link.in_use)
        .map(|link| link.mac.as_str())
        .collect();
    assert_eq!(used, [pc.mac_of(1)]);
    lab.release(&pc)?;
    ends_in_windows(lab, pc)
}

#[test]
fn bios_e1000() -> Result<()> {
    joins_and_goes_home("bios-e1000", Machine::bios().nic("e1000"))
}

#[test]
fn bios_virtio() -> Result<()> {
    joins_and_goes_home("bios-virtio", Machine::bios().nic("virtio-net-pci"))
}

#[test]
fn bios_rtl8139() -> Result<()> {
    joins_and_goes_home("bios-rtl8139", Machine::bios().nic("rtl8139"))
}

#[test]
fn uefi_virtio() -> Result<()> {
    joins_and_goes_home("uefi-virtio", Machine::uefi())
}

#[test]
fn secure_boot_virtio() -> Result<()> {
    joins_and_goes_home("sb-virtio", Machine::uefi_secure_boot().settled())
}

#[test]
fn uefi_then_e1000e() -> Result<()> {
    carries_on_over("uefi-e1000e", "e1000e")
}

#[test]
fn uefi_then_rtl8139() -> Result<()> {
    carries_on_over("uefi-rtl8139", "rtl8139")
}
