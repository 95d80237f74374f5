//! `cidlab run`: one image in one virtual PC, with its serial console on the terminal. Must leave nothing behind, however it ends: the
//! room dies with this process.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cid_protocol::manifest::Manifest;
use cidlab::{Lab, Machine};
use clap::ValueEnum;

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Memory of a PC for an image that says nothing, and the least that any gets, in MiB.
const MEMORY_MIB: u64 = 512;
const MIB: u64 = 1 << 20;

/// What starts the PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF with Secure Boot.
    SecureBoot,
}

/// Boots the image in folder `image` until the PC is back in its Windows, or somebody has enough.
pub(crate) fn boot(image: &Path, firmware: Firmware, memory_mib: Option<u32>) -> Result<()> {
    let folder = image
        .canonicalize()
        .ok()
        .filter(|folder| folder.join("manifest.json").is_file())
        .with_context(|| {
            format!(
                "{}: no image there; `cidbuild image NAME` builds one and prints its folder",
                image.display()
            )
        })?;
    let (Some(images), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    else {
        bail!(
            "{}: an image's folder has a name and a folder around it",
            folder.display()
        );
    };
    let text = std::fs::read(folder.join("manifest.json"))?;
    let manifest: Manifest = serde_json::from_slice(&text).context("manifest.json")?;
    let memory_mib = memory_mib.unwrap_or_else(|| memory_for(&manifest));

    eprintln!("cidlab: opening a room with a head that serves {name}, and one PC of {memory_mib} MiB");
    let lab = Lab::start_with("run", |mut options| {
        options.images_dir = images.to_owned();
        name.clone_into(&mut options.image);
        options
    })?;
    let machine = match firmware {
        Firmware::Bios => Machine::bios(),
        Firmware::Uefi => Machine::uefi(),
        Firmware::SecureBoot => Machine::uefi_secure_boot(),
    };
    let mut pc = lab.power_on(machine.memory(memory_mib))?;
    eprintln!(
        "cidlab: its serial console follows. Enter: press a key at the PC, which sends it home to its Windows. \
         q and Enter: pull the plug.\n\
         cidlab: in another window: cidctl --socket {} nodes",
        lab.room().dir().join("head.sock").display()
    );
    let lines = typed();
    let mut shown = 0;
    let mut told_up = false;
    while !pc.in_windows() && pc.is_on() {
        show(&pc.serial(), &mut shown)?;
        if !told_up
            && let Ok(Some(node)) = pc.node()
            && node.state == cid_protocol::api::NodeState::Up
        {
            eprintln!("\ncidlab: {} is up: {}", node.name, node.reason);
            told_up = true;
        }
        match lines.try_recv() {
            Ok(line) if line.trim() == "q" => break,
            Ok(_) => pc.press("spc")?,
            // Nobody is at the terminal: until the PC is up, and no longer.
            Err(TryRecvError::Disconnected) if told_up => break,
            Err(TryRecvError::Disconnected | TryRecvError::Empty) => std::thread::sleep(LOOK),
        }
    }
    show(&pc.serial(), &mut shown)?;
    if pc.in_windows() {
        eprintln!("\ncidlab: the PC is back in its Windows");
    }
    pc.assert_disk_untouched()?;
    pc.power_off()?;
    eprintln!("cidlab: its disk is as it was; closing the room");
    drop(pc);
    lab.succeeded();
    Ok(())
}

/// A quarter more than the build reckoned.
fn memory_for(manifest: &Manifest) -> u32 {
    let needed = manifest.needed_ram_bytes.div_ceil(MIB) * 5 / 4;
    u32::try_from(needed.max(MEMORY_MIB)).unwrap_or(u32::MAX)
}

/// Prints what is new on the console.
fn show(serial: &str, shown: &mut usize) -> Result<()> {
    let new = serial.get(*shown..).unwrap_or_default();
    let mut output = std::io::stdout().lock();
    output.write_all(new.as_bytes())?;
    output.flush()?;
    *shown = serial.len().max(*shown);
    Ok(())
}

/// Lines from the terminal; the other end is closed when there are no more.
fn typed() -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
