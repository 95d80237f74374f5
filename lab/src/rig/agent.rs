//! One PC of the rig: switched on and off, its wire pulled, its agent killed or starved. The rig is its PID 1: it hears the supervision
//! socket, starts an agent that ended again, and takes `home` as the end of the boot. Must not be kinder than `cid-init`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cid_protocol::supervision::{AGENT_FD, FromAgent, FromInit, MAX_LINE, SILENCE_SECS};
use rustix::process::Signal;

use super::cell::Rights;
use super::wire;
use crate::room::{Room, signal};
use crate::run::run;

/// Restarts of an agent before the PC goes home, as in `cid-init`.
const RESTARTS: u32 = 3;

/// Where a PC of the rig is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Without power.
    Off,
    /// Firmware, kernel, and an agent that has not said `up`.
    Starting,
    /// In the cluster.
    Up {
        /// The name the head gave it.
        name: String,
        /// When it said so first in this boot.
        since: Instant,
    },
    /// In its own system, for this reason.
    Home(String),
}

/// A PC of the rig.
#[derive(Debug)]
pub struct Agent {
    number: usize,
    dir: PathBuf,
    room: Arc<Room>,
    cell: PathBuf,
    program: PathBuf,
    rights: Rights,
    shared: Arc<Shared>,
    init: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    powered: bool,
    boots: u32,
    /// Agents that ended in this boot.
    ended: u32,
    child: Option<Child>,
    supervision: Option<UnixStream>,
    last_words: String,
}

impl Default for State {
    fn default() -> Self {
        Self {
            phase: Phase::Off,
            powered: false,
            boots: 0,
            ended: 0,
            child: None,
            supervision: None,
            last_words: String::new(),
        }
    }
}

/// MAC address of the PC with this number.
#[must_use]
pub fn mac_text(number: usize) -> String {
    format!("52:54:00:c2:{:02x}:{:02x}", number / 256, number % 256)
}

/// UUID of the machine with this number.
#[must_use]
pub fn uuid_text(number: usize) -> String {
    format!("c1d00000-0000-4000-8000-{:012x}", number + 1)
}

/// All of them, as a group's key `match` has it.
pub(super) fn mac_pattern() -> &'static str {
    "52:54:00:c2:*"
}

impl Agent {
    pub(super) fn build(
        room: &Arc<Room>,
        number: usize,
        dir: PathBuf,
        cell: &Path,
        program: &Path,
        rights: Rights,
    ) -> Result<Self> {
        Ok(Self {
            number,
            dir,
            room: Arc::clone(room),
            cell: cell.to_owned(),
            // In the cell there is no other way to it.
            program: fs::canonicalize(program)?,
            rights,
            shared: Arc::default(),
            init: Mutex::new(None),
        })
    }

    /// Its card's address.
    #[must_use]
    pub fn mac(&self) -> String {
        mac_text(self.number)
    }

    /// Its machine's UUID.
    #[must_use]
    pub fn uuid(&self) -> String {
        uuid_text(self.number)
    }

    /// Its port of the bridge.
    #[must_use]
    pub fn port(&self) -> String {
        wire::port(self.number)
    }

