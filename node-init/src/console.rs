//! What people see: a page on the PC's screen and a log on the console.
//!
//! Both are opened without blocking: somebody who presses Ctrl-S, or a serial line nobody reads, must not stop
//! PID 1. When the kernel's console is the screen itself, the log goes to the kernel's ring buffer instead.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::page::{Facts, Page};
use crate::supervise::Ending;

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

/// What a terminal has that does not say its size.
const DEFAULT_SIZE: (u16, u16) = (80, 25);

/// The page on the PC's screen.
#[derive(Default)]
pub(crate) struct Screen {
    terminal: Option<File>,
    doing: String,
    trouble: String,
    facts: Facts,
    leaving: Option<Leaving>,
    /// What is on the screen and in the log now.
    drawn: Option<Page>,
}

/// The way home that is under way.
struct Leaving {
    reason: String,
    step: usize,
    until: Instant,
    ending: Ending,
}

impl Screen {
    /// Opens the first virtual terminal; a PC without one has no screen.
    pub(crate) fn open() -> Self {
        Self {
            terminal: open_terminal("/dev/tty1"),
            ..Self::default()
        }
    }

    /// Shows what this PC is doing; also in the log.
    pub(crate) fn show(&mut self, doing: &str) {
        doing.clone_into(&mut self.doing);
        self.draw();
    }

    /// Shows what is wrong with this PC; also in the log.
    pub(crate) fn show_trouble(&mut self, trouble: &str) {
        trouble.clone_into(&mut self.trouble);
        self.draw();
    }

    /// Takes in what the head said; it is shown with the next page.
    pub(crate) fn learn(&mut self, key: &str, text: &str) {
        let field = match key {
            "site" => &mut self.facts.site,
            "group" => &mut self.facts.group,
            "name" => &mut self.facts.name,
            "until" => &mut self.facts.until,
            _ => return,
        };
        text.clone_into(field);
        if key == "until" {
            self.draw();
        }
    }

    /// From now on the page counts down to the restart.
    pub(crate) fn leave(&mut self, reason: &str, within: Duration, ending: Ending) {
        let until = Instant::now() + within;
        match &mut self.leaving {
            // The first reason stands, and so does the first promise.
            Some(leaving) => leaving.until = leaving.until.min(until),
            None => {
                self.leaving = Some(Leaving {
                    reason: reason.to_owned(),
                    step: 0,
                    until,
                    ending,
                });
            }
        }
        self.draw();
    }

    /// The next step of the way home.
    pub(crate) fn step(&mut self, step: usize) {
        if let Some(leaving) = &mut self.leaving {
            leaving.step = step;
        }
        self.draw();
    }

    /// Whether the page has to be drawn every second.
    pub(crate) fn counts_down(&self) -> bool {
        self.leaving.is_some()
    }

    /// Draws the page as it is now, and logs it if it changed in more than its seconds.
    pub(crate) fn draw(&mut self) {
        let page = self.page();
        if self.drawn.as_ref() == Some(&page) {
            return;
        }
        if self.drawn.as_ref().is_none_or(|drawn| differs(drawn, &page)) {
            log(&page.line());
        }
        if let Some(terminal) = &mut self.terminal {
            let (columns, rows) = cid_sys::terminal::size(terminal)
                .ok()
                .filter(|(columns, rows)| *columns > 0 && *rows > 0)
                .unwrap_or(DEFAULT_SIZE);
            let _ = terminal.write_all(page.render(columns.into(), rows.into()).as_bytes());
        }
        self.drawn = Some(page);
    }

    fn page(&self) -> Page {
        match &self.leaving {
            Some(leaving) => Page::GoingHome {
                reason: leaving.reason.clone(),
                step: leaving.step,
                secs: leaving
                    .until
                    .saturating_duration_since(Instant::now())
                    .as_secs_f32()
                    .ceil() as u64,
                ending: leaving.ending,
            },
            None => Page::Working {
                doing: self.doing.clone(),
                facts: self.facts.clone(),
                trouble: self.trouble.clone(),
            },
        }
    }
}

/// Whether two pages differ in more than the seconds of a countdown.
fn differs(one: &Page, other: &Page) -> bool {
    match (one, other) {
        (
            Page::GoingHome { reason, step, .. },
            Page::GoingHome {
                reason: other_reason,
                step: other_step,
                ..
            },
        ) => reason != other_reason || step != other_step,
        _ => one != other,
    }
}
