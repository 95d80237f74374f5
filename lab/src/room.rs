//! The room: a network of its own with a bridge, in namespaces that die with us. Never touches the machine's own
//! network, and leaves nothing behind: the first process of the PID namespace reads a pipe that we hold; when we
//! end, however we end, it ends, and the kernel kills everything that was started in the room.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::{line, run};

/// The head's address in the room.
pub const HEAD_ADDRESS: &str = "10.77.0.1";
/// The room's network.
pub const NETWORK: &str = "10.77.0.0/24";

/// Runs as process 1 of the room. The bridge must not answer ARP for the head's address (it would, since it lives in the head's
/// namespace): what is sent to the head would come in by `br0`, where the head does not listen. `sysfs` is mounted anew so that `/sys/class/net` shows the room's interfaces.
const SETUP: &str = "
set -e
mount -t sysfs sysfs /sys 2>/dev/null || true
ip -batch - <<END
link set lo up
link add br0 type bridge forward_delay 0 mcast_snooping 0
link add head0 type veth peer name head0br
link set head0br master br0
link set head0br up
link set br0 up
addr add 10.77.0.1/24 dev head0
link set head0 up
END
echo 1 >/proc/sys/net/ipv4/conf/br0/arp_ignore
echo ready
exec cat
";

/// A private network with a bridge, and a folder for everything that happens in it.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    space: Space,
    capture: Option<Child>,
    interfaces: AtomicU32,
    succeeded: AtomicBool,
}

/// Namespaces, held open by a process that lives as long as this value.
#[derive(Debug)]
struct Space {
    holder: Child,
    /// Process to enter the namespaces of, as seen from here.
    target: u32,
    /// Its number inside the room's PID namespace.
    inner: u32,
    user_namespace: bool,
}

/// Another computer in the room: its own network namespace with one link to the bridge.
#[derive(Debug)]
pub struct Host {
    space: Space,
}

impl Room {
    /// Builds a room. Its folder is `$CID_LAB_DIR` or the temporary folder, plus `cid-NAME-PID`.
    ///
    /// # Errors
    /// When namespaces are not allowed here, or the bridge cannot be made.
    pub fn start(name: &str) -> Result<Self> {
        let base = std::env::var_os("CID_LAB_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::start_in(base.join(format!("cid-{name}-{}", std::process::id())))
    }

    /// Builds a room in this folder, which must not exist.
    ///
    /// # Errors
    /// As [`Room::start`].
    pub fn start_in(dir: PathBuf) -> Result<Self> {
        // A Unix socket's path is at most 107 bytes, and the longest name in here is about 30.
        ensure!(
            dir.as_os_str().len() < 75,
            "{}: too long for sockets in it; set CID_LAB_DIR",
            dir.display()
        );
        fs::create_dir_all(dir.parent().unwrap_or(Path::new("/")))?;
        fs::create_dir(&dir).with_context(|| format!("making the room's folder {}", dir.display()))?;
        let user_namespace = !rustix::process::geteuid().is_root();
        let mut unshare = Command::new("unshare");
        if user_namespace {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SETUP,
        ]);
        let space = Space::hold(unshare, user_namespace, 1)?;
        let (interfaces, succeeded) = (AtomicU32::new(0), AtomicBool::new(false));
        Ok(Self {
            dir,
            space,
            capture: None,
            interfaces,
            succeeded,
        })
    }

