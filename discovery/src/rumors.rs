//! News to pass on: each a limited number of times, those least often passed on first. Must never hold two pieces of
//! news of which one makes the other obsolete.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::identity::NodeId;
use crate::wire::{Liveness, Rumor};

/// Who misses a death learns of it only by comparing rosters, which takes seconds.
const DEATH_MORE: u32 = 6;

type Key = (NodeId, Option<NodeId>);

/// News waiting to be passed on. Bounded by the roster: at most one entry and [`crate::roster::MAX_VOTERS`] doubts
/// per member.
#[derive(Debug, Default)]
pub struct Rumors {
    entries: BTreeMap<Key, (Rumor, (u32, u64))>,
    order: BTreeMap<(u32, u64), Key>,
    stamp: u64,
    urgent: BTreeSet<Key>,
}

/// Whether the sender of a rumour is the one who found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// We: the group is told at once.
    Mine,
    /// Somebody told us.
    Heard,
}

impl Rumors {
    /// Takes news; what it makes obsolete is dropped.
    pub fn push(&mut self, rumor: Rumor, origin: Origin) {
        let key = (rumor.boot.id, rumor.by);
        if rumor.liveness == Liveness::Suspect {
            self.remove((rumor.boot.id, None));
        } else {
            let doubts: Vec<Key> = self
                .entries
                .range((rumor.boot.id, None)..)
                .take_while(|((id, _), _)| *id == rumor.boot.id)
                .map(|(key, _)| *key)
                .collect();
            doubts.into_iter().for_each(|key| self.remove(key));
        }
        self.remove(key);
        self.stamp += 1;
        let place = (0, self.stamp);
        self.order.insert(place, key);
        self.entries.insert(key, (rumor, place));
        if origin == Origin::Mine {
            self.urgent.insert(key);
        }
    }

    /// Whether there is anything to pass on.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Up to `most` rumours, which count as passed on once more; those passed on `limit` times are dropped, a death
    /// after six times more.
    pub fn pick(&mut self, most: usize, limit: u32) -> Vec<Rumor> {
        let places: Vec<_> = self
            .order
            .iter()
            .take(most)
            .map(|(place, key)| (*place, *key))
            .collect();
        let mut picked = Vec::with_capacity(places.len());
        for ((sent, stamp), key) in places {
            let Some((rumor, place)) = self.entries.get_mut(&key) else {
                continue;
            };
            picked.push(rumor.clone());
            self.order.remove(&(sent, stamp));
            *place = (sent + 1, stamp);
            let more = if rumor.liveness == Liveness::Dead {
                DEATH_MORE
            } else {
                0
            };
            if sent + 1 < limit + more {
                self.order.insert((sent + 1, stamp), key);
            } else {
                self.entries.remove(&key);
            }
        }
        picked
    }

    /// What we found out ourselves since the last call, at most `most`.
    pub fn take_urgent(&mut self, most: usize) -> Vec<Rumor> {
        let keys: Vec<Key> = self.urgent.iter().take(most).copied().collect();
        for key in &keys {
            self.urgent.remove(key);
        }
        keys.iter()
            .filter_map(|key| Some(self.entries.get(key)?.0.clone()))
            .collect()
    }

    fn remove(&mut self, key: Key) {
        if let Some((_, place)) = self.entries.remove(&key) {
            self.order.remove(&place);
        }
        self.urgent.remove(&key);
    }
}
