//! The life after boot: one loop that waits for signals, devices, the agent, keys and deadlines.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use cid_protocol::supervision::FromInit;

use crate::agent::Agent;
use crate::console::{Screen, log};
use crate::drivers::Drivers;
use crate::exit;
use crate::keys::{self, Keys};
use crate::supervise::{Ending, Output, Supervisor};
use crate::uevent::{Event, Events, Read};
use crate::watchdog::{FEED_EVERY, Watchdog};

/// Everything PID 1 holds.
pub(crate) struct Pc {
    pub(crate) screen: Screen,
    /// `cid.hold`: stay instead of rebooting.
    pub(crate) hold: bool,
    pub(crate) signals: Option<SignalFd>,
    pub(crate) events: Option<Events>,
    pub(crate) drivers: Drivers,
    pub(crate) keys: Keys,
    pub(crate) watchdog: Option<Watchdog>,
    /// Name of each phase and when it was done, in milliseconds since the kernel's start.
    pub(crate) phases: Vec<(&'static str, u64)>,
    pub(crate) supervisor: Supervisor,
    agent: Option<Agent>,
    started: Instant,
    feed_at: Duration,
}

impl Default for Pc {
    fn default() -> Self {
        Self {
            screen: Screen::default(),
            hold: false,
            signals: None,
            events: None,
            drivers: Drivers::default(),
            keys: Keys::default(),
            watchdog: None,
            phases: Vec::new(),
            supervisor: Supervisor::default(),
            agent: None,
            started: Instant::now(),
            feed_at: Duration::ZERO,
        }
    }
}

/// What poll said of each source.
#[derive(Default)]
struct Ready {
    signals: bool,
    events: bool,
    agent: bool,
    keys: bool,
}

/// Takes signals as data. Ctrl-Alt-Del becomes SIGINT instead of a reset at once.
pub(crate) fn open_signals(pc: &mut Pc) -> Result<(), String> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGPWR,
    ] {
        mask.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None).map_err(|error| format!("sigprocmask: {error}"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    pc.signals = Some(SignalFd::with_flags(&mask, flags).map_err(|error| format!("signalfd: {error}"))?);
    if let Err(error) = set_cad_enabled(false) {
        log(&format!("Ctrl-Alt-Del resets at once: {error}"));
    }
    Ok(())
}

/// The first start; later ones come from the loop.
pub(crate) fn start_agent(pc: &mut Pc) -> Result<(), String> {
    let now = pc.started.elapsed();
    pc.supervisor.handle_deadline(now);
    obey(pc, now);
    if pc.agent.is_some() {
        Ok(())
    } else {
        Err("it will be tried again".to_owned())
    }
}

/// Never returns.
pub(crate) fn forever(pc: &mut Pc) -> ! {
    loop {
        let ready = wait(pc);
        let now = pc.started.elapsed();
        if ready.agent {
            let messages = pc.agent.as_mut().map(Agent::read).unwrap_or_default();
            messages
                .into_iter()
                .for_each(|message| pc.supervisor.handle_message(now, message));
        }
        if ready.signals {
            handle_signals(pc, now);
        }
        if ready.events {
            handle_events(pc);
        }
        if ready.keys
            && let Some(code) = pc.keys.read()
        {
            pc.supervisor.handle_person(now, &keys::reason(code));
        }
        pc.supervisor.handle_deadline(now);
        if now >= pc.feed_at {
            pc.feed_at = now + FEED_EVERY;
            if let Some(watchdog) = &mut pc.watchdog {
                watchdog.feed();
            }
        }
        obey(pc, now);
        if pc.screen.counts_down() {
            pc.screen.draw();
        }
    }
}

/// Sleeps until something is there to do.
fn wait(pc: &Pc) -> Ready {
    let mut sources = Vec::new();
    let mut add = |fd| sources.push(PollFd::new(fd, PollFlags::POLLIN));
    let signals = pc
        .signals
        .iter()
        .map(|signals| signals.as_fd())
        .map(&mut add)
        .count();
    let events = pc
        .events
        .iter()
        .map(|events| events.as_fd())
        .map(&mut add)
        .count();
    let agent = pc
        .agent
        .iter()
        .map(|agent| agent.descriptor())
        .map(&mut add)
        .count();
    pc.keys.descriptors().for_each(&mut add);

    let now = pc.started.elapsed();
    let next = pc
        .supervisor
        .next_deadline()
        .map_or(pc.feed_at, |deadline| deadline.min(pc.feed_at));
    // The countdown changes every second.
    let next = if pc.screen.counts_down() {
        next.min(now + Duration::from_secs(1))
    } else {
        next
    };
    // Rounded up, so that the deadline has passed when poll returns; at least a moment, so that a descriptor
    // stuck in error cannot make this loop spin unseen.
    let millis = next.saturating_sub(now).as_millis() + 1;
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    if poll(&mut sources, timeout).is_err() {
        return Ready::default();
    }
    let mut told = sources.iter().map(|source| source.any().unwrap_or(true));
    let mut any = |count| told.by_ref().take(count).fold(false, |any, one| any | one);
    Ready {
        signals: any(signals),
        events: any(events),
        agent: any(agent),
        keys: any(usize::MAX),
    }
}

fn handle_signals(pc: &mut Pc, now: Duration) {
    let mut numbers = Vec::new();
    while let Some(Ok(Some(signal))) = pc.signals.as_ref().map(SignalFd::read_signal) {
        numbers.push(i32::try_from(signal.ssi_signo).unwrap_or(0));
    }
    for number in numbers {
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => reap(pc, now),
            Ok(Signal::SIGINT) => pc.supervisor.handle_person(now, "Ctrl-Alt-Del pressed"),
            Ok(signal) => pc.supervisor.handle_person(now, &format!("asked to by {signal}")),
            Err(_) => {}
        }
    }
}

