//! A swarm in virtual time: a head with one link, nodes with a link each, a switch between them that is never the bottleneck.
//!
//! A link carries one chunk after the other at its rate (TCP would share it; the sum is the same). The chunks that travel are 4 KiB
//! with real hashes and take the time of 256 KiB. Every event checks that no node counts a chunk that it was not given whole.

#[path = "sim/outputs.rs"]
mod outputs;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cid_content::download::{self, Download, Name, Source};
use cid_content::random::Random;
use cid_content::serve::{self, Uploads};
use cid_content::tickets::{self, Tickets, Wish};
use cid_content::{Bitmap, Shape, Tree, TreeBuilder};

/// Bytes of a chunk that are hashed, and that it counts as on a link.
const CHUNK: usize = 4096;
const WIRE_CHUNK: u64 = 256 * 1024;
/// One way, through the switch.
const LATENCY: Duration = Duration::from_micros(200);
/// TCP and TLS.
const CONNECT: Duration = Duration::from_millis(5);
/// After this the head and peers notice that somebody vanished without a word.
const NOTICED: Duration = Duration::from_secs(13);

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) nodes: usize,
    pub(crate) image_bytes: u64,
    /// In bit/s.
    pub(crate) head_link: u64,
    pub(crate) node_link: u64,
    /// Share of chunks and connections that fail: the connection breaks.
    pub(crate) loss: f64,
    /// Nodes, from the last, that give wrong bytes.
    pub(crate) liars: usize,
    /// Nodes, from the first, that vanish when they have half.
    pub(crate) vanish: usize,
    /// The head dies then and is back later.
    pub(crate) head_away: Option<(Duration, Duration)>,
    /// Nodes start within this time.
    pub(crate) start_within: Duration,
    pub(crate) seed: u64,
}

impl Room {
    /// `nodes` at 1 Gbit/s.
    pub(crate) fn new(nodes: usize, image_bytes: u64, head_link: u64) -> Self {
        Self {
            nodes,
            image_bytes,
            head_link,
            node_link: 1_000_000_000,
            loss: 0.0,
            liars: 0,
            vanish: 0,
            head_away: None,
            start_within: Duration::from_millis(200),
            seed: 1,
        }
    }

    /// A room in which anything may go wrong.
    pub(crate) fn random(random: &mut Random, seed: u64) -> Self {
        let nodes = 1 + random.below(24) as usize;
        let link = [5_000_000, 100_000_000, 1_000_000_000][random.below(3) as usize];
        let dies = random.below(5_000);
        let back = dies + 1 + random.below(30_000);
        let away = (Duration::from_millis(dies), Duration::from_millis(back));
        Self {
            loss: random.below(200) as f64 / 1_000.0,
            liars: (random.below(3) as usize).min(nodes - 1),
            vanish: (random.below(5) as usize).min(nodes - 1),
            head_away: (random.below(2) == 0).then_some(away),
            seed,
            ..Self::new(nodes, (1 + random.below(40)) * 256 * 1024, link)
        }
    }

    /// What nobody can beat: the image once over the head's link, and over a node's.
    pub(crate) fn ideal(&self) -> Duration {
        let slowest = self.head_link.min(self.node_link);
        Duration::from_secs_f64(self.image_bytes as f64 * 8.0 / slowest as f64)
    }

