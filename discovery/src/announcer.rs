//! When a node says what, and to whom: every beacon goes to the multicast group, and to the head by unicast for
//! networks whose switches drop multicast.
//!
//! While something changed lately the interval is [`BUSY`], else [`QUIET`]; each is drawn anew within a quarter
//! around it, so that a room switched on together does not speak in chorus.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

use crate::beacon::{Beacon, NodeId, NodeState};

/// Mean interval while nothing changes.
pub const QUIET: Duration = Duration::from_secs(5);
/// Mean interval in the first [`BUSY_FOR`] after a change of state, name or address.
pub const BUSY: Duration = Duration::from_secs(1);
/// How long a change counts as recent.
pub const BUSY_FOR: Duration = Duration::from_secs(5);

/// Where a beacon goes; the shell knows the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The beacon group, on the link in use.
    Group,
    /// The head.
    Head,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub destination: Destination,
    /// What.
    pub bytes: Vec<u8>,
}

/// The core of a speaker. Silent until it has an address.
#[derive(Debug)]
pub struct Announcer {
    beacon: Beacon,
    speaking: bool,
    busy_until: Duration,
    next: Duration,
    random: u64,
    outputs: VecDeque<Transmit>,
}

impl Announcer {
    /// A silent announcer. `incarnation` must be larger than at the machine's last boot.
    pub fn new(id: NodeId, incarnation: u64, seed: u64) -> Self {
        let beacon = Beacon {
            state: NodeState::Joining,
            id,
            incarnation,
            sequence: 0,
            load_hundredths: 0,
            memory_available_mib: 0,
            address: Ipv4Addr::UNSPECIFIED,
            name: String::new(),
        };
        Self {
            beacon,
            speaking: false,
            busy_until: Duration::ZERO,
            next: Duration::ZERO,
            random: seed,
            outputs: VecDeque::new(),
        }
    }

    /// The link in use has this address now; `None` stops speaking.
    pub fn handle_address(&mut self, now: Duration, address: Option<Ipv4Addr>) {
        let Some(address) = address else {
            self.speaking = false;
            return;
        };
        if !self.speaking || self.beacon.address != address {
            self.beacon.address = address;
            self.speaking = true;
            self.changed(now);
        }
    }

    /// State and name; a change is told at once.
    pub fn handle_state(&mut self, now: Duration, state: NodeState, name: &str) {
        if self.beacon.state != state || self.beacon.name != name {
            self.beacon.state = state;
            self.beacon.name = String::from(name);
            self.changed(now);
        }
    }

    /// The load, told with the next beacon. `load1` is the one-minute average.
    pub fn handle_load(&mut self, load1: f32, memory_available_kib: u64) {
        // `as` saturates, and makes NaN zero.
        self.beacon.load_hundredths = (load1 * 100.0) as u16;
        self.beacon.memory_available_mib = u32::try_from(memory_available_kib / 1024).unwrap_or(u32::MAX);
    }

    /// When [`Self::handle_deadline`] wants to be called; `None` while silent.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.speaking.then_some(self.next)
    }

    /// Speaks if it is time; an early call does nothing.
    pub fn handle_deadline(&mut self, now: Duration) {
        if self.speaking && now >= self.next {
            self.speak(now);
        }
    }

    /// The next datagram to send.
    pub fn poll_output(&mut self) -> Option<Transmit> {
        self.outputs.pop_front()
    }

    fn changed(&mut self, now: Duration) {
        self.busy_until = now + BUSY_FOR;
        if self.speaking {
            self.speak(now);
        }
    }

    fn speak(&mut self, now: Duration) {
        self.beacon.sequence = self.beacon.sequence.wrapping_add(1);
        let bytes = self.beacon.encode();
        // Whoever does not drain gets the newest only.
        self.outputs.clear();
        self.outputs.push_back(Transmit {
            destination: Destination::Group,
            bytes: bytes.clone(),
        });
        self.outputs.push_back(Transmit {
            destination: Destination::Head,
            bytes,
        });
        let mean = if now < self.busy_until { BUSY } else { QUIET };
        // 0.75 to 1.25 of the mean, in steps of 1/1024.
        let share = u32::try_from(self.draw() % 513).unwrap_or(256) + 768;
        self.next = now + mean * share / 1024;
    }

    /// SplitMix64: enough to spread speakers in time.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn drain(announcer: &mut Announcer) -> Vec<(Destination, Beacon)> {
        core::iter::from_fn(|| announcer.poll_output())
            .map(|t| {
                (
                    t.destination,
                    Beacon::decode(&t.bytes).expect("own beacons decode"),
                )
            })
            .collect()
    }

    #[test]
    fn speaks_at_once_on_a_change_then_busily_then_quietly() {
        let mut a = Announcer::new(NodeId([7; 16]), 1, 42);
        assert_eq!(a.next_deadline(), None);
        a.handle_address(SECOND, Some(Ipv4Addr::new(10, 77, 0, 100)));
        let first = drain(&mut a);
        assert_eq!(
            first.iter().map(|(d, _)| *d).collect::<Vec<_>>(),
            [Destination::Group, Destination::Head]
        );
        a.handle_state(2 * SECOND, NodeState::Up, "lab-a01");
        assert_eq!(
            drain(&mut a).first().map(|(_, b)| (b.sequence, b.name.clone())),
            Some((2, "lab-a01".into()))
        );

        let mut intervals = Vec::new();
        let mut now = 2 * SECOND;
        while now < 60 * SECOND {
            let next = a.next_deadline().expect("speaking");
            intervals.push((now, next - now));
            now = next;
            a.handle_deadline(now);
            assert_eq!(drain(&mut a).len(), 2);
        }
        for (at, interval) in intervals {
            let mean = if at < 7 * SECOND { BUSY } else { QUIET };
            assert!(
                interval >= mean * 3 / 4 && interval <= mean * 5 / 4,
                "{interval:?} at {at:?}"
            );
        }
    }

    #[test]
    fn is_silent_without_an_address_and_ignores_early_calls() {
        let mut a = Announcer::new(NodeId([7; 16]), 1, 42);
        a.handle_deadline(SECOND);
        a.handle_state(SECOND, NodeState::Up, "x");
        assert_eq!(a.poll_output(), None);
        a.handle_address(SECOND, Some(Ipv4Addr::new(10, 0, 0, 1)));
        drain(&mut a);
        a.handle_deadline(SECOND);
        assert_eq!(a.poll_output(), None);
        a.handle_address(2 * SECOND, None);
        assert_eq!(a.next_deadline(), None);
    }
}
