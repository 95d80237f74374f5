//! What a member says: greetings, rumours, loads. Must never say more than one datagram holds.

use alloc::vec::Vec;
use core::time::Duration;

use super::{
    GOSSIP_FAN, GOSSIP_INTERVAL, GOSSIP_LOADS, HEAD_FAN, HELLO_INTERVAL, HELLO_MEMBERS, LOADS_BURST,
    LOADS_WINDOW,
};
use super::{Membership, Output, Records, To};
use crate::roster::Member;
use crate::wire::{Kind, Liveness, MAX_LOADS, MAX_RUMORS, Message, Rumor};

/// A newcomer greets the group so often within its first second, though somebody has answered: on a lossy wire each
/// greeting reaches its share only. At 10 % loss one of 10,000 misses all of them.
const EARLY_HELLOS: u32 = 4;
/// So long after one another.
const EARLY_PAUSE: Duration = Duration::from_millis(250);

impl Membership {
    pub(super) fn message(&mut self, now: Duration, to: To, kind: Kind, rumors: Vec<Rumor>) -> Message {
        let loads = match kind {
            Kind::Ping { .. } | Kind::Ack { .. } if self.head_address().map(To::Member) == Some(to) => {
                self.loads.own(now).into_iter().collect()
            }
            Kind::Ping { .. } | Kind::Ack { .. } if !self.hears_head(now) => {
                self.loads.pick(now, GOSSIP_LOADS)
            }
            _ => Vec::new(),
        };
        Message {
            mode: self.mode,
            role: self.config.role,
            to_group: to == To::Group,
            history: match &self.records {
                Records::Head(chronicle) => chronicle.digest(),
                Records::Node(replica) => replica.digest(),
            },
            roster: self.roster.hash(),
            kind,
            rumors,
            loads,
        }
    }

    /// The head's answer to a ping brings what it learned of loads since that node last asked.
    pub(super) fn send_loads(&mut self, now: Duration, to: To) {
        let recent = self.loads.recent(now, LOADS_WINDOW, LOADS_BURST * MAX_LOADS);
        for loads in recent.chunks(MAX_LOADS) {
            let mut message = self.message(now, to, Kind::Gossip, Vec::new());
            message.loads = loads.to_vec();
            self.outputs.push_back(Output::Transmit {
                to,
                body: message.encode(),
            });
        }
    }

    pub(super) fn send(&mut self, now: Duration, to: To, kind: Kind, rumors: Vec<Rumor>) {
        let message = self.message(now, to, kind, rumors);
        self.outputs.push_back(Output::Transmit {
            to,
            body: message.encode(),
        });
    }

    /// How often a rumour is passed on: so often that one of 13 members misses it once in 12,000 rumours, at 10 % loss
    /// one of 200 once in 3,700. Who misses one learns it by comparing, which takes a second.
    pub(super) fn rumor_limit(&self) -> u32 {
        3 * ((self.roster.present() + 1).ilog10() + 1) + 6
    }

    /// Passes news on: what we found out ourselves to the group, to the head and to those it is about; everything
    /// to a few members.
    pub(super) fn gossip(&mut self, now: Duration) {
        self.tell_history(now);
        let urgent = self.rumors.take_urgent(MAX_RUMORS);
        if !urgent.is_empty() {
            for rumor in urgent.iter().filter(|rumor| rumor.liveness == Liveness::Suspect) {
                let to = To::Member(rumor.address);
                self.send(now, to, Kind::Gossip, alloc::vec![rumor.clone()]);
            }
            self.send(now, To::Group, Kind::Gossip, urgent.clone());
            if let Some(head) = self.head_address() {
                self.send(now, To::Member(head), Kind::Gossip, urgent);
            }
        }
        let fan = if self.is_head() { HEAD_FAN } else { GOSSIP_FAN };
        let limit = self.rumor_limit();
        for _ in 0..fan {
            let nudge = self.nudges > 0;
            if self.rumors.is_empty() && !nudge {
                break;
            }
            let alive = |member: &Member| member.liveness == Liveness::Alive;
            let Some(address) = self
                .roster
                .choose(&mut self.random, alive)
                .map(|peer| peer.address)
            else {
                break;
            };
            self.nudges = self.nudges.saturating_sub(1);
            let rumors = self.rumors.pick(MAX_RUMORS, limit);
            self.send(now, To::Member(address), Kind::Gossip, rumors);
        }
        let more = self.roster.present() > 0 && (!self.rumors.is_empty() || self.nudges > 0);
        self.timers.gossip = more.then_some(now + GOSSIP_INTERVAL);
    }

    /// News was pushed: pass it on in a moment, together with what comes until then.
    pub(super) fn gossip_soon(&mut self, now: Duration) {
        if self.timers.gossip.is_none() {
            self.timers.gossip = Some(now + GOSSIP_INTERVAL / 4);
        }
    }

    /// Greets the group; the head and some old acquaintances too while we are alone.
    pub(super) fn hello(&mut self, now: Duration) {
        self.timers.hellos += 1;
        let early = Duration::from_millis(125 << self.timers.hellos.min(8));
        let alone = !self.synced;
        // The group hears as many greetings of a thousand members as of a hundred.
        let stretch = u32::try_from(self.roster.present() / HELLO_MEMBERS).unwrap_or(u32::MAX);
        let pause = if self.timers.hellos < EARLY_HELLOS {
            EARLY_PAUSE
        } else if alone {
            early.min(HELLO_INTERVAL)
        } else {
            HELLO_INTERVAL.saturating_mul(stretch.max(1))
        };
        self.timers.hello = now + self.random.around(pause);
        if self.leaving {
            return;
        }
        let kind = Kind::Hello {
            address: self.config.address,
        };
        let rumors = alloc::vec![self.as_rumor()];
        self.send(now, To::Group, kind.clone(), rumors.clone());
        if !alone && self.hears_head(now) {
            return;
        }
        if let Some(head) = self.head_address() {
            self.send(now, To::Member(head), kind.clone(), rumors.clone());
        }
        for _ in 0..self.config.seeds.len().min(GOSSIP_FAN) {
            let index = self.random.below(self.config.seeds.len());
            if let Some(seed) = self.config.seeds.get(index).copied() {
                self.send(now, To::Member(seed), kind.clone(), rumors.clone());
            }
        }
    }
}