    /// Every node from the head's link alone.
    pub(crate) fn head_alone(&self) -> Duration {
        let bits = self.image_bytes as f64 * 8.0 * self.nodes as f64;
        Duration::from_secs_f64((bits / self.head_link as f64).max(self.ideal().as_secs_f64()))
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// When the last node that stayed had everything; `None`: some never had.
    pub(crate) all: Option<Duration>,
    /// Median of the nodes' times.
    pub(crate) median: Duration,
    /// Nodes that stayed and have everything, and those that wait for ever.
    pub(crate) done: usize,
    pub(crate) waiting: usize,
    /// Chunks over the head's link, and the image's.
    pub(crate) head_chunks: u64,
    pub(crate) chunks: u64,
    /// Who named whom.
    pub(crate) named: BTreeSet<(usize, usize)>,
    pub(crate) counters: Vec<download::Counters>,
    pub(crate) events: u64,
}

#[derive(Debug, Clone)]
enum Event {
    Start(usize),
    Timer(usize),
    HeadTimer,
    HeadDies,
    HeadBack,
    WishAtHead(usize, Wish),
    AccusedAtHead(usize, usize),
    FromHead(usize, tickets::Output<usize>),
    /// A peer's door: who calls, whom.
    Call(usize, usize),
    Connected(usize, usize),
    Lost(usize, usize),
    AskedHave(usize, usize, Duration),
    AskedChunk(usize, usize, u32),
    Have(usize, usize, Vec<u8>),
    Busy(usize, usize, Duration),
    Missing(usize, usize),
    /// The last byte of a chunk has left the sender (a node, or the head).
    Left {
        from: Option<usize>,
        to: usize,
        chunk: u32,
        have: Vec<u8>,
    },
    Came {
        from: Option<usize>,
        to: usize,
        chunk: u32,
        have: Vec<u8>,
        broken: bool,
    },
    HeadAsked(usize, u32),
    HeadRefuses(usize, u32),
    Gone(usize),
}

struct Node {
    download: Download,
    uploads: Uploads,
    started: bool,
    vanished: bool,
    up_free: Duration,
    down_free: Duration,
    timer: Option<Duration>,
    /// Peers to whom it has a connection.
    calls: BTreeSet<usize>,
    finished: Option<Duration>,
    /// What was really given to it.
    given: Bitmap,
}

pub(crate) struct World {
    room: Room,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    image: Vec<u8>,
    nodes: Vec<Node>,
    names: Vec<Name>,
    numbers: BTreeMap<Name, usize>,
    head: Option<Tickets<usize>>,
    head_queue: VecDeque<(usize, u32)>,
    head_sends: bool,
    head_timer: Option<Duration>,
    head_chunks: u64,
    named: BTreeSet<(usize, usize)>,
    random: Random,
    handled: u64,
}

fn transfer(bytes: u64, link: u64) -> Duration {
    Duration::from_nanos(bytes * 8 * 1_000_000_000 / link)
}

impl World {
    pub(crate) fn new(room: Room) -> Self {
        let mut random = Random::new(room.seed);
        let chunks = room.image_bytes.div_ceil(WIRE_CHUNK) as usize;
        let mut image = vec![0; chunks * CHUNK];
        image
            .chunks_exact_mut(8)
            .for_each(|part| part.copy_from_slice(&random.draw().to_le_bytes()));
        let mut builder =
            TreeBuilder::new(Shape::new(image.len() as u64, CHUNK as u32).expect("a possible shape"));
        builder.update(&image).expect("a possible shape");
        let tree = Arc::new(builder.finish().expect("a possible shape"));
        let names: Vec<Name> = (0..room.nodes)
            .map(|number| Name::from(format!("n{number:04}")))
            .collect();
        let numbers = names.iter().cloned().zip(0..).collect();
        let nodes = (0..room.nodes)
            .map(|_| Node::new(&tree, chunks as u32, &mut random))
            .collect();
        let mut world = Self {
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            image,
            nodes,
            names,
            numbers,
            head: None,
            head_queue: VecDeque::new(),
            head_sends: false,
            head_timer: None,
            head_chunks: 0,
            named: BTreeSet::new(),
            random,
            handled: 0,
            room,
        };
        world.head_starts();
        for node in 0..world.nodes.len() {
            let at = world.random.below(world.room.start_within.as_micros() as u64 + 1);
            // The tree goes over the head's link first: 32 bytes a chunk.
            let tree = transfer(chunks as u64 * 32, world.room.head_link) * node as u32;
            world.at(Duration::from_micros(at).max(tree), Event::Start(node));
        }
        if let Some((dies, back)) = world.room.head_away {
            world.at(dies, Event::HeadDies);
            world.at(back, Event::HeadBack);
        }
        world
    }

    fn head_starts(&mut self) {
        let chunks = (self.image.len() / CHUNK) as u32;
        self.head = Some(Tickets::new(chunks, tickets::AT_A_TIME, self.random.draw()));
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.queue.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
        self.next += 1;
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.at(self.now + after, event);
    }

    fn fails(&mut self) -> bool {
        self.room.loss > 0.0 && (self.random.below(1_000_000) as f64) < self.room.loss * 1e6
    }

    /// Until nothing happens any more, or for `limit`.
    pub(crate) fn run(mut self, limit: Duration) -> Outcome {
        while let Some(Reverse((at, key))) = self.queue.pop() {
            if at > limit {
                break;
            }
            self.now = at;
            self.handled += 1;
            let event = self.events.remove(&key).expect("each is there once");
            self.handle(event);
            if self
                .nodes
                .iter()
                .all(|node| node.vanished || node.finished.is_some())
            {
                break;
            }
        }
        self.outcome()
    }