    /// Its folder: `log` is what the agent told the console, `cmdline` what its kernel was told, `run` its `/run`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    /// How often it was switched on.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.state().boots
    }

    /// How often its agent ended in this boot.
    #[must_use]
    pub fn ended(&self) -> u32 {
        self.state().ended
    }

    /// What its screen shows.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.state().last_words.clone()
    }

    /// Its address, once it is up.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self) -> Result<String> {
        let text = run(&mut self.command("ip", &["-4", "-o", "addr", "show", "dev", "eth0"]))?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "inet").skip(1);
        let address = words.next().and_then(|word| word.split('/').next());
        address.map(str::to_owned).context("no address on eth0")
    }

    /// A command on its network, in this machine's file system: what an administrator at its wire would type.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.room.command("nsenter");
        command.arg(format!("--net={}", self.dir.join("net").display()));
        command.arg("--").arg(program).args(arguments);
        command
    }

    /// Runs a command in its cell: its network, its root, its capabilities. Returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn in_cell(&self, program: &str, arguments: &[&str]) -> Result<String> {
        // What the cell tells its PID 1 is of no interest here, but somebody must listen.
        let (_init, theirs) = UnixStream::pair()?;
        let mut command = self.cell(Path::new(program), arguments);
        cid_sys::descriptors::hand_on(&mut command, theirs.into(), AGENT_FD);
        run(&mut command)
    }

    /// Switches it on; nothing happens to one that is on.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub fn power_on(&self) -> Result<()> {
        let mut state = self.state();
        if state.powered {
            return Ok(());
        }
        drop(state);
        self.bury();
        state = self.state();
        let run = self.dir.join("run");
        fs::remove_dir_all(&run)?;
        fs::create_dir(&run)?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        fs::write(self.dir.join("boot_id"), boot_id)?;
        // Empty until firmware knows better.
        fs::write(self.dir.join("cmdline"), "")?;
        state.powered = true;
        state.boots += 1;
        state.ended = 0;
        state.phase = Phase::Starting;
        drop(state);
        let this = self.starter();
        let thread = std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || this.live())?;
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Pulls the plug: its wire is dead first, so that no word of the dying kernel gets out.
    ///
    /// # Errors
    /// When the bridge's port does not obey.
    pub fn crash(&self) -> Result<()> {
        self.plug(false)?;
        self.end();
        // Connections of the boot that is over must not speak when there is power again.
        run(&mut self.command("ip", &["addr", "flush", "dev", "eth0"])).map(drop)
    }

    /// Plugs its wire in or pulls it, as a hand at the switch does: the card sees its carrier come and go.
    ///
    /// # Errors
    /// When the bridge's port does not obey.
    pub fn plug(&self, plugged: bool) -> Result<()> {
        let word = if plugged { "up" } else { "down" };
        run(self.room.command("ip").args(["link", "set", &self.port(), word])).map(drop)
    }

    /// Sends its agent a signal: KILL (PID 1 starts another), STOP and CONT (it gets no CPU).
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, which: Signal) -> Result<()> {
        let state = self.state();
        signal(state.child.as_ref().context("the agent does not run")?, which)
    }

    /// The agent's process here, for `/proc`.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        let state = self.state();
        crate::room::child_of(state.child.as_ref()?.id())
    }

    /// A key is pressed.
    ///
    /// # Errors
    /// When the agent does not listen.
    pub fn press_key(&self) -> Result<()> {
        let drain = FromInit::Drain {
            secs: 5,
            reason: "key pressed".to_owned(),
        };
        let state = self.state();
        let mut socket = state.supervision.as_ref().context("the agent does not run")?;
        socket
            .write_all(format!("{}\n", drain.to_line()).as_bytes())
            .context("telling the agent")
    }

    /// Takes the power away, without a word about the wire.
    fn end(&self) {
        let mut state = self.state();
        state.powered = false;
        state.phase = Phase::Off;
        if let Some(child) = &mut state.child
            && signal(child, Signal::KILL).is_err()
        {
            // It has not come to life yet.
            let _ = child.kill();
        }
        drop(state);
        self.shared.changed.notify_all();
        self.bury();
    }

    fn bury(&self) {
        let thread = self.init.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, program: &Path, arguments: &[&str]) -> Command {
        cell(
            &self.room,
            &self.cell,
            &self.dir,
            &self.uuid(),
            (false, self.rights),
            program,
            arguments,
        )
    }

    fn starter(&self) -> Init {
        Init {
            room: Arc::clone(&self.room),
            cell: self.cell.clone(),
            program: self.program.clone(),
            dir: self.dir.clone(),
            uuid: self.uuid(),
            rights: self.rights,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

fn cell(
    room: &Room,
    cell: &Path,
    dir: &Path,
    uuid: &str,
    (boot, rights): (bool, Rights),
    program: &Path,
    arguments: &[&str],
) -> Command {
    let mut command = room.command(cell);
    command.arg("cell").arg("--dir").arg(dir).args(["--uuid", uuid]);
    command.args(["--rights", rights.word()]);
    if boot {
        command.arg("--boot");
    }
    command.arg(program).args(arguments);
    command
}

/// PID 1 of one boot.
struct Init {
    room: Arc<Room>,
    cell: PathBuf,
    program: PathBuf,
    dir: PathBuf,
    uuid: String,
    rights: Rights,
    shared: Arc<Shared>,
}

impl Init {
    /// From power-on to home or power-off.
    fn live(self) {
        for start in 0..=RESTARTS {
            let ended = match self.start(start == 0) {
                Ok(supervision) => self.hear(supervision),
                Err(error) => Some(format!("{error:#}")),
            };
            let mut state = self.lock();
            if !state.powered {
                return;
            }
            if let Some(reason) = ended {
                state.phase = Phase::Home(reason);
                state.powered = false;
                return;
            }
            state.ended += 1;
            let pause = Duration::from_secs(1 << start);
            let waited = self
                .shared
                .changed
                .wait_timeout_while(state, pause, |state| state.powered);
            drop(waited);
        }
        let mut state = self.lock();
        if state.powered {
            state.phase = Phase::Home("its program ended again and again".to_owned());
            state.powered = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, boot: bool) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let mut command = cell(
            &self.room,
            &self.cell,
            &self.dir,
            &self.uuid,
            (boot, self.rights),
            &self.program,
            &[],
        );
        cid_sys::descriptors::hand_on(&mut command, theirs.into(), AGENT_FD);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut state = self.lock();
        anyhow::ensure!(state.powered, "switched off");
        state.child = Some(command.spawn().context("starting the cell")?);
        state.supervision = Some(ours.try_clone()?);
        Ok(ours)
    }

    /// Listens until the agent ends; the reason when it says `home`.
    fn hear(&self, supervision: UnixStream) -> Option<String> {
        let silence = Duration::from_secs(SILENCE_SECS);
        // Firmware may wait longer than an agent.
        let _ = supervision.set_read_timeout(Some(silence * 3));
        let mut reader = BufReader::new(supervision);
        let mut home = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
            match read {
                Ok(1..) => {}
                Ok(0) => break,
                // Silent, or gone in the middle of a word.
                Err(_) => {
                    self.lock().last_words = format!("its program said nothing for {SILENCE_SECS} s");
                    break;
                }
            }
            let text = String::from_utf8_lossy(&line);
            match FromAgent::parse(text.trim_end()) {
                Some(FromAgent::Alive) => {
                    let _ = reader.get_ref().set_read_timeout(Some(silence));
                }
                Some(FromAgent::Status(text)) => self.lock().last_words = text,
                Some(FromAgent::Up(name)) => {
                    let mut state = self.lock();
                    if !matches!(state.phase, Phase::Up { .. }) {
                        state.phase = Phase::Up {
                            name,
                            since: Instant::now(),
                        };
                    }
                }
                Some(FromAgent::Home(reason) | FromAgent::Off(reason)) => {
                    home = Some(reason);
                    break;
                }
                Some(FromAgent::Fact { .. }) | None => {}
            }
        }
        let child = {
            let mut state = self.lock();
            state.supervision = None;
            state.child.take()
        };
        if let Some(mut child) = child {
            // A PC that restarts is silent at once.
            let _ = signal(&child, Signal::KILL);
            let _ = child.wait();
        }
        home
    }
}
