//! UDP 3101: beacons of nodes that nobody trusts yet, and members' sealed datagrams, told apart by their first bytes. Everything is
//! read in batches and opened before it is queued, so a flood of forgeries fills no queue of ours. Must not answer a beacon.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cid_bootserver::keep::SocketKeeper;
use cid_discovery::member::{Event, Output, To};
use cid_discovery::seal::{MAX_DATAGRAM, Opener, Sealer};
use cid_discovery::{Boot, Listener, MAX_BEACON};
use cid_protocol::{BEACON_GROUP, NODE_PORT};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::traffic::{Tally, Traffic};
use super::{CAPACITY, lock};
use crate::config::Subnet;
use crate::core::Core;
use crate::interface::Interface;

/// Datagrams read from one socket, in one system call, before others have their turn.
const BATCH: usize = 64;
/// Opened datagrams that wait for the membership.
const QUEUE: usize = 4_096;
/// The kernel's room for datagrams while we are busy, in bytes: a room of PCs at once.
const RECEIVE_ROOM: usize = 1 << 20;

/// An opened datagram.
#[derive(Debug)]
pub struct Heard {
    /// Who.
    pub boot: Boot,
    /// From where.
    pub source: SocketAddrV4,
    /// What.
    pub body: Vec<u8>,
}

/// The door on one interface.
#[derive(Debug)]
pub struct Wire {
    subnet: Subnet,
    /// Bound to our address, so that what we send comes from it.
    own: UdpSocket,
    /// Bound to the group.
    group: UdpSocket,
}

impl Wire {
    /// Binds our address and joins the group on the interface given.
    ///
    /// # Errors
    /// The port is taken, or the interface cannot do multicast.
    pub fn bind(interface: &Interface, keeper: &dyn SocketKeeper) -> std::io::Result<Self> {
        let kept = |name: &str, address: Ipv4Addr| {
            let bind = || bind(interface, address);
            let socket = keeper.socket(&format!("{name}.{}.{address}", interface.name), &bind)?;
            UdpSocket::from_std(socket.into())
        };
        Ok(Self {
            subnet: interface.subnet.clone(),
            own: kept("members", interface.subnet.address)?,
            group: kept("group", BEACON_GROUP)?,
        })
    }

    /// Our address here.
    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.subnet.address, NODE_PORT)
    }

    fn leads_to(&self, address: Ipv4Addr) -> bool {
        address & self.subnet.mask() == self.subnet.network()
    }
}

fn bind(interface: &Interface, address: Ipv4Addr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Only what comes from the lab: the same group may live on other interfaces.
    socket.bind_device(Some(interface.name.as_bytes()))?;
    // The group's port is the same on every interface.
    socket.set_reuse_address(address.is_multicast())?;
    socket.bind(&SocketAddrV4::new(address, NODE_PORT).into())?;
    // The kernel gives what it may.
    let _ = socket.set_recv_buffer_size(RECEIVE_ROOM);
    let index = InterfaceIndexOrAddress::Index(interface.index);
    if address.is_multicast() {
        socket.join_multicast_v4_n(&BEACON_GROUP, &index)?;
    } else {
        socket.set_multicast_if_v4(&interface.subnet.address)?;
        socket.set_multicast_loop_v4(false)?;
    }
    Ok(socket)
}

/// Serves until it cannot: the head has sealed what one start of it may seal.
pub async fn serve(core: Arc<Core>, wires: Vec<Wire>) -> anyhow::Error {
    let wires: Arc<[Wire]> = wires.into();
    let (queue, heard) = mpsc::channel(QUEUE);
    let envelopes = core.members(|members| Envelopes {
        opener: Arc::clone(&members.opener),
        traffic: Arc::clone(&members.traffic),
        queue,
    });
    let Some(envelopes) = envelopes else {
        return anyhow::anyhow!("the membership was not begun");
    };
    for socket in wires.iter().flat_map(|wire| [&wire.own, &wire.group]) {
        match inode(socket) {
            Ok(inode) => envelopes.traffic.watch(inode),
            Err(error) => tracing::warn!(%error, "datagrams that find a full queue are not counted"),
        }
    }
    let mut readers = tokio::task::JoinSet::new();
    for at in 0..wires.len() {
        let (core, wires, envelopes) = (Arc::clone(&core), Arc::clone(&wires), envelopes.clone());
        readers.spawn(async move {
            if let Some(wire) = wires.get(at) {
                read(&core, wire, &envelopes).await;
            }
        });
    }
    // They end with us.
    take_part(&core, &wires, heard).await
}

