//! The real head in the room: started with a configuration, killed and started again as tests please, asked with the
//! real `cidctl`. Must not look into the head's database.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::api::{Event, NodeList, NodeRow};
use rustix::process::Signal;

use crate::manager::Manager;
use crate::room::{Room, signal};
use crate::run::run;

/// A head that was just started opens its database and asks whether another DHCP server is there.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A head that signs wrongly: `cargo build -p cidhead --example crooked_head`.
const CROOKED: &str = "examples/crooked_head";

/// What goes into `head.toml`. The rest is fixed: interface `head0`, one group `lab`.
#[derive(Debug, Clone)]
pub struct HeadOptions {
    /// Folder of built images.
    pub images_dir: PathBuf,
    /// Image of the group.
    pub image: String,
    /// How PCs get into group `lab`.
    pub adoption: Adoption,
    /// Group key `kernel_args`.
    pub kernel_args: String,
    /// Group key `bail_out`.
    pub bail_out: String,
    /// Group key `hours`.
    pub hours: Vec<String>,
    /// Group key `patience`.
    pub patience: String,
    /// Whose DHCP server hands out addresses.
    pub mode: DhcpMode,
    /// Seconds that the head's wall clock is ahead of ours.
    pub clock_ahead: u64,
    /// Further lines of `head.toml`, at its top level.
    pub more: String,
    /// Further lines of the group.
    pub keys: String,
    /// Further tables of `head.toml`, at its end.
    pub tables: String,
}

/// `[dhcp] mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpMode {
    /// Ours.
    Full,
    /// The campus's; ours adds what is missing for booting.
    Proxy,
    /// The campus's, which points at our files.
    Off,
}

impl DhcpMode {
    /// As `head.toml` writes it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Proxy => "proxy",
            Self::Off => "off",
        }
    }
}

/// How PCs get into group `lab`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// By `cidctl adopt`; until then they are listed and sent to their own disk.
    ByHand,
    /// Every PC of the lab is known beforehand, by the MAC of the NIC it boots from (key `match`).
    ByMac,
    /// Whoever asks is in (`unknown = "boot"`).
    Anybody,
}

impl HeadOptions {
    /// Image `name` in `images_dir`; the lab's PCs are known beforehand.
    #[must_use]
    pub fn new(images_dir: PathBuf, name: &str) -> Self {
        Self {
            images_dir,
            image: name.to_owned(),
            adoption: Adoption::ByMac,
            kernel_args: "console=ttyS0,115200".to_owned(),
            bail_out: "10m".to_owned(),
            hours: vec!["always".to_owned()],
            patience: "60s".to_owned(),
            clock_ahead: 0,
            mode: DhcpMode::Full,
            more: String::new(),
            keys: String::new(),
            tables: String::new(),
        }
    }

    /// School hours by a clock that starts at this time of a Wednesday, `(6, 29, 30)`.
    #[must_use]
    pub fn on_a_school_day(mut self, (hour, minute, second): (u64, u64, u64)) -> Self {
        const WEEK: u64 = 7 * 86_400;
        self.hours = vec!["Mon-Fri 20:00-06:30".to_owned()];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The first of January 1970 was a Thursday.
        let since_monday = (now.as_secs() + 3 * 86_400) % WEEK;
        let wanted = 2 * 86_400 + hour * 3_600 + minute * 60 + second;
        self.clock_ahead = WEEK + wanted - since_monday;
        self
    }

    /// With another line in the group, `at_close = "power-off"`.
    #[must_use]
    pub fn with_key(mut self, line: &str) -> Self {
        self.keys.push_str(line);
        self.keys.push('\n');
        self
    }

    fn to_toml(&self, dir: &Path) -> String {
        let (unknown, known) = match self.adoption {
            Adoption::ByHand => ("unknown = \"wait\"", ""),
            // The fifth byte is the NIC's number in its PC (see `Pc::build`).
            Adoption::ByMac => ("unknown = \"wait\"", "match = [\"52:54:00:c1:00:*\"]\n"),
            Adoption::Anybody => ("unknown = \"boot\"\ndefault_group = \"lab\"", ""),
        };
        let hours: Vec<String> = self.hours.iter().map(|line| format!("{line:?}")).collect();
        let (dir, images) = (dir.display(), self.images_dir.display());
        let dhcp = match self.mode {
            // What nobody writes is the default.
            DhcpMode::Full => String::new(),
            mode => format!("\n[dhcp]\nmode = \"{}\"\n", mode.word()),
        };
        format!(
            "interface = \"head0\"\ntime_zone = \"UTC\"\nstate_dir = \"{dir}/state\"\nimages_dir = \"{images}\"\n\
             socket = \"{dir}/head.sock\"\n{unknown}\n{}\n[groups.lab]\nimage = \"{}\"\nkernel_args = \"{}\"\n\
             hours = [{}]\nbail_out = \"{}\"\npatience = \"{}\"\n{known}{}{dhcp}\n{}",
            self.more,
            self.image,
            self.kernel_args,
            hours.join(", "),
            self.bail_out,
            self.patience,
            self.keys,
            self.tables
        )
    }
}

/// A head in the room; it may be down.
#[derive(Debug)]
pub struct Head {
    room: Arc<Room>,
    process: Option<Child>,
    control: Control,
    manager: Manager,
    clock_ahead: std::cell::Cell<u64>,
    crooked: Option<&'static str>,
}

/// How to ask the head: the real `cidctl` with the head's socket.
#[derive(Debug, Clone)]
pub struct Control {
    program: PathBuf,
    socket: PathBuf,
}

