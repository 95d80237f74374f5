//! A thousand nodes in one process: the agent's own library (its core, its loop among the members, TLS, its door, what it keeps), each
//! node with its own address on one link that all share. What it is not: a process, a network namespace and a wire for each, its own
//! DHCP client, its measurements, its clock. The rig is its firmware and its PID 1. Must not be kinder than those.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cid_agent::Stand;
use cid_protocol::supervision::FromAgent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader as AsyncReader};
use tokio::task::AbortHandle;

use super::firmware::{self, Boot, LINK};
use super::wire::{Kind, Share, Traffic};
use super::{Rig, agent, cell};
use crate::head::program;
use crate::room::Host;
use crate::run::run as run_program;

/// Restarts of an agent before the PC goes home, as in `cid-init`.
const RESTARTS: u32 = 3;
/// The crowd's own rules: who has no power is heard by nobody.
const RULES: &str = "table ip crowd {
 set off { type ipv4_addr; }
 chain out { type filter hook output priority 0; ip saddr @off drop; }
 chain in { type filter hook input priority 0; ip daddr @off drop; }
}
";

/// Where one of them is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// It has said that it is up in this boot, and was not switched off since.
    pub up: bool,
    /// Why it is in its own system.
    pub home: Option<String>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// How often it was switched on.
    pub boots: u32,
    /// How often its agent ended in this boot.
    pub ended: u32,
    /// What its screen shows.
    pub words: String,
}

/// The crowd, from outside. Dropped, it is gone without a word.
#[derive(Debug)]
pub struct Crowd {
    host: Host,
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    count: usize,
}

