//! Sockets, timers and files around the cores. One loop on one thread: events come in by one bounded queue,
//! outputs are obeyed in order, and the heartbeat leaves from here, so a loop that hangs is noticed.

mod beacons;
mod head;
mod init;
mod members;
mod roots;
mod wires;
mod writer;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cid_discovery::wire::Mode;
use cid_discovery::{Announcer, NodeId};
use cid_protocol::cmdline;
use cid_protocol::measure::Measured;
use cid_protocol::node::{FromNode, Leaving, ToNode};
use cid_protocol::supervision::{FromAgent, FromInit};
use cid_protocol::trace::Phase;
use nix::time::{ClockId, clock_gettime};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf as InitWriter;
use tokio::net::{UdpSocket, UnixStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock::Timekeeper;
use crate::core::{Config, Node, Output, Standing};
use crate::dhcp::{self, Client};
use crate::ground::Ground;
use crate::identity::Credentials;
use crate::jobs::Work;
use crate::leaving::Prepared;
use crate::measure::Measurements;
use crate::member::News;
use crate::member::keep::Keep;
use crate::{hardware, links, netlink, root};
use writer::Writer;

/// Events that may wait.
const QUEUE: usize = 128;
/// A head that takes no bytes for this long has failed.
const WRITE_BOUND: Duration = Duration::from_secs(2);
/// How long the kernel may take to change an address; half of what PID 1 allows between heartbeats.
const KERNEL_BOUND: Duration = Duration::from_secs(10);
/// How long getting ready for the next start may take; PID 1 gives a person the PC back in any case.
const PREPARE_BOUND: Duration = Duration::from_secs(2);
/// Without `cid.bail_out` on the kernel command line.
const DEFAULT_BAIL_OUT: Duration = Duration::from_secs(600);

/// What the tasks tell the loop. A connection's events carry its number: those of an earlier one are ignored.
enum Event {
    LinksChanged,
    Dhcp {
        index: u32,
        bytes: Vec<u8>,
    },
    Connected {
        number: u64,
        writer: Writer,
        measured: Option<Measured>,
    },
    Frame {
        number: u64,
        message: Box<ToNode>,
    },
    /// About a job, or of one of its streams.
    Work {
        number: u64,
        frame: cid_streams::Frame,
    },
    Closed {
        number: u64,
        why: String,
    },
    Init(FromInit),
    /// From the member with this incarnation; an error is its end.
    Member {
        incarnation: u64,
        news: Result<News, String>,
    },
    Root(root::task::News),
}

/// A link that is up, with its DHCP client.
struct Wire {
    name: String,
    mac: [u8; 6],
    carrier: bool,
    /// With its prefix.
    address: Option<String>,
    /// The addresses of somebody before are off it.
    clean: std::sync::Arc<std::sync::atomic::AtomicBool>,
    client: Client,
    /// `None` where the address is not ours to ask for.
    dhcp: Option<Dhcp>,
}

struct Dhcp {
    socket: std::sync::Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Connection {
    number: u64,
    task: AbortHandle,
    writer: Option<Writer>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shell {
    ground: Ground,
    /// When the kernel began: what is kept for the agent after this one is told by the same clock.
    started: Instant,
    keep: Keep,
    /// What the agent after this one will read.
    head_heard_kept: Option<Duration>,
    cmdline: String,
    node: Node,
    wires: BTreeMap<u32, Wire>,
    connection: Option<Connection>,
    connections: u64,
    announcer: Announcer,
    time: Timekeeper,
    beacon_socket: Option<UdpSocket>,
    head: Option<SocketAddrV4>,
    boot_mac: Option<[u8; 6]>,
    /// `None`: the head's boot script is of the time before TLS.
    credentials: Option<Credentials>,
    seating: members::Seating,
    roots: roots::Roots,
    work: Work,
    init: InitWriter,
    /// What PID 1 told of the boot.
    phases: Vec<Phase>,
    /// What is ready for the next start.
    prepared: Prepared,
    /// For the next hello.
    measurements: Measurements,
    sender: Sender<Event>,
}

/// Runs until the process is ended; an error ends it, and PID 1 starts it again.
pub(crate) async fn run(supervision: OwnedFd, ground: Ground) -> anyhow::Result<Infallible> {
    let stream = std::os::unix::net::UnixStream::from(supervision);
    stream.set_nonblocking(true).context("supervision socket")?;
    let (init_reader, init) = UnixStream::from_std(stream)
        .context("supervision socket")?
        .into_split();
    let (sender, events) = channel(QUEUE);
    tokio::spawn(init::read_init(init_reader, sender.clone()));

    if ground.fixed_address().is_none() {
        links::settings();
        watch_links(sender.clone())?;
    }
    let cmdline = ground.cmdline();
    let keep = Keep::new(ground.folder());
    let credentials = Credentials::load(&cmdline, keep.clone());
    let seating = members::Seating::new(keep.clone());
    let seed = seed();
    let mut config = config_from(&cmdline, &credentials, seed);
    config.heard = keep.head_heard();
    config.bail_out = seating.bail_out().unwrap_or(config.bail_out);
    let boot_mac = config
        .boot_mac
        .or_else(|| ground.wired().first().map(|link| link.mac))
        .unwrap_or_default();
    let started = kernel_began();
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    // The hardware clock orders boots; the seed tells those apart that it does not.
    let incarnation = u64::try_from(now_ms).unwrap_or(0);
    let announcer = Announcer::new(NodeId::of_machine(&ground.uuid(), boot_mac), incarnation, seed);
    let (head, booted_from) = (config.head, config.boot_mac);
    let node = Node::new(started.elapsed(), config);
    let roots = roots::Roots::start(started, sender.clone());
    let mut shell = Shell {
        started,
        keep,
        head_heard_kept: None,
        cmdline,
        node,
        wires: BTreeMap::new(),
        connection: None,
        connections: 0,
        announcer,
        time: Timekeeper::default(),
        beacon_socket: None,
        head,
        boot_mac: booted_from,
        credentials: credentials.ok(),
        seating,
        roots,
        work: Work::default(),
        init,
        phases: Vec::new(),
        prepared: Prepared::default(),
        measurements: ground.measurements(),
        sender,
        ground,
    };
    if cmdline::lookup(&shell.cmdline, cmdline::BUSY).is_some() {
        shell.set_mode(Mode::Busy);
    }
    shell.forever(events).await
}

/// A thread of its own, which sleeps in the kernel.
fn watch_links(sender: Sender<Event>) -> anyhow::Result<()> {
    let mut changes = netlink::Changes::new().context("netlink")?;
    let watch = move || {
        while changes.next().is_ok() {
            // A full queue has a rescan in it already, or soon will: links are looked at every second anyway.
            let _ = sender.try_send(Event::LinksChanged);
        }
    };
    let thread = std::thread::Builder::new().stack_size(64 * 1024);
    thread.spawn(watch).context("a thread for links")?;
    Ok(())
}

fn config_from(line: &str, credentials: &Result<Credentials, String>, seed: u64) -> Config {
    let secs = cmdline::lookup(line, cmdline::BAIL_OUT).and_then(|value| value.parse().ok());
    Config {
        head: cmdline::lookup(line, cmdline::HEAD).and_then(|value| value.parse().ok()),
        boot_mac: cmdline::lookup(line, cmdline::BOOTIF).and_then(cmdline::parse_bootif),
        bail_out: secs.map_or(DEFAULT_BAIL_OUT, Duration::from_secs),
        heard: None,
        standing: match credentials {
            Ok(credentials) if credentials.is_certified() => Standing::Certified,
            Ok(_) => Standing::Stranger,
            Err(why) => Standing::Nobody(why.clone()),
        },
        seed,
    }
}

/// On the clock of deadlines, which stands still for nobody and is never set.
fn kernel_began() -> Instant {
    let now = Instant::now();
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now.checked_sub(uptime).unwrap_or(now)
}

/// A number that differs between boots and machines. Not `/dev/urandom`: before the kernel's generator is ready,
/// reading that costs a PC without RDRAND a second, and only spreading in time is wanted here.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Shell {
    async fn forever(mut self, mut events: Receiver<Event>) -> anyhow::Result<Infallible> {
        let mut rescan_at = Duration::ZERO;
        loop {
            let now = self.now();
            if now >= rescan_at {
                rescan_at = now + Duration::from_secs(1);
                self.rescan(now).await;
                self.every_second(now);
                self.look_after_root(now);
            }
            self.obey().await?;
            let deadline = self.next_deadline().unwrap_or(rescan_at).min(rescan_at);
            tokio::select! {
                event = events.recv() => {
                    let event = event.context("all tasks ended")?;
                    self.handle_event(event).await;
                }
                () = sleep_until(self.started + deadline) => {}
            }
            let now = self.now();
            self.node.handle_deadline(now);
            self.announcer.handle_deadline(now);
            if let Some(question) = self.time.handle_deadline(now) {
                self.send(FromNode::Time(question)).await;
            }
            self.wires
                .values_mut()
                .for_each(|wire| wire.client.handle_deadline(now));
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn next_deadline(&self) -> Option<Duration> {
        let clients = self.wires.values().filter_map(|wire| wire.client.next_deadline());
        clients
            .chain(self.node.next_deadline())
            .chain(self.announcer.next_deadline())
            .chain(self.time.next_deadline())
            .min()
    }

    async fn handle_event(&mut self, event: Event) {
        let now = self.now();
        let current = self.connection.as_ref().map(|connection| connection.number);
        match event {
            Event::LinksChanged => self.rescan(now).await,
            Event::Dhcp { index, bytes } => {
                if let Some(wire) = self.wires.get_mut(&index)
                    && let Err(reason) = wire.client.handle_datagram(now, &bytes)
                    && reason != dhcp::Reject::NotOurs
                {
                    log!("cid-agent: {}: DHCP datagram dropped: {reason:?}", wire.name);
                }
            }
            Event::Connected {
                number,
                writer,
                measured,
            } if current == Some(number) => {
                self.measurements.handle_measured(measured);
                if let Some(connection) = &mut self.connection {
                    connection.writer = Some(writer);
                }
                self.node.handle_connected(now);
            }
            Event::Frame { number, message } if current == Some(number) => match *message {
                ToNode::Time { packet } => self.time.handle_answer(now, &packet),
                message => {
                    if matches!(message, ToNode::Refused { .. }) {
                        self.measurements.handle_refused();
                    }
                    let welcome = matches!(message, ToNode::Welcome(_));
                    self.node.handle_message(now, message);
                    // Behind the message, which sets the clock roughly.
                    if welcome {
                        self.time.handle_up(now);
                    }
                }
            },
            Event::Work { number, frame } if current == Some(number) => {
                let writer = self.connection.as_ref().and_then(|it| it.writer.as_ref());
                if let (Some(writer), true) = (writer, self.node.is_up()) {
                    self.work.handle(&frame, &writer.bulk());
                }
            }
            Event::Closed { number, why } if current == Some(number) => {
                self.time.handle_down();
                self.node.handle_closed(now, &why);
            }
            Event::Connected { .. } | Event::Frame { .. } | Event::Work { .. } | Event::Closed { .. } => {}
            Event::Init(FromInit::Phase { done_ms, name }) => self.phases.push(Phase { name, done_ms }),
            Event::Init(message) => self.node.handle_init(message),
            Event::Member { incarnation, news } => self.handle_member(now, incarnation, news),
            Event::Root(news) => self.handle_root(now, news).await,
        }
    }

    /// Does what the cores want until they want nothing more.
    async fn obey(&mut self) -> anyhow::Result<()> {
        loop {
            let mut idle = true;
            for index in self.wires.keys().copied().collect::<Vec<_>>() {
                while let Some(output) = self
                    .wires
                    .get_mut(&index)
                    .and_then(|wire| wire.client.poll_output())
                {
                    idle = false;
                    self.obey_dhcp(index, output).await;
                }
            }
            while let Some(output) = self.node.poll_output() {
                idle = false;
                self.obey_node(output).await?;
            }
            while let Some(beacon) = self.announcer.poll_output() {
                self.send_beacon(&beacon).await;
            }
            if idle {
                return Ok(());
            }
        }
    }

    async fn obey_node(&mut self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Connect { index, from, head } => self.connect(index, from, head),
            Output::Disconnect => {
                // Nobody reads what they say, and nobody could end them: a program of `run` lives as long as its connection.
                self.work.end_all();
                self.roots.head_gone();
                self.connection = None;
            }
            Output::SendHello { index } => {
                let hello = self.hello(index);
                self.send(FromNode::Hello(Box::new(hello))).await;
            }
            Output::SendEnroll { index } => self.enroll(index).await,
            Output::Enroll { certificate } => self.enrolled(&certificate),
            Output::Join {
                index,
                address,
                name,
                ticket,
            } => self.join(index, address, name, *ticket).await,
            Output::Rotate { key } => self.rotate(key).await,
            Output::Promise { promise } => self.promise(*promise),
            Output::Order { order } => self.roots.order(order),
            Output::Leave => self.leave_members().await,
            Output::SendPulse => {
                let load = hardware::load();
                self.announcer.handle_load(load.load1, load.memory_available_kib);
                self.send(FromNode::Pulse(load)).await;
            }
            Output::Prepare { leaving } => self.prepare(leaving).await,
            Output::SendGoingHome { reason } => {
                let Prepared { leaving, steps } = self.prepared.clone();
                self.send(FromNode::GoingHome {
                    reason,
                    leaving,
                    steps,
                })
                .await;
            }
            Output::SetClock { unix_ms } => {
                if self.ground.set_clock(unix_ms) {
                    // What was asked before is of another clock.
                    self.time.handle_up(self.now());
                }
            }
            Output::Tell(message) => self.tell(&message).await?,
            Output::Announce { link, state, name } => {
                let now = self.now();
                self.beacon_socket =
                    link.and_then(|(index, address)| self.open_beacon_socket(index, address));
                if let Some((index, address)) = link {
                    self.sit(index, address);
                }
                // Members have no need of beacons.
                let speaks = link.filter(|_| !self.seating.is_member());
                self.announcer
                    .handle_address(now, speaks.map(|(_, address)| address));
                self.announcer.handle_state(now, state, &name);
            }
        }
        Ok(())
    }

    /// Bounded: firmware and drivers take what time they take, and the PC goes home without them.
    async fn prepare(&mut self, leaving: Leaving) {
        let links = self.wires.values().map(|wire| wire.name.clone()).collect();
        let work = tokio::task::spawn_blocking(self.ground.preparation(links, leaving));
        self.prepared = match timeout(PREPARE_BOUND, work).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(_)) | Err(_) => Prepared::late(leaving),
        };
        for step in &self.prepared.steps {
            log!("cid-agent: {step}");
        }
    }

    /// Addresses of links with their prefix.
    fn addresses(&self) -> BTreeMap<u32, String> {
        let with_address = |(index, wire): (&u32, &Wire)| Some((*index, wire.address.clone()?));
        self.wires.iter().filter_map(with_address).collect()
    }

    /// Losing PID 1 is the end; it will start another agent.
    async fn tell(&mut self, message: &FromAgent) -> anyhow::Result<()> {
        let line = format!("{}\n", message.to_line());
        let written = timeout(WRITE_BOUND, self.init.write_all(line.as_bytes())).await;
        written.context("PID 1 does not listen")?.context("PID 1 is gone")
    }
}
