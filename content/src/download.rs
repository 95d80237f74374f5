//! How a node gets an image: which chunk from whom next. Must never count a chunk as there that was not checked, nor ask anybody
//! again who gave a wrong one.
//!
//! - From peers: one question at a time to each; of the chunks that it has and this node lacks the one that the fewest of its peers
//!   have, so that nodes differ in what they have. A peer that has nothing new is asked to speak up when it has.
//! - From the head: only chunks that it gave a ticket for. Between tickets the node waits, however long.
//! - Whatever fails is tried again, later each time and never at the same moment as everybody else.
//!
//! What was checked before (an agent that started again) is given to [`Download::new`], and goes on from there.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::random::Random;
use crate::{Bitmap, ChunkError, Tree};

/// Name of a peer, as the head gave it.
pub type Name = Arc<str>;

/// Peers that a node wishes for.
pub const PEERS: usize = 8;
/// Peers that are asked at a time: the head names some more to it, so that everybody is asked by somebody.
pub const IN_USE: usize = 12;
/// Chunks that are asked of the head at a time: while one is on its way the next is asked for.
pub const FROM_HEAD: usize = 2;
/// Tickets that a node asks for at a time.
pub const TICKETS: u32 = 8;
/// Names of peers that gave wrong chunks; when there are more, no new peer is taken.
const MAX_BAD: usize = 256;
/// Peers that are known, asked or not.
const MAX_KNOWN: usize = 64;
/// A peer that needs longer for a chunk is given up, ...
const PEER_BOUND: Duration = Duration::from_secs(15);
/// ... and so is a request to the head, which may be slow for everybody.
const HEAD_BOUND: Duration = Duration::from_secs(90);
/// A peer that is watched answers within [`WAIT`].
const WAIT: Duration = Duration::from_secs(5);
/// Between attempts; doubles from the first to the last.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Attempts to reach a peer before it is forgotten.
const ATTEMPTS: u32 = 3;
/// A wish that was not met is said again with what came since.
const WISH_AGAIN: Duration = Duration::from_secs(5);
/// A node that got nothing for this long may have from the head what others have.
const STARVING: Duration = Duration::from_secs(3);
/// Wrong chunks from the head in a row after which a node that knows no peer says that it cannot run this image.
const HEAD_WRONG: u32 = 3;
/// The same for a node that knows peers: one of them may have it right and be slower than the head is wrong. With the
/// rests between the attempts it takes most of a minute.
const HEAD_WRONG_BESIDE_PEERS: u32 = 10;

/// Who a chunk comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The head, by HTTP.
    Head,
    /// This peer.
    Peer(Name),
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Call this peer at its door; the answer is [`Download::handle_connected`] or [`Download::handle_lost`].
    Connect(Name),
    /// Close the connection, if there is one. No answer is expected.
    Disconnect(Name),
    /// Ask a peer what it has; it may wait with the answer ([`Download::handle_have`]).
    AskHave {
        /// Whom.
        peer: Name,
        /// How long it may wait.
        wait: Duration,
    },
    /// Ask a peer for a chunk ([`Download::handle_chunk`]).
    AskPeer {
        /// Whom.
        peer: Name,
        /// Which.
        chunk: u32,
    },
    /// Ask the head for a chunk ([`Download::handle_chunk`]).
    AskHead(u32),
    /// Tell the head what this node has, and what it wants.
    Wish {
        /// Chunks from the head, at a time.
        tickets: u32,
        /// Peers.
        peers: u32,
        /// Nothing came for a while: it would take what others have already.
        starving: bool,
        /// Chunks that it still fetches by earlier tickets.
        using: Vec<u32>,
    },
    /// A peer gave a wrong chunk: tell the head its name.
    BadPeer {
        /// Who.
        peer: Name,
        /// What was wrong.
        error: ChunkError,
    },
    /// What came from the head was wrong: tell it. The chunk is asked for again.
    WrongFromHead(ChunkError),
    /// The head itself gives wrong bytes, again and again, and no peer helped.
    BadHead(ChunkError),
    /// Every chunk is there and checked.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Not called yet, or lost: not before then.
    Away {
        until: Duration,
    },
    Calling {
        until: Duration,
    },
    Idle,
    /// Asked for this chunk.
    Asked {
        chunk: u32,
        until: Duration,
    },
    Watched {
        until: Duration,
    },
    /// Busy: not before then.
    Pausing {
        until: Duration,
    },
}

impl Link {
    fn deadline(self) -> Option<Duration> {
        match self {
            Self::Idle => None,
            Self::Away { until }
            | Self::Calling { until }
            | Self::Asked { until, .. }
            | Self::Watched { until }
            | Self::Pausing { until } => Some(until),
        }
    }

    fn is_connected(self) -> bool {
        !matches!(self, Self::Away { .. } | Self::Calling { .. })
    }
}

#[derive(Debug)]
struct Peer {
    have: Bitmap,
    link: Link,
    failures: u32,
    /// Chunks it gave.
    gave: u32,
}

