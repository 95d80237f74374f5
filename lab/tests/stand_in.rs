//! The room itself, without a head: firmware finds no server and boots the stand-in Windows from each kind of disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cidlab::windows::Windows;
use cidlab::{Disk, Machine, Pc, Room};

fn boots_its_windows(name: &str, machine: Machine) -> Result<()> {
    let room = Arc::new(Room::start(name)?);
    let windows = Windows::build(&room.dir().join("windows"))?;
    let mut pc = Pc::build(&room, &windows, machine, 1)?;
    pc.power_on()?;
    pc.wait_windows(Duration::from_secs(400))?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    // No software of ours ran: this is what firmware rewrites whoever is booted.
    let changed = pc.variable_differences()?;
    println!(
        "{name}: {:?}",
        changed.iter().map(|found| &found.key.name).collect::<Vec<_>>()
    );
    assert!(
        changed.iter().all(|found| found.is_allowed()),
        "firmware itself changed {changed:?}"
    );
    room.succeeded();
    Ok(())
}

#[test]
fn bios_sata() -> Result<()> {
    boots_its_windows("bios-sata", Machine::bios())
}

#[test]
fn uefi_nvme() -> Result<()> {
    boots_its_windows("uefi-nvme", Machine::uefi().settled())
}

#[test]
fn secure_boot_usb() -> Result<()> {
    boots_its_windows("sb-usb", Machine::uefi_secure_boot().disk(Disk::Usb).settled())
}
