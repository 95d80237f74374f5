//! What BitLocker sees: after a night in the cluster the TPM's registers 0, 2, 4 and 7 are those of a PC that never met us.

use std::fs;

use anyhow::Result;
use cidlab::lab::images_dir;
use cidlab::{First, HeadOptions, Lab, Machine, Pcrs, Room, UP_LIMIT, WINDOWS_LIMIT};

use crate::gone;

/// Loader script of an administrator who thinks that starting Windows from GRUB is as good.
const CHAIN_LOAD: &str = "search --no-floppy --file --set=root /EFI/Microsoft/Boot/bootmgfw.efi\n\
    chainloader /EFI/Microsoft/Boot/bootmgfw.efi\nboot\n";

fn machine() -> Machine {
    Machine::uefi_secure_boot().tpm()
}

/// What another PC of the same make measures that never met us: nobody answers its firmware.
fn never_enrolled(lab: &mut Lab, machine: Machine) -> Result<Pcrs> {
    let _ = lab.head.kill();
    let mut pc = lab.power_on(machine)?;
    pc.wait_windows(UP_LIMIT)?;
    pc.power_off()?;
    pc.pcrs()
}

#[test]
fn a_night_leaves_no_trace_in_the_tpm() -> Result<()> {
    let mut lab = Lab::start("tpm-night")?;
    let mut pc = lab.power_on(machine())?;
    pc.wait_up(UP_LIMIT)?;
    lab.release(&pc)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    let morning = pc.pcrs()?;
    pc.power_off()?;
    let never = never_enrolled(&mut lab, machine())?;
    println!("never enrolled  {never}\nmorning after   {morning}");
    assert_eq!(morning.differences(&never), [0_u8; 0]);
    gone(lab, pc)
}

/// The control: the same registers notice a morning that went through our loader.
#[test]
fn a_chain_loaded_morning_is_noticed() -> Result<()> {
    let room = Room::start("tpm-chain")?;
    let templates = room.dir().join("state/templates");
    fs::create_dir_all(&templates)?;
    fs::write(templates.join("grub.cfg"), CHAIN_LOAD)?;
    let mut lab = Lab::start_in(room, &HeadOptions::new(images_dir(), "minimal"))?;
    let mut pc = lab.power_on(machine())?;
    pc.wait_windows(UP_LIMIT)?;
    let chained = pc.pcrs()?;
    pc.power_off()?;
    let never = never_enrolled(&mut lab, machine())?;
    println!("never enrolled  {never}\nchain-loaded    {chained}");
    assert!(
        chained.differences(&never).contains(&4),
        "PCR 4 is blind to our loader"
    );
    pc.power_off()?;
    gone(lab, pc)
}

/// What docs/power.md says of `way_home = "boot-next"`: the boot behind it is measured in register 4, and not in those that BitLocker uses
/// where Secure Boot is on.
#[test]
fn boot_next_is_measured() -> Result<()> {
    let options = HeadOptions::new(images_dir(), "minimal").with_key("way_home = \"boot-next\"");
    let mut lab = Lab::start_in(Room::start("tpm-next")?, &options)?;
    let mut pc = lab.power_on(machine())?;
    pc.wait_up(UP_LIMIT)?;
    lab.release(&pc)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    let next = pc.pcrs()?;
    pc.power_off()?;
    let never = never_enrolled(&mut lab, machine())?;
    println!("never enrolled  {never}\nby BootNext     {next}");
    assert_eq!(next.differences(&never), [4]);
    gone(lab, pc)
}

/// For the documents: what putting the network before the disk in firmware setup changes by itself, without us.
#[test]
fn the_boot_order_alone_is_measured() -> Result<()> {
    let mut lab = Lab::start("tpm-order")?;
    let network_first = never_enrolled(&mut lab, machine())?;
    let disk_first = never_enrolled(&mut lab, machine().first(First::Disk))?;
    println!("network first  {network_first}\ndisk first     {disk_first}");
    let differ = network_first.differences(&disk_first);
    println!("registers that differ: {differ:?}");
    // The registers that BitLocker uses where Secure Boot is on.
    assert!(!differ.contains(&7) && !differ.contains(&0), "{differ:?}");
    lab.succeeded();
    Ok(())
}
