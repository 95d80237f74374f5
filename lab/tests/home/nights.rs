//! Ten nights in a row: in the cluster, home, in Windows, switched off; and in the end the PC is what it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cidlab::firmware_variables::{FirmwareVariables, GLOBAL};
use cidlab::{Lab, Machine, Pc, UP_LIMIT, WINDOWS_LIMIT};

fn nights() -> Result<u32> {
    Ok(std::env::var("CID_NIGHTS").map_or(Ok(10), |text| text.parse())?)
}

fn one_night(lab: &Lab, pc: &mut Pc) -> Result<Duration> {
    pc.power_on()?;
    let node = pc.wait_up(UP_LIMIT)?;
    let up = pc.powered_on().elapsed()?;
    lab.release(pc)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    // Undoes the release: the PC may come again.
    lab.ctl(&["wake", &node.name])?;
    Ok(up)
}

fn boot_order(pc: &Pc) -> Result<Vec<u8>> {
    let variables = FirmwareVariables::read(&pc.files().variables())?;
    let order = variables.data("BootOrder", &GLOBAL).context("no BootOrder")?;
    Ok(order.to_owned())
}

fn ten_nights(name: &str, machine: Machine) -> Result<()> {
    let lab = Lab::start(name)?;
    let mut pc = lab.build(machine)?;
    let before = pc.has_variables().then(|| boot_order(&pc)).transpose()?;
    for night in 1..=nights()? {
        let up = one_night(&lab, &mut pc).with_context(|| format!("night {night}"))?;
        println!(
            "{name}: night {night}: up after {:.0} s, home again, disk unchanged",
            up.as_secs_f64()
        );
    }
    let after = pc.has_variables().then(|| boot_order(&pc)).transpose()?;
    ensure!(before == after, "BootOrder was {before:?}, is {after:?}");
    let changed = pc.variable_differences()?;
    let names: Vec<&str> = changed.iter().map(|found| found.key.name.as_str()).collect();
    println!("{name}: variables that differ: {names:?}");
    ensure!(
        changed.iter().all(|found| found.is_allowed()),
        "firmware variables changed: {changed:?}"
    );
    drop(pc);
    lab.succeeded();
    Ok(())
}

#[test]
fn ten_nights_of_a_bios_pc() -> Result<()> {
    ten_nights("nights-bios", Machine::bios())
}

#[test]
fn ten_nights_of_a_secure_boot_pc() -> Result<()> {
    ten_nights("nights-sb", Machine::uefi_secure_boot().settled().tpm())
}