impl Head {
    /// Writes `head.toml` and starts the head; returns when it answers.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start(room: &Arc<Room>, options: &HeadOptions) -> Result<Self> {
        let control = Control {
            program: program("cidctl")?,
            socket: room.dir().join("head.sock"),
        };
        let mut this = Self {
            room: Arc::clone(room),
            process: None,
            control,
            manager: Manager::start(room.dir())?,
            clock_ahead: std::cell::Cell::new(0),
            crooked: None,
        };
        this.configure(options)?;
        this.up()?;
        Ok(this)
    }

    /// Writes another `head.toml`; it counts from the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, options: &HeadOptions) -> Result<()> {
        self.clock_ahead.set(options.clock_ahead);
        let dir = self.room.dir();
        fs::create_dir_all(dir.join("state"))?;
        // Without this mark a head takes no time of day from its environment.
        fs::write(dir.join("state/virtual-lab"), "")?;
        fs::write(dir.join("head.toml"), options.to_toml(dir)).context("writing head.toml")
    }

    /// Starts the head if it is down; returns when it answers.
    ///
    /// # Errors
    /// When it ends, or does not answer in time; with the end of its log.
    pub fn up(&mut self) -> Result<()> {
        self.launch()?;
        let deadline = Instant::now() + START_LIMIT;
        while self.control.ask(&["status", "--json"]).is_err() {
            let ended = match &mut self.process {
                Some(process) => process.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                self.process = None;
                bail!("cidhead did not come up: {}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Starts the head if it is down, and does not wait for it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        // As systemd starts it, with the sockets of the one before; LISTEN_PID is its number in the room.
        let mut command = self.room.command("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(program(self.crooked.map_or("cidhead", |_| CROOKED))?);
        if let Some(how) = self.crooked {
            command.env("CID_CROOKED", how);
        }
        self.manager.introduce(&mut command)?;
        if self.clock_ahead.get() > 0 {
            command.env("CID_LAB_CLOCK_AHEAD", self.clock_ahead.get().to_string());
        }
        command.arg("--config").arg(self.room.dir().join("head.toml"));
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.process = Some(process.context("starting cidhead")?);
        Ok(())
    }

    /// From its next start on it signs root images as `how` says (`head/examples/crooked_head.rs`), or honestly again.
    pub fn be_crooked(&mut self, how: Option<&'static str>) {
        self.crooked = how;
    }

    /// Kills the head (`kill -9`); its sockets stay open for the next one, as under systemd.
    ///
    /// # Errors
    /// When it is down.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the head is down")?;
        signal(&process, Signal::KILL)?;
        process.wait()?;
        Ok(())
    }

    /// Kills the head for good: its sockets go with it, as when its machine is switched off or nobody starts it again.
    ///
    /// # Errors
    /// When it is down.
    pub fn lose(&mut self) -> Result<()> {
        self.kill()?;
        self.manager.release()
    }

    /// Asks the head to stop (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When it is down, does not stop within 15 s, or says that it failed.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the head is down")?;
        signal(&process, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = process.try_wait()? {
                ensure!(
                    status.success(),
                    "cidhead stopped with {status}: {}",
                    self.log_tail()
                );
                return self.manager.release();
            }
            if Instant::now() > deadline {
                process.kill()?;
                bail!("cidhead did not stop within 15 s of SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process here, for `/proc`; `None` while it is down.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        crate::room::child_of(self.process.as_ref()?.id())
    }

    /// How to ask it.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.room.dir().join("head.log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ")
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Control {
    /// Of a head that somebody else started, by its control socket.
    ///
    /// # Errors
    /// When `cidctl` is not built.
    pub fn at(socket: PathBuf) -> Result<Self> {
        let program = program("cidctl")?;
        Ok(Self { program, socket })
    }

    /// Runs `cidctl` with these arguments; returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// `cidctl` with these arguments, to be run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// All machines, as `cidctl nodes --json` prints them.
    ///
    /// # Errors
    /// When the head is down or the answer is not understood.
    pub fn nodes(&self) -> Result<Vec<NodeRow>> {
        let text = self.ask(&["nodes", "--json"])?;
        Ok(serde_json::from_str::<NodeList>(&text)
            .context("reading what cidctl nodes --json printed")?
            .nodes)
    }

    /// The machine with this MAC, if the head has heard of it.
    ///
    /// # Errors
    /// As [`Control::nodes`].
    pub fn node(&self, mac: &str) -> Result<Option<NodeRow>> {
        Ok(self.nodes()?.into_iter().find(|node| node.mac == mac))
    }

    /// Everything that `/metrics` counts, by its name there, labels included: `cid_drops_total{reason="beacon-magic"}`.
    ///
    /// # Errors
    /// When the head is down.
    pub fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let mut stream = UnixStream::connect(&self.socket).context("calling the head")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: head\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        let counts = samples.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)));
        Ok(counts.collect())
    }

    /// The head's latest events (1000 at most), oldest first.
    ///
    /// # Errors
    /// When the head is down or the answer is not understood.
    pub fn events(&self) -> Result<Vec<Event>> {
        let text = self.ask(&["events", "--json", "-n", "1000"])?;
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).context("reading what cidctl events --json printed"))
            .collect()
    }
}

/// A program of this project: in `$CID_BIN_DIR`, else beside the running one (tests run from a folder below).
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("CID_BIN_DIR")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    if places.is_empty() {
        let own = std::env::current_exe().context("finding the running program")?;
        places.extend(own.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    let found = places
        .iter()
        .map(|place| place.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built: `cargo build -p {name}`, or name its folder in CID_BIN_DIR")
    })
}
