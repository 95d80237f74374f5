//! Whom the head gives which chunk: first what nobody has, to whoever waited longest, so that its link carries each chunk about once
//! and the nodes give it to one another. Must never grow with what nodes say: what is kept of each is bounded, and goes with it.
//!
//! Nothing here is on disk: a head that was restarted learns from the nodes' wishes what they have.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::Bitmap;
use crate::random::Random;

/// A ticket that was not used by then goes to somebody else.
pub const VALID: Duration = Duration::from_secs(30);
/// Nodes that are known at a time.
pub const MAX_NODES: usize = 10_000;
/// Tickets in one answer, and peers.
pub const MAX_AT_ONCE: u32 = 16;
/// Nodes that must say of a peer that it lies before nobody is sent to it any more.
pub const ACCUSERS: usize = 2;
/// So many others are sent to a new node: a chunk that only it has must find its way out.
const SENT_TO_NEW: usize = 4;
/// A node that accuses more than this is not believed further.
const MAX_ACCUSED: usize = 8;

/// Chunk transfers that are allowed at a time unless the caller says otherwise: enough to fill a link whatever one of them waits
/// for, few enough that each is over soon and goes from node to node.
pub const AT_A_TIME: usize = 16;

/// What a node says. Its sets are of this image: the caller has decoded them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What it has.
    pub have: Bitmap,
    /// Tickets it would take.
    pub tickets: u32,
    /// Peers it would take.
    pub peers: u32,
    /// Whether it may have what others have already.
    pub starving: bool,
    /// Chunks that it still fetches by earlier tickets.
    pub using: Vec<u32>,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<N> {
    /// Allow a node these chunks.
    Tickets {
        /// Whom.
        node: N,
        /// Which.
        chunks: Vec<u32>,
        /// For how long.
        valid: Duration,
    },
    /// Name peers to a node.
    Peers {
        /// To whom.
        node: N,
        /// Which.
        peers: Vec<N>,
    },
}

/// What became of an accusation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accused {
    /// The accuser is not sent to it any more.
    Noted,
    /// Nobody is.
    Shunned,
    /// The accuser said so before.
    Known,
    /// Not believed: it accuses everybody, or somebody whom the head does not know.
    Ignored,
}

/// Figures for `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Tickets for chunks that nobody had.
    pub first: u64,
    /// Tickets for chunks that somebody had: for starving nodes.
    pub again: u64,
    /// Tickets that were not used in time.
    pub expired: u64,
    /// Accusations.
    pub accusations: u64,
    /// Nodes that were not taken up because there are too many.
    pub nodes_refused: u64,
}

#[derive(Debug)]
struct Node<N> {
    have: Bitmap,
    /// Chunks it may fetch, and until when.
    tickets: BTreeMap<u32, Duration>,
    wants: u32,
    starving: bool,
    waits: bool,
    /// Peers it was told of.
    told: BTreeSet<N>,
    accused: BTreeSet<N>,
    accusers: BTreeSet<N>,
}

impl<N> Node<N> {
    /// Nobody is sent to it: what it has or fetches is as good as not there.
    fn is_shunned(&self) -> bool {
        self.accusers.len() >= ACCUSERS
    }
}

/// One image's distribution, as the head sees it. `N` names a node.
#[derive(Debug)]
pub struct Tickets<N> {
    chunks: u32,
    at_a_time: usize,
    nodes: BTreeMap<N, Node<N>>,
    queue: VecDeque<N>,
    /// How many nodes have each chunk, and how many may fetch it.
    holders: Vec<u32>,
    open: Vec<u32>,
    in_flight: usize,
    /// Where to look for the next chunk that nobody has.
    cursor: u32,
    random: Random,
    counters: Counters,
    outputs: VecDeque<Output<N>>,
}

