//! Hardware that comes and hangs: a USB network adapter plugged in while the node works, the hardware watchdog.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cidlab::Watchdog;
use cidlab::image::{self, Fault};
use cidlab::{Cable, HeadOptions, Lab, Machine, Room, UP_LIMIT, WINDOWS_LIMIT};

#[test]
fn a_usb_adapter_is_plugged_in_carries_the_node_and_is_pulled_out_again() -> Result<()> {
    let lab = Lab::start("usb-nic")?;
    let mut pc = lab.power_on(Machine::bios().usb_keyboard())?;
    pc.wait_up(UP_LIMIT)?;
    let mac = pc.plug_usb_nic()?;
    pc.cable(0, Cable::Out)?;
    let over_usb = |wanted: bool| {
        let mac = mac.clone();
        move |pc: &cidlab::Pc| {
            let node = pc.node()?.context("the head forgot it")?;
            let links = node.hardware.iter().flat_map(|hardware| &hardware.links);
            let used = links.filter(|link| link.in_use).any(|link| link.mac == mac);
            Ok(used == wanted && node.load1.is_some())
        }
    };
    pc.wait("life over the adapter", UP_LIMIT, over_usb(true))?;
    pc.cable(0, Cable::In)?;
    pc.unplug_usb_nic()?;
    pc.wait("life over the first card again", UP_LIMIT, over_usb(false))?;
    lab.release(&pc)?;
    lab.back_in_windows(pc, WINDOWS_LIMIT)
}

/// The node comes up, hangs as `said` on its console, and is reset by the watchdog within `bound` of that.
fn the_watchdog_resets(name: &str, fault: Fault, said: &str, watchdog: Option<Watchdog>) -> Result<Duration> {
    let room = Room::start(name)?;
    let (images, image) = image::build_with(fault, room.dir())?;
    let lab = Lab::start_in(room, &HeadOptions::new(images, &image))?;
    let machine = Machine::bios();
    let machine = watchdog.map_or(machine.clone(), |watchdog| machine.watchdog(watchdog));
    let mut pc = lab.power_on(machine)?;
    pc.wait_up(UP_LIMIT)?;
    pc.wait_serial(said, 0, UP_LIMIT)?;
    let now = SystemTime::now();
    // It was fed at the moment before, at the most: 60 s.
    let took = pc.wait_reset(now, Duration::from_secs(60 + 15));
    if took.is_ok() {
        pc.wait_windows(WINDOWS_LIMIT)?;
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    drop(pc);
    lab.succeeded();
    took
}

#[test]
fn the_watchdog_resets_a_pc_whose_pid_1_hangs_and_without_one_it_stays() -> Result<()> {
    let said = "lab: PID 1 is frozen";
    let took = the_watchdog_resets("watchdog-init", Fault::InitHangs, said, Some(Watchdog::I6300esb))?;
    println!("PID 1 hung: reset after {:.0} s", took.as_secs_f32());
    // The control: what the table says of PCs without a watchdog.
    let without = the_watchdog_resets("watchdog-none", Fault::InitHangs, said, None);
    ensure!(
        without.is_err(),
        "it was reset without a watchdog: this test shows nothing"
    );
    Ok(())
}

#[test]
fn the_watchdog_resets_a_pc_whose_kernel_stands_still() -> Result<()> {
    let said = "lab: the kernel stands still";
    let took = the_watchdog_resets(
        "watchdog-kernel",
        Fault::KernelHangs,
        said,
        Some(Watchdog::I6300esb),
    )?;
    println!("kernel hung: reset after {:.0} s", took.as_secs_f32());
    Ok(())
}