    /// The room's folder: serial logs, verdicts, disks, sockets, the capture.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process whose namespaces are the room's; for `nsenter`.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.space.target
    }

    /// A command that will run in the room, with the room's network, and die with its parent here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.space.command(program)
    }

    /// Starts to write every frame on the bridge to `net.pcap`. In a user namespace tcpdump cannot run (it insists
    /// on changing its groups, which is not allowed there): then each PC writes its own (see `Files::capture`).
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn capture(&mut self) -> Result<PathBuf> {
        let path = self.dir.join("net.pcap");
        if self.space.user_namespace {
            return Ok(path);
        }
        let log = fs::File::create(self.dir.join("tcpdump.log"))?;
        let mut command = self.command("tcpdump");
        command
            .args(["-i", "br0", "-n", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(&path);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.capture = Some(child.context("starting tcpdump")?);
        Ok(path)
    }

    /// Whether the frames of the whole bridge are written down.
    #[must_use]
    pub fn is_captured(&self) -> bool {
        self.capture.is_some()
    }

    /// Makes a tap on the bridge for a machine's NIC; returns its name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tap(&self) -> Result<String> {
        let name = format!("tap{}", self.interfaces.fetch_add(1, Ordering::Relaxed));
        let script = format!(
            "ip tuntap add dev {name} mode tap && ip link set {name} master br0 && ip link set {name} up"
        );
        run(self.command("sh").args(["-c", &script]))?;
        Ok(name)
    }

    /// Another computer in the room, with one Ethernet link `eth0` to the bridge and this address (with prefix
    /// length), or none.
    ///
    /// # Errors
    /// When the namespace or the link cannot be made.
    pub fn host(&self, address: Option<&str>) -> Result<Host> {
        let number = self.interfaces.fetch_add(1, Ordering::Relaxed);
        let mut unshare = self.command("unshare");
        unshare.args(["--net", "--mount", "sh", "-c"]);
        unshare.arg("mount -t sysfs sysfs /sys 2>/dev/null; ip link set lo up; echo ready $$; exec cat");
        let space = Space::hold(unshare, self.space.user_namespace, 1)?;
        let link = format!(
            "ip link add host{number} type veth peer name eth0 netns {} && \
             ip link set host{number} master br0 && ip link set host{number} up",
            space.inner
        );
        run(self.command("sh").args(["-c", &link]))?;
        run(space.command("ip").args(["link", "set", "eth0", "up"]))?;
        if let Some(address) = address {
            run(space.command("ip").args(["addr", "add", address, "dev", "eth0"]))?;
        }
        Ok(Host { space })
    }

    /// Says that all went well: the folder is removed with the room (unless `CID_LAB_KEEP` is set).
    pub fn succeeded(&self) {
        self.succeeded.store(true, Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.space.end();
        if let Some(capture) = &mut self.capture {
            let _ = capture.wait();
        }
        let keep = std::env::var_os("CID_LAB_KEEP").is_some() || !self.succeeded.load(Ordering::Relaxed);
        if keep {
            eprintln!(
                "cidlab: logs, disks and capture are kept in {}",
                self.dir.display()
            );
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cidlab: {}: {error}", self.dir.display());
        }
    }
}

impl Host {
    /// Process whose network it is, as seen from outside the room.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.space.target
    }

    /// A command that will run on this computer.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.space.command(program)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.space.end();
    }
}

impl Space {
    /// Starts `command`, which must print `ready [PID]` and then read its standard input to the end.
    /// The shell in it is `depth` generations below `command`.
    fn hold(mut command: Command, user_namespace: bool, depth: u32) -> Result<Self> {
        let words = line(&command);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {words} (ci/prepare installs what the lab needs)"))?;
        let mut answer = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut answer)?;
        }
        let mut answer_words = answer.split_whitespace();
        if answer_words.next() != Some("ready") {
            let mut said = String::new();
            if let Some(mut stderr) = holder.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            let _ = holder.wait();
            bail!(
                "cannot make namespaces: {} (allow unprivileged user namespaces, or run as root)",
                said.trim().replace('\n', "; ")
            );
        }
        let inner = answer_words
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(1);
        let mut target = holder.id();
        for _ in 0..depth {
            target = child_of(target).context("the holder of the namespaces is gone")?;
        }
        Ok(Self {
            holder,
            target,
            inner,
            user_namespace,
        })
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = enter(self.target, self.user_namespace);
        command.arg(program);
        command
    }

    /// Ends the first process; the kernel kills everything in its PID namespace, and `unshare` sees it buried.
    /// (Closing the pipe does the same when we do not come to this.)
    fn end(&mut self) {
        let first = i32::try_from(self.target).ok().and_then(Pid::from_raw);
        let killed = first.is_some_and(|first| kill_process(first, Signal::KILL).is_ok());
        if !killed {
            let _ = self.holder.kill();
        }
        let _ = self.holder.wait();
    }
}

/// A command line that enters a process's namespaces; the program and its arguments are to be added.
/// What it starts dies with the `nsenter` here, so killing the one kills the other.
#[must_use]
pub fn enter(target: u32, user_namespace: bool) -> Command {
    let mut command = Command::new("nsenter");
    command.arg("--target").arg(target.to_string());
    if user_namespace {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--",
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
    ]);
    command
}

/// Sends a signal to the program that [`Room::command`] started (`nsenter` stands between us and it).
///
/// # Errors
/// When it has ended.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let inner = child_of(child.id()).context("the program has ended")?;
    let send = |process: u32| {
        let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process number")?, signal)
            .with_context(|| format!("signalling process {process}"))
    };
    send(inner)?;
    // nsenter stops itself when its child is stopped, and would never see its end.
    if signal == Signal::CONT {
        send(child.id())?;
    }
    Ok(())
}

/// First child of a process.
pub(crate) fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