    fn outcome(self) -> Outcome {
        let stayed = || self.nodes.iter().filter(|node| !node.vanished);
        let mut times: Vec<Duration> = stayed().filter_map(|node| node.finished).collect();
        times.sort();
        Outcome {
            all: (times.len() == stayed().count()).then(|| times.last().copied().unwrap_or_default()),
            median: times.get(times.len() / 2).copied().unwrap_or_default(),
            done: times.len(),
            waiting: stayed().count() - times.len(),
            head_chunks: self.head_chunks,
            chunks: (self.image.len() / CHUNK) as u64,
            named: self.named,
            counters: self.nodes.iter().map(|node| node.download.counters()).collect(),
            events: self.handled,
        }
    }

    fn is_liar(&self, node: usize) -> bool {
        node + self.room.liars >= self.nodes.len()
    }

    fn is_there(&self, node: usize) -> bool {
        self.nodes[node].started && !self.nodes[node].vanished
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Start(id) if !self.nodes[id].vanished => {
                self.nodes[id].started = true;
                if self.head.is_some() {
                    self.nodes[id].download.handle_head(now);
                }
                self.drain(id);
            }
            Event::Timer(id) => {
                self.nodes[id].timer = None;
                if self.is_there(id) {
                    self.nodes[id].download.handle_deadline(now);
                    self.nodes[id].uploads.handle_deadline(now);
                    self.drain(id);
                }
            }
            Event::HeadTimer => {
                self.head_timer = None;
                if let Some(head) = &mut self.head {
                    head.handle_deadline(now);
                }
                self.drain_head();
            }
            Event::HeadDies => self.head_dies(),
            Event::HeadBack => {
                self.head_starts();
                for id in 0..self.nodes.len() {
                    // Nodes call again at different moments.
                    let after = Duration::from_micros(self.random.below(2_000_000));
                    self.later(after, Event::Start(id));
                }
            }
            Event::WishAtHead(id, wish) => {
                if let Some(head) = &mut self.head {
                    head.handle_wish(now, id, wish);
                }
                self.drain_head();
            }
            Event::AccusedAtHead(by, whom) => {
                self.named.insert((by, whom));
                if let Some(head) = &mut self.head {
                    head.handle_accusation(now, by, whom);
                }
                self.drain_head();
            }
            Event::FromHead(id, output) if self.is_there(id) => {
                let download = &mut self.nodes[id].download;
                match output {
                    tickets::Output::Tickets { chunks, valid, .. } => {
                        download.handle_tickets(now, &chunks, valid)
                    }
                    tickets::Output::Peers { peers, .. } => {
                        let names: Vec<Name> =
                            peers.iter().map(|peer| Arc::clone(&self.names[*peer])).collect();
                        download.handle_peers(now, &names);
                    }
                }
                self.drain(id);
            }
            Event::Gone(id) => {
                if let Some(head) = &mut self.head {
                    head.handle_gone(now, id);
                }
                self.drain_head();
            }
            event => self.handle_peers(event),
        }
    }

    fn head_dies(&mut self) {
        self.head = None;
        let waiting: Vec<_> = self.head_queue.drain(..).collect();
        for (id, chunk) in waiting {
            self.later(LATENCY, Event::HeadRefuses(id, chunk));
        }
        for id in 0..self.nodes.len() {
            if self.is_there(id) {
                self.nodes[id].download.handle_head_gone(self.now);
                self.drain(id);
            }
        }
    }

