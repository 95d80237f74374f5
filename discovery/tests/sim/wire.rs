//! The wire, and who sits on it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use cid_discovery::member::To;
use cid_discovery::wire::{Kind, Message};
use cid_discovery::{Boot, seal};

use super::{Happening, PORT, Planted, World};

/// Bytes around a datagram: Ethernet, IPv4, UDP (no preamble, no checksum of the frame).
const HEADERS: usize = 14 + 20 + 8;
/// Shortest Ethernet frame without its checksum.
const SHORTEST: usize = 60;
/// Of the head.
pub(super) const FIRST_ADDRESS: u32 = 0x0a40_0001;
/// A machine that moves gets its address and so many more.
pub(super) const ADDRESSES: usize = 16_384;
/// Most datagrams that somebody on the wire keeps.
const MOST_RECORDED: usize = 20_000;

/// What the wire does to a datagram.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    /// Shortest delay, and what at most is added; datagrams overtake one another within it.
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) multicast: bool,
    /// (from, to): nothing comes through in this direction.
    pub(crate) one_way: BTreeSet<(usize, usize)>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            loss_percent: 0,
            duplicate_percent: 0,
            delay: Duration::from_micros(200),
            jitter: Duration::from_micros(800),
            multicast: true,
            one_way: BTreeSet::new(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Datagram {
    pub(super) from: Boot,
    pub(super) source: SocketAddrV4,
    pub(crate) body: Rc<[u8]>,
    /// Equal for copies.
    pub(super) serial: u64,
    /// Somebody who has no key sent it, or changed it.
    pub(super) stranger: bool,
}

impl World {
    pub(super) fn transmit(&mut self, index: usize, to: To, mut body: Vec<u8>) {
        if self.muted {
            return;
        }
        let size = (HEADERS + seal::OVERHEAD + body.len()).max(SHORTEST) as u64;
        assert!(size <= 1_514, "{size}-byte frame");
        if let Some(bytes) = body
            .first()
            .and_then(|kind| self.by_kind.get_mut(usize::from(*kind)))
        {
            *bytes += size;
        }
        if self.planted == Planted::TailWithAGap {
            body = without_first_change(body);
        }
        let host = &mut self.hosts[index];
        host.sent += 1;
        host.sent_bytes += size;
        let body = match &mut host.keys {
            Some((sealer, _)) => {
                let destination = match to {
                    To::Member(address) => Some(address),
                    To::Group => None,
                };
                sealer.seal(host.address, destination, &body).expect("seals")
            }
            None => body,
        };
        self.serial += 1;
        let datagram = Rc::new(Datagram {
            from: host.boot,
            source: host.address,
            body: body.into(),
            serial: self.serial,
            stranger: false,
        });
        match to {
            To::Member(address) => {
                let offset = u32::from(*address.ip()).wrapping_sub(FIRST_ADDRESS) as usize % ADDRESSES;
                if self.hosts.get(offset).is_some_and(|host| host.address == address) {
                    self.deliver(index, offset, datagram);
                }
            }
            To::Group if self.wire.multicast => {
                for other in (0..self.hosts.len()).filter(|other| *other != index) {
                    self.deliver(index, other, datagram.clone());
                }
            }
            To::Group => {}
        }
    }

    fn deliver(&mut self, from: usize, to: usize, datagram: Rc<Datagram>) {
        let cut = self.hosts[from].side != self.hosts[to].side || self.is_one_way(from, to);
        if cut || self.hosts[to].member.is_none() {
            return;
        }
        if self.key.is_some() && self.recorded.len() < MOST_RECORDED {
            self.recorded.push((to, datagram.clone()));
        }
        let copies = 1 + usize::from(self.chance(self.wire.duplicate_percent));
        for _ in 0..copies {
            let (out, into) = (self.hosts[from].loss_out, self.hosts[to].loss_in);
            if self.chance(self.wire.loss_percent) || self.chance(out) || self.chance(into) {
                continue;
            }
            let jitter = self.random.below(self.wire.jitter.as_micros() as usize + 1) as u64;
            let at = self.now + self.wire.delay + Duration::from_micros(jitter);
            self.push(at, Happening::Arrives(to, datagram.clone()));
        }
    }

    fn is_one_way(&self, from: usize, to: usize) -> bool {
        !self.wire.one_way.is_empty() && self.wire.one_way.contains(&(from, to))
    }

    /// Whether a machine can hold a connection to the head.
    pub(super) fn reaches_head(&self, index: usize) -> bool {
        self.is_on(0)
            && self.hosts[index].side == self.hosts[0].side
            && !self.is_one_way(0, index)
            && !self.is_one_way(index, 0)
    }

    /// Whether what the head says can arrive at a machine.
    pub(crate) fn can_hear_head(&self, index: usize) -> bool {
        self.is_on(0) && self.hosts[index].side == self.hosts[0].side && !self.is_one_way(0, index)
    }

    pub(super) fn arrive(&mut self, index: usize, datagram: Rc<Datagram>) {
        let host = &mut self.hosts[index];
        if host.member.is_none() {
            return;
        }
        let envelope = if host.keys.is_some() { 0 } else { seal::OVERHEAD };
        host.received += 1;
        host.received_bytes += (HEADERS + envelope + datagram.body.len()).max(SHORTEST) as u64;
        host.inbox.push_back(datagram);
        if host.inbox.len() > 5_000 {
            host.inbox.pop_front();
        }
        self.run_host(index, false);
    }

    /// Somebody on the wire sends these bytes to a machine, from an address of their own.
    pub(crate) fn inject(&mut self, to: usize, body: Rc<[u8]>) {
        let datagram = Datagram {
            from: self.hosts[to].boot,
            source: SocketAddrV4::new(Ipv4Addr::new(10, 250, 6, 6), PORT),
            body,
            serial: 0,
            stranger: true,
        };
        self.push(self.now, Happening::Arrives(to, Rc::new(datagram)));
    }

    /// Somebody on the wire plays recorded datagrams back, in the senders' names: as they were, changed in one bit, or
    /// to somebody else.
    pub(crate) fn replay(&mut self, times: usize) {
        for _ in 0..times.min(self.recorded.len()) {
            let pick = self.below(self.recorded.len());
            let Some((mut to, datagram)) = self.recorded.get(pick).cloned() else {
                return;
            };
            let mut datagram = Datagram::clone(&datagram);
            match self.below(3) {
                0 => {}
                1 => {
                    let mut bytes = datagram.body.to_vec();
                    let bit = self.below(bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    datagram.body = bytes.into();
                    datagram.stranger = true;
                }
                _ => {
                    to = self.below(self.hosts.len());
                    datagram.source = SocketAddrV4::new(Ipv4Addr::new(10, 250, 6, 6), PORT);
                    datagram.stranger = true;
                }
            }
            self.push(self.now, Happening::Arrives(to, Rc::new(datagram)));
        }
    }
}

/// A planted bug: whoever passes history on loses the first change, and does not say so.
fn without_first_change(body: Vec<u8>) -> Vec<u8> {
    match Message::decode(&body) {
        Ok(mut message) => match &mut message.kind {
            Kind::Tail { changes, .. } if changes.len() > 1 => {
                changes.remove(0);
                message.encode()
            }
            _ => body,
        },
        Err(_) => body,
    }
}
