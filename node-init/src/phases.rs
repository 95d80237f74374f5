//! The boot, as a list.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cid_protocol::cmdline;

use crate::console::{Screen, log, open_log, uptime_ms};
use crate::run::Pc;
use crate::supervise::Ending;
use crate::{drivers, exit, keys, mounts, run, uevent, watchdog};

/// What a failed phase means for the PC.
#[derive(Clone, Copy)]
enum OnFailure {
    /// Nothing useful can come of this boot.
    GoHome,
    /// The node works without, or the agent will find out.
    GoOn,
}

struct Phase {
    name: &'static str,
    run: fn(&mut Pc) -> Result<(), String>,
    on_failure: OnFailure,
}

const PHASES: [Phase; 13] = [
    // Without /proc, /sys and /dev no later phase can do anything.
    Phase {
        name: "mounts",
        run: mount,
        on_failure: OnFailure::GoHome,
    },
    Phase {
        name: "console",
        run: console,
        on_failure: OnFailure::GoOn,
    },
    // What is behind the point of truncation is missing, and nobody knows what that was.
    Phase {
        name: "is the image whole",
        run: image_is_whole,
        on_failure: OnFailure::GoHome,
    },
    Phase {
        name: "kernel settings",
        run: kernel_settings,
        on_failure: OnFailure::GoOn,
    },
    // Without signals dead children are not noticed.
    Phase {
        name: "signals",
        run: run::open_signals,
        on_failure: OnFailure::GoHome,
    },
    Phase {
        name: "device events",
        run: open_events,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "drivers",
        run: load_drivers,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "firmware variables",
        run: firmware_variables,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "keyboard and power button",
        run: open_keys,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "watchdog",
        run: open_watchdog,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "disks are left alone",
        run: no_block_devices,
        on_failure: OnFailure::GoOn,
    },
    Phase {
        name: "unneeded drivers leave",
        run: prune_drivers,
        on_failure: OnFailure::GoOn,
    },
    // A failed start is retried by supervision.
    Phase {
        name: "agent",
        run: run::start_agent,
        on_failure: OnFailure::GoOn,
    },
];

/// Runs the list in order.
pub(crate) fn run_all(pc: &mut Pc) {
    for phase in &PHASES {
        log(&format!("{} ...", phase.name));
        let result = (phase.run)(pc);
        pc.phases.push((phase.name, uptime_ms()));
        match (result, phase.on_failure) {
            (Ok(()), _) => log(&format!("{} done", phase.name)),
            (Err(why), OnFailure::GoOn) => log(&format!("{} failed, going on: {why}", phase.name)),
            (Err(why), OnFailure::GoHome) => exit::go_home(pc, &why, Ending::Reboot),
        }
    }
}

fn mount(_: &mut Pc) -> Result<(), String> {
    mounts::mount_all()?.iter().for_each(|trouble| log(trouble));
    Ok(())
}

fn console(pc: &mut Pc) -> Result<(), String> {
    open_log();
    pc.screen = Screen::open();
    let line = fs::read_to_string("/proc/cmdline").map_err(|error| format!("/proc/cmdline: {error}"))?;
    pc.hold = cmdline::lookup(&line, cmdline::HOLD).is_some();
    if let Some(secs) = cmdline::lookup(&line, cmdline::PATIENCE).and_then(|text| text.parse().ok()) {
        pc.supervisor.set_patience(Duration::from_secs(secs));
    }
    pc.screen.show("starting");
    Ok(())
}

fn image_is_whole(_: &mut Pc) -> Result<(), String> {
    // The builder writes this entry last.
    if Path::new("/etc/cid/complete").exists() {
        Ok(())
    } else {
        Err("the boot image is truncated".to_owned())
    }
}

fn kernel_settings(_: &mut Pc) -> Result<(), String> {
    // `modprobe`: the kernel asks for PHY drivers by calling a program; it is this one.
    const SETTINGS: [(&str, &str); 4] = [
        ("panic", "10"),
        ("panic_on_oops", "1"),
        ("printk_devkmsg", "on"),
        ("modprobe", "/init"),
    ];
    let mut troubles = Vec::new();
    for (name, value) in SETTINGS {
        // printk_devkmsg takes its word with a newline only.
        if let Err(error) = fs::write(format!("/proc/sys/kernel/{name}"), format!("{value}\n")) {
            troubles.push(format!("kernel.{name}: {error}"));
        }
    }
    if troubles.is_empty() {
        Ok(())
    } else {
        Err(troubles.join(", "))
    }
}

fn open_events(pc: &mut Pc) -> Result<(), String> {
    pc.events = Some(uevent::Events::open().map_err(|error| format!("uevent socket: {error}"))?);
    Ok(())
}

fn load_drivers(pc: &mut Pc) -> Result<(), String> {
    pc.screen.show("looking for its network cards and keyboard");
    pc.drivers = drivers::Drivers::open()?;
    let loaded = pc.drivers.coldplug();
    log(&format!("{loaded} modules loaded"));
    Ok(())
}

fn firmware_variables(pc: &mut Pc) -> Result<(), String> {
    if !mounts::is_uefi() {
        return Ok(());
    }
    pc.drivers.handle("fs-efivarfs");
    mounts::mount_firmware_variables()
}

fn open_keys(pc: &mut Pc) -> Result<(), String> {
    pc.keys = keys::Keys::open_all();
    log(&format!("{} keyboards and buttons", pc.keys.count()));
    Ok(())
}

fn open_watchdog(pc: &mut Pc) -> Result<(), String> {
    pc.watchdog = watchdog::Watchdog::open();
    log(if pc.watchdog.is_some() {
        "hardware watchdog armed"
    } else {
        "this PC has no watchdog that Linux knows"
    });
    Ok(())
}

fn no_block_devices(_: &mut Pc) -> Result<(), String> {
    let found = run::block_devices();
    if found.is_empty() {
        Ok(())
    } else {
        Err(format!("block devices appeared: {}", found.join(" ")))
    }
}

fn prune_drivers(pc: &mut Pc) -> Result<(), String> {
    let without = drivers::cards_without_driver();
    if !without.is_empty() {
        pc.screen
            .show_trouble(&format!("No driver for its network card {}.", without.join(", ")));
    }
    let (files, bytes) = pc.drivers.prune();
    log(&format!("{files} module files deleted, {} KiB", bytes / 1024));
    Ok(())
}
