//! What CI has no time for: every NIC model QEMU has, and the smallest memory that works.

use anyhow::{Context, Result};
use cidlab::{Cable, Lab, Machine, UP_LIMIT, WINDOWS_LIMIT};

/// One room, one head; PCs come one after the other and are taken away again.
fn each_joins(name: &str, machines: impl Iterator<Item = (String, Machine)>) -> Result<()> {
    let lab = Lab::start(name)?;
    for (what, machine) in machines {
        let mut pc = lab.power_on(machine)?;
        let node = pc.wait_up(UP_LIMIT).with_context(|| what.clone())?;
        println!("{what}: up as {}", node.name);
        lab.release(&pc)?;
        pc.wait_windows(WINDOWS_LIMIT).with_context(|| what.clone())?;
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    lab.succeeded();
    Ok(())
}

#[test]
fn bios_boots_from_every_nic_that_has_a_rom() -> Result<()> {
    let models = [
        "e1000",
        "e1000e",
        "ne2k_pci",
        "pcnet",
        "rtl8139",
        "virtio-net-pci",
        "vmxnet3",
    ];
    each_joins(
        "matrix-bios",
        models
            .into_iter()
            .map(|model| (model.to_owned(), Machine::bios().nic(model))),
    )
}

#[test]
fn uefi_carries_on_over_every_other_nic() -> Result<()> {
    let lab = Lab::start("matrix-uefi")?;
    for model in [
        "e1000", "e1000e", "i82559er", "ne2k_pci", "pcnet", "rtl8139", "tulip", "vmxnet3",
    ] {
        let mut pc = lab.power_on(Machine::uefi().another_nic(model))?;
        pc.wait_serial("Linux version", 0, UP_LIMIT).context(model)?;
        pc.cable(0, Cable::Out)?;
        pc.wait_up(UP_LIMIT).context(model)?;
        println!("{model}: up");
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    lab.succeeded();
    Ok(())
}

/// A figure for the documents: the smallest memory with which each firmware's road leads to `up`.
#[test]
fn smallest_memory() -> Result<()> {
    let lab = Lab::start("memory")?;
    for (what, machine) in [("BIOS", Machine::bios()), ("UEFI", Machine::uefi())] {
        let mut smallest = None;
        for mib in [448, 384, 320, 256, 192, 160, 128] {
            let mut pc = lab.power_on(machine.clone().memory(mib))?;
            let came_up = pc.wait_up(UP_LIMIT / 2).is_ok();
            pc.power_off()?;
            if !came_up {
                break;
            }
            smallest = Some(mib);
        }
        println!(
            "smallest memory that works, {what}: {} MiB",
            smallest.context("448 MiB were too little")?
        );
    }
    lab.succeeded();
    Ok(())
}
