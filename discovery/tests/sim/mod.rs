//! A room in virtual time: members on a wire that delays, loses, doubles, reorders and splits, machines that crash,
//! restart and starve and whose clocks jump, a head whose disk keeps what it committed, tickets and keys as the head
//! gives them. One seed decides everything.

#![allow(dead_code, reason = "each test uses its part of the simulator")]

mod queue;
mod shell;
mod views;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use cid_discovery::history::chronicle::Chronicle;
use cid_discovery::history::replica::Replica;
use cid_discovery::history::{CHAIN_START, Change, State};
use cid_discovery::member::{Config, Event, Records};
use cid_discovery::random::Random;
use cid_discovery::seal::{GroupKey, Opener, Sealer};
use cid_discovery::wire::{Digest, Kind, Liveness, MAX_RUMORS, Message, Mode, Role, Rumor};
use cid_discovery::{Boot, Membership, NodeId};

use queue::Queue;
pub(crate) use shell::Planted;
pub(crate) use wire::{Datagram, Wire};

const PORT: u16 = 3101;
/// The history's epoch.
const EPOCH: u32 = 7;
/// Milliseconds since 1970 when virtual time began.
const UNIX_MS: u64 = 1_795_000_000_000;
/// The head's tickets are so far apart, so that an agent may count on by itself.
const TICKET_STEP: u64 = 1 << 16;
/// A machine without ticket or key asks the head again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Addresses that an agent keeps for its next start.
const REMEMBERED: usize = 16;

pub(crate) fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(crate) struct Host {
    pub(crate) boot: Boot,
    pub(crate) address: SocketAddrV4,
    pub(crate) role: Role,
    /// Absent while the machine is off.
    pub(crate) member: Option<Membership>,
    /// Switched on, and waits for the head's ticket.
    pub(crate) waiting: bool,
    /// Machines hear each other only within one side.
    pub(crate) side: u8,
    /// Of what it sends, and of what is sent to it.
    pub(crate) loss_out: u64,
    pub(crate) loss_in: u64,
    /// The process runs only now and then; pauses last up to this.
    pub(crate) starved: Option<Duration>,
    /// How far its monotonic clock is ahead of the room's.
    pub(crate) clock: Duration,
    /// It cannot run before this.
    asleep_until: Duration,
    inbox: VecDeque<Rc<Datagram>>,
    /// Present in a room whose datagrams are really sealed.
    pub(crate) keys: Option<(Sealer, Opener)>,
    /// The group key that it holds.
    key: Option<GroupKey>,
    /// What its opener has opened.
    opened: HashSet<u64>,
    wake: Duration,
    /// When its process began, by the room's clock.
    pub(crate) began: Duration,
    pub(crate) sent_bytes: u64,
    pub(crate) sent: u64,
    pub(crate) received_bytes: u64,
    pub(crate) received: u64,
    /// It went home because the head was silent.
    pub(crate) went_home: bool,
}

impl Host {
    fn as_rumor(&self) -> Rumor {
        Rumor {
            boot: self.boot,
            refutation: 0,
            liveness: Liveness::Alive,
            role: self.role,
            headless: false,
            address: self.address,
            by: None,
        }
    }
}

/// An answer of the head to a comparison.
fn roster(rumors: &[Rumor]) -> Message {
    Message {
        mode: Mode::Quiet,
        role: Role::Head,
        to_group: false,
        history: Digest::default(),
        roster: 0,
        kind: Kind::Roster,
        rumors: rumors.to_vec(),
        loads: Vec::new(),
    }
}

