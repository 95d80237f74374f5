//! Who was heard lately. Bounded: a stranger can fill the table, never grow it.

use alloc::collections::BTreeMap;
use core::net::Ipv4Addr;
use core::time::Duration;

use crate::beacon::{Beacon, NodeId, NodeState, Reject, Rejects};

/// Silence after which a node is forgotten: five quiet intervals of [`crate::announcer::QUIET`], rounded up.
pub const FORGET_AFTER: Duration = Duration::from_secs(30);

/// A node in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The last beacon.
    pub beacon: Beacon,
    /// When it came.
    pub at: Duration,
}

/// What a beacon, or silence, changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Not in the table before, or another boot of a known machine.
    New,
    /// Same boot, other state or name or address.
    Changed {
        /// State before.
        from: NodeState,
    },
    /// Nothing but load and time.
    Same,
}

/// The core of a hearer.
#[derive(Debug)]
pub struct Listener {
    table: BTreeMap<NodeId, Heard>,
    capacity: usize,
    rejects: Rejects,
}

impl Listener {
    /// An empty table for at most `capacity` nodes.
    pub fn new(capacity: usize) -> Self {
        Self {
            table: BTreeMap::new(),
            capacity,
            rejects: Rejects::default(),
        }
    }

    /// Takes a datagram from `source`. A drop is counted and its reason returned.
    pub fn handle_datagram(
        &mut self,
        now: Duration,
        source: Ipv4Addr,
        bytes: &[u8],
    ) -> Result<(NodeId, Change), Reject> {
        self.accept(now, source, bytes)
            .inspect_err(|reason| self.rejects.add(*reason))
    }

    fn accept(&mut self, now: Duration, source: Ipv4Addr, bytes: &[u8]) -> Result<(NodeId, Change), Reject> {
        let beacon = Beacon::decode(bytes)?;
        if beacon.address != source {
            return Err(Reject::Source);
        }
        let id = beacon.id;
        let full = self.table.len() >= self.capacity;
        let change = match self.table.get(&id) {
            None if full => return Err(Reject::TableFull),
            None => Change::New,
            Some(old) => {
                let known = (old.beacon.incarnation, old.beacon.sequence);
                if (beacon.incarnation, beacon.sequence) <= known {
                    // Every beacon comes twice (group and unicast), so this is the normal fate of the second.
                    return Err(Reject::Stale);
                }
                change(&old.beacon, &beacon)
            }
        };
        self.table.insert(id, Heard { beacon, at: now });
        Ok((id, change))
    }

    /// When [`Self::handle_deadline`] has somebody to forget.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.table.values().map(|heard| heard.at + FORGET_AFTER).min()
    }

    /// Forgets who was silent too long and returns the first of them; call until `None`.
    pub fn handle_deadline(&mut self, now: Duration) -> Option<(NodeId, Heard)> {
        let id = *self
            .table
            .iter()
            .find(|(_, heard)| heard.at + FORGET_AFTER <= now)?
            .0;
        Some((id, self.table.remove(&id)?))
    }

    /// Everybody in the table, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Heard> {
        self.table.values()
    }

    /// One of them.
    pub fn node(&self, id: NodeId) -> Option<&Heard> {
        self.table.get(&id)
    }

    /// Drops so far, by reason.
    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }
}

fn change(old: &Beacon, new: &Beacon) -> Change {
    if old.incarnation != new.incarnation {
        Change::New
    } else if (old.state, &old.name, old.address) == (new.state, &new.name, new.address) {
        Change::Same
    } else {
        Change::Changed { from: old.state }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn beacon(id: u8, incarnation: u64, sequence: u32, state: NodeState) -> alloc::vec::Vec<u8> {
        let (name, address) = (String::new(), SOURCE);
        let id = NodeId([id; 16]);
        Beacon {
            state,
            id,
            incarnation,
            sequence,
            load_hundredths: 0,
            memory_available_mib: 0,
            address,
            name,
        }
        .encode()
    }

    #[test]
    fn the_second_copy_is_stale_and_a_reboot_is_new() {
        let mut l = Listener::new(4);
        let at = Duration::from_secs(1);
        let mut hear = |bytes: &[u8]| l.handle_datagram(at, SOURCE, bytes).map(|(_, change)| change);
        assert_eq!(hear(&beacon(1, 5, 1, NodeState::Joining)), Ok(Change::New));
        assert_eq!(hear(&beacon(1, 5, 1, NodeState::Joining)), Err(Reject::Stale));
        assert_eq!(
            hear(&beacon(1, 5, 2, NodeState::Up)),
            Ok(Change::Changed {
                from: NodeState::Joining
            })
        );
        assert_eq!(hear(&beacon(1, 5, 3, NodeState::Up)), Ok(Change::Same));
        assert_eq!(hear(&beacon(1, 4, 9, NodeState::Up)), Err(Reject::Stale));
        assert_eq!(hear(&beacon(1, 6, 1, NodeState::Joining)), Ok(Change::New));
        assert_eq!(
            l.rejects().iter().find(|(r, _)| *r == Reject::Stale),
            Some((Reject::Stale, 2))
        );
    }

    #[test]
    fn is_bounded_checks_the_source_and_forgets() {
        let mut l = Listener::new(2);
        let at = Duration::from_secs(1);
        for id in 1..=3 {
            let result = l.handle_datagram(at, SOURCE, &beacon(id, 1, 1, NodeState::Up));
            assert_eq!(result.is_ok(), id < 3);
        }
        let foreign = l.handle_datagram(at, Ipv4Addr::new(10, 0, 0, 9), &beacon(1, 1, 2, NodeState::Up));
        assert_eq!(foreign, Err(Reject::Source));
        assert_eq!(l.next_deadline(), Some(at + FORGET_AFTER));
        assert_eq!(l.handle_deadline(at), None);
        let later = at + FORGET_AFTER;
        assert!(l.handle_deadline(later).is_some() && l.handle_deadline(later).is_some());
        assert_eq!((l.handle_deadline(later), l.nodes().count()), (None, 0));
    }
}