impl Crowd {
    pub(super) fn gather(rig: &Rig, count: usize) -> Result<Self> {
        let host = rig.room().host(None)?;
        let dir = rig.room().dir().join("crowd");
        fs::create_dir(&dir)?;
        let rules = dir.join("rules.nft");
        fs::write(&rules, RULES)?;
        run_program(host.command("nft").arg("-f").arg(&rules))?;
        let mut command = host.command("setpriv");
        command.args(["--no-new-privs", "--inh-caps", "-all", "--ambient-caps", "-all"]);
        // As an agent in its cell: it sets no clock and restarts nothing.
        command.args(["--bounding-set", cell::MAY, "--"]);
        command.arg(program("cidlab")?).arg("crowd");
        command
            .arg("--dir")
            .arg(&dir)
            .args(["--count", &count.to_string()]);
        let log = fs::File::create(dir.join("log"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting the crowd")?;
        let say = child.stdin.take().context("its standard input")?;
        let hear = BufReader::new(child.stdout.take().context("its standard output")?);
        Ok(Self {
            host,
            child,
            say,
            hear,
            count,
        })
    }

    /// Their cards' addresses, by which the head's list and [`super::Asker::among`] know them.
    #[must_use]
    pub fn macs(&self) -> Vec<String> {
        (0..self.count).map(agent::mac_text).collect()
    }

    /// Switches so many on, from this number; returns when each has its kernel's command line.
    ///
    /// # Errors
    /// When the crowd has ended.
    pub fn power_on(&mut self, first: usize, count: usize) -> Result<()> {
        self.order::<()>(&format!("on {first} {count}"))
    }

    /// Takes one's power: nothing of it is on the wire any more, and nobody was told.
    ///
    /// # Errors
    /// When the crowd has ended, or it has no address.
    pub fn crash(&mut self, number: usize) -> Result<()> {
        self.order::<()>(&format!("crash {number}"))
    }

    /// Where each of them is.
    ///
    /// # Errors
    /// When the crowd has ended.
    pub fn places(&mut self) -> Result<Vec<Place>> {
        self.order("places")
    }

    /// Waits until all are up, by their own word.
    ///
    /// # Errors
    /// At the deadline; names some that are not.
    pub fn wait_up(&mut self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let places = self.places()?;
            // One that went home does not come up by itself.
            if let Some(home) = places.iter().find(|place| place.home.is_some()) {
                bail!("one went home: {home:?}");
            }
            let down: Vec<(usize, &Place)> =
                places.iter().enumerate().filter(|(_, place)| !place.up).collect();
            if down.is_empty() {
                return Ok(started.elapsed());
            }
            ensure!(
                started.elapsed() < limit,
                "{} of {} are not up after {limit:?}: {:?}",
                down.len(),
                places.len(),
                down.iter().take(5).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What has been on the wire: the bridge's ports, and what went from node to node inside the crowd, with Ethernet headers. Nobody
    /// asks by ARP there.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn traffic(&self, rig: &Rig) -> Result<Traffic> {
        let mut traffic = rig.wire().traffic()?;
        let inside = run_program(
            self.host
                .command("ip")
                .args(["-j", "-s", "link", "show", "dev", "lo"]),
        )?;
        let inside: Value = serde_json::from_str(&inside).context("reading what ip prints")?;
        let of = |key: &str| inside[0]["stats64"]["tx"][key].as_u64().context("lo's counters");
        let (frames, bytes) = (of("packets")?, of("bytes")?);
        let all = &mut traffic.all;
        (all.frames, all.bytes) = (all.frames + frames, all.bytes + bytes);
        let unicast = traffic.kinds.entry(Kind::Unicast).or_insert(Share::default());
        (unicast.frames, unicast.bytes) = (unicast.frames + frames, unicast.bytes + bytes);
        Ok(traffic)
    }

    /// The crowd's process, for `/proc`.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        crate::room::child_of(self.child.id())
    }

    fn order<T: for<'a> Deserialize<'a>>(&mut self, words: &str) -> Result<T> {
        writeln!(self.say, "{words}").context("the crowd has ended; its log says why")?;
        let mut answer = String::new();
        self.hear.read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer).context("the crowd has ended; its log says why")?;
        if let Some(why) = answer.get("error") {
            bail!("{words}: {why}");
        }
        Ok(serde_json::from_value(answer)?)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `cidlab crowd` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Members {
    /// A folder for what they keep.
    #[arg(long)]
    pub dir: PathBuf,
    /// How many.
    #[arg(long)]
    pub count: usize,
}

/// One of them, from inside.
#[derive(Debug, Default)]
struct Node {
    place: Mutex<Place>,
    life: Mutex<Option<AbortHandle>>,
}

impl Node {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what its standard input says, a line at a time, until it ends.
///
/// # Errors
/// When it cannot begin.
pub fn run(members: &Members) -> Result<()> {
    // For the head's datagrams to a thousand sockets, all on this machine's one receive queue.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let nodes: Vec<Arc<Node>> = (0..members.count).map(|_| Arc::default()).collect();
    let index: u32 = fs::read_to_string(format!("/sys/class/net/{LINK}/ifindex"))?
        .trim()
        .parse()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let order = words.next().unwrap_or_default();
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse::<usize>().ok())
                .unwrap_or(0)
        };
        let answer = match order {
            "on" => {
                let (first, count) = (number(), number());
                let mut all = nodes.iter().enumerate().skip(first).take(count);
                all.try_for_each(|(number, node)| power_on(members, index, number, node, &runtime))
                    .map(|()| Value::Null)
            }
            "crash" => crash(nodes.get(number()).context("no such node")?).map(|()| Value::Null),
            _ => {
                let places: Vec<Place> = nodes.iter().map(|node| node.place().clone()).collect();
                Ok(serde_json::to_value(places)?)
            }
        };
        let answer = answer.unwrap_or_else(|error| serde_json::json!({"error": format!("{error:#}")}));
        println!("{answer}");
    }
    Ok(())
}

fn power_on(
    members: &Members,
    index: u32,
    number: usize,
    node: &Arc<Node>,
    runtime: &tokio::runtime::Runtime,
) -> Result<()> {
    let before = node.place().clone();
    if let Some(address) = before.address {
        off(address, false)?;
    }
    let mac = agent::mac_text(number);
    let uuid = agent::uuid_text(number);
    let (lease, boot) = firmware::boot(&mac, &uuid)?;
    let mut place = Place {
        address: lease.as_ref().map(|lease| lease.address),
        boots: before.boots + 1,
        ..Place::default()
    };
    let (lease, cmdline) = match (lease, boot) {
        (Some(lease), Boot::Kernel { command_line }) => (lease, command_line),
        (_, Boot::OwnDisk { why }) => {
            place.home = Some(format!("own disk: {why}"));
            *node.place() = place;
            return Ok(());
        }
        (None, Boot::Kernel { .. }) => bail!("a kernel without an address"),
    };
    *node.place() = place;
    let folder = members.dir.join(number.to_string());
    if folder.exists() {
        // It was in memory.
        fs::remove_dir_all(&folder)?;
    }
    let stand = Stand {
        link: (index, LINK.to_owned()),
        mac: mac_bytes(&mac)?,
        address: (lease.address, lease.prefix),
        uuid,
        boot_id: fs::read_to_string("/proc/sys/kernel/random/uuid")?
            .trim()
            .to_owned(),
        cmdline,
        folder,
    };
    let task = runtime.spawn(live(Arc::clone(node), stand));
    *node.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    Ok(())
}

fn crash(node: &Node) -> Result<()> {
    let address = node.place().address.context("it has no address")?;
    off(address, true)?;
    let life = node.life.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(life) = life {
        life.abort();
    }
    node.place().up = false;
    // Connections of the boot that is over must not speak when there is power again.
    firmware::ip(&["addr", "del", &format!("{address}/32"), "dev", LINK])
        .or_else(|_| firmware::ip(&["addr", "del", &address.to_string(), "dev", LINK]))
}

fn off(address: Ipv4Addr, off: bool) -> Result<()> {
    let verb = if off { "add" } else { "delete" };
    let element = format!("{{ {address} }}");
    let mut command = std::process::Command::new("nft");
    let done = run_program(command.args([verb, "element", "ip", "crowd", "off", &element]));
    // One that went home by itself was never off.
    if off { done.map(drop) } else { Ok(()) }
}

fn mac_bytes(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("a card's address")
}

/// PID 1 of one boot: starts an agent that ended again, and takes `home` as the end.
async fn live(node: Arc<Node>, stand: Stand) {
    for start in 0..=RESTARTS {
        match one_agent(&node, &stand).await {
            Ok(Some(reason)) => {
                let mut place = node.place();
                (place.up, place.home) = (false, Some(reason));
                return;
            }
            Ok(None) => {}
            Err(error) => node.place().words = format!("{error:#}"),
        }
        node.place().ended += 1;
        tokio::time::sleep(Duration::from_secs(1 << start)).await;
    }
    let mut place = node.place();
    (place.up, place.home) = (false, Some("its program ended again and again".to_owned()));
}

/// One agent from start to end; the reason when it says `home`.
async fn one_agent(node: &Node, stand: &Stand) -> Result<Option<String>> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = tokio::net::UnixStream::from_std(ours)?;
    let hear = hear(node, ours);
    tokio::select! {
        home = hear => home,
        ended = cid_agent::run_in_crowd(theirs.into(), stand.clone()) => match ended {
            Ok(never) => match never {},
            Err(error) => Err(error),
        },
    }
}

async fn hear(node: &Node, supervision: tokio::net::UnixStream) -> Result<Option<String>> {
    let mut lines = AsyncReader::new(supervision).lines();
    while let Some(line) = lines.next_line().await? {
        match FromAgent::parse(&line) {
            Some(FromAgent::Status(words)) => node.place().words = words,
            Some(FromAgent::Up(_)) => node.place().up = true,
            Some(FromAgent::Home(reason) | FromAgent::Off(reason)) => return Ok(Some(reason)),
            Some(FromAgent::Alive | FromAgent::Fact { .. }) | None => {}
        }
    }
    Ok(None)
}
