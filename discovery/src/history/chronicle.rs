//! The head's side of the history: it alone puts changes in order. A change is persisted before anybody is told:
//! [`Chronicle::poll_persist`] comes first, and [`Chronicle::handle_persisted`] makes it known.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use super::damping::Pulse;
use super::{CHAIN_START, Change, State, fitting, link};
use crate::identity::{Boot, NodeId};
use crate::wire::{Digest, Liveness, clean};

/// A snapshot is taken after so many changes; the changes since the one before it are kept.
const SNAPSHOT_EVERY: usize = 512;
/// A node that is said to be up has this long to be heard, also after the head restarted: three contacts of a quiet
/// node.
pub const RESTART_GRACE: Duration = Duration::from_secs(30);

/// Why a change was not taken into the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stale {
    /// The machine has booted again since.
    Ghost,
    /// The machine is in that state already, with that name and reason.
    Same,
}

/// The latest change of each machine at one length.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    at: u32,
    chain: u64,
    changes: Vec<Change>,
    parts: Vec<Range<usize>>,
}

/// The head's history.
#[derive(Debug)]
pub struct Chronicle {
    epoch: u32,
    table: BTreeMap<NodeId, Change>,
    /// Persisted and known to everybody who asks: from `first` on.
    tail: VecDeque<Change>,
    first: u32,
    chain: u64,
    snapshot: Snapshot,
    /// Decided, not yet on disk.
    unwritten: VecDeque<Change>,
    handed: usize,
    pulses: BTreeMap<NodeId, Pulse>,
    unsettled: BTreeSet<NodeId>,
    /// Milliseconds since 1970 at the zero of `now`.
    unix_ms_at_zero: u64,
}

impl Chronicle {
    /// An empty history. `epoch` must differ from that of every other history of this cluster and not be 0.
    pub fn new(epoch: u32, now: Duration, unix_ms: u64) -> Self {
        Self::restore(epoch, now, unix_ms, Vec::new())
    }

