//! Everybody's load. A vector is news after it changed by a step or grew old: each node tells the head, and the head
//! tells each node what is new since they last spoke. Without the head news goes from mouth to mouth, freshest first.
//! A book must never hold more entries than the roster may have members.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;

use crate::identity::NodeId;

/// An unchanged vector is told again after this long, and longer in rooms above [`REFRESH_MEMBERS`].
pub const REFRESH: Duration = Duration::from_secs(30);
/// Above so many members the refresh stretches in proportion, so that a member's traffic stays constant, ...
pub const REFRESH_MEMBERS: usize = 50;
/// ... up to this: an entry that is still true must not grow older than [`MAX_AGE_TENTHS`].
pub const LONGEST_REFRESH: Duration = Duration::from_secs(1_500);
/// How often each member passes an entry on before it is silent about it.
const SENDS: u8 = 3;
/// An older entry is not shown: its owner is gone or cut off.
pub const MAX_AGE_TENTHS: u16 = 30_000;
/// What was older when it was learned is not passed on by the head: its owner told it before. A head that comes back learns a whole room's
/// loads within seconds, and a thousand times a thousand of them would stand in the way of who calls it.
const LATE: Duration = Duration::from_secs(30);
/// Closer measurements than this are the same one, seen through different delays.
const SAME: Duration = Duration::from_millis(250);

/// How loaded a node is, in eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct LoadVector {
    /// Tasks that run or want to, in tenths.
    pub runnable_tenths: u16,
    /// Share of time in which some task waited for a CPU (pressure stall, 10 s), in per cent.
    pub pressure_percent: u8,
    /// `MemAvailable`, in units of 16 MiB.
    pub memory_available_16mib: u16,
    /// Speed of one CPU against the reference machine, in thousandths; 0: not measured.
    pub speed: u16,
    /// The link's speed: 2 to this power Mbit/s.
    pub link_log2_mbit: u8,
}

impl LoadVector {
    /// Whether the step from `told` is worth a word: a tenth of the larger value and half a task, five points of
    /// pressure, or 64 MiB.
    fn differs(self, told: Self) -> bool {
        let step = |a: u16, b: u16, least: u16| a.abs_diff(b) > (a.max(b) / 10).max(least);
        step(self.runnable_tenths, told.runnable_tenths, 4)
            || self.pressure_percent.abs_diff(told.pressure_percent) > 5
            || step(self.memory_available_16mib, told.memory_available_16mib, 4)
            || (self.speed, self.link_log2_mbit) != (told.speed, told.link_log2_mbit)
    }
}

/// A vector on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoadEntry {
    /// The first six bytes of the owner's id: two of a thousand members share them once in 10^9 rooms.
    pub short: [u8; 6],
    /// Tenths of a second since it was measured, saturating.
    pub age_tenths: u16,
    /// It.
    pub vector: LoadVector,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    vector: LoadVector,
    measured: Duration,
    learned: Duration,
    sends: u8,
}

impl Known {
    fn entry(&self, now: Duration, short: [u8; 6]) -> LoadEntry {
        let age = now.saturating_sub(self.measured).as_millis() / 100;
        LoadEntry {
            short,
            age_tenths: u16::try_from(age).unwrap_or(u16::MAX),
            vector: self.vector,
        }
    }
}

/// What a member knows of everybody's load, its own included.
#[derive(Debug)]
pub struct LoadBook {
    me: [u8; 6],
    entries: BTreeMap<[u8; 6], Known>,
    /// What is still to be passed on, freshest first.
    news: BTreeSet<(Reverse<Duration>, [u8; 6])>,
    capacity: usize,
}

/// The key of a node in the book.
pub fn short(id: NodeId) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = id.0;
    [a, b, c, d, e, f]
}

impl LoadBook {
    /// An empty book of `me` for at most `capacity` members.
    pub fn new(me: NodeId, capacity: usize) -> Self {
        Self {
            me: short(me),
            entries: BTreeMap::new(),
            news: BTreeSet::new(),
            capacity,
        }
    }

    /// Our own load: news when it took a step, or when its turn came since it was told. `members` stretches the time between turns.
    pub fn handle_own(&mut self, now: Duration, vector: LoadVector, members: usize) {
        let refresh = stretched(members);
        // A room is switched on in one moment: each has its turn at another part of that time, by its id.
        let [.., e, f] = self.me;
        let offset = refresh * u32::from(u16::from_be_bytes([e, f])) / (1 << 16);
        let turn = |at: Duration| (at + offset).as_millis() / refresh.as_millis();
        let told = self.entries.get(&self.me);
        if told.is_none_or(|told| vector.differs(told.vector) || turn(now) > turn(told.measured)) {
            self.insert(now, self.me, vector, now);
        }
    }

