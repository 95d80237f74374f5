//! Signals that are the program's: caught here, sent to every rank. Must leave SIGKILL and SIGSTOP as they are, which nobody can catch:
//! a client that is killed takes its job with it.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

/// Forwarded as they are.
const FORWARDED: [Signal; 10] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];
/// So many interrupts in [`HURRY`] end a program that does not listen.
const INTERRUPTS: usize = 3;
const HURRY: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) enum Meaning {
    Forward,
    /// The ranks, then we.
    Stop,
    Kill,
}

pub(super) struct Signals {
    came: mpsc::UnboundedReceiver<i32>,
    interrupts: Vec<tokio::time::Instant>,
}

/// What [`Signals::next`] gives for the third interrupt in a row.
const KILL: i32 = 9;

impl Signals {
    pub(super) fn listen() -> Result<Self> {
        let (sender, came) = mpsc::unbounded_channel();
        for number in FORWARDED.map(|signal| signal as i32) {
            let mut stream =
                tokio::signal::unix::signal(SignalKind::from_raw(number)).context("listening for signals")?;
            let sender = sender.clone();
            tokio::spawn(
                async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self {
            came,
            interrupts: Vec::new(),
        })
    }

    /// The next signal's number.
    pub(super) async fn next(&mut self) -> i32 {
        let number = match self.came.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        };
        if number == Signal::SIGINT as i32 {
            let now = tokio::time::Instant::now();
            self.interrupts.retain(|at| now - *at < HURRY);
            self.interrupts.push(now);
            if self.interrupts.len() >= INTERRUPTS {
                return KILL;
            }
        }
        number
    }
}

pub(super) fn meaning(number: i32) -> Meaning {
    match number {
        KILL => Meaning::Kill,
        number if number == Signal::SIGTSTP as i32 => Meaning::Stop,
        _ => Meaning::Forward,
    }
}

/// Stops this process, as Ctrl-Z would one without a handler. It goes on behind the call; SIGCONT is forwarded like others.
pub(super) fn stop_here() {
    let _ = kill(Pid::this(), Signal::SIGSTOP);
}

/// Dies as the program did, so that whoever started us sees it. Returns when the signal does not kill.
pub(super) fn die(number: i32) {
    // The core of the program that died is its own; one of ours would say nothing.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    cid_sys::signals::die_of(number);
}