    fn handle_peers(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Call(from, to) => match self.is_there(to) {
                true if !self.fails() => self.later(LATENCY, Event::Connected(from, to)),
                _ => self.later(LATENCY, Event::Lost(from, to)),
            },
            Event::Connected(from, to) if self.is_there(from) => {
                self.nodes[from].calls.insert(to);
                let name = Arc::clone(&self.names[to]);
                self.nodes[from].download.handle_connected(now, &name);
                self.drain(from);
            }
            Event::Lost(from, to) if self.is_there(from) => {
                self.nodes[from].calls.remove(&to);
                self.nodes[to].uploads.handle_gone(now, from as u64);
                let name = Arc::clone(&self.names[to]);
                self.nodes[from].download.handle_lost(now, &name);
                self.drain(from);
            }
            Event::AskedHave(from, to, wait) if self.is_there(to) => {
                self.nodes[to].uploads.handle_have(now, from as u64, wait);
                self.drain(to);
            }
            Event::AskedChunk(from, to, chunk) if self.is_there(to) => {
                self.nodes[to].uploads.handle_question(now, from as u64, chunk);
                self.drain(to);
            }
            Event::Have(from, to, have) if self.is_calling(to, from) => {
                let name = Arc::clone(&self.names[from]);
                self.nodes[to].download.handle_have(now, &name, &have);
                self.drain(to);
            }
            Event::Busy(from, to, after) if self.is_calling(to, from) => {
                let name = Arc::clone(&self.names[from]);
                self.nodes[to].download.handle_busy(now, &name, after);
                self.drain(to);
            }
            Event::Missing(from, to) if self.is_calling(to, from) => {
                let name = Arc::clone(&self.names[from]);
                self.nodes[to].download.handle_missing(now, &name);
                self.drain(to);
            }
            event => self.handle_bytes(event),
        }
    }

    fn is_calling(&self, node: usize, peer: usize) -> bool {
        self.is_there(node) && self.nodes[node].calls.contains(&peer)
    }

    fn handle_bytes(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Left {
                from,
                to,
                chunk,
                have,
            } => {
                if let Some(from) = from {
                    self.nodes[from].uploads.handle_sent(now, to as u64);
                    self.drain(from);
                } else {
                    self.head_sends = false;
                    self.head_chunks += 1;
                    self.head_goes_on();
                }
                let node = &mut self.nodes[to];
                let arrives = (now + LATENCY).max(node.down_free + transfer(WIRE_CHUNK, self.room.node_link));
                node.down_free = arrives;
                let broken = self.fails();
                self.at(
                    arrives,
                    Event::Came {
                        from,
                        to,
                        chunk,
                        have,
                        broken,
                    },
                );
            }
            Event::Came {
                from: Some(from),
                to,
                broken: true,
                ..
            } => self.handle_peers(Event::Lost(to, from)),
            Event::Came {
                from: None,
                to,
                chunk,
                broken: true,
                ..
            } => self.handle_bytes(Event::HeadRefuses(to, chunk)),
            Event::Came {
                from,
                to,
                chunk,
                have,
                ..
            } => self.came(from, to, chunk, &have),
            Event::HeadAsked(id, chunk) => {
                if self.head.is_some() {
                    self.head_queue.push_back((id, chunk));
                    self.head_goes_on();
                } else {
                    self.later(LATENCY, Event::HeadRefuses(id, chunk));
                }
            }
            Event::HeadRefuses(id, chunk) if self.is_there(id) => {
                self.nodes[id].download.handle_head_failed(now, chunk, None);
                self.drain(id);
            }
            // To somebody who is not there any more.
            _ => {}
        }
    }

    fn head_goes_on(&mut self) {
        if self.head_sends || self.head.is_none() {
            return;
        }
        if let Some((to, chunk)) = self.head_queue.pop_front() {
            self.head_sends = true;
            let time = transfer(WIRE_CHUNK, self.room.head_link);
            self.later(
                time,
                Event::Left {
                    from: None,
                    to,
                    chunk,
                    have: vec![],
                },
            );
        }
    }

    fn came(&mut self, from: Option<usize>, to: usize, chunk: u32, have: &[u8]) {
        if !self.is_there(to) || from.is_some_and(|from| !self.nodes[to].calls.contains(&from)) {
            return;
        }
        let mut bytes = self.image[chunk as usize * CHUNK..][..CHUNK].to_vec();
        let lie = from.is_some_and(|from| self.is_liar(from));
        if lie {
            let at = self.random.below(CHUNK as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        let source = from.map_or(Source::Head, |from| Source::Peer(Arc::clone(&self.names[from])));
        let node = &mut self.nodes[to];
        let taken = node
            .download
            .handle_chunk(self.now, &source, chunk, &bytes, from.map(|_| have));
        assert!(!(taken && lie), "a wrong byte was taken, seed {}", self.room.seed);
        if taken {
            assert!(node.given.insert(chunk), "taken twice, seed {}", self.room.seed);
            node.uploads.handle_chunk(chunk);
        }
        assert_eq!(node.download.have(), &node.given, "seed {}", self.room.seed);
        if to < self.room.vanish && node.given.count() * 2 > node.given.chunks() && self.room.nodes > 1 {
            self.vanish(to);
            return;
        }
        self.drain(to);
    }

    fn vanish(&mut self, id: usize) {
        self.nodes[id].vanished = true;
        self.later(NOTICED, Event::Gone(id));
        for other in 0..self.nodes.len() {
            // Half of them hear a reset; the others notice by themselves.
            if self.nodes[other].calls.contains(&id) && self.random.below(2) == 0 {
                self.later(LATENCY, Event::Lost(other, id));
            }
        }
    }
}

impl Node {
    fn new(tree: &Arc<Tree>, chunks: u32, random: &mut Random) -> Self {
        Self {
            download: Download::new(Duration::ZERO, Arc::clone(tree), None, random.draw()),
            uploads: Uploads::new(Bitmap::none(chunks), CHUNK as u32, None, random.draw()),
            started: false,
            vanished: false,
            up_free: Duration::ZERO,
            down_free: Duration::ZERO,
            timer: None,
            calls: BTreeSet::new(),
            finished: None,
            given: Bitmap::none(chunks),
        }
    }
}