    /// Our own entry, for the head.
    pub fn own(&self, now: Duration) -> Option<LoadEntry> {
        Some(self.entries.get(&self.me)?.entry(now, self.me))
    }

    /// What was learned within `window` while it was new, the freshest first, at most `most`.
    pub fn recent(&self, now: Duration, window: Duration, most: usize) -> Vec<LoadEntry> {
        let news = self
            .entries
            .iter()
            .filter(|(_, known)| now < known.learned + window && known.learned < known.measured + LATE);
        let mut recent: Vec<LoadEntry> = news.map(|(key, known)| known.entry(now, *key)).collect();
        if recent.len() > most {
            recent.sort_by_key(|entry| entry.age_tenths);
            recent.truncate(most);
        }
        recent
    }

    /// Entries out of a datagram; fresher ones replace what we have and become news.
    pub fn handle_entries(&mut self, now: Duration, entries: &[LoadEntry]) {
        let me = self.me;
        for entry in entries.iter().filter(|entry| entry.short != me) {
            let measured = now.saturating_sub(Duration::from_millis(u64::from(entry.age_tenths) * 100));
            let fresher = match self.entries.get(&entry.short) {
                Some(known) => measured > known.measured + SAME,
                None => self.entries.len() < self.capacity,
            };
            if fresher && entry.age_tenths < MAX_AGE_TENTHS {
                self.insert(now, entry.short, entry.vector, measured);
            }
        }
    }

    /// The freshest news, at most `most`, which count as sent once more.
    pub fn pick(&mut self, now: Duration, most: usize) -> Vec<LoadEntry> {
        let picked: Vec<_> = self.news.iter().take(most).copied().collect();
        let mut entries = Vec::with_capacity(picked.len());
        for key in picked {
            let Some(known) = self.entries.get_mut(&key.1) else {
                self.news.remove(&key);
                continue;
            };
            known.sends += 1;
            if known.sends >= SENDS {
                self.news.remove(&key);
            }
            entries.push(known.entry(now, key.1));
        }
        entries
    }

    /// A member's load and how long ago it was measured.
    pub fn load_of(&self, now: Duration, id: NodeId) -> Option<(LoadVector, Duration)> {
        let known = self.entries.get(&short(id))?;
        let age = now.saturating_sub(known.measured);
        (age < Duration::from_millis(u64::from(MAX_AGE_TENTHS) * 100)).then_some((known.vector, age))
    }

    /// The member is gone.
    pub fn forget(&mut self, id: NodeId) {
        if let Some(known) = self.entries.remove(&short(id)) {
            self.news.remove(&(Reverse(known.measured), short(id)));
        }
    }

    fn insert(&mut self, now: Duration, key: [u8; 6], vector: LoadVector, measured: Duration) {
        let known = Known {
            vector,
            measured,
            learned: now,
            sends: 0,
        };
        if let Some(old) = self.entries.insert(key, known) {
            self.news.remove(&(Reverse(old.measured), key));
        }
        self.news.insert((Reverse(measured), key));
    }
}

