//! What is going to happen, in the order of its time, and of its asking where that is equal. A room of 10,000 has
//! 50,000 things before it, nearly all of them some seconds away: those lie in slots unsorted, so that what happens
//! within the millisecond is found among few.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// Two to this power nanoseconds: four milliseconds.
const SLOT_BITS: u32 = 22;

struct Entry<T> {
    at: u64,
    order: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    /// The first is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Things to come.
pub(super) struct Queue<T> {
    /// Of this slot and of those before it.
    slot: u64,
    soon: BinaryHeap<Entry<T>>,
    /// Of each slot after it.
    later: BTreeMap<u64, Vec<Entry<T>>>,
    order: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            slot: 0,
            soon: BinaryHeap::new(),
            later: BTreeMap::new(),
            order: 0,
        }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, at: Duration, what: T) {
        // 584 years.
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.order += 1;
        let entry = Entry {
            at,
            order: self.order,
            what,
        };
        let slot = at >> SLOT_BITS;
        if slot <= self.slot {
            self.soon.push(entry);
        } else {
            self.later.entry(slot).or_default().push(entry);
        }
    }

    /// The next thing, if it is due by `end`.
    pub(super) fn pop(&mut self, end: Duration) -> Option<(Duration, T)> {
        let end = u64::try_from(end.as_nanos()).unwrap_or(u64::MAX);
        if self.soon.is_empty() {
            let next = self
                .later
                .first_entry()
                .filter(|next| *next.key() <= end >> SLOT_BITS)?;
            self.slot = *next.key();
            self.soon = next.remove().into();
        }
        if self.soon.peek()?.at > end {
            return None;
        }
        let entry = self.soon.pop()?;
        Some((Duration::from_nanos(entry.at), entry.what))
    }
}
