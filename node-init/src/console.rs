//! What people see: a page on the PC's screen and a log on the console.
//!
//! Both are opened without blocking: somebody who presses Ctrl-S, or a serial line nobody reads, must not stop
//! PID 1. When the kernel's console is the screen itself, the log goes to the kernel's ring buffer instead.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use nix::fcntl::OFlag;

static LOG: OnceLock<File> = OnceLock::new();

/// Opens a terminal for writing, without blocking and without making it ours.
fn open_terminal(path: &str) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits())
        .open(path)
        .ok()
}

/// Chooses where the log goes. Call once devices are there.
pub(crate) fn open_log() {
    // The last console listed is /dev/console; `tty0` is the screen.
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let on_screen = active
        .split_whitespace()
        .next_back()
        .is_none_or(|last| last.starts_with("tty0"));
    let file = if on_screen {
        // Warnings of the kernel would tear the page; panics are shown whatever the level.
        let _ = fs::write("/proc/sys/kernel/printk", "1");
        OpenOptions::new().write(true).open("/dev/kmsg").ok()
    } else {
        open_terminal("/dev/console")
    };
    if let Some(file) = file {
        let _ = LOG.set(file);
    }
}

/// One line in the log, with seconds since the kernel's start.
pub(crate) fn log(text: &str) {
    let line = format!("cid-init: [{:>8}] {text}\r\n", uptime());
    let written = LOG.get().map(|mut file| file.write_all(line.as_bytes()));
    if written.is_none() {
        // Before the log is open: the kernel gave us stdout if the image holds /dev/console.
        let _ = std::io::stdout().write_all(line.as_bytes());
    }
}

/// A second handle on the log for the agent's own messages.
pub(crate) fn log_handle() -> Option<File> {
    LOG.get().and_then(|file| file.try_clone().ok())
}

/// Milliseconds since the kernel's start; 0 before `/proc` is there.
pub(crate) fn uptime_ms() -> u64 {
    let text = uptime();
    let (secs, hundredths) = text.split_once('.').unwrap_or((&text, "0"));
    secs.parse::<u64>().unwrap_or(0) * 1_000 + hundredths.parse::<u64>().unwrap_or(0) * 10
}

fn uptime() -> String {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The page on the PC's screen.
#[derive(Default)]
pub(crate) struct Screen {
    terminal: Option<File>,
    shown: String,
}

impl Screen {
    /// Opens the first virtual terminal; a PC without one has no screen.
    pub(crate) fn open() -> Self {
        Self {
            terminal: open_terminal("/dev/tty1"),
            shown: String::new(),
        }
    }

    /// Shows what this PC is doing; also in the log.
    pub(crate) fn show(&mut self, state: &str) {
        if self.shown == state {
            return;
        }
        state.clone_into(&mut self.shown);
        log(state);
        self.draw(state, "Press any key to get Windows back.");
    }

    /// The last page.
    pub(crate) fn farewell(&mut self, reason: &str) {
        log(&format!("going home: {reason}"));
        self.draw(
            &format!("going home: {reason}"),
            "This PC restarts now and starts Windows.",
        );
    }

    fn draw(&mut self, state: &str, how_home: &str) {
        // Terminals of the kernel: clear, home, hide the cursor; show it bold.
        let page = format!(
            "\x1b[2J\x1b[H\x1b[?25l\r\n\r\n  This PC is lending its processor and memory to the cluster.\r\n  \
             Its disk is not touched.\r\n\r\n  Now: {state}\r\n\r\n  \x1b[1m{how_home}\x1b[0m\r\n"
        );
        if let Some(terminal) = &mut self.terminal {
            let _ = terminal.write_all(page.as_bytes());
        }
    }
}
