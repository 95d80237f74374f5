//! Sticks in their bad hours: left in the PC, without a head, behind the wrong card, with an image of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use cid_protocol::api::NodeState;
use cidlab::lab::images_dir;
use cidlab::run::run;
use cidlab::windows::Windows;
use cidlab::{Adoption, Campus, First, HeadOptions, Lab, Lead, Machine, Pc, Room, UP_LIMIT, WINDOWS_LIMIT};

use crate::table::Door;

/// A round over every card and the countdown, four times over.
const ROUND_LIMIT: Duration = Duration::from_secs(900);
const REMOVAL: &str = "Remove the USB stick";

/// A stick as `cidbuild usb` makes it with these arguments.
pub(crate) fn make(room: &Room, name: &str, more: &[&str]) -> Result<PathBuf> {
    let path = room.dir().join(name);
    if !path.exists() {
        let mut cidbuild = std::process::Command::new(cidlab::head::program("cidbuild")?);
        run(cidbuild
            .args(["usb", "minimal", "--quiet", "--head", cidlab::room::HEAD_ADDRESS])
            .args(more)
            .arg("--images")
            .arg(images_dir())
            .arg("--out")
            .arg(&path))?;
    }
    Ok(path)
}

/// Somebody reads the screen, pulls the stick and presses the key.
pub(crate) fn remove(pc: &mut Pc, from: usize) -> Result<()> {
    pc.wait_serial(REMOVAL, from, ROUND_LIMIT)?;
    pc.pull_stick()?;
    // It may have been pressed before the loader listened.
    pc.wait_serial("60", from, UP_LIMIT)?;
    pc.press("esc")
}

/// Nobody pulls it: the PC asks again and again, says so each time, and nothing else happens to it; pulled, Windows comes.
pub(crate) fn is_left_in(name: &str, door: Door) -> Result<()> {
    let lab = Lab::start_with(name, |options| options.on_a_school_day((12, 0, 0)))?;
    let mut pc = lab.power_on(door.machine(lab.room())?)?;
    let mut from = 0;
    for _ in 0..2 {
        pc.wait_serial("does not compute now", from, ROUND_LIMIT)?;
        let said = SystemTime::now();
        let after = pc.wait_reset(said, ROUND_LIMIT)?;
        println!("{name}: the text stands for {:.0} s", after.as_secs_f64());
        ensure!(after > Duration::from_secs(50), "too short to read: {after:?}");
        from = pc.serial().len();
    }
    ensure!(!pc.in_windows(), "Windows came with the stick in");
    remove(&mut pc, from)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    ensure!(!lab.fetched(&pc, "vmlinuz")?, "a kernel was handed out");
    lab.succeeded();
    Ok(())
}

/// No head answers: the screen says so, the PC restarts, and Windows comes once the stick is out.
pub(crate) fn has_no_head(name: &str, door: Door, campus: Option<Campus>) -> Result<()> {
    let room = Arc::new(Room::start(name)?);
    let _campus = campus.map(|campus| campus.start(&room)).transpose()?;
    let windows = Windows::build(&room.dir().join("windows"))?;
    let mut pc = Pc::build(&room, &windows, door.machine(&room)?, 1)?;
    pc.power_on()?;
    pc.wait_serial("asking the head 10.77.0.1", 0, UP_LIMIT)?;
    let asked = SystemTime::now();
    pc.wait_serial("no answer from the head 10.77.0.1", 0, ROUND_LIMIT)?;
    let tried = asked.elapsed()?;
    let said = SystemTime::now();
    let reset = pc.wait_reset(said, ROUND_LIMIT)?;
    println!(
        "{name}: tried for {:.0} s, then the text for {:.0} s",
        tried.as_secs_f64(),
        reset.as_secs_f64()
    );
    let from = pc.serial().len();
    remove(&mut pc, from)?;
    pc.wait_windows(WINDOWS_LIMIT)?;
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    room.succeeded();
    Ok(())
}

/// The first card leads nowhere, the second to a DHCP server without a head, the third to the head.
pub(crate) fn finds_the_card(name: &str, door: Door) -> Result<()> {
    let lab = Lab::start_with(name, |options| HeadOptions {
        adoption: Adoption::Anybody,
        ..options
    })?;
    let machine = door.machine(lab.room())?;
    let model = if machine.has_bios() {
        "e1000"
    } else {
        "virtio-net-pci"
    };
    let machine = machine
        .leads(Lead::Nowhere)
        .another_nic(model)
        .leads(Lead::Elsewhere)
        .another_nic(model);
    let mut pc = lab.power_on(machine)?;
    let (mac, control) = (pc.mac_of(2), lab.head.control().clone());
    pc.wait("node that came over the third card", ROUND_LIMIT, |_| {
        let node = control.node(&mac).ok().flatten();
        Ok(node.is_some_and(|node| node.state == NodeState::Up))
    })?;
    println!(
        "{name}: up {:.0} s after power-on",
        pc.powered_on().elapsed()?.as_secs_f64()
    );
    pc.power_off()?;
    pc.assert_disk_untouched()?;
    lab.succeeded();
    Ok(())
}

/// Kernel and initrd come from the stick, unless it holds another image than the head's.
pub(crate) fn holds_an_image(name: &str, machine: fn() -> Machine) -> Result<()> {
    let lab = Lab::start(name)?;
    let fresh = make(lab.room(), "fresh.img", &["--with-image"])?;
    let aged = lab.room().dir().join("aged.img");
    age(&fresh, &aged)?;
    for (stick, words, fetched) in [
        (fresh, "come from the stick", false),
        (aged, "come from the head", true),
    ] {
        let mut pc = lab.power_on(machine().first(First::Stick(stick)))?;
        pc.wait_serial("this stick holds image minimal", 0, UP_LIMIT)?;
        pc.wait_up(UP_LIMIT)?;
        ensure!(pc.serial().contains(words), "not said: {words}");
        ensure!(
            lab.fetched(&pc, "vmlinuz")? == fetched,
            "vmlinuz fetched: {}",
            !fetched
        );
        println!(
            "{name}: {words}: up {:.0} s after power-on",
            pc.powered_on().elapsed()?.as_secs_f64()
        );
        pc.power_off()?;
        pc.assert_disk_untouched()?;
    }
    lab.succeeded();
    Ok(())
}

/// The same stick with another digest: made of an image that was the head's once.
fn age(fresh: &Path, aged: &Path) -> Result<()> {
    let mut bytes = std::fs::read(fresh)?;
    let marker = b"set stick_digest='";
    let at = bytes
        .windows(marker.len())
        .position(|window| window == marker)
        .context("no digest on the stick")?
        + marker.len();
    bytes[at..at + 8].copy_from_slice(b"01d01d01");
    Ok(std::fs::write(aged, bytes)?)
}
