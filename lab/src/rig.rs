//! The rig: hundreds of real agents and a real head on one machine, without QEMU. Each agent has a network namespace with one wire to the
//! room's bridge, a root of its own ([`cell`]) and a stand-in for firmware and PID 1 ([`agent`]). Never touches this machine's
//! network, clock or power: an agent here has the capabilities of the network and no others.

pub mod agent;
pub mod ask;
pub mod cell;
pub mod crowd;
mod firmware;
pub mod hostile;
pub mod relay;
pub mod wire;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use agent::{Agent, Phase};
pub use ask::{Asker, View};
use cell::Rights;
pub use crowd::Crowd;
pub use hostile::{Heard, Hostile, Noise, VOLLEY};
pub use relay::Relay;
pub use wire::{Kind, Multicast, Share, Traffic, Wire};

use cid_protocol::cmdline;

use crate::head::{Adoption, Head, HeadOptions, program};
use crate::room::Room;
use crate::run::run;

/// Ports of a bridge, less the head's (BR_MAX_PORTS of the kernel).
pub const MOST_AGENTS: usize = 1000;
/// The room's network with room for all of them.
const PREFIX: u8 = 20;
/// Where the kernel says how many neighbours all its namespaces together may know; only the first namespace sees it.
const NEIGHBOUR_BOUND: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

/// A room with a head and agents, which are off at first. Dropped, it is gone with everything in it.
#[derive(Debug)]
pub struct Rig {
    /// The head; public, so that tests can kill and restart it.
    pub head: Head,
    agents: Vec<Agent>,
    wire: Wire,
    room: Arc<Room>,
}

impl Rig {
    /// A head in full DHCP mode that knows every PC of the rig beforehand, and `count` PCs that are off.
    ///
    /// # Errors
    /// When a program or the image is missing, namespaces are not allowed, or the kernel's table of neighbours is too small; with the remedy.
    pub fn start(name: &str, count: usize) -> Result<Self> {
        Self::start_with(name, count, |options| options)
    }

