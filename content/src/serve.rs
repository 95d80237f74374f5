//! What a node gives to others: so many chunks at a time, so many bytes a second, whoever got least first. Must never give a chunk that was not checked, nor
//! keep more waiting than it has places.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use crate::Bitmap;
use crate::random::Random;

/// Chunks on their way out at a time.
pub const SLOTS: usize = 4;
/// Questions that wait for a slot or for news.
pub const MAX_WAITING: usize = 64;
/// Visitors whose share is remembered.
const MAX_VISITORS: usize = 1024;
/// Who finds no place is told to come again after about this time.
const BUSY: Duration = Duration::from_millis(500);
/// Longest time that somebody may wait for news.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A connection, by a number of the shell's.
pub type Visitor = u64;

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this chunk, and say [`Uploads::handle_sent`] when it is out or has failed.
    Give {
        /// To whom.
        visitor: Visitor,
        /// Which.
        chunk: u32,
    },
    /// Say what is here.
    Have(Visitor),
    /// No place: come again.
    Busy {
        /// To whom.
        visitor: Visitor,
        /// When.
        after: Duration,
    },
    /// It is not here.
    Missing(Visitor),
}

/// Figures for tests and the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Chunks that were given.
    pub given: u64,
    /// Questions that were told to come again.
    pub busy: u64,
    /// Questions for what is not here.
    pub missing: u64,
}

/// The state of a node's uploads.
#[derive(Debug)]
pub struct Uploads {
    have: Bitmap,
    chunk_bytes: u32,
    /// Bytes a second; `None`: as fast as the link.
    limit: Option<u64>,
    /// The limit allows the next chunk then.
    free_at: Duration,
    sending: BTreeMap<Visitor, u32>,
    waiting: VecDeque<(Visitor, u32)>,
    /// Who waits for news, and until when.
    watching: BTreeMap<Visitor, Duration>,
    /// How many chunks of ours each visitor was told of, and how many it got.
    visitors: BTreeMap<Visitor, (u32, u32)>,
    random: Random,
    counters: Counters,
    outputs: VecDeque<Output>,
}

impl Uploads {
    /// Of an image of which `have` is here and checked. `limit`: bytes a second.
    pub fn new(have: Bitmap, chunk_bytes: u32, limit: Option<u64>, seed: u64) -> Self {
        Self {
            have,
            chunk_bytes,
            limit,
            free_at: Duration::ZERO,
            sending: BTreeMap::new(),
            waiting: VecDeque::new(),
            watching: BTreeMap::new(),
            visitors: BTreeMap::new(),
            random: Random::new(seed),
            counters: Counters::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What is here.
    pub fn have(&self) -> &Bitmap {
        &self.have
    }

    /// A chunk was checked and is here now: whoever waits for news hears of it.
    pub fn handle_chunk(&mut self, chunk: u32) {
        if self.have.insert(chunk) {
            let watching = core::mem::take(&mut self.watching);
            watching.keys().for_each(|visitor| self.tell(*visitor));
        }
    }

    /// What do you have?
    pub fn handle_have(&mut self, now: Duration, visitor: Visitor, wait: Duration) {
        let told = self.visitors.get(&visitor).map(|(told, _)| *told);
        if told != Some(self.have.count()) || wait.is_zero() || self.watching.len() >= MAX_WAITING {
            self.tell(visitor);
        } else {
            self.watching.insert(visitor, now + wait.min(MAX_WAIT));
        }
    }

    /// Give me this chunk.
    pub fn handle_question(&mut self, now: Duration, visitor: Visitor, chunk: u32) {
        if !self.have.contains(chunk) {
            self.counters.missing += 1;
            self.outputs.push_back(Output::Missing(visitor));
        } else if self.waiting.len() >= MAX_WAITING || self.is_known_to_wait(visitor) {
            self.counters.busy += 1;
            let after = self.random.around(BUSY);
            self.outputs.push_back(Output::Busy { visitor, after });
        } else {
            self.waiting.push_back((visitor, chunk));
        }
        self.act(now);
    }

    /// The chunk is out, or its connection broke.
    pub fn handle_sent(&mut self, now: Duration, visitor: Visitor) {
        self.sending.remove(&visitor);
        self.act(now);
    }

    /// The connection ended.
    pub fn handle_gone(&mut self, now: Duration, visitor: Visitor) {
        self.sending.remove(&visitor);
        self.watching.remove(&visitor);
        self.visitors.remove(&visitor);
        self.waiting.retain(|(waiting, _)| *waiting != visitor);
        self.act(now);
    }

    /// What is due, is done.
    pub fn handle_deadline(&mut self, now: Duration) {
        let late: Vec<Visitor> = self
            .watching
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(visitor, _)| *visitor)
            .collect();
        for visitor in late {
            self.watching.remove(&visitor);
            self.tell(visitor);
        }
        self.act(now);
    }

    /// When [`Uploads::handle_deadline`] is to be called.
    pub fn next_deadline(&self) -> Option<Duration> {
        let slot = !self.waiting.is_empty() && self.sending.len() < SLOTS;
        let limit = slot.then_some(self.free_at);
        self.watching.values().copied().chain(limit).min()
    }

    /// What the shell must do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Figures.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn is_known_to_wait(&self, visitor: Visitor) -> bool {
        self.sending.contains_key(&visitor) || self.waiting.iter().any(|(waiting, _)| *waiting == visitor)
    }

    fn tell(&mut self, visitor: Visitor) {
        self.remember(visitor).0 = self.have.count();
        self.outputs.push_back(Output::Have(visitor));
    }

    fn remember(&mut self, visitor: Visitor) -> &mut (u32, u32) {
        if self.visitors.len() >= MAX_VISITORS && !self.visitors.contains_key(&visitor) {
            self.visitors.pop_first();
        }
        self.visitors.entry(visitor).or_default()
    }

    fn act(&mut self, now: Duration) {
        while self.sending.len() < SLOTS && self.free_at <= now {
            let got = |visitor: &Visitor| self.visitors.get(visitor).map_or(0, |(_, got)| *got);
            // The first of those who got least.
            let next = self
                .waiting
                .iter()
                .enumerate()
                .min_by_key(|(_, (visitor, _))| got(visitor));
            let Some((visitor, chunk)) = next.map(|(at, _)| at).and_then(|at| self.waiting.remove(at)) else {
                return;
            };
            if let Some(limit) = self.limit.filter(|limit| *limit > 0) {
                let cost = Duration::from_micros(u64::from(self.chunk_bytes) * 1_000_000 / limit);
                self.free_at = self.free_at.max(now) + cost;
            }
            self.sending.insert(visitor, chunk);
            // The answer says what is here as well.
            let count = self.have.count();
            let entry = self.remember(visitor);
            *entry = (count, entry.1 + 1);
            self.counters.given += 1;
            self.outputs.push_back(Output::Give { visitor, chunk });
        }
    }
}

#[cfg(test)]
mod tests;