    /// The history out of the database, every change since the beginning of its epoch, in order. Machines that were
    /// up are given [`RESTART_GRACE`] to be heard.
    pub fn restore(epoch: u32, now: Duration, unix_ms: u64, changes: Vec<Change>) -> Self {
        let mut chronicle = Self {
            epoch,
            table: BTreeMap::new(),
            tail: VecDeque::new(),
            first: 0,
            chain: CHAIN_START,
            snapshot: Snapshot {
                chain: CHAIN_START,
                ..Snapshot::default()
            },
            unwritten: VecDeque::new(),
            handed: 0,
            pulses: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            unix_ms_at_zero: unix_ms.saturating_sub(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        };
        for change in changes {
            chronicle.append(change.clone());
            chronicle.table.insert(change.boot.id, change);
        }
        let present = |change: &Change| change.state.is_present().then_some(change.boot);
        let boots: Vec<Boot> = chronicle.table.values().filter_map(present).collect();
        for boot in boots {
            chronicle.expect(now, boot);
        }
        chronicle
    }

    /// The wall clock was set.
    pub fn handle_clock(&mut self, now: Duration, unix_ms: u64) {
        self.unix_ms_at_zero = unix_ms.saturating_sub(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }

    /// Decides a change; it is known when it was persisted. A later boot replaces an earlier one, never the other
    /// way round.
    pub fn record(
        &mut self,
        now: Duration,
        boot: Boot,
        state: State,
        name: &str,
        reason: &str,
    ) -> Result<(), Stale> {
        let (name, reason) = (clean(name), clean(reason));
        if let Some(last) = self.table.get(&boot.id) {
            if boot.incarnation < last.boot.incarnation {
                return Err(Stale::Ghost);
            }
            if (last.boot, last.state, &last.name, &last.reason) == (boot, state, &name, &reason) {
                return Err(Stale::Same);
            }
            if boot.incarnation > last.boot.incarnation {
                self.pulses.remove(&boot.id);
            }
        }
        let change = Change {
            boot,
            state,
            at_unix_ms: self.unix_ms_at_zero + u64::try_from(now.as_millis()).unwrap_or(0),
            name,
            reason,
        };
        self.table.insert(boot.id, change.clone());
        self.unwritten.push_back(change);
        if self.pulses.contains_key(&boot.id) {
            self.unsettled.insert(boot.id);
        }
        Ok(())
    }

    /// A node is said to be present and was not heard yet: without [`Self::handle_liveness`] within
    /// [`RESTART_GRACE`] it is lost.
    pub fn expect(&mut self, now: Duration, boot: Boot) {
        let mut unheard = Pulse::new(now);
        unheard.handle(now + RESTART_GRACE, Liveness::Dead);
        self.pulses.insert(boot.id, unheard);
        self.unsettled.insert(boot.id);
    }

    /// What the head's own membership says of a node. Only nodes that the history holds as present change by it.
    pub fn handle_liveness(&mut self, now: Duration, boot: Boot, liveness: Liveness) {
        let Some(last) = self.table.get(&boot.id) else {
            return;
        };
        // A later boot that is there will be recorded; one that is gone again took the earlier one with it.
        let later = boot.incarnation > last.boot.incarnation;
        let gone = matches!(liveness, Liveness::Dead | Liveness::Left);
        if last.boot != boot && !(later && gone) {
            return;
        }
        self.pulses
            .entry(boot.id)
            .or_insert_with(|| Pulse::new(now))
            .handle(now, liveness);
        self.unsettled.insert(boot.id);
    }

    /// When [`Self::handle_deadline`] has something to do.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        self.unsettled
            .iter()
            .filter_map(|id| Some(self.due(now, *id)?.0))
            .min()
    }

    /// Records what silence, or its end, has made true by now.
    pub fn handle_deadline(&mut self, now: Duration) {
        let ids: Vec<NodeId> = self.unsettled.iter().copied().collect();
        for id in ids {
            match (self.due(now, id), self.table.get(&id).cloned()) {
                (Some((at, state, reason)), Some(last)) if at <= now => {
                    // Cannot be stale: it is the last boot, in another state.
                    let _ = self.record(now, last.boot, state, &last.name, reason);
                }
                (Some(_), Some(_)) => {}
                _ => {
                    self.unsettled.remove(&id);
                }
            }
        }
    }

    /// The next change to write to disk; drain and commit, then call [`Self::handle_persisted`].
    pub fn poll_persist(&mut self) -> Option<Change> {
        let change = self.unwritten.get(self.handed)?.clone();
        self.handed += 1;
        Some(change)
    }

    /// Everything handed out by [`Self::poll_persist`] is on disk: now it is history.
    pub fn handle_persisted(&mut self) {
        self.handle_persisted_first(self.handed);
    }

    /// The same for the first `count` of them: the others are on their way.
    pub fn handle_persisted_first(&mut self, count: usize) {
        let count = count.min(self.handed);
        self.handed -= count;
        for _ in 0..count {
            if let Some(change) = self.unwritten.pop_front() {
                self.append(change);
            }
        }
    }

    /// How far the history reaches.
    pub fn digest(&self) -> Digest {
        Digest {
            epoch: self.epoch,
            length: self.first + u32::try_from(self.tail.len()).unwrap_or(0),
        }
    }

    /// Chain hash at [`Self::digest`]'s length.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// The latest change of each machine, decided ones included.
    pub fn table(&self) -> &BTreeMap<NodeId, Change> {
        &self.table
    }

    /// Changes from `from` on that fit one datagram; `None` when they are older than what is kept.
    pub fn tail(&self, from: u32) -> Option<Vec<Change>> {
        let skip = usize::try_from(from.checked_sub(self.first)?).ok()?;
        if skip > self.tail.len() {
            return None;
        }
        let most = fitting(self.tail.iter().skip(skip));
        Some(self.tail.iter().skip(skip).take(most).cloned().collect())
    }

    /// Length and chain hash of the snapshot, and how many parts it has.
    pub fn snapshot(&self) -> (u32, u64, u16) {
        let parts = u16::try_from(self.snapshot.parts.len()).unwrap_or(u16::MAX);
        (self.snapshot.at, self.snapshot.chain, parts)
    }

    /// A part of the snapshot.
    pub fn part(&self, part: u16) -> Option<&[Change]> {
        let range = self.snapshot.parts.get(usize::from(part))?.clone();
        self.snapshot.changes.get(range)
    }

    /// The name that the history has for a machine.
    pub fn name_of(&self, id: NodeId) -> Option<&String> {
        self.table.get(&id).map(|change| &change.name)
    }

    fn due(&self, now: Duration, id: NodeId) -> Option<(Duration, State, &'static str)> {
        self.pulses.get(&id)?.due(now, self.table.get(&id)?.state)
    }

    fn append(&mut self, change: Change) {
        self.chain = link(self.chain, &change);
        self.tail.push_back(change);
        if self.tail.len() < 2 * SNAPSHOT_EVERY {
            return;
        }
        // The snapshot moves to where the older half of the tail ends, and that half is dropped.
        let mut table: BTreeMap<NodeId, Change> = self
            .snapshot
            .changes
            .drain(..)
            .map(|change| (change.boot.id, change))
            .collect();
        let mut chain = self.snapshot.chain;
        for change in self.tail.drain(..SNAPSHOT_EVERY) {
            chain = link(chain, &change);
            table.insert(change.boot.id, change);
        }
        self.first += SNAPSHOT_EVERY as u32;
        let changes: Vec<Change> = table.into_values().collect();
        let mut parts = Vec::new();
        let mut start = 0;
        while let Some(rest) = changes.get(start..).filter(|rest| !rest.is_empty()) {
            let end = start + fitting(rest.iter()).max(1);
            parts.push(start..end);
            start = end;
        }
        self.snapshot = Snapshot {
            at: self.first,
            chain,
            changes,
            parts,
        };
    }
}