    /// The same with other options of the head.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn start_with(
        name: &str,
        count: usize,
        change: impl FnOnce(HeadOptions) -> HeadOptions,
    ) -> Result<Self> {
        Self::lay(name, count, Rights::Wire, change)
    }

    /// A rig whose agents run programs for others, each in namespaces of its own: they have the capabilities for that.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn that_works(
        name: &str,
        count: usize,
        change: impl FnOnce(HeadOptions) -> HeadOptions,
    ) -> Result<Self> {
        Self::lay(name, count, Rights::Confine, change)
    }

    /// The same with a root image, which the PCs fetch and mount; in folder `images` as `cidbuild` made it. Wants root and a kernel
    /// that mounts EROFS from a file (6.12): without, its PCs fetch and check all of it, and say that they cannot mount it.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn rooted(name: &str, count: usize, images: &Path, image: &str) -> Result<Self> {
        let (images, image) = (images.to_owned(), image.to_owned());
        Self::lay(name, count, Rights::Mount, |options| HeadOptions {
            images_dir: images,
            image,
            ..options
        })
    }

    fn lay(
        name: &str,
        count: usize,
        rights: Rights,
        change: impl FnOnce(HeadOptions) -> HeadOptions,
    ) -> Result<Self> {
        ensure!(
            (1..=MOST_AGENTS).contains(&count),
            "{count} agents: a bridge carries 1 to {MOST_AGENTS}"
        );
        neighbours_fit(count)?;
        let (room, head) = room_with_head(name, change)?;
        let places = lay_wires(&room, count)?;
        let cell = program("cidlab")?;
        let program = agent_program()?;
        let agents = places
            .into_iter()
            .enumerate()
            .map(|(number, dir)| Agent::build(&room, number, dir, &cell, &program, rights))
            .collect::<Result<_>>()?;
        let wire = Wire::new(Arc::clone(&room))?;
        Ok(Self {
            head,
            agents,
            wire,
            room,
        })
    }

    /// A head as in [`Rig::start`], and `count` PCs that are off, all of them in one process ([`crowd`]).
    ///
    /// # Errors
    /// As [`Rig::start`], but for the table of neighbours.
    pub fn with_crowd(name: &str, count: usize) -> Result<(Self, Crowd)> {
        ensure!(
            (1..=MOST_AGENTS).contains(&count),
            "{count} nodes: 1 to {MOST_AGENTS}"
        );
        let (room, head) = room_with_head(name, |options| options)?;
        let rig = Self {
            head,
            agents: Vec::new(),
            wire: Wire::new(Arc::clone(&room))?,
            room,
        };
        let crowd = Crowd::gather(&rig, count)?;
        Ok((rig, crowd))
    }

    /// The PCs.
    #[must_use]
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// What goes over the bridge, and what does not.
    #[must_use]
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Switches all PCs on that are off, so many a second.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn power_on(&self, per_second: u32) -> Result<()> {
        for agent in &self.agents {
            agent.power_on()?;
            std::thread::sleep(Duration::from_secs(1) / per_second.max(1));
        }
        Ok(())
    }

    /// Brings a PC that crashed, or went home, back: plugged in, wanted by the administrator (a machine that left without a word boots its own
    /// disk until somebody says otherwise), switched on.
    ///
    /// # Errors
    /// When the head does not know it or is down.
    pub fn revive(&self, agent: &Agent) -> Result<()> {
        let node = self.head.control().node(&agent.mac())?;
        let name = node.context("the head does not know this PC")?.name;
        self.head.control().ask(&["wake", &name])?;
        agent.plug(true)?;
        agent.power_on()
    }

    /// Waits until every agent in `agents` has told its PID 1 that it is up; returns how long that took.
    ///
    /// # Errors
    /// At the deadline; names some that are not.
    pub fn wait_up(&self, limit: Duration) -> Result<Duration> {
        self.wait("agent that is up", limit, |agent| {
            matches!(agent.phase(), Phase::Up { .. })
        })
    }

    /// Waits until `wanted` holds for every agent.
    ///
    /// # Errors
    /// At the deadline; names some for which it does not.
    pub fn wait(&self, what: &str, limit: Duration, wanted: impl Fn(&Agent) -> bool) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let missing: Vec<&Agent> = self.agents.iter().filter(|agent| !wanted(agent)).collect();
            if missing.is_empty() {
                return Ok(started.elapsed());
            }
            if started.elapsed() > limit {
                let mut some = String::new();
                for agent in missing.iter().take(5) {
                    write!(
                        some,
                        "; {}: {:?}, {}",
                        agent.mac(),
                        agent.phase(),
                        agent.last_words()
                    )?;
                }
                bail!(
                    "{} of {} are no {what} after {limit:?}{some}",
                    missing.len(),
                    self.agents.len()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Says that all went well: the folder is removed with the room.
    pub fn succeeded(self) {
        self.room.succeeded();
    }
}

/// All nodes are watched as closely as if they ran jobs, by the word that an administrator would write into `kernel_args`.
#[must_use]
pub fn busy(mut options: HeadOptions) -> HeadOptions {
    options.kernel_args = format!("{} {}", options.kernel_args, cmdline::BUSY);
    options
}

/// The agent beside the other programs, or the one that goes into images (ci/node-programs): whichever was built last.
fn agent_program() -> Result<PathBuf> {
    let built = |name: &str| {
        let path = program(name).ok()?;
        Some((fs::metadata(&path).ok()?.modified().ok()?, path))
    };
    let newest = ["cid-agent", "../node-programs/cid-agent"]
        .into_iter()
        .filter_map(built)
        .max();
    newest.map_or_else(|| program("cid-agent"), |(_, path)| Ok(path))
}

fn room_with_head(name: &str, change: impl FnOnce(HeadOptions) -> HeadOptions) -> Result<(Arc<Room>, Head)> {
    let mut options = HeadOptions::new(crate::lab::images_dir(), "minimal")
        .with_key(&format!("match = [{:?}]", agent::mac_pattern()));
    options.adoption = Adoption::ByHand;
    let room = Arc::new(Room::start(name)?);
    widen(&room)?;
    let head = Head::start(&room, &change(options))?;
    Ok((room, head))
}

/// All namespaces share one table of neighbours; when it is full, packets are dropped, and tests lie.
fn neighbours_fit(count: usize) -> Result<()> {
    let wanted = (count + 1) * (count + 1);
    // Where it cannot be seen, a container, it cannot be changed either.
    let Ok(text) = fs::read_to_string(NEIGHBOUR_BOUND) else {
        return Ok(());
    };
    let bound: usize = text.trim().parse().context("reading gc_thresh3")?;
    ensure!(
        wanted * 2 <= bound || count <= 13,
        "{count} agents know {wanted} neighbours of one another, and the kernel keeps {bound} for all namespaces together: \
         sysctl -w net.ipv4.neigh.default.gc_thresh2={0} net.ipv4.neigh.default.gc_thresh3={0}",
        wanted * 2
    );
    Ok(())
}

/// The room's network is made for 250 machines, its `/proc` is this machine's (a process number in there would name a stranger),
/// and its own kernel would speak IPv6 on each port, which no switch does.
fn widen(room: &Room) -> Result<()> {
    let head = crate::room::HEAD_ADDRESS;
    let script = format!(
        "mount -t proc proc /proc && \
         for one in all default; do echo 1 >/proc/sys/net/ipv6/conf/$one/disable_ipv6; done; \
         ip addr del {head}/24 dev head0 && ip addr add {head}/{PREFIX} dev head0"
    );
    run(room.command("sh").args(["-c", &script])).map(drop)
}

/// A folder, a network namespace and a wire for each agent. Returns the folders.
fn lay_wires(room: &Room, count: usize) -> Result<Vec<PathBuf>> {
    let base = room.dir().join("agents");
    let mut script = String::from("set -e\n");
    let mut links = String::new();
    let mut folders = Vec::new();
    for number in 0..count {
        let dir = base.join(number.to_string());
        fs::create_dir_all(dir.join("run"))?;
        fs::create_dir_all(dir.join("root"))?;
        fs::write(dir.join("net"), "")?;
        let space = dir.join("net");
        writeln!(script, "unshare --net={} true", space.display())?;
        let port = wire::port(number);
        writeln!(
            links,
            "link add {port} type veth peer name eth0 address {} netns {}\nlink set {port} master br0\nlink set {port} up",
            agent::mac_text(number),
            space.display()
        )?;
        folders.push(dir);
    }
    let (batch, file) = (base.join("links"), base.join("spaces"));
    fs::write(&batch, links)?;
    writeln!(script, "ip -batch {}", batch.display())?;
    fs::write(&file, script)?;
    run(room.command("sh").arg(&file)).context("laying the agents' wires")?;
    Ok(folders)
}