impl<N: Copy + Ord> Tickets<N> {
    /// For an image of this many chunks, of which at most `at_a_time` are fetched from the head at a time.
    pub fn new(chunks: u32, at_a_time: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            chunks,
            at_a_time: at_a_time.max(1),
            nodes: BTreeMap::new(),
            queue: VecDeque::new(),
            holders: vec![0; chunks as usize],
            open: vec![0; chunks as usize],
            in_flight: 0,
            // A head that was restarted does not begin with what most have.
            cursor: random.below(u64::from(chunks)) as u32,
            random,
            counters: Counters::default(),
            outputs: VecDeque::new(),
        }
    }

    /// A node says what it has and wants.
    pub fn handle_wish(&mut self, now: Duration, id: N, wish: Wish) {
        if wish.have.chunks() != self.chunks || !self.admit(id) {
            return;
        }
        self.take_have(id, wish.have);
        let freed: Vec<u32> = match self.nodes.get_mut(&id) {
            None => return,
            Some(node) => {
                node.wants = wish.tickets.min(MAX_AT_ONCE);
                node.starving = wish.starving;
                let using = |chunk: &u32| wish.using.contains(chunk) && !node.have.contains(*chunk);
                node.tickets
                    .keys()
                    .filter(|chunk| !using(chunk))
                    .copied()
                    .collect()
            }
        };
        freed.into_iter().for_each(|chunk| self.close(id, chunk));
        self.tell_peers(id, wish.peers.min(MAX_AT_ONCE));
        self.queue_up(id);
        self.act(now);
    }

    /// A node has all of it and serves.
    pub fn handle_whole(&mut self, now: Duration, id: N) {
        if self.admit(id) {
            self.take_have(id, Bitmap::all(self.chunks));
            let all: Vec<u32> = self
                .nodes
                .get(&id)
                .map(|node| node.tickets.keys().copied().collect())
                .unwrap_or_default();
            all.into_iter().for_each(|chunk| self.close(id, chunk));
            self.queue_up(id);
            self.act(now);
        }
    }

    /// A node says that another gave it a wrong chunk.
    pub fn handle_accusation(&mut self, now: Duration, accuser: N, accused: N) -> Accused {
        self.counters.accusations += 1;
        let Some(node) = self.nodes.get_mut(&accuser) else {
            return Accused::Ignored;
        };
        if accuser == accused || (node.accused.len() >= MAX_ACCUSED && !node.accused.contains(&accused)) {
            return Accused::Ignored;
        }
        if !node.accused.insert(accused) {
            return Accused::Known;
        }
        let Some(node) = self.nodes.get_mut(&accused) else {
            return Accused::Ignored;
        };
        // No more than it takes.
        if node.is_shunned() {
            return Accused::Shunned;
        }
        node.accusers.insert(accuser);
        if !node.is_shunned() {
            return Accused::Noted;
        }
        // What only it has is given to somebody else.
        node.have
            .iter()
            .for_each(|chunk| change(&mut self.holders, chunk, -1));
        let open = node.tickets.keys();
        open.for_each(|chunk| change(&mut self.open, *chunk, -1));
        self.act(now);
        Accused::Shunned
    }

    /// A node is no longer there: its tickets go to others, and what only it had is given again.
    pub fn handle_gone(&mut self, now: Duration, id: N) {
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        self.in_flight -= node.tickets.len();
        if !node.is_shunned() {
            node.have
                .iter()
                .for_each(|chunk| change(&mut self.holders, chunk, -1));
            let open = node.tickets.keys();
            open.for_each(|chunk| change(&mut self.open, *chunk, -1));
        }
        self.queue.retain(|waiting| *waiting != id);
        for other in self.nodes.values_mut() {
            other.told.remove(&id);
            other.accused.remove(&id);
        }
        self.act(now);
    }

    /// What is due, is done.
    pub fn handle_deadline(&mut self, now: Duration) {
        let late: Vec<(N, u32)> = self
            .nodes
            .iter()
            .flat_map(|(id, node)| {
                node.tickets
                    .iter()
                    .map(move |(chunk, until)| (*id, *chunk, *until))
            })
            .filter(|(_, _, until)| *until <= now)
            .map(|(id, chunk, _)| (id, chunk))
            .collect();
        for (id, chunk) in late {
            self.counters.expired += 1;
            self.close(id, chunk);
        }
        self.act(now);
    }

    /// When [`Tickets::handle_deadline`] is to be called. O(nodes): for the tests; a shell may as well call it every second.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.nodes
            .values()
            .flat_map(|node| node.tickets.values().copied())
            .min()
    }

    /// What the shell must do next.
    pub fn poll_output(&mut self) -> Option<Output<N>> {
        self.outputs.pop_front()
    }

    /// Figures.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Nodes that are known, and how many of them have all of it.
    pub fn nodes(&self) -> (usize, usize) {
        let whole = self.nodes.values().filter(|node| node.have.is_full()).count();
        (self.nodes.len(), whole)
    }

    /// Nodes that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether this node may fetch that chunk from the head.
    pub fn allows(&self, id: N, chunk: u32) -> bool {
        self.nodes
            .get(&id)
            .is_some_and(|node| node.tickets.contains_key(&chunk))
    }

    fn admit(&mut self, id: N) -> bool {
        if self.nodes.contains_key(&id) {
            return true;
        }
        if self.nodes.len() >= MAX_NODES {
            self.counters.nodes_refused += 1;
            return false;
        }
        let node = Node {
            have: Bitmap::none(self.chunks),
            tickets: BTreeMap::new(),
            wants: 0,
            starving: false,
            waits: false,
            told: BTreeSet::new(),
            accused: BTreeSet::new(),
            accusers: BTreeSet::new(),
        };
        self.nodes.insert(id, node);
        true
    }

    /// In the queue while it wants something, and not when it has all.
    fn queue_up(&mut self, id: N) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let wants = node.wants > 0 && !node.have.is_full();
        let waited = std::mem::replace(&mut node.waits, wants);
        match (waited, wants) {
            (false, true) => self.queue.push_back(id),
            (true, false) => self.queue.retain(|waiting| *waiting != id),
            _ => {}
        }
    }

    fn take_have(&mut self, id: N, have: Bitmap) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let changes = node.have.changes(&have).filter(|_| !node.is_shunned());
            for (chunk, come) in changes {
                change(&mut self.holders, chunk, if come { 1 } else { -1 });
            }
            node.have = have;
        }
    }

    fn close(&mut self, id: N, chunk: u32) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.tickets.remove(&chunk).is_some()
        {
            self.in_flight -= 1;
            if !node.is_shunned() {
                change(&mut self.open, chunk, -1);
            }
        }
    }

    /// Some that it was not told of yet; when there are none, all may be named again: it may have forgotten them.
    fn tell_peers(&mut self, id: N, count: u32) {
        let Some(node) = self.nodes.get(&id).filter(|_| count > 0) else {
            return;
        };
        let useful = |(other, peer): &(&N, &Node<N>)| {
            **other != id && !peer.is_shunned() && !node.accused.contains(other)
        };
        let mut fresh: Vec<N> = self
            .nodes
            .iter()
            .filter(useful)
            .map(|(other, _)| *other)
            .filter(|other| !node.told.contains(other))
            .collect();
        // Only once nobody is left who is new to it, and it is still short.
        let again = fresh.is_empty() && count >= MAX_AT_ONCE / 4;
        if again {
            fresh = self
                .nodes
                .iter()
                .filter(useful)
                .map(|(other, _)| *other)
                .collect();
        }
        let mut peers = Vec::new();
        while peers.len() < count as usize && !fresh.is_empty() {
            let at = self.random.below(fresh.len() as u64) as usize;
            peers.push(fresh.swap_remove(at));
        }
        if peers.is_empty() {
            return;
        }
        if self.nodes.get(&id).is_some_and(|node| node.told.is_empty()) {
            self.send_some_to(id);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            if again {
                node.told.clear();
            }
            node.told.extend(&peers);
        }
        self.outputs.push_back(Output::Peers { node: id, peers });
    }

    /// Names a new node to those who were told of the fewest: who has as many peers as it asks would not ask this one, and what nobody
    /// asks a node for stays there.
    fn send_some_to(&mut self, id: N) {
        let mut others: Vec<(usize, u64, N)> = Vec::new();
        for (other, node) in &self.nodes {
            if *other != id && !node.have.is_full() && !node.told.contains(&id) {
                others.push((node.told.len(), self.random.draw(), *other));
            }
        }
        others.sort_unstable();
        for (_, _, other) in others.into_iter().take(SENT_TO_NEW) {
            if let Some(node) = self.nodes.get_mut(&other) {
                node.told.insert(id);
            }
            self.outputs.push_back(Output::Peers {
                node: other,
                peers: vec![id],
            });
        }
    }

    /// Gives tickets while there are places: what nobody has to whoever waits longest, then what others have to the starving.
    fn act(&mut self, now: Duration) {
        // Each has one turn: somebody may be starving while all that it lacks is on its way to it.
        let mut turns = self.queue.len();
        while self.in_flight < self.at_a_time && turns > 0 {
            turns -= 1;
            let Some(id) = self.first_to_be_served() else {
                return;
            };
            let free = self.at_a_time - self.in_flight;
            let share = (self.at_a_time / (self.queue.len() + 1)).clamp(1, free);
            let Some(node) = self.nodes.get(&id) else {
                continue;
            };
            let most = (node.wants as usize).min(share);
            let mut chunks = Vec::new();
            while chunks.len() < most {
                let Some((chunk, first)) = self.next_for(id) else {
                    break;
                };
                self.in_flight += 1;
                if first {
                    self.counters.first += 1;
                } else {
                    self.counters.again += 1;
                }
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.tickets.insert(chunk, now + VALID);
                    if !node.is_shunned() {
                        change(&mut self.open, chunk, 1);
                    }
                }
                chunks.push(chunk);
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                node.waits = chunks.is_empty();
            }
            if chunks.is_empty() {
                self.queue.push_back(id);
                continue;
            }
            self.outputs.push_back(Output::Tickets {
                node: id,
                chunks,
                valid: VALID,
            });
        }
    }

    /// Out of the queue: the first, if there is a chunk that nobody has, else the first who is starving. Who is shunned comes last, and
    /// only when it is starving: what it gets goes no further.
    fn first_to_be_served(&mut self) -> Option<N> {
        let any = self.find_first().is_some();
        let is = |id: &N, wanted: fn(&Node<N>, bool) -> bool| {
            self.nodes.get(id).is_some_and(|node| wanted(node, any))
        };
        let good = |id: &N| is(id, |node, any| !node.is_shunned() && (any || node.starving));
        let last = |id: &N| is(id, |node, _| node.starving);
        let at = self.queue.iter().position(good);
        let at = at.or_else(|| self.queue.iter().position(last))?;
        self.queue.remove(at)
    }

    /// A chunk that nobody has nor fetches from here.
    fn find_first(&mut self) -> Option<u32> {
        let from = self.cursor;
        for step in 0..self.chunks {
            let chunk = (from + step) % self.chunks;
            if at(&self.holders, chunk) == 0 && at(&self.open, chunk) == 0 {
                self.cursor = chunk;
                return Some(chunk);
            }
        }
        None
    }

    fn next_for(&mut self, id: N) -> Option<(u32, bool)> {
        let shunned = self.nodes.get(&id).is_some_and(Node::is_shunned);
        if !shunned && let Some(chunk) = self.find_first() {
            return Some((chunk, true));
        }
        let node = self.nodes.get(&id).filter(|node| node.starving)?;
        let missing = node
            .have
            .missing()
            .filter(|chunk| !node.tickets.contains_key(chunk));
        let least = missing.min_by_key(|chunk| at(&self.holders, *chunk) + at(&self.open, *chunk))?;
        Some((least, false))
    }
}

fn at(counts: &[u32], chunk: u32) -> u32 {
    counts.get(chunk as usize).copied().unwrap_or(u32::MAX)
}

fn change(counts: &mut [u32], chunk: u32, by: i32) {
    if let Some(count) = counts.get_mut(chunk as usize) {
        *count = count.saturating_add_signed(by);
    }
}

#[cfg(test)]
mod tests;
