//! A node's side of the history: a prefix of the head's, which only grows. Must never apply a change whose place is
//! not the very next one.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::{CHAIN_START, Change, link};
use crate::identity::NodeId;
use crate::wire::{Digest, Refusal};

/// Changes kept to pass on to peers whose head is out of reach.
const KEPT: usize = 256;
/// Most parts of a snapshot: 100,000 machines.
const MAX_PARTS: u16 = 10_000;

#[derive(Debug)]
struct Assembly {
    at: u32,
    chain: u64,
    parts: BTreeMap<u16, Vec<Change>>,
    of: u16,
}

/// A prefix of the head's history.
#[derive(Debug)]
pub struct Replica {
    digest: Digest,
    chain: u64,
    table: BTreeMap<NodeId, Change>,
    tail: VecDeque<Change>,
    assembly: Option<Assembly>,
}

impl Default for Replica {
    fn default() -> Self {
        Self {
            digest: Digest::default(),
            chain: CHAIN_START,
            table: BTreeMap::new(),
            tail: VecDeque::new(),
            assembly: None,
        }
    }
}

impl Replica {
    /// How far the prefix reaches.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Chain hash at that length.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// The latest change of each machine.
    pub fn table(&self) -> &BTreeMap<NodeId, Change> {
        &self.table
    }

    /// The sender has a history. Another epoch is believed from the head, or while we have none: ours is dropped.
    pub fn handle_epoch(&mut self, epoch: u32, from_head: bool) {
        if epoch != 0 && epoch != self.digest.epoch && (from_head || self.digest.epoch == 0) {
            *self = Self::default();
            self.digest.epoch = epoch;
        }
    }

    /// Whether the sender has more of our history than we.
    pub fn lacks(&self, theirs: Digest) -> bool {
        theirs.epoch == self.digest.epoch && theirs.length > self.digest.length
    }

    /// Changes from place `first` on. What we have already is skipped; `Ok` says whether something was new.
    pub fn handle_tail(&mut self, epoch: u32, first: u32, changes: Vec<Change>) -> Result<bool, Refusal> {
        let Some(skip) = self.digest.length.checked_sub(first) else {
            return Err(Refusal::History);
        };
        if epoch != self.digest.epoch {
            return Err(Refusal::History);
        }
        let before = self.digest.length;
        for change in changes
            .into_iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX))
        {
            self.chain = link(self.chain, &change);
            self.digest.length += 1;
            self.table.insert(change.boot.id, change.clone());
            self.tail.push_back(change);
            if self.tail.len() > KEPT {
                self.tail.pop_front();
            }
        }
        Ok(self.digest.length > before)
    }

    /// A part of the snapshot taken at length `at`. `Ok` says whether it was the last that was missing.
    pub fn handle_part(
        &mut self,
        (epoch, at, chain): (u32, u32, u64),
        (part, of): (u16, u16),
        changes: Vec<Change>,
    ) -> Result<bool, Refusal> {
        if epoch != self.digest.epoch || of > MAX_PARTS || part >= of {
            return Err(Refusal::History);
        }
        if at <= self.digest.length {
            return Ok(false);
        }
        let fits = |assembly: &Assembly| (assembly.at, assembly.chain, assembly.of) == (at, chain, of);
        if !self.assembly.as_ref().is_some_and(fits) {
            self.assembly = Some(Assembly {
                at,
                chain,
                parts: BTreeMap::new(),
                of,
            });
        }
        let Some(assembly) = &mut self.assembly else {
            return Err(Refusal::History);
        };
        assembly.parts.insert(part, changes);
        if assembly.parts.len() < usize::from(of) {
            return Ok(false);
        }
        let parts = core::mem::take(&mut assembly.parts);
        self.assembly = None;
        self.table = parts
            .into_values()
            .flatten()
            .map(|change| (change.boot.id, change))
            .collect();
        self.tail.clear();
        self.digest.length = at;
        self.chain = chain;
        Ok(true)
    }

    /// The first part of the snapshot being assembled that is missing: its length, and which.
    pub fn missing_part(&self) -> Option<(u32, u16)> {
        let assembly = self.assembly.as_ref()?;
        let part = (0..assembly.of).find(|part| !assembly.parts.contains_key(part))?;
        Some((assembly.at, part))
    }

    /// A snapshot of the prefix, in parts of which each fits one datagram: for a peer when neither the head nor the tail can help it.
    pub fn parts(&self) -> Vec<Vec<Change>> {
        let mut parts = Vec::new();
        let mut rest: Vec<&Change> = self.table.values().collect();
        while !rest.is_empty() {
            let fit = super::fitting(rest.iter().copied()).clamp(1, rest.len());
            parts.push(rest.drain(..fit).cloned().collect());
        }
        parts
    }

    /// Changes from `from` on that fit one datagram, for a peer; `None` when we do not have them.
    pub fn tail(&self, from: u32) -> Option<Vec<Change>> {
        let kept = u32::try_from(self.tail.len()).ok()?;
        let skip = usize::try_from(from.checked_sub(self.digest.length - kept)?).ok()?;
        if skip > self.tail.len() {
            return None;
        }
        let most = super::fitting(self.tail.iter().skip(skip));
        Some(self.tail.iter().skip(skip).take(most).cloned().collect())
    }
}
