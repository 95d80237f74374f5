//! foca 2 in a room like those of `membership`: what its probing costs and finds at several settings, the envelope
//! of ours around its datagrams. `cargo run --release -p cid-discovery --example beside_foca -- [nodes...]`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{
    Config, Foca, Header, Identity, Member, Message, NoCustomBroadcast, Notification, Runtime, State, Timer,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Ethernet, IPv4, UDP and the envelope, which names the sender.
const AROUND: usize = 42 + cid_discovery::seal::OVERHEAD;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    index: u32,
    boot: u32,
}

impl Identity for Node {
    type Addr = u32;

    fn renew(&self) -> Option<Self> {
        // Declared dead by mistake: come back.
        Some(Self {
            boot: self.boot + 1,
            ..*self
        })
    }

    fn addr(&self) -> u32 {
        self.index
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.boot > adversary.boot
    }
}

/// A member costs here what it costs in our rumours.
const MEMBER: usize = 33;

struct Fixed;

#[derive(Debug)]
struct Short;

impl std::error::Error for Short {}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("short")
    }
}

fn put(node: &Node, buf: &mut impl BufMut) {
    buf.put_u32(node.index);
    buf.put_u32(node.boot);
}

fn take(buf: &mut impl Buf) -> Result<Node, Short> {
    if buf.remaining() < 8 {
        return Err(Short);
    }
    Ok(Node {
        index: buf.get_u32(),
        boot: buf.get_u32(),
    })
}

impl foca::Codec<Node> for Fixed {
    type Error = Short;

