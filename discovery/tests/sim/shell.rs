//! What the head's and the agent's programs do around the core, and bugs that can be planted in them.

use std::time::Duration;

use cid_discovery::history::{Change, State, link};
use cid_discovery::member::Event;
use cid_discovery::seal::Opener;
use cid_discovery::{Boot, Output};

use super::World;

/// A bug in the programs around the core, which random lives have to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// The head sends before it commits, so a crash forgets what was told.
    TellsBeforeCommit,
    /// The head reads its last two changes back in the wrong order.
    DiskOutOfOrder,
    /// The head gives every boot of a machine the same incarnation.
    SameTicket,
    /// The head misses the first word of every eighth boot.
    MissesArrivals,
    /// The agent does not go home when it is told to.
    StaysForEver,
    /// The agent acts for the cluster without asking whether it may.
    ActsAlone,
    /// Whoever passes history on loses a change.
    TailWithAGap,
    /// A rotation forgets which datagrams were seen.
    ForgetsReplays,
    /// One node does not hear of rotations.
    KeyDoesNotArrive,
    /// The program does not call the core when it asked to be called, only when something arrives.
    NoAlarmClock,
}

impl World {
    /// The process of a machine gets the CPU: datagrams first, then what is due.
    pub(super) fn run_host(&mut self, index: usize, timer: bool) {
        let now = self.now;
        self.ran = index;
        let local = self.local(index);
        let host = &mut self.hosts[index];
        if host.member.is_none() {
            return;
        }
        if let Some(pause) = host.starved {
            if now < host.asleep_until {
                let wake = host.asleep_until;
                self.schedule(index, wake);
                return;
            }
            let span = self.random.below(pause.as_millis() as usize + 1) as u64;
            self.hosts[index].asleep_until = now + Duration::from_millis(span);
        }
        let host = &mut self.hosts[index];
        let Some(member) = host.member.as_mut() else {
            return;
        };
        let mut violation = None;
        while let Some(datagram) = host.inbox.pop_front() {
            // A drop is counted by the opener or the member.
            let Some((_, opener)) = host.keys.as_mut() else {
                let _ = member.handle_datagram(local, datagram.from, datagram.source, &datagram.body);
                continue;
            };
            let Ok((from, body)) = opener.open(local, datagram.source, host.address, &datagram.body) else {
                continue;
            };
            if datagram.stranger {
                violation = Some("a stranger's datagram was opened");
            } else if !host.opened.insert(datagram.serial) {
                violation = Some("a datagram was opened twice");
            }
            let _ = member.handle_datagram(local, from, datagram.source, &body);
        }
        if timer || member.next_deadline(local).is_some_and(|at| at <= local) {
            member.handle_deadline(local);
        }
        if let Some(what) = violation {
            self.violate(|_| format!("host {index}: {what}"));
        }
        self.drain(index);
    }

    pub(super) fn drain(&mut self, index: usize) {
        let local = self.local(index);
        loop {
            let Some(member) = self.hosts[index].member.as_mut() else {
                return;
            };
            let mut written = Vec::new();
            while let Some(change) = member.poll_persist() {
                written.push(change);
            }
            if !written.is_empty() {
                member.handle_persisted(local);
                written.into_iter().for_each(|change| self.commit(change));
            }
            let Some(output) = self.hosts[index].member.as_mut().and_then(|m| m.poll_output()) else {
                break;
            };
            match output {
                Output::Transmit { to, body } => self.transmit(index, to, body),
                Output::Event(event) => self.handle_event(index, event),
            }
        }
        if self.planted == Planted::NoAlarmClock && index % 2 == 1 && self.now > Duration::from_secs(30) {
            return;
        }
        if let Some(member) = self.hosts[index].member.as_ref()
            && let Some(at) = member.next_deadline(local)
        {
            let clock = self.hosts[index].clock;
            self.schedule(index, at.max(local) - clock);
        }
    }

    fn commit(&mut self, change: Change) {
        let last = self.latest.insert(change.boot.id, (change.boot, change.state));
        if let Some((boot, state)) = last {
            if boot.incarnation > change.boot.incarnation {
                self.violate(|_| format!("{} came after a later boot", change.boot));
            } else if boot == change.boot && (state, change.state) == (State::Up, State::Up) {
                self.violate(|_| format!("{boot} is up twice"));
            }
        }
        self.chains
            .push(link(*self.chains.last().expect("a start"), &change));
        self.disk.push(change);
    }

    /// Whether a machine's programs act in the cluster's name.
    pub(crate) fn acts(&self, index: usize) -> bool {
        let may = |member: &cid_discovery::Membership| member.may_act(self.local(index));
        self.hosts[index]
            .member
            .as_ref()
            .is_some_and(|member| self.planted == Planted::ActsAlone || may(member))
    }

    fn handle_event(&mut self, index: usize, event: Event) {
        match &event {
            Event::Appeared(boot) if index == 0 && *boot != self.hosts[0].boot => self.welcome(*boot),
            Event::Lost(boot) => {
                let there = self.index_of.get(&boot.id).copied().filter(|there| {
                    let host = &self.hosts[*there];
                    host.boot == *boot && host.member.is_some()
                });
                if there.is_some_and(|other| self.hosts[other].side == self.hosts[index].side) {
                    self.false_alarms += 1;
                }
            }
            Event::GoHome if self.planted != Planted::StaysForEver => {
                self.hosts[index].went_home = true;
                self.hosts[index].member = None;
            }
            _ => {}
        }
        if self.keep_log {
            self.log.push((self.now, index, event));
        }
    }

    fn welcome(&mut self, boot: Boot) {
        let local = self.local(0);
        let missed = self.planted == Planted::MissesArrivals && self.below(8) == 0;
        let beyond = self
            .index_of
            .get(&boot.id)
            .is_some_and(|index| *index > self.recorded_hosts);
        let Some(head) = self.hosts[0].member.as_mut().filter(|_| !missed && !beyond) else {
            return;
        };
        let name = format!("lab-{}", boot.id.to_string().get(..6).unwrap_or("?"));
        let known = head.table().get(&boot.id).is_some_and(|last| last.boot == boot);
        if !known {
            let _ = head.record(local, boot, State::Joining, &name, "said hello");
            let _ = head.record(local, boot, State::Up, &name, "welcomed");
        }
    }

    /// The head's key of now arrives.
    pub(super) fn take_key(&mut self, index: usize) {
        let (local, revoked) = (self.local(index), self.revoked);
        let Some(key) = self.key.clone() else { return };
        let host = &mut self.hosts[index];
        let deaf = self.planted == Planted::KeyDoesNotArrive && index == 1;
        let news = host.key.as_ref().is_some_and(|old| old.epoch < key.epoch);
        if host.member.is_none() || !news || deaf {
            return;
        }
        if let Some((sealer, opener)) = &mut host.keys {
            sealer.handle_key(&key);
            if self.planted == Planted::ForgetsReplays
                && let Some(old) = host.key.clone()
            {
                *opener = Opener::new(old, 16_384);
            }
            opener.handle_key(local, key.clone(), revoked);
        }
        host.key = Some(key);
    }
}
