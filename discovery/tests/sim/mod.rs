//! A room in virtual time: members on a wire that delays, loses, doubles, reorders and splits, machines that crash,
//! restart and starve, a head whose disk keeps what it committed. One seed decides everything.

#![allow(dead_code, reason = "each test uses its part of the simulator")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use cid_discovery::history::chronicle::Chronicle;
use cid_discovery::history::replica::Replica;
use cid_discovery::history::{CHAIN_START, Change, State, link};
use cid_discovery::member::{Config, Event, Records, To};
use cid_discovery::random::Random;
use cid_discovery::seal::{GroupKey, Opener, Sealer};
use cid_discovery::wire::{Liveness, Role};
use cid_discovery::{Boot, Membership, NodeId, Output, seal};

/// Bytes around a datagram: Ethernet, IPv4, UDP (no preamble, no checksum of the frame).
const HEADERS: usize = 14 + 20 + 8;
/// Shortest Ethernet frame without its checksum.
const SHORTEST: usize = 60;
const PORT: u16 = 3101;
/// The history's epoch.
const EPOCH: u32 = 7;
/// Milliseconds since 1970 when virtual time began.
const UNIX_MS: u64 = 1_795_000_000_000;

pub(crate) fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// What the wire does to a datagram.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    /// Shortest delay, and what at most is added; datagrams overtake one another within it.
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) multicast: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            loss_percent: 0,
            duplicate_percent: 0,
            delay: Duration::from_micros(200),
            jitter: Duration::from_micros(800),
            multicast: true,
        }
    }
}

pub(crate) struct Host {
    pub(crate) boot: Boot,
    pub(crate) address: SocketAddrV4,
    pub(crate) role: Role,
    /// Absent while the machine is off.
    pub(crate) member: Option<Membership>,
    /// Machines hear each other only within one side.
    pub(crate) side: u8,
    /// The process runs only now and then; pauses last up to this.
    pub(crate) starved: Option<Duration>,
    /// It cannot run before this.
    asleep_until: Duration,
    inbox: VecDeque<Datagram>,
    /// Present in a room whose datagrams are really sealed.
    pub(crate) keys: Option<(Sealer, Opener)>,
    wake: Duration,
    pub(crate) sent_bytes: u64,
    pub(crate) sent: u64,
    /// It went home because the head was silent.
    pub(crate) went_home: bool,
}

#[derive(Clone)]
struct Datagram {
    from: Boot,
    source: SocketAddrV4,
    body: Rc<[u8]>,
}

enum Happening {
    Arrives(usize, Datagram),
    Wake(usize),
}

struct Entry(Duration, u64, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) wire: Wire,
    /// The head is the first.
    pub(crate) hosts: Vec<Host>,
    /// What the head committed.
    pub(crate) disk: Vec<Change>,
    pub(crate) bail_out: Duration,
    /// Members are told apart from strangers by seeds, when there is neither multicast nor a head.
    pub(crate) seeds: Vec<SocketAddrV4>,
    pub(crate) log: Vec<(Duration, usize, Event)>,
    pub(crate) keep_log: bool,
    /// Alarms about members that were there and could be reached.
    pub(crate) false_alarms: u64,
    /// Seals every datagram; else only its bytes are counted.
    pub(crate) key: Option<GroupKey>,
    /// What somebody on the wire has recorded: to whom, and the bytes.
    pub(crate) recorded: Vec<(usize, Rc<[u8]>)>,
    random: Random,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    /// The host that ran last.
    pub(crate) ran: usize,
    /// Chain hash of the head's history by length.
    pub(crate) chains: Vec<u64>,
    /// A planted bug: the head's shell sends before it commits, so a crash forgets what was told.
    pub(crate) forgetful: bool,
}