/// Figures for the screen and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Chunks from the head.
    pub from_head: u32,
    /// Chunks from peers.
    pub from_peers: u32,
    /// Answers that were no good: wrong bytes, other chunks.
    pub wrong: u32,
    /// Chunks that came a second time.
    pub twice: u32,
    /// Connections and requests that failed.
    pub failed: u32,
    /// Peers that were not taken, because there are too many or they lied before.
    pub peers_refused: u32,
}

/// The state of a download.
#[derive(Debug)]
pub struct Download {
    tree: Arc<Tree>,
    have: Bitmap,
    /// Chunks on their way.
    pending: Bitmap,
    /// How many of the connected peers have each chunk.
    spread: Vec<u16>,
    peers: BTreeMap<Name, Peer>,
    bad: BTreeSet<Name>,
    /// Whether the head hears us.
    head_up: bool,
    tickets: VecDeque<(u32, Duration)>,
    from_head: BTreeMap<u32, Duration>,
    head_rest: Option<Duration>,
    head_failures: u32,
    head_wrong: u32,
    /// When the open wish is to be said again.
    wish_again: Option<Duration>,
    /// How many tickets the wish before brought.
    batch: usize,
    /// When this node is starving, unless something comes.
    starves_at: Duration,
    starving: bool,
    random: Random,
    counters: Counters,
    done: bool,
    outputs: VecDeque<Output>,
}

impl Download {
    /// A download of the image of `tree`, of which `have` was checked already. `seed` differs from node to node.
    pub fn new(now: Duration, tree: Arc<Tree>, have: Option<Bitmap>, seed: u64) -> Self {
        let chunks = tree.shape().chunks();
        let have = have.filter(|have| have.chunks() == chunks);
        let mut random = Random::new(seed);
        let mut download = Self {
            have: have.unwrap_or_else(|| Bitmap::none(chunks)),
            pending: Bitmap::none(chunks),
            spread: vec![0; chunks as usize],
            peers: BTreeMap::new(),
            bad: BTreeSet::new(),
            head_up: false,
            tickets: VecDeque::new(),
            from_head: BTreeMap::new(),
            head_rest: None,
            head_failures: 0,
            head_wrong: 0,
            wish_again: None,
            batch: 0,
            starves_at: now + random.around(STARVING),
            starving: false,
            random,
            counters: Counters::default(),
            done: false,
            outputs: VecDeque::new(),
            tree,
        };
        download.act(now);
        download
    }

    /// The connection to the head is up, and it knows this node: after each welcome.
    pub fn handle_head(&mut self, now: Duration) {
        self.head_up = true;
        self.wish_again = None;
        self.act(now);
    }

    /// The connection to the head is gone; so are its tickets, for the next head knows nothing of them. Chunks that are on their
    /// way over HTTP may still come.
    pub fn handle_head_gone(&mut self, now: Duration) {
        self.head_up = false;
        self.wish_again = None;
        self.tickets.clear();
        self.act(now);
    }

    /// The head gave tickets.
    pub fn handle_tickets(&mut self, now: Duration, chunks: &[u32], valid: Duration) {
        self.wish_again = None;
        self.batch = chunks.len();
        let until = now + valid;
        for chunk in chunks {
            let known = self.tickets.len() >= 2 * TICKETS as usize
                || self.tickets.iter().any(|(known, _)| known == chunk);
            if *chunk < self.have.chunks() && !known {
                self.tickets.push_back((*chunk, until));
            }
        }
        self.act(now);
    }

    /// The head named peers.
    pub fn handle_peers(&mut self, now: Duration, names: &[Name]) {
        for name in names {
            if self.peers.contains_key(name) {
                continue;
            }
            if self.bad.contains(name) || self.bad.len() >= MAX_BAD || self.peers.len() >= MAX_KNOWN {
                self.counters.peers_refused += 1;
                continue;
            }
            let peer = Peer {
                have: Bitmap::none(self.have.chunks()),
                link: Link::Away { until: now },
                failures: 0,
                gave: 0,
            };
            self.peers.insert(Arc::clone(name), peer);
        }
        self.act(now);
    }

    /// A peer answered the call.
    pub fn handle_connected(&mut self, now: Duration, name: &str) {
        if let Some(peer) = self.peers.get_mut(name)
            && matches!(peer.link, Link::Calling { .. })
        {
            peer.link = Link::Watched {
                until: now + WAIT + PEER_BOUND,
            };
            // What it has now, without waiting.
            let peer = Arc::from(name);
            self.outputs.push_back(Output::AskHave {
                peer,
                wait: Duration::ZERO,
            });
        }
        self.act(now);
    }

    /// A peer said what it has.
    pub fn handle_have(&mut self, now: Duration, name: &str, have: &[u8]) {
        self.take_have(name, have);
        if let Some(peer) = self.peers.get_mut(name)
            && matches!(peer.link, Link::Watched { .. })
        {
            peer.link = Link::Idle;
        }
        self.act(now);
    }

    /// A peer does not have the chunk that it said it had.
    pub fn handle_missing(&mut self, now: Duration, name: &str) {
        if let Some(peer) = self.peers.get_mut(name)
            && let Link::Asked { chunk, .. } = peer.link
            && peer.have.remove(chunk)
            && let Some(spread) = self.spread.get_mut(chunk as usize)
        {
            *spread = spread.saturating_sub(1);
        }
        self.handle_busy(now, name, FIRST_RETRY);
    }

