//! The control of Secure Boot: the same firmware, given a loader that nobody signed, does not start it.

use std::sync::Arc;

use anyhow::Result;
use cidlab::lab::images_dir;
use cidlab::windows::Windows;
use cidlab::{Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT};

/// A head of a stranger hands out a shim in which one byte is not Microsoft's.
fn boots_a_spoilt_shim(name: &str, machine: Machine) -> Result<(Arc<Room>, Pc)> {
    let room = Arc::new(Room::start(name)?);
    let windows = Windows::build(&room.dir().join("windows"))?;
    let files = room.dir().join("tftp");
    std::fs::create_dir_all(&files)?;
    let loaders = images_dir().join("minimal/efi");
    let mut shim = std::fs::read(loaders.join("shimx64.efi"))?;
    // Text of the DOS stub: covered by the signature, never run.
    shim[0x50] ^= 1;
    std::fs::write(files.join("shimx64.efi"), shim)?;
    std::fs::copy(loaders.join("grubx64.efi"), files.join("grubx64.efi"))?;
    let server = room
        .command("dnsmasq")
        .args([
            "--no-daemon",
            "--port=0",
            "--interface=head0",
            "--leasefile-ro",
            "--user=root",
        ])
        .args([
            "--dhcp-range=10.77.0.100,10.77.0.200",
            "--dhcp-boot=shimx64.efi",
            "--enable-tftp",
        ])
        .arg(format!("--tftp-root={}", files.display()))
        .stderr(std::fs::File::create(room.dir().join("dnsmasq.log"))?)
        .spawn()?;
    // It ends with the room.
    drop(server);
    let mut pc = Pc::build(&room, &windows, machine, 1)?;
    pc.power_on()?;
    Ok((room, pc))
}

#[test]
fn secure_boot_refuses_a_loader_that_nobody_signed() -> Result<()> {
    let (room, mut pc) = boots_a_spoilt_shim("refused", Machine::uefi_secure_boot())?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    assert!(pc.serial().contains("Access Denied"), "{}", pc.serial());
    assert!(!pc.serial().contains("grub>"), "GRUB was started");
    drop(pc);
    room.succeeded();
    Ok(())
}

/// And without Secure Boot the very same file starts: it was refused for its signature.
#[test]
fn without_secure_boot_the_same_loader_starts() -> Result<()> {
    let (room, mut pc) = boots_a_spoilt_shim("accepted", Machine::uefi())?;
    pc.wait_serial("grub>", 0, UP_LIMIT)?;
    assert_eq!(pc.windows_boots(), 0);
    drop(pc);
    room.succeeded();
    Ok(())
}