impl World {
    /// A head, on, and `nodes` machines, off.
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1),
            wire: Wire::default(),
            hosts: Vec::new(),
            disk: Vec::new(),
            bail_out: Duration::from_secs(600),
            seeds: Vec::new(),
            log: Vec::new(),
            keep_log: false,
            false_alarms: 0,
            key: None,
            recorded: Vec::new(),
            random: Random::new(seed),
            queue: BinaryHeap::new(),
            order: 0,
            ran: 0,
            chains: vec![CHAIN_START],
            forgetful: false,
        };
        for index in 0..=nodes {
            let number = u32::try_from(index).expect("small") + 0x0a4d_0001;
            let [a, b, c, d] = number.to_be_bytes();
            let id = NodeId::of_machine("", [2, seed as u8, a, b, c, d]);
            world.hosts.push(Host {
                boot: Boot { id, incarnation: 0 },
                address: SocketAddrV4::new(Ipv4Addr::from(number), PORT),
                role: if index == 0 { Role::Head } else { Role::Node },
                member: None,
                side: 0,
                starved: None,
                asleep_until: Duration::ZERO,
                inbox: VecDeque::new(),
                keys: None,
                wake: Duration::MAX,
                sent_bytes: 0,
                sent: 0,
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

    /// Powers a machine on: a new boot.
    pub(crate) fn start(&mut self, index: usize) {
        let unix_ms = UNIX_MS + self.now.as_millis() as u64;
        let head = (self.hosts[0].boot.id, self.hosts[0].address);
        let host = &mut self.hosts[index];
        host.boot.incarnation = unix_ms.max(host.boot.incarnation + 1);
        host.inbox.clear();
        host.went_home = false;
        host.keys = self
            .key
            .clone()
            .map(|key| (Sealer::new(host.boot, &key), Opener::new(key, 16_384)));
        let records = match host.role {
            Role::Head => Records::Head(Chronicle::restore(EPOCH, self.now, unix_ms, self.disk.clone())),
            Role::Node => Records::Node(Replica::default()),
        };
        let config = Config {
            me: host.boot,
            role: host.role,
            address: host.address,
            head: (host.role == Role::Node).then_some(head),
            seeds: self.seeds.clone(),
            bail_out: self.bail_out,
            capacity: 16_384,
        };
        host.member = Some(Membership::new(config, records, self.random.draw(), self.now));
        host.wake = Duration::MAX;
        self.drain(index);
    }

    /// Cuts a machine's power.
    pub(crate) fn crash(&mut self, index: usize) {
        if index == 0 && self.forgetful && !self.disk.is_empty() {
            self.disk.pop();
            self.chains.pop();
        }
        self.hosts[index].member = None;
    }

    pub(crate) fn is_on(&self, index: usize) -> bool {
        self.hosts[index].member.is_some()
    }

    pub(crate) fn member(&self, index: usize) -> &Membership {
        self.hosts[index].member.as_ref().expect("on")
    }

    /// Calls a member and drains it.
    pub(crate) fn with(&mut self, index: usize, call: impl FnOnce(&mut Membership, Duration)) {
        let now = self.now;
        if let Some(member) = self.hosts[index].member.as_mut() {
            call(member, now);
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
        let due = self.queue.peek().is_some_and(|Reverse(entry)| entry.0 <= end);
        let Some(Reverse(Entry(at, _, happening))) = due.then(|| self.queue.pop()).flatten() else {
            return false;
        };
        self.now = self.now.max(at);
        match happening {
            Happening::Arrives(index, datagram) => {
                if self.hosts[index].member.is_some() {
                    self.hosts[index].inbox.push_back(datagram);
                    if self.hosts[index].inbox.len() > 5_000 {
                        self.hosts[index].inbox.pop_front();
                    }
                    self.run_host(index, false);
                }
            }
            Happening::Wake(index) => {
                if self.hosts[index].wake <= self.now {
                    self.hosts[index].wake = Duration::MAX;
                    self.run_host(index, true);
                }
            }
        }
        true
    }

    /// The process of a machine gets the CPU: datagrams first, then what is due.
    fn run_host(&mut self, index: usize, timer: bool) {
        let now = self.now;
        self.ran = index;
        let host = &mut self.hosts[index];
        if host.member.is_none() {
            return;
        }
        if let Some(pause) = host.starved {
            if now < host.asleep_until {
                let wake = host.asleep_until;
                self.schedule(index, wake);
                return;
            }
            let span = self.random.below(pause.as_millis() as usize + 1) as u64;
            self.hosts[index].asleep_until = now + Duration::from_millis(span);
        }
        let host = &mut self.hosts[index];
        let Some(member) = host.member.as_mut() else {
            return;
        };
        while let Some(datagram) = host.inbox.pop_front() {
            // A drop is counted by the opener or the member.
            let opened = host
                .keys
                .as_mut()
                .map(|(_, opener)| opener.open(now, datagram.source, host.address, &datagram.body));
            let _ = match opened {
                None => member.handle_datagram(now, datagram.from, datagram.source, &datagram.body),
                Some(Ok((from, body))) => member.handle_datagram(now, from, datagram.source, &body),
                Some(Err(_)) => continue,
            };
        }
        if timer || member.next_deadline(now).is_some_and(|at| at <= now) {
            member.handle_deadline(now);
        }
        self.drain(index);
    }

    fn drain(&mut self, index: usize) {
        loop {
            let now = self.now;
            let Some(member) = self.hosts[index].member.as_mut() else {
                return;
            };
            let before = self.disk.len();
            while let Some(change) = member.poll_persist() {
                self.chains
                    .push(link(*self.chains.last().expect("a start"), &change));
                self.disk.push(change);
            }
            if self.disk.len() > before {
                member.handle_persisted(now);
            }
            let Some(output) = member.poll_output() else { break };
            match output {
                Output::Transmit { to, body } => self.transmit(index, to, body),
                Output::Event(event) => self.handle_event(index, event),
            }
        }
        let now = self.now;
        if let Some(member) = self.hosts[index].member.as_ref()
            && let Some(at) = member.next_deadline(now)
        {
            self.schedule(index, at.max(now));
        }
    }

    /// What the head's and the agent's shells would do.
    fn handle_event(&mut self, index: usize, event: Event) {
        let now = self.now;
        match &event {
            Event::Appeared(boot) if index == 0 && *boot != self.hosts[0].boot => {
                let boot = *boot;
                if let Some(head) = self.hosts[0].member.as_mut() {
                    let name = format!("lab-{}", boot.id.to_string().get(..6).unwrap_or("?"));
                    let known = head.table().get(&boot.id).is_some_and(|last| last.boot == boot);
                    if !known {
                        let _ = head.record(now, boot, State::Joining, &name, "said hello");
                        let _ = head.record(now, boot, State::Up, &name, "welcomed");
                    }
                }
            }
            Event::Lost(boot) => {
                let there = self
                    .hosts
                    .iter()
                    .position(|host| host.boot == *boot && host.member.is_some());
                if there.is_some_and(|other| self.hosts[other].side == self.hosts[index].side) {
                    self.false_alarms += 1;
                }
            }
            Event::GoHome => {
                self.hosts[index].went_home = true;
                self.hosts[index].member = None;
            }
            _ => {}
        }
        if self.keep_log {
            self.log.push((now, index, event));
        }
    }

    fn transmit(&mut self, index: usize, to: To, body: Vec<u8>) {
        let size = (HEADERS + seal::OVERHEAD + body.len()).max(SHORTEST) as u64;
        assert!(size <= 1_514, "{size}-byte frame");
        let host = &mut self.hosts[index];
        host.sent += 1;
        host.sent_bytes += size;
        let body = match &mut host.keys {
            Some((sealer, _)) => {
                let destination = match to {
                    To::Member(address) => Some(address),
                    To::Group => None,
                };
                sealer.seal(host.address, destination, &body).expect("seals")
            }
            None => body,
        };
        let datagram = Datagram {
            from: host.boot,
            source: host.address,
            body: body.into(),
        };
        match to {
            To::Member(address) => {
                let offset = u32::from(*address.ip()).wrapping_sub(0x0a4d_0001) as usize;
                if offset < self.hosts.len() {
                    self.deliver(index, offset, datagram);
                }
            }
            To::Group if self.wire.multicast => {
                for other in (0..self.hosts.len()).filter(|other| *other != index) {
                    self.deliver(index, other, datagram.clone());
                }
            }
            To::Group => {}
        }
    }

    fn deliver(&mut self, from: usize, to: usize, datagram: Datagram) {
        if self.hosts[from].side != self.hosts[to].side || self.hosts[to].member.is_none() {
            return;
        }
        if self.key.is_some() && self.recorded.len() < 20_000 {
            self.recorded.push((to, datagram.body.clone()));
        }
        let copies = 1 + usize::from(self.chance(self.wire.duplicate_percent));
        for _ in 0..copies {
            if self.chance(self.wire.loss_percent) {
                continue;
            }
            let jitter = self.random.below(self.wire.jitter.as_micros() as usize + 1) as u64;
            let at = self.now + self.wire.delay + Duration::from_micros(jitter);
            self.push(at, Happening::Arrives(to, datagram.clone()));
        }
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
        self.order += 1;
        self.queue.push(Reverse(Entry(at, self.order, happening)));
    }

    /// Machines that are on, nodes only.
    pub(crate) fn nodes_on(&self) -> Vec<usize> {
        (1..self.hosts.len()).filter(|index| self.is_on(*index)).collect()
    }

    /// Whether `observer` believes that this boot is there.
    pub(crate) fn sees(&self, observer: usize, boot: Boot) -> bool {
        self.hosts[observer].boot == boot
            || self
                .member(observer)
                .roster()
                .member(boot.id)
                .is_some_and(|member| member.boot == boot && member.is_present())
    }

    /// Whether `observer` has declared it dead or gone, or never knew it.
    pub(crate) fn buried(&self, observer: usize, boot: Boot) -> bool {
        self.member(observer)
            .roster()
            .member(boot.id)
            .is_none_or(|member| {
                member.boot != boot || matches!(member.liveness, Liveness::Dead | Liveness::Left)
            })
    }

    /// How many pairs (observer, node) are not as they should be: every living node seen, nobody else.
    pub(crate) fn wrong_pairs(&self) -> usize {
        let on = self.nodes_on();
        let observers: Vec<usize> = on.iter().copied().chain(self.is_on(0).then_some(0)).collect();
        let mut wrong = 0;
        for &observer in &observers {
            for &node in on.iter().filter(|node| **node != observer) {
                wrong += usize::from(!self.sees(observer, self.hosts[node].boot));
            }
            let present = self.member(observer).roster().members();
            let ghosts = present
                .filter(|member| member.is_present() && member.role == Role::Node)
                .filter(|member| !on.iter().any(|node| self.hosts[*node].boot == member.boot));
            wrong += ghosts.count();
        }
        wrong
    }

    /// Runs in small steps until `done`, at most `most`; how long it took.
    pub(crate) fn time_until(&mut self, most: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.now;
        while self.now < began + most {
            if done(self) {
                return Some(self.now - began);
            }
            self.run_for(Duration::from_millis(20));
        }
        done(self).then(|| self.now - began)
    }

    /// Bytes that all hosts sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.hosts.iter().map(|host| host.sent_bytes).sum()
    }

    /// Who sees whom, for a failing test.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for observer in (0..self.hosts.len()).filter(|index| self.is_on(*index)) {
            let member = self.member(observer);
            text += &format!("\n{observer} ({}):", member.roster().hash());
            for (index, host) in self.hosts.iter().enumerate() {
                if let Some(seen) = member.roster().member(host.boot.id) {
                    let same = if seen.boot == host.boot {
                        ""
                    } else {
                        " of another boot"
                    };
                    text += &format!(" {index} {:?} #{}{same},", seen.liveness, seen.refutation);
                }
            }
        }
        text
    }

    /// Somebody on the wire sends these bytes to a machine.
    pub(crate) fn inject(&mut self, to: usize, body: Rc<[u8]>) {
        let source = SocketAddrV4::new(Ipv4Addr::new(10, 66, 6, 6), PORT);
        let from = self.hosts[to].boot;
        self.push(self.now, Happening::Arrives(to, Datagram { from, source, body }));
    }
}