fn inode(socket: &UdpSocket) -> std::io::Result<u64> {
    let file: OwnedFd = socket.as_fd().try_clone_to_owned()?;
    Ok(std::fs::File::from(file).metadata()?.ino())
}

/// What a reader opens with.
#[derive(Clone)]
struct Envelopes {
    opener: Arc<Mutex<Opener>>,
    traffic: Arc<Traffic>,
    queue: mpsc::Sender<Heard>,
}

async fn read(core: &Arc<Core>, wire: &Wire, envelopes: &Envelopes) {
    let mut listener = Listener::new(CAPACITY);
    let mut batch = Batch::new();
    loop {
        let ready = tokio::select! {
            ready = wire.own.readable() => ready,
            ready = wire.group.readable() => ready,
        };
        if let Err(error) = ready {
            tracing::debug!(%error, "no datagram");
        }
        for socket in [&wire.own, &wire.group] {
            if batch.receive(socket) {
                take(core, wire, &mut listener, &batch, envelopes);
            }
        }
        // Under a flood there is always more, and others must have their turn.
        tokio::task::yield_now().await;
    }
}

/// The datagrams of one read: one system call, and one lock of the envelopes, for all of them.
struct Batch {
    /// One byte more than allowed, so that too long is seen as too long.
    buffers: Vec<[u8; MAX_DATAGRAM + 1]>,
    /// Length and source of those that hold something.
    received: Vec<(usize, Option<SocketAddrV4>)>,
}

impl Batch {
    fn new() -> Self {
        Self {
            buffers: vec![[0; MAX_DATAGRAM + 1]; BATCH],
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Reads what waits, at most [`BATCH`]; whether that was anything.
    fn receive(&mut self, socket: &UdpSocket) -> bool {
        let Self { buffers, received } = self;
        received.clear();
        // An error is a peer's port that was closed, and is gone once it was told; what waits behind it is for the next read.
        let _ = socket.try_io(Interest::READABLE, || {
            let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
            let mut slices: Vec<_> = buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(buffer)])
                .collect();
            let found = recvmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices.iter_mut(),
                MsgFlags::MSG_DONTWAIT,
                None,
            )?;
            received.extend(found.map(|one| (one.bytes, one.address.map(SocketAddrV4::from))));
            Ok(())
        });
        !received.is_empty()
    }

    fn datagrams(&self) -> impl Iterator<Item = (&[u8], Option<SocketAddrV4>)> {
        let pairs = self.buffers.iter().zip(&self.received);
        pairs.map(|(buffer, (length, source))| (buffer.get(..*length).unwrap_or_default(), *source))
    }
}

/// Every datagram ends in one counter: opened, a beacon, a beacon again, or dropped for a reason.
fn take(core: &Core, wire: &Wire, listener: &mut Listener, batch: &Batch, envelopes: &Envelopes) {
    let now = core.now().monotonic;
    let mut tally = Tally::default();
    let (mut opened, mut beacons) = (Vec::new(), Vec::new());
    let mut opener = lock(&envelopes.opener);
    for (bytes, source) in batch.datagrams() {
        tally.received += 1;
        let Some(source) = source else {
            core.drops.count("member-no-source");
            continue;
        };
        if bytes.starts_with(b"CIDm") {
            tally.sealed.0 += 1;
            tally.sealed.1 += bytes.len() as u64;
            // Why not is counted there.
            if let Ok((boot, body)) = opener.open(now, source, wire.address(), bytes) {
                opened.push(Heard { boot, source, body });
            }
        } else {
            beacons.push((*source.ip(), bytes.get(..MAX_BEACON + 1).unwrap_or(bytes)));
        }
    }
    drop(opener);
    for heard in opened {
        match envelopes.queue.try_send(heard) {
            Ok(()) => tally.opened += 1,
            Err(_) => core.drops.count("member-queue-full"),
        }
    }
    take_beacons(core, now, listener, &beacons, &mut tally);
    envelopes.traffic.count_in(&tally);
}

fn take_beacons(
    core: &Core,
    now: Duration,
    listener: &mut Listener,
    beacons: &[(Ipv4Addr, &[u8])],
    tally: &mut Tally,
) {
    if beacons.is_empty() {
        return;
    }
    let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
    while listener.handle_deadline(now).is_some() {}
    for (source, bytes) in beacons {
        match listener.handle_datagram(now, *source, bytes) {
            // Anybody can make one: it is counted, and speaks for nobody.
            Ok(_) => tally.beacons += 1,
            // Every beacon comes twice, by group and by unicast.
            Err(cid_discovery::Reject::Stale) => tally.beacons_again += 1,
            Err(reason) => *drops.entry(reason.name()).or_default() += 1,
        }
    }
    for (reason, count) in drops {
        core.drops.add(reason, count);
    }
}

