//! Progress for people: one bar per phase with sizes and rates. Silent unless standard error is a terminal.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Makes phases.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    visible: bool,
}

/// One phase; it is gone from the screen when finished or dropped.
#[derive(Debug)]
pub struct Phase {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// Bars when `stderr` is a terminal.
    pub fn for_people() -> Self {
        Progress {
            visible: std::io::IsTerminal::is_terminal(&std::io::stderr()),
        }
    }

    /// Nothing at all.
    pub fn silent() -> Self {
        Progress { visible: false }
    }

    /// Bytes done of `total`.
    pub fn bytes(&self, what: &str, total: u64) -> Phase {
        self.phase(
            what,
            total,
            "{msg:40!} {bar:30} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4}",
        )
    }

    /// Things done of `total`.
    pub fn count(&self, what: &str, total: u64) -> Phase {
        self.phase(
            what,
            total,
            "{msg:40!} {bar:30} {pos:>6}/{len:<6} {per_sec:>12} {eta:>4}",
        )
    }

    /// Something whose end is not known.
    pub fn spinner(&self, what: &str) -> Phase {
        let phase = self.phase(what, 0, "{msg:40!} {spinner} {elapsed}");
        phase.bar.enable_steady_tick(TICK);
        phase
    }

    /// Bytes that another program writes into `folder`.
    pub fn growing(&self, what: &str, total: u64, folder: &Path) -> Phase {
        let phase = self.bytes(what, total);
        if self.visible {
            let (bar, stop, folder): (_, _, PathBuf) =
                (phase.bar.clone(), phase.stop.clone(), folder.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let sizes = std::fs::read_dir(&folder).into_iter().flatten().flatten();
                    bar.set_position(sizes.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum());
                    std::thread::sleep(TICK);
                }
            });
        }
        phase
    }

    fn phase(&self, what: &str, total: u64, template: &str) -> Phase {
        let target = if self.visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Phase {
            bar,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }
}

impl Phase {
    /// So much is done.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// One more thing is done.
    pub fn one(&self) {
        self.bar.inc(1);
    }

    /// What is being done now.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// A reader that counts what passes.
    pub fn reader<R: Read>(&self, inner: R) -> impl Read + use<R> {
        self.bar.wrap_read(inner)
    }

    /// The phase is over.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
    }
}

const TICK: Duration = Duration::from_millis(150);
