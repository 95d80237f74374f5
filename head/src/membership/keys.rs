//! When the group key is changed: a minute after somebody left, for all who left in that minute; at once when somebody is thrown
//! out. A state machine without clock and randomness; must never give a key an epoch that was in force before.

use std::collections::BTreeMap;
use std::time::Duration;

use cid_discovery::NodeId;
use cid_discovery::seal::GroupKey;

/// From a departure to the change: who comes back within it keeps its key, and others that leave need no change of their own.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Departures that are told apart; above, they are one.
const MOST: usize = 8_192;

/// The key in force.
#[derive(Debug)]
pub struct Keys {
    current: GroupKey,
    /// Who left with it, and when.
    departed: BTreeMap<NodeId, Duration>,
    rotations: u64,
}

impl Keys {
    /// This key is in force.
    pub fn new(current: GroupKey) -> Self {
        Self {
            current,
            departed: BTreeMap::new(),
            rotations: 0,
        }
    }

    /// The key in force.
    pub fn current(&self) -> &GroupKey {
        &self.current
    }

    /// Changes since the start.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// A member is gone and has the key.
    pub fn handle_departed(&mut self, now: Duration, id: NodeId) {
        if self.departed.len() < MOST {
            self.departed.entry(id).or_insert(now);
        }
    }

    /// It is there again.
    pub fn handle_back(&mut self, id: NodeId) {
        self.departed.remove(&id);
    }

    /// When the key is to be changed.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.departed.values().min().map(|left| *left + PATIENCE)
    }

    /// Another key from here on. `None` when no epoch is left: four thousand million changes.
    pub fn rotate(&mut self, secret: [u8; 32]) -> Option<&GroupKey> {
        let epoch = self.current.epoch.checked_add(1)?;
        self.current = GroupKey { epoch, secret };
        self.departed.clear();
        self.rotations += 1;
        Some(&self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_leaves_within_a_minute_is_one_change_and_who_comes_back_is_none() {
        let mut keys = Keys::new(GroupKey {
            epoch: 7,
            secret: [1; 32],
        });
        assert_eq!(keys.next_deadline(), None);
        keys.handle_departed(10 * SECOND, NodeId([1; 16]));
        keys.handle_departed(40 * SECOND, NodeId([2; 16]));
        keys.handle_departed(50 * SECOND, NodeId([1; 16]));
        assert_eq!(
            keys.next_deadline(),
            Some(70 * SECOND),
            "the first departure counts"
        );
        keys.handle_back(NodeId([1; 16]));
        assert_eq!(keys.next_deadline(), Some(100 * SECOND));
        let key = keys.rotate([2; 32]).unwrap();
        assert_eq!((key.epoch, key.secret), (8, [2; 32]));
        assert_eq!((keys.next_deadline(), keys.rotations()), (None, 1));
    }

    #[test]
    fn the_last_epoch_is_the_end() {
        let mut keys = Keys::new(GroupKey {
            epoch: u32::MAX,
            secret: [1; 32],
        });
        assert!(keys.rotate([2; 32]).is_none());
        assert_eq!(keys.current().secret, [1; 32]);
    }
}