/// The loop around the state machine: what was heard, what time brought, what is to be written, what is to be said; in this order.
async fn take_part(core: &Arc<Core>, wires: &[Wire], mut heard: mpsc::Receiver<Heard>) -> anyhow::Error {
    let Some((mut sealer, wake)) = core.members(|members| {
        let sealer = Sealer::new(members.head(), &members.sealing);
        (sealer, Arc::clone(&members.wake))
    }) else {
        return anyhow::anyhow!("the membership was not begun");
    };
    let mut batch = Vec::with_capacity(BATCH);
    let mut superseded = false;
    loop {
        let now = core.now().monotonic;
        let todo = core
            .members(|members| members.handle(now, &mut batch))
            .unwrap_or_default();
        if todo.rotate {
            core.act(|registry, _| registry.rotate_key()).1.unacknowledged();
        }
        // What the history decided by itself goes to the registry and to the disk.
        core.tell(|_, _| {});
        let now = core.now().monotonic;
        let said = core.members(|members| {
            sealer.handle_key(&members.sealing);
            (
                members.outputs(now),
                members.next_deadline(now),
                Arc::clone(&members.traffic),
            )
        });
        let Some(((said, events), deadline, traffic)) = said else {
            return anyhow::anyhow!("the membership ended");
        };
        for output in said {
            let Output::Transmit { to, body } = output else {
                continue;
            };
            if let Err(error) = send(core, wires, &traffic, &mut sealer, to, &body) {
                return error;
            }
        }
        note(core, &events, &mut superseded);
        let sleep = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(core.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            count = heard.recv_many(&mut batch, 4 * BATCH) => if count == 0 {
                return anyhow::anyhow!("nobody reads datagrams any more");
            },
            () = wake.notified() => {}
            () = sleep => {
                // Datagrams that wait come first, so that we do not judge others by our own sleep.
                while batch.len() < 4 * BATCH && let Ok(more) = heard.try_recv() {
                    batch.push(more);
                }
            }
        }
    }
}

fn send(
    core: &Core,
    wires: &[Wire],
    traffic: &Traffic,
    sealer: &mut Sealer,
    to: To,
    body: &[u8],
) -> anyhow::Result<(), anyhow::Error> {
    let by = |address: SocketAddrV4| {
        let wire = wires.iter().find(|wire| wire.leads_to(*address.ip()));
        wire.or(wires.first())
    };
    let ways: Vec<(&Wire, Option<SocketAddrV4>)> = match to {
        To::Group => wires.iter().map(|wire| (wire, None)).collect(),
        To::Member(address) => by(address)
            .map(|wire| (wire, Some(address)))
            .into_iter()
            .collect(),
    };
    for (wire, destination) in ways {
        let datagram = match sealer.seal(wire.address(), destination, body) {
            Ok(datagram) => datagram,
            Err(cid_discovery::seal::Unsealable::TooLong) => {
                core.drops.count("member-body-too-long");
                continue;
            }
            Err(cid_discovery::seal::Unsealable::Exhausted) => {
                anyhow::bail!("this start of the head has sealed all it may; the next one takes over")
            }
        };
        let target = destination.unwrap_or(SocketAddrV4::new(BEACON_GROUP, NODE_PORT));
        match wire.own.try_send_to(&datagram, SocketAddr::V4(target)) {
            Ok(_) => traffic.count_out(datagram.len()),
            // It is asked again; the network may lose any datagram.
            Err(_) => core.drops.count("member-not-sent"),
        }
    }
    Ok(())
}

/// Tells the registry who is a member.
fn note(core: &Core, events: &[Event], superseded: &mut bool) {
    for event in events {
        match event {
            Event::Appeared(boot) | Event::Returned(boot) => {
                core.tell(|registry, now| registry.handle_member(now, *boot));
            }
            // Once is enough: each of its datagrams says so.
            Event::Superseded if !std::mem::replace(superseded, true) => {
                let text = "another program speaks among the members in this head's name";
                core.tell(|registry, _| registry.note("head-superseded", text.to_owned()));
            }
            event => tracing::debug!(?event, "membership"),
        }
    }
}
