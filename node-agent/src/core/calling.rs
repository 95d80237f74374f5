//! Which link calls the head, and when; how a connection is kept and given up; what a person is told while there is none.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cid_discovery::NodeState;
use cid_protocol::supervision::FromAgent;

use super::{
    BOOT_LINK_HEAD_START, CONNECT_BOUND, LAST_RETRY, Link, MEMBER_BOUND, MEMBER_PULSE, Node, Output, PULSE,
    PULSE_BOUND, REFUSED_RETRY, Standing, State,
};

impl Node {
    /// Calls the head over the next link, if there is one and it is time.
    pub(super) fn search(&mut self, now: Duration, retry_at: Duration) {
        self.say_what_is_missing();
        if self.next_attempt(retry_at).is_none_or(|moment| now < moment) {
            return;
        }
        let (Some((index, from)), Some(head)) = (self.candidate(), self.config.head) else {
            return;
        };
        self.call(now, index, from, head);
    }

    pub(super) fn call(&mut self, now: Duration, index: u32, from: Ipv4Addr, head: SocketAddrV4) {
        self.last_tried = Some(index);
        self.state = State::Connecting {
            index,
            until: now + CONNECT_BOUND,
        };
        self.say(&format!("calling the head at {}", head.ip()));
        self.outputs.push_back(Output::Connect { index, from, head });
        self.announce(NodeState::Joining);
    }

    /// When the next attempt may be made; `None` while no link could make it.
    pub(super) fn next_attempt(&self, retry_at: Duration) -> Option<Duration> {
        self.candidate()?;
        self.config.head?;
        if matches!(self.config.standing, Standing::Nobody(_)) {
            return None;
        }
        let boot_link_is_late = self.last_tried.is_none()
            && self
                .links
                .values()
                .any(|s| self.is_boot_link(&s.link) && s.link.carrier && s.address.is_none());
        let head_start = if boot_link_is_late {
            self.first_address_at? + BOOT_LINK_HEAD_START
        } else {
            retry_at
        };
        Some(retry_at.max(head_start))
    }

    /// The link to call over: the boot link if none was tried yet, else the next in turn.
    fn candidate(&self) -> Option<(u32, Ipv4Addr)> {
        let mut usable: Vec<(bool, u32, Ipv4Addr)> = Vec::new();
        for (index, state) in &self.links {
            if let (true, Some(address)) = (state.link.carrier, state.address) {
                usable.push((!self.is_boot_link(&state.link), *index, address));
            }
        }
        usable.sort_unstable();
        let last = self
            .last_tried
            .and_then(|last| usable.iter().position(|(_, index, _)| *index == last));
        let next = last.map_or(0, |position| (position + 1) % usable.len().max(1));
        usable.get(next).map(|(_, index, address)| (*index, *address))
    }

    fn is_boot_link(&self, link: &Link) -> bool {
        self.config.boot_mac == Some(link.mac)
    }

    /// The link in use lost its carrier or vanished: the others are tried at once.
    pub(super) fn check_link_in_use(&mut self, now: Duration) {
        let Some(index) = self.index_in_use() else { return };
        if !self.links.get(&index).is_some_and(|state| state.link.carrier) {
            self.lost(now, "the network cable is out");
            self.state = State::Searching { retry_at: now };
        }
    }

    pub(super) fn say_what_is_missing(&mut self) {
        if !self.looked || self.refused.is_some() || self.last_tried.is_some() && self.candidate().is_some() {
            return;
        }
        let names = |carrier: bool| {
            let links = self.links.values().filter(|s| s.link.carrier == carrier);
            links
                .map(|s| s.link.name.as_str())
                .collect::<Vec<_>>()
                .join(" and ")
        };
        let text = if self.links.is_empty() {
            "no wired network card that Linux has a driver for".to_owned()
        } else if self.links.values().any(|s| s.address.is_some() && s.link.carrier) {
            return;
        } else if self.links.values().any(|s| s.link.carrier) {
            format!("asking for an address on {}", names(true))
        } else {
            format!("waiting for a network cable in {}", names(false))
        };
        self.say(&text);
    }

    /// When the next pulse leaves: seldom while the head is heard by datagrams.
    pub(super) fn pulse_due(&self) -> Option<Duration> {
        let State::Up { pulsed, heard, .. } = self.state else {
            return None;
        };
        let Some(pulsed) = pulsed else {
            return Some(heard);
        };
        let doubtful = self.member_heard.map_or(Duration::ZERO, |at| at + MEMBER_BOUND);
        Some(doubtful.max(pulsed + PULSE).min(pulsed + MEMBER_PULSE))
    }

    /// When the head counts as unreachable: pulses must go unanswered for that.
    pub(super) fn silent_at(&self) -> Option<Duration> {
        let State::Up {
            unanswered, heard, ..
        } = self.state
        else {
            return None;
        };
        Some(heard.max(unanswered?.saturating_sub(PULSE)) + PULSE_BOUND)
    }

    /// Not let in: the PC's screen says why, the head is asked again, and the PC goes home if it stays so.
    pub(super) fn refuse(&mut self, now: Duration, why: String) {
        self.refused.get_or_insert((now, why.clone())).1.clone_from(&why);
        self.disconnect();
        self.state = State::Searching {
            retry_at: now + REFUSED_RETRY,
        };
        self.say(&why);
    }

    pub(super) fn lost(&mut self, now: Duration, why: &str) {
        self.disconnect();
        self.state = State::Searching {
            retry_at: now + self.some_of(self.retry),
        };
        self.retry = (self.retry * 2).min(LAST_RETRY);
        self.say(&format!("{why}; trying again"));
    }

    /// Somewhere in the second half of this wait, to a 1,024th.
    fn some_of(&mut self, wait: Duration) -> Duration {
        let part = u32::try_from(self.random.below(513)).unwrap_or(0);
        wait * (512 + part) / 1024
    }

    pub(super) fn disconnect(&mut self) {
        self.outputs.push_back(Output::Disconnect);
        self.announce(NodeState::Joining);
    }

    pub(super) fn tell_fact(&mut self, key: &str, text: String) {
        let key = key.to_owned();
        self.outputs
            .push_back(Output::Tell(FromAgent::Fact { key, text }));
    }

    pub(super) fn say(&mut self, text: &str) {
        if self.status != text {
            text.clone_into(&mut self.status);
            self.outputs
                .push_back(Output::Tell(FromAgent::Status(text.to_owned())));
        }
    }
}
