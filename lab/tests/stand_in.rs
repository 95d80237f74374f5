//! The room itself, without a head: firmware finds no server and boots the stand-in Windows from each kind of disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cidlab::run::run;
use cidlab::windows::Windows;
use cidlab::{Disk, First, Machine, Pc, Room};

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

/// A sleeping PC hears what is on its cable, and only its own magic packet wakes it.
#[test]
fn a_sleeping_pc_wakes_for_its_own_packet() -> Result<()> {
    let room = Arc::new(Room::start("sleeps")?);
    let windows = Windows::build(&room.dir().join("windows"))?;
    let mut pc = Pc::build(&room, &windows, Machine::bios().first(First::Disk), 1)?;
    pc.sleep()?;
    let call = |last: u8| {
        let packet = room.dir().join("magic");
        let mac = [0x52, 0x54, 0x00, 0xc1, 0x00, last];
        std::fs::write(&packet, [vec![0xff; 6], mac.repeat(16)].concat())?;
        let mut socat = room.command("socat");
        socat.args(["-u", &format!("FILE:{}", packet.display())]);
        run(socat.arg("UDP-DATAGRAM:10.77.0.255:9,broadcast"))
    };
    call(2)?;
    assert!(
        pc.wait_woken(Duration::from_secs(3)).is_err(),
        "woken by another PC's packet"
    );
    call(1)?;
    pc.wait_woken(Duration::from_secs(10))?;
    pc.wait_windows(Duration::from_secs(60))?;
    drop(pc);
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