/// The one place that waits for children.
fn reap(pc: &mut Pc, now: Duration) {
    loop {
        let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, format!("ended with status {status}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("was killed by {signal}")),
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => continue,
        };
        if pc.agent.as_ref().is_some_and(|agent| agent.pid() == pid) {
            // Its last words may explain its end.
            let messages = pc.agent.as_mut().map(Agent::read).unwrap_or_default();
            messages
                .into_iter()
                .for_each(|message| pc.supervisor.handle_message(now, message));
            if let Some(agent) = pc.agent.take() {
                // What it started must not outlive it.
                agent.kill();
            }
            pc.supervisor.handle_exit(now, &how);
        }
    }
}

fn handle_events(pc: &mut Pc) {
    while let Some(read) = pc.events.as_ref().map(Events::read) {
        match read {
            Read::Event(event) if event.action == "add" || event.action == "bind" => handle_event(pc, &event),
            Read::Event(_) => {}
            Read::Overflow => {
                pc.drivers.coldplug();
                pc.keys.open_missing();
            }
            Read::Empty => return,
        }
    }
}

fn handle_event(pc: &mut Pc, event: &Event) {
    if let Some(modalias) = &event.modalias {
        let loaded = pc.drivers.handle(modalias);
        if loaded > 0 {
            log(&format!("{modalias}: {loaded} modules loaded"));
        }
    }
    match (event.subsystem.as_str(), &event.device_name) {
        ("input", Some(name)) => pc.keys.open(name),
        ("watchdog", _) if pc.watchdog.is_none() => pc.watchdog = Watchdog::open(),
        ("block", _) => {
            let found = block_devices();
            if !found.is_empty() {
                log(&format!("block devices appeared: {}", found.join(" ")));
            }
        }
        _ => {}
    }
}

/// Does what supervision decided.
fn obey(pc: &mut Pc, now: Duration) {
    while let Some(output) = pc.supervisor.poll_output() {
        match output {
            Output::Start => match Agent::start() {
                Ok(mut agent) => {
                    tell_phases(&mut agent, &pc.phases);
                    pc.agent = Some(agent);
                }
                Err(error) => pc.supervisor.handle_exit(now, &format!("did not start: {error}")),
            },
            Output::Kill => {
                if let Some(agent) = &pc.agent {
                    agent.kill();
                }
            }
            Output::Tell(message) => {
                if let Some(agent) = &mut pc.agent {
                    agent.tell(&message);
                }
            }
            Output::Show(text) => pc.screen.show(&text),
            Output::Learn(key, text) => pc.screen.learn(&key, &text),
            Output::Leave { reason, within } => pc.screen.leave(&reason, within, Ending::Reboot),
            Output::Home { reason, ending } => exit::go_home(pc, &reason, ending),
        }
    }
}

/// How the boot went, for the agent's report to the head.
fn tell_phases(agent: &mut Agent, phases: &[(&'static str, u64)]) {
    for (name, done_ms) in phases {
        let name = (*name).to_owned();
        let done_ms = *done_ms;
        agent.tell(&FromInit::Phase { done_ms, name });
    }
}

/// Block devices that are not memory. There is no driver for any in the image; if one appears, people must know.
pub(crate) fn block_devices() -> Vec<String> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut found: Vec<String> = names
        .filter(|name| {
            !["ram", "loop", "zram"]
                .iter()
                .any(|memory| name.starts_with(memory))
        })
        .collect();
    found.sort();
    found
}