enum Happening {
    Arrives(usize, Rc<Datagram>),
    Wake(usize),
    /// A machine that waits asks for its ticket.
    Ticket(usize),
    /// A node asks for the key of now.
    Key(usize),
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) wire: Wire,
    /// The head is the first.
    pub(crate) hosts: Vec<Host>,
    index_of: HashMap<NodeId, usize>,
    /// What the head committed.
    pub(crate) disk: Vec<Change>,
    /// The last incarnation that the head gave each machine, on its disk too.
    issued: Vec<u64>,
    pub(crate) bail_out: Duration,
    /// Machines beyond this are not put into the history: in a room of 10,000 each node's copy of it would need
    /// more memory than a test machine has.
    pub(crate) recorded_hosts: usize,
    pub(crate) log: Vec<(Duration, usize, Event)>,
    pub(crate) keep_log: bool,
    /// Alarms about members that were there and could be reached.
    pub(crate) false_alarms: u64,
    /// The group key on the head's disk; with it every datagram is sealed, else only its bytes are counted.
    pub(crate) key: Option<GroupKey>,
    /// Whether the rotation to it excluded somebody.
    revoked: bool,
    /// What somebody on the wire has recorded: to whom, and what.
    pub(crate) recorded: Vec<(usize, Rc<Datagram>)>,
    /// How far the head's wall clock is off, in milliseconds.
    pub(crate) wall_ms: i64,
    /// Bytes sent by kind of datagram, the kind being the body's first byte.
    pub(crate) by_kind: [u64; 16],
    /// Nothing is sent.
    muted: bool,
    random: Random,
    queue: Queue<Happening>,
    /// Datagrams sent so far.
    serial: u64,
    /// The host that ran last.
    pub(crate) ran: usize,
    /// Chain hash of the head's history by length.
    pub(crate) chains: Vec<u64>,
    latest: BTreeMap<NodeId, (Boot, State)>,
    sealers: BTreeSet<Boot>,
    pub(crate) planted: Planted,
    /// The first promise that was broken under the eyes of the simulator.
    pub(crate) violation: Option<String>,
}