    /// A peer has no slot: it is asked again after this time.
    pub fn handle_busy(&mut self, now: Duration, name: &str, after: Duration) {
        let pause = self.random.around(after.clamp(FIRST_RETRY, LAST_RETRY));
        self.release(name);
        if let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.link.is_connected()) {
            peer.link = Link::Pausing { until: now + pause };
        }
        self.act(now);
    }

    /// The connection to a peer could not be made or has ended.
    pub fn handle_lost(&mut self, now: Duration, name: &str) {
        self.lose(now, name);
        self.act(now);
    }

    /// The head did not give the chunk (no connection, a status other than 206); `after` as it said.
    pub fn handle_head_failed(&mut self, now: Duration, chunk: u32, after: Option<Duration>) {
        if self.from_head.remove(&chunk).is_some() {
            self.pending.remove(chunk);
            self.rest(now, after);
        }
        self.act(now);
    }

    /// Bytes that somebody gave for a chunk. True when they are the chunk and were missing: then the caller keeps them.
    /// `have`: what the peer said of itself beside them.
    pub fn handle_chunk(
        &mut self,
        now: Duration,
        source: &Source,
        chunk: u32,
        bytes: &[u8],
        have: Option<&[u8]>,
    ) -> bool {
        let verdict = self.tree.check(chunk, bytes);
        self.handle_checked(now, source, chunk, verdict, have)
    }

    /// [`Download::handle_chunk`] of bytes that [`Tree::check`] has judged elsewhere (another thread).
    pub fn handle_checked(
        &mut self,
        now: Duration,
        source: &Source,
        chunk: u32,
        verdict: Result<(), ChunkError>,
        have: Option<&[u8]>,
    ) -> bool {
        let taken = match (source, verdict) {
            (Source::Peer(name), Ok(())) => self.peer_gave(name, chunk, have),
            (Source::Peer(name), Err(error)) => {
                self.lied(name, error);
                false
            }
            (Source::Head, Ok(())) => {
                self.from_head.remove(&chunk);
                (self.head_failures, self.head_wrong) = (0, 0);
                true
            }
            (Source::Head, Err(error)) => {
                self.head_was_wrong(now, chunk, error);
                false
            }
        };
        let fresh = taken && self.have.insert(chunk);
        if taken {
            self.pending.remove(chunk);
            match (source, fresh) {
                (_, false) => self.counters.twice += 1,
                (Source::Head, true) => self.counters.from_head += 1,
                (Source::Peer(_), true) => self.counters.from_peers += 1,
            }
        }
        if fresh {
            self.starving = false;
            self.starves_at = now + self.random.around(STARVING);
        }
        self.act(now);
        fresh
    }

    /// What is due, is done.
    pub fn handle_deadline(&mut self, now: Duration) {
        self.act(now);
    }

    /// When [`Download::handle_deadline`] is to be called, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.done {
            return None;
        }
        // Who waits for a place is called when there is one, not at a time.
        let full = self.in_use() >= IN_USE;
        let waits = |peer: &&Peer| !(full && matches!(peer.link, Link::Away { .. }));
        let peers = self.peers.values().filter(waits);
        let peers = peers.filter_map(|peer| peer.link.deadline());
        let head = self.from_head.values().copied();
        let others = [self.head_rest, self.wish_again.filter(|_| self.head_up)];
        let starves = (!self.starving).then_some(self.starves_at);
        peers
            .chain(head)
            .chain(others.into_iter().flatten())
            .chain(starves)
            .min()
    }

    /// Peers that are called or connected.
    fn in_use(&self) -> usize {
        let in_use = |peer: &&Peer| !matches!(peer.link, Link::Away { .. });
        self.peers.values().filter(in_use).count()
    }

    /// What the shell must do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is there and checked.
    pub fn have(&self) -> &Bitmap {
        &self.have
    }

    /// The image's tree.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Bytes that are there and checked.
    pub fn bytes(&self) -> u64 {
        let shape = self.tree.shape();
        let whole = u64::from(self.have.count()) * u64::from(shape.chunk_bytes());
        let last = shape.chunks().saturating_sub(1);
        let short = shape
            .range(last)
            .map_or(0, |(_, length)| shape.chunk_bytes() - length);
        whole
            - if self.have.contains(last) {
                u64::from(short)
            } else {
                0
            }
    }

    /// Whether every chunk is there.
    pub fn is_done(&self) -> bool {
        self.have.is_full()
    }

    /// Figures.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What it waits for, for the person at the screen; empty while chunks are on their way.
    pub fn waits(&self) -> &'static str {
        match (self.pending.count() == 0 && !self.done, self.head_up) {
            (false, _) => "",
            (true, true) => "waits for its turn",
            (true, false) => "waits for the head to come back",
        }
    }

    /// Peers that gave wrong chunks.
    pub fn liars(&self) -> impl Iterator<Item = &Name> {
        self.bad.iter()
    }
}

mod steps;
#[cfg(test)]
mod tests;