/// How long an unchanged vector stays untold in a room of so many.
fn stretched(members: usize) -> Duration {
    let members = u32::try_from(members.max(REFRESH_MEMBERS)).unwrap_or(u32::MAX);
    (REFRESH.saturating_mul(members) / REFRESH_MEMBERS as u32).min(LONGEST_REFRESH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn vector(runnable_tenths: u16) -> LoadVector {
        LoadVector {
            runnable_tenths,
            ..LoadVector::default()
        }
    }

    #[test]
    fn a_step_is_told_three_times_and_then_only_when_old() {
        let mut book = LoadBook::new(NodeId([1; 16]), 8);
        book.handle_own(SECOND, vector(20), 13);
        for _ in 0..3 {
            assert_eq!(book.pick(SECOND, 8).len(), 1);
        }
        assert!(book.pick(SECOND, 8).is_empty());
        book.handle_own(2 * SECOND, vector(22), 13);
        assert!(book.pick(2 * SECOND, 8).is_empty(), "two tenths are no step");
        book.handle_own(3 * SECOND, vector(60), 13);
        assert_eq!(
            book.pick(3 * SECOND, 8).first().map(|e| e.vector),
            Some(vector(60))
        );
        book.handle_own(40 * SECOND, vector(60), 13);
        assert_eq!(book.pick(40 * SECOND, 8).len(), 1, "old");
    }

    #[test]
    fn the_freshest_travels_first_and_age_survives_hops() {
        let mut a = LoadBook::new(NodeId([1; 16]), 8);
        let entry = |id: u8, age_tenths, tasks| LoadEntry {
            short: short(NodeId([id; 16])),
            age_tenths,
            vector: vector(tasks),
        };
        a.handle_entries(60 * SECOND, &[entry(2, 100, 1), entry(3, 10, 2), entry(1, 0, 9)]);
        let picked = a.pick(61 * SECOND, 1);
        assert_eq!(picked, [entry(3, 20, 2)]);
        a.handle_entries(62 * SECOND, &[entry(2, 500, 7)]);
        let (load, age) = a.load_of(62 * SECOND, NodeId([2; 16])).expect("known");
        assert_eq!((load, age), (vector(1), 12 * SECOND), "an older one is no news");
        assert_eq!(
            a.load_of(62 * SECOND, NodeId([1; 16])),
            None,
            "nobody tells us our own load"
        );
    }

    #[test]
    fn a_room_of_any_size_tells_as_many_vectors_in_a_second_and_none_is_forgotten_while_true() {
        let told = |members: usize| members as f64 / stretched(members).as_secs_f64();
        for members in [50, 51, 99, 100, 200, 1_000, 2_500] {
            assert!((told(members) - told(50)).abs() < 0.001, "{members}");
        }
        assert!(told(13) < told(50) && stretched(13) == REFRESH);
        let oldest = Duration::from_millis(u64::from(MAX_AGE_TENTHS) * 100);
        assert!(stretched(10_000) < oldest);
    }

    #[test]
    fn a_room_that_was_switched_on_in_one_moment_does_not_tell_its_loads_in_chorus() {
        let members = 1_000;
        let told = |number: u16| -> Vec<u64> {
            let mut id = [0; 16];
            id[4..6].copy_from_slice(&crate::random::mix(u64::from(number)).to_be_bytes()[..2]);
            let mut book = LoadBook::new(NodeId(id), 8);
            let mut tells = |second: &u64| {
                let now = Duration::from_secs(*second);
                book.handle_own(now, vector(20), members);
                book.entries[&short(NodeId(id))].measured == now
            };
            (20..2_000).filter(&mut tells).collect()
        };
        let room: Vec<Vec<u64>> = (0..1_000).map(told).collect();
        let longest = |told: &Vec<u64>| told.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(
            room.iter()
                .all(|told| longest(told) <= Some(stretched(members).as_secs()))
        );
        // A twentieth of the time between turns has a twentieth of the room, and half as much again.
        for from in (21..1_900).step_by(30) {
            let these = room
                .iter()
                .flatten()
                .filter(|second| (from..from + 30).contains(*second));
            let count = these.count();
            assert!((25..=75).contains(&count), "{count} from {from} s");
        }
    }

    #[test]
    fn a_head_that_comes_back_does_not_tell_a_room_what_it_knows() {
        let mut head = LoadBook::new(NodeId([1; 16]), 100);
        let entry = |id: u8, age_tenths| LoadEntry {
            short: [id; 6],
            age_tenths,
            vector: vector(1),
        };
        let now = 600 * SECOND;
        head.handle_entries(now, &[entry(2, 0), entry(3, 110), entry(4, 310), entry(5, 2_900)]);
        let mut told = head.recent(now + SECOND, 22 * SECOND, 100);
        told.sort_by_key(|entry| entry.short);
        assert_eq!(told, [entry(2, 10), entry(3, 120)]);
        assert!(
            head.load_of(now, NodeId([5; 16])).is_some(),
            "it knows them itself"
        );
        assert!(head.recent(now + 22 * SECOND, 22 * SECOND, 100).is_empty());
    }

    #[test]
    fn strangers_cannot_grow_the_book() {
        let mut book = LoadBook::new(NodeId([1; 16]), 3);
        for id in 2..100 {
            let entry = LoadEntry {
                short: [id; 6],
                age_tenths: 0,
                vector: vector(1),
            };
            book.handle_entries(SECOND, &[entry]);
        }
        assert_eq!(book.entries.len(), 3);
    }
}
