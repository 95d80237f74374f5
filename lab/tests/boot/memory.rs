//! What the node software costs in memory, beside the same kernel with nothing but a shell.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cidlab::lab::images_dir;
use cidlab::run::run;
use cidlab::{Lab, Machine, Room, UP_LIMIT};

use crate::ends_in_windows;

/// DESIGN section 8: memory that the node software holds after boot, the kernel excluded.
const BUDGET_KIB: u64 = 24 * 1024;
const MEMORY_MIB: u32 = 512;

#[test]
fn node_software_beside_a_bare_kernel() -> Result<()> {
    let bare = bare_kernel()?;
    let lab = Lab::start("memory")?;
    let mut pc = lab.power_on(Machine::bios().memory(MEMORY_MIB))?;
    let node = pc.wait_up(UP_LIMIT)?;
    let hardware = node.hardware.context("the node reported no hardware")?;
    println!(
        "of {MEMORY_MIB} MiB: a bare kernel leaves {} KiB available, a node {} KiB; difference {} KiB; \
         of them files and programs of the node {} KiB (budget {BUDGET_KIB} KiB)",
        bare,
        hardware.memory_available_kib,
        bare.saturating_sub(hardware.memory_available_kib),
        hardware.memory_held_kib
    );
    assert!(hardware.memory_held_kib > 0 && hardware.memory_held_kib <= BUDGET_KIB);
    assert!(
        hardware.block_devices.is_empty(),
        "block devices: {:?}",
        hardware.block_devices
    );
    lab.release(&pc)?;
    ends_in_windows(lab, pc)
}

/// `MemAvailable` in KiB of the image's own kernel with a static busybox as the whole user space.
fn bare_kernel() -> Result<u64> {
    let room = Room::start("bare-kernel")?;
    let root = room.dir().join("root");
    for folder in ["bin", "proc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("package busybox-static is needed")?;
    let script = "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox sleep 2\n\
                  /bin/busybox grep MemAvailable /proc/meminfo\n/bin/busybox poweroff -f\n";
    fs::write(root.join("init"), script)?;
    let archive = room.dir().join("bare.cpio");
    run(Command::new("sh")
        .arg("-c")
        .arg("chmod 755 init && find . | cpio -o -H newc --quiet > ../bare.cpio")
        .current_dir(&root))?;
    let serial = room.dir().join("serial.log");
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "pc",
            "-m",
            &MEMORY_MIB.to_string(),
        ])
        .args(["-nodefaults", "-vga", "none", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .arg("-kernel")
        .arg(images_dir().join("minimal/vmlinuz"))
        .arg("-initrd")
        .arg(&archive)
        .args(["-append", "console=ttyS0,115200 panic=1"])
        .stdin(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(120);
    let found = loop {
        let text = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
        let line = text
            .lines()
            .find(|line| line.starts_with("MemAvailable:") && line.ends_with("kB"));
        if let Some(kib) = line.and_then(|line| line.split_whitespace().nth(1)) {
            break Some(kib.parse::<u64>()?);
        }
        if Instant::now() > deadline {
            break None;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    machine.kill()?;
    machine.wait()?;
    ensure!(
        found.is_some(),
        "the bare kernel said nothing; see {}",
        serial.display()
    );
    room.succeeded();
    found.context("no figure")
}