    fn encode_header(&mut self, header: &Header<Node>, mut buf: impl BufMut) -> Result<(), Short> {
        put(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put(&header.dst, &mut buf);
        let (code, node, number) = match &header.message {
            Message::Ping(number) => (0, None, *number),
            Message::Ack(number) => (1, None, *number),
            Message::PingReq { target, probe_number } => (2, Some(target), *probe_number),
            Message::IndirectPing { origin, probe_number } => (3, Some(origin), *probe_number),
            Message::IndirectAck { target, probe_number } => (4, Some(target), *probe_number),
            Message::ForwardedAck { origin, probe_number } => (5, Some(origin), *probe_number),
            Message::Announce => (6, None, 0),
            Message::Feed => (7, None, 0),
            Message::Gossip => (8, None, 0),
            Message::Broadcast => (9, None, 0),
            Message::TurnUndead => (10, None, 0),
        };
        buf.put_u8(code);
        buf.put_u8(number);
        if let Some(node) = node {
            put(node, &mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Node>, Short> {
        let src = take(&mut buf)?;
        let src_incarnation = buf.get_u16();
        let dst = take(&mut buf)?;
        let (code, probe_number) = (buf.get_u8(), buf.get_u8());
        let message = match code {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq {
                target: take(&mut buf)?,
                probe_number,
            },
            3 => Message::IndirectPing {
                origin: take(&mut buf)?,
                probe_number,
            },
            4 => Message::IndirectAck {
                target: take(&mut buf)?,
                probe_number,
            },
            5 => Message::ForwardedAck {
                origin: take(&mut buf)?,
                probe_number,
            },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            _ => Message::TurnUndead,
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(&mut self, member: &Member<Node>, mut buf: impl BufMut) -> Result<(), Short> {
        if buf.remaining_mut() < MEMBER {
            // So foca knows that the datagram is full.
            return Err(Short);
        }
        put(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        buf.put_bytes(0, MEMBER - 11);
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Node>, Short> {
        let node = take(&mut buf)?;
        let incarnation = buf.get_u16();
        let state = match buf.get_u8() {
            0 => State::Alive,
            1 => State::Suspect,
            _ => State::Down,
        };
        buf.advance(MEMBER - 11);
        Ok(Member::new(node, incarnation, state))
    }
}

type Machine = Foca<Node, Fixed, SmallRng, NoCustomBroadcast>;

enum Happening {
    Arrives(usize, Vec<u8>),
    Timer(usize, u32, Timer<Node>),
}

/// What one call of foca wants done.
#[derive(Default)]
struct Wants {
    send: Vec<(Node, Vec<u8>)>,
    timers: Vec<(Timer<Node>, Duration)>,
    down: Vec<usize>,
}

impl Runtime<Node> for Wants {
    fn notify(&mut self, notification: Notification<'_, Node>) {
        if let Notification::MemberDown(node) = notification {
            self.down.push(node.index as usize);
        }
    }

    fn send_to(&mut self, to: Node, data: &[u8]) {
        self.send.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Node>, after: Duration) {
        self.timers.push((event, after));
    }
}

struct Room {
    now: Duration,
    machines: Vec<Option<(u32, Machine)>>,
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    happenings: Vec<Option<Happening>>,
    /// Places of those that have happened.
    free: Vec<usize>,
    /// Things that were to happen so far.
    order: u64,
    random: SmallRng,
    loss_percent: u32,
    bytes: u64,
    false_alarms: u32,
    config: Config,
}

impl Room {
    fn start(&mut self, index: usize, boot: u32) {
        let node = Node {
            index: index as u32,
            boot,
        };
        let random = SmallRng::seed_from_u64(self.random.random());
        self.machines[index] = Some((boot, Foca::new(node, self.config.clone(), random, Fixed)));
        if index > 0 {
            self.call(index, |machine, wants| {
                machine.announce(Node { index: 0, boot: 1 }, wants)
            });
        }
    }

    fn call(&mut self, index: usize, call: impl FnOnce(&mut Machine, &mut Wants) -> Result<(), foca::Error>) {
        let Some((boot, machine)) = self.machines[index].as_mut() else {
            return;
        };
        let boot = *boot;
        let mut wants = Wants::default();
        // foca says no to what comes late or twice; nothing follows from it here.
        let _ = call(machine, &mut wants);
        for (to, data) in wants.send {
            // The envelope names the sender, so its eight bytes do not count twice.
            self.bytes += (AROUND + data.len() - 8) as u64;
            if self.random.random_range(0..100) >= self.loss_percent {
                let delay = Duration::from_micros(self.random.random_range(200..1_000));
                self.push(self.now + delay, Happening::Arrives(to.index as usize, data));
            }
        }
        for index in wants.down {
            self.false_alarms += u32::from(self.machines[index].is_some());
        }
        for (timer, after) in wants.timers {
            self.push(self.now + after, Happening::Timer(index, boot, timer));
        }
    }

    fn push(&mut self, at: Duration, happening: Happening) {
        self.order += 1;
        let place = self.free.pop().unwrap_or(self.happenings.len());
        if place == self.happenings.len() {
            self.happenings.push(None);
        }
        self.happenings[place] = Some(happening);
        self.queue.push(Reverse((at, self.order, place)));
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(Reverse((at, _, place))) =
            self.queue.peek().copied().filter(|Reverse(next)| next.0 <= end)
        {
            self.queue.pop();
            self.now = at;
            self.free.push(place);
            match self.happenings[place].take() {
                Some(Happening::Arrives(to, data)) => {
                    self.call(to, |machine, wants| machine.handle_data(&data, wants))
                }
                Some(Happening::Timer(of, boot, timer))
                    if self.machines[of].as_ref().is_some_and(|(now, _)| *now == boot) =>
                {
                    self.call(of, |machine, wants| machine.handle_timer(timer, wants));
                }
                // Of a machine that is off, or of an earlier boot.
                Some(Happening::Timer(..)) | None => {}
            }
        }
        self.now = end;
        // An announcement that was lost is not retried by foca.
        for index in 1..self.machines.len() {
            let alone = |(_, machine): &(u32, Machine)| machine.num_members() == 0;
            if self.machines[index].as_ref().is_some_and(alone) {
                self.call(index, |machine, wants| {
                    machine.announce(Node { index: 0, boot: 1 }, wants)
                });
            }
        }
    }

    /// Whether every other machine knows this boot of it. Not whether it knows them: what foca feeds a newcomer is one
    /// datagram, of 40 members here; the others it learns in minutes.
    fn known_to_all(&self, index: usize, boot: u32) -> bool {
        let knows = |(other, machine): (usize, &Option<(u32, Machine)>)| {
            let mut members = machine.iter().flat_map(|(_, machine)| machine.iter_members());
            other == index
                || members.any(|member| member.id().index == index as u32 && member.id().boot == boot)
        };
        self.machines.iter().enumerate().all(knows)
    }

    fn seen_by_somebody(&self, index: usize) -> bool {
        let sees = |machine: &Machine| {
            machine
                .iter_members()
                .any(|member| member.id().index == index as u32)
        };
        self.machines.iter().flatten().any(|(_, machine)| sees(machine))
    }
}

fn main() {
    let sizes = std::env::args().skip(1).filter_map(|nodes| nodes.parse().ok());
    let mut sizes: Vec<usize> = sizes.collect();
    if sizes.is_empty() {
        sizes = vec![13, 50, 200, 1_000];
    }
    for nodes in sizes {
        let began = std::time::Instant::now();
        beside(nodes);
        println!("  (foca, {nodes} nodes: {:.0} s)", began.elapsed().as_secs_f64());
    }
}

fn beside(nodes: usize) {
    for (what, period, gossip) in [
        ("its LAN settings", 1_000, Some(200)),
        ("without periodic gossip", 1_000, None),
        ("half as often", 2_000, None),
    ] {
        if nodes > 50 && gossip.is_none() {
            continue;
        }
        for loss_percent in [0, 10] {
            measure(nodes, what, period, gossip, loss_percent);
        }
    }
}

fn measure(nodes: usize, what: &str, period_ms: u64, gossip_ms: Option<u64>, loss_percent: u32) {
    let mut config = Config::new_lan(std::num::NonZeroU32::new(nodes as u32).expect("some"));
    config.probe_period = Duration::from_millis(period_ms);
    config.probe_rtt = Duration::from_millis(300);
    config.suspect_to_down_after = Duration::from_secs(4);
    config.max_transmissions = NonZeroU8::new(12).expect("not 0");
    config.num_indirect_probes = NonZeroUsize::new(3).expect("not 0");
    config.periodic_gossip = gossip_ms.map(|millis| foca::PeriodicParams {
        frequency: Duration::from_millis(millis),
        num_members: NonZeroUsize::new(3).expect("not 0"),
    });
    let mut room = Room {
        now: Duration::ZERO,
        machines: (0..=nodes).map(|_| None).collect(),
        queue: BinaryHeap::new(),
        happenings: Vec::new(),
        free: Vec::new(),
        order: 0,
        random: SmallRng::seed_from_u64(1),
        loss_percent,
        bytes: 0,
        false_alarms: 0,
        config,
    };
    for index in 0..=nodes {
        room.start(index, 1);
    }
    (1..120).for_each(|second| room.run_until(Duration::from_secs(second)));
    let before = room.bytes;
    // A large room is the same from minute to minute, and takes long.
    let (seconds, rounds) = match nodes {
        0..=50 => (600, 100),
        51..=200 => (120, 30),
        _ => (60, 10),
    };
    room.run_until(Duration::from_secs(120 + seconds));
    let kbit = (room.bytes - before) as f64 * 8.0 / seconds as f64 / 1_000.0;
    let (mut times, mut new) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let victim = 1 + round % nodes;
        let began = room.now;
        room.machines[victim] = None;
        while room.seen_by_somebody(victim) && room.now < began + Duration::from_secs(60) {
            room.run_until(room.now + Duration::from_millis(20));
        }
        times.push((room.now - began).as_secs_f64());
        let (began, boot) = (room.now, (round as u32 + 2) * 1_000);
        room.start(victim, boot);
        while !room.known_to_all(victim, boot) && room.now < began + Duration::from_secs(60) {
            room.run_until(room.now + Duration::from_millis(20));
        }
        new.push((room.now - began).as_secs_f64());
        let pause = Duration::from_millis(room.random.random_range(0..3_000));
        for second in 0..20 {
            room.run_until(room.now + Duration::from_secs(1) + pause * u32::from(second == 0));
        }
    }
    println!(
        "foca, {nodes} nodes, {what}, loss {loss_percent} %: {kbit:.1} kbit/s, {:.2} a node; of {rounds}: crash known to all {}, a new node {}; {} false alarms",
        kbit / nodes as f64,
        spread(times),
        spread(new),
        room.false_alarms
    );
}

fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let half = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    format!("p50 {half:.2} s, worst {worst:.2} s")
}
