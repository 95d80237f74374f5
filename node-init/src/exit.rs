//! The one way out: say why, end everything, reboot. Firmware then boots as it always does. A group may have its PCs
//! switched off at closing; whatever keeps the PC from going off is answered by a reboot.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::console::log;
use crate::run::Pc;
use crate::supervise::Ending;

/// How long processes have to end after SIGTERM.
const TERM_BOUND: Duration = Duration::from_millis(1500);
/// How long the kernel has to end them after SIGKILL, and to write caches.
const KILL_BOUND: Duration = Duration::from_millis(1500);
/// All of it, rounded up: what the screen promises when nobody asked before.
const EXIT_BOUND: Duration = Duration::from_secs(5);
const EVERYBODY: Pid = Pid::from_raw(-1);

/// Ends this boot. With `cid.hold` on the kernel command line the PC stays here instead, for whoever looks.
pub(crate) fn go_home(pc: &mut Pc, reason: &str, ending: Ending) -> ! {
    pc.screen.leave(reason, EXIT_BOUND, ending);
    pc.screen.step(1);
    if pc.hold {
        hold(pc);
    }
    if let Some(watchdog) = &mut pc.watchdog {
        watchdog.feed();
    }
    let _ = kill(EVERYBODY, Signal::SIGTERM);
    reap_until(Instant::now() + TERM_BOUND);
    let _ = kill(EVERYBODY, Signal::SIGKILL);
    reap_until(Instant::now() + KILL_BOUND);
    // Only memory is mounted today; with a network file system `sync` could hang, so a child makes the call.
    if Command::new("/init")
        .arg("sync")
        .stdin(Stdio::null())
        .spawn()
        .is_ok()
    {
        reap_until(Instant::now() + KILL_BOUND);
    }
    pc.screen.step(2);
    if ending == Ending::PowerOff {
        log("switching off");
        switch_off();
    }
    log("rebooting");
    reset()
}

/// Returns when the PC cannot be switched off. A kernel without ACPI would halt instead, with Windows out of everybody's reach:
/// it is not asked.
fn switch_off() {
    if Path::new("/sys/firmware/acpi").exists() {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    log("this PC cannot be switched off");
}

/// The panic hook's last act; nothing of the program's state is trusted.
pub(crate) fn after_panic(what: &str) {
    if let Ok(mut kmsg) = fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<0>cid-init: {what}; rebooting\n").as_bytes());
    }
    reset()
}

fn reset() -> ! {
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // Only reached when the kernel refused: the emergency path skips the drivers' own shutdown.
    let _ = fs::write("/proc/sysrq-trigger", "b");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn hold(pc: &mut Pc) -> ! {
    log("cid.hold: staying here");
    loop {
        if let Some(watchdog) = &mut pc.watchdog {
            watchdog.feed();
        }
        reap_until(Instant::now() + Duration::from_secs(1));
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Waits for children until none is left or the moment has come.
fn reap_until(end: Instant) {
    while Instant::now() < end {
        match waitpid(EVERYBODY, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::ECHILD) => return,
            _ => {}
        }
    }
}