impl World {
    /// A head, on, and `nodes` machines, off.
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        Self::sealed(seed, nodes, None)
    }

    /// The same, with every datagram sealed.
    pub(crate) fn sealed(seed: u64, nodes: usize, key: Option<GroupKey>) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1),
            wire: Wire::default(),
            hosts: Vec::new(),
            index_of: HashMap::new(),
            disk: Vec::new(),
            issued: vec![0; nodes + 1],
            bail_out: Duration::from_secs(600),
            recorded_hosts: usize::MAX,
            log: Vec::new(),
            keep_log: false,
            false_alarms: 0,
            key,
            revoked: false,
            recorded: Vec::new(),
            wall_ms: 0,
            by_kind: [0; 16],
            muted: false,
            random: Random::new(seed),
            queue: Queue::default(),
            serial: 0,
            ran: 0,
            chains: vec![CHAIN_START],
            latest: BTreeMap::new(),
            sealers: BTreeSet::new(),
            planted: Planted::Nothing,
            violation: None,
        };
        for index in 0..=nodes {
            let number = u32::try_from(index).expect("small") + wire::FIRST_ADDRESS;
            let [a, b, c, d] = number.to_be_bytes();
            let id = NodeId::of_machine("", [2, seed as u8, a, b, c, d]);
            world.index_of.insert(id, index);
            world.hosts.push(Host {
                boot: Boot { id, incarnation: 0 },
                address: SocketAddrV4::new(Ipv4Addr::from(number), PORT),
                role: if index == 0 { Role::Head } else { Role::Node },
                member: None,
                waiting: false,
                side: 0,
                loss_out: 0,
                loss_in: 0,
                starved: None,
                clock: Duration::ZERO,
                asleep_until: Duration::ZERO,
                inbox: VecDeque::new(),
                keys: None,
                key: None,
                opened: HashSet::new(),
                wake: Duration::MAX,
                began: Duration::ZERO,
                sent_bytes: 0,
                sent: 0,
                received_bytes: 0,
                received: 0,
                went_home: false,
            });
        }
        world.start(0);
        world
    }

    /// A room in which everybody has been up for a while.
    pub(crate) fn settled(seed: u64, nodes: usize, wire: Wire) -> Self {
        let mut world = Self::new(seed, nodes);
        world.wire = wire;
        for index in 1..=nodes {
            world.start(index);
        }
        world.run_until(secs(40.0));
        world
    }

    /// A large room in which everybody was told of everybody: as the answers to comparisons would have told them, but
    /// without the greetings of ten thousand machines that are switched on together.
    pub(crate) fn introduced(seed: u64, nodes: usize, recorded_hosts: usize) -> Self {
        let mut world = Self::new(seed, nodes);
        world.recorded_hosts = recorded_hosts;
        world.muted = true;
        (1..=nodes).for_each(|index| world.start(index));
        let rumors: Vec<Rumor> = world.hosts[1..].iter().map(|host| host.as_rumor()).collect();
        let answers: Vec<Vec<u8>> = rumors
            .chunks(MAX_RUMORS)
            .map(|rumors| roster(rumors).encode())
            .collect();
        let (head, address) = (world.hosts[0].boot, world.hosts[0].address);
        for index in 1..=nodes {
            for answer in &answers {
                world.with(index, |member, now| {
                    let _ = member.handle_datagram(now, head, address, answer);
                });
            }
        }
        // The head hears it from a node.
        let (node, address) = (world.hosts[1].boot, world.hosts[1].address);
        for mut answer in rumors.chunks(MAX_RUMORS).map(roster) {
            answer.role = Role::Node;
            world.with(0, |member, now| {
                let _ = member.handle_datagram(now, node, address, &answer.encode());
            });
        }
        world.muted = false;
        world.wire.multicast = false;
        world.run_for(secs(15.0));
        world.wire.multicast = true;
        world
    }

    /// Powers a machine on: a new boot, with a ticket from the head; it waits for that while the head is out of
    /// reach.
    pub(crate) fn start(&mut self, index: usize) {
        self.crash(index);
        if index != 0 && !self.reaches_head(index) {
            self.hosts[index].waiting = true;
            self.push(self.now + ASK_AGAIN, Happening::Ticket(index));
            return;
        }
        if self.planted != Planted::SameTicket || self.issued[index] == 0 {
            self.issued[index] += TICKET_STEP;
        }
        self.hosts[index].boot.incarnation = self.issued[index];
        self.hosts[index].key = self.key.clone();
        self.begin(index, Vec::new());
    }

    /// The agent's process ends and begins again: the next incarnation by itself, the key and some peers' addresses
    /// out of its RAM, and nothing else. Works without the head.
    pub(crate) fn restart_agent(&mut self, index: usize) {
        let Some(member) = self.hosts[index].member.as_ref() else {
            return;
        };
        let present = member.roster().members().filter(|member| member.is_present());
        let mut seeds: Vec<SocketAddrV4> = present.map(|member| member.address).collect();
        while seeds.len() > REMEMBERED {
            let victim = self.random.below(seeds.len());
            seeds.swap_remove(victim);
        }
        self.hosts[index].boot.incarnation += 1;
        self.begin(index, seeds);
        self.push(self.now + ASK_AGAIN, Happening::Key(index));
    }

    fn begin(&mut self, index: usize, seeds: Vec<SocketAddrV4>) {
        let unix_ms = (UNIX_MS + self.now.as_millis() as u64).saturating_add_signed(self.wall_ms);
        let head = (self.hosts[0].boot.id, self.hosts[0].address);
        let local = self.local(index);
        let mut disk = Vec::new();
        if index == 0 {
            disk.clone_from(&self.disk);
            if self.planted == Planted::DiskOutOfOrder && disk.len() > 1 {
                let last = disk.len() - 1;
                disk.swap(last - 1, last);
            }
        }
        let host = &mut self.hosts[index];
        host.waiting = false;
        host.inbox.clear();
        host.opened.clear();
        host.went_home = false;
        host.keys = host
            .key
            .clone()
            .map(|key| (Sealer::new(host.boot, &key), Opener::new(key, 16_384)));
        let records = match host.role {
            Role::Head => Records::Head(Chronicle::restore(EPOCH, local, unix_ms, disk)),
            Role::Node => Records::Node(Replica::default()),
        };
        let config = Config {
            me: host.boot,
            role: host.role,
            address: host.address,
            head: (host.role == Role::Node).then_some(head),
            seeds,
            bail_out: self.bail_out,
            capacity: 16_384,
        };
        host.member = Some(Membership::new(config, records, self.random.draw(), local));
        host.wake = Duration::MAX;
        host.began = self.now;
        if host.keys.is_some() && !self.sealers.insert(host.boot) {
            self.violate(|world| format!("{} seals anew: a nonce is used twice", world.hosts[index].boot));
        }
        self.drain(index);
    }

    /// Cuts a machine's power.
    pub(crate) fn crash(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.waiting = false;
        if host.member.take().is_some()
            && index == 0
            && self.planted == Planted::TellsBeforeCommit
            && !self.disk.is_empty()
        {
            self.disk.pop();
            self.chains.pop();
        }
    }

    /// The next boot of this machine gets another address.
    pub(crate) fn move_address(&mut self, index: usize) {
        let address = &mut self.hosts[index].address;
        let moved = u32::from(*address.ip()) + wire::ADDRESSES as u32;
        *address = SocketAddrV4::new(Ipv4Addr::from(moved), PORT);
    }

    /// The head takes another group key; nodes get it over their connections within two seconds, or when they reach
    /// the head again.
    pub(crate) fn rotate_key(&mut self, revoked: bool) {
        let Some(old) = self.key.as_ref().filter(|_| self.is_on(0)) else {
            return;
        };
        let mut secret = old.secret;
        secret[0] = secret[0].wrapping_add(1);
        let epoch = old.epoch + 1;
        self.key = Some(GroupKey { epoch, secret });
        self.revoked = revoked;
        self.take_key(0);
        for index in 1..self.hosts.len() {
            let delay = Duration::from_millis(self.random.below(2_000) as u64);
            self.push(self.now + delay, Happening::Key(index));
        }
    }

    /// Sets the head's wall clock, and its clock only.
    pub(crate) fn set_wall_clock(&mut self, wall_ms: i64) {
        self.wall_ms = wall_ms;
        let unix_ms = (UNIX_MS + self.now.as_millis() as u64).saturating_add_signed(wall_ms);
        self.with(0, |head, now| head.handle_clock(now, unix_ms));
    }

    pub(crate) fn is_on(&self, index: usize) -> bool {
        self.hosts[index].member.is_some()
    }

    pub(crate) fn member(&self, index: usize) -> &Membership {
        self.hosts[index].member.as_ref().expect("on")
    }

    /// What a machine's monotonic clock shows.
    pub(crate) fn local(&self, index: usize) -> Duration {
        self.now + self.hosts[index].clock
    }

    /// Calls a member and drains it.
    pub(crate) fn with(&mut self, index: usize, call: impl FnOnce(&mut Membership, Duration)) {
        let local = self.local(index);
        if let Some(member) = self.hosts[index].member.as_mut() {
            call(member, local);
            self.drain(index);
        }
    }

    /// Lets everything happen up to `end`.
    pub(crate) fn run_until(&mut self, end: Duration) {
        while self.step(end) {}
        self.now = self.now.max(end);
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    /// The next thing before `end`; false when there is none.
    pub(crate) fn step(&mut self, end: Duration) -> bool {
        let Some((at, happening)) = self.queue.pop(end) else {
            return false;
        };
        self.now = self.now.max(at);
        match happening {
            Happening::Arrives(index, datagram) => self.arrive(index, datagram),
            Happening::Wake(index) => {
                if self.hosts[index].wake <= self.now {
                    self.hosts[index].wake = Duration::MAX;
                    self.run_host(index, true);
                }
            }
            Happening::Ticket(index) if self.hosts[index].waiting => self.start(index),
            Happening::Ticket(_) => {}
            Happening::Key(index) if self.reaches_head(index) => self.take_key(index),
            Happening::Key(index) => self.push(self.now + ASK_AGAIN, Happening::Key(index)),
        }
        true
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.random.below(100) < percent as usize
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    fn schedule(&mut self, index: usize, at: Duration) {
        if at < self.hosts[index].wake {
            self.hosts[index].wake = at;
            self.push(at, Happening::Wake(index));
        }
    }

    fn push(&mut self, at: Duration, happening: Happening) {
        self.queue.push(at, happening);
    }

    /// Notes a broken promise, the first one.
    fn violate(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.violation.is_none() {
            self.violation = Some(what(self));
        }
    }
}
